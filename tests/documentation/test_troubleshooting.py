"""The page of messages beside the source: it quotes none that is not there, and leaves out none that is stated.

Stated are errors, warnings and notes of the log, notes of the reports, what the viewer's page, its server and the scripts say, the checks'
sentences, and the notes on contours. What is printed as a command's result is quoted where it needs words, and not asked for.

A quote is in backticks in the first column of a table; its … stands for what a message fills in.
"""
import ast
import re
from itertools import islice, product
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "documentation" / "troubleshooting.md").read_text(encoding="utf-8")
MODULES = sorted([*(ROOT / "c2f_nnunet").rglob("*.py"), *(ROOT / "dataset_conversion").rglob("*.py")])
SPEAKING = [ROOT / "c2f_nnunet" / "inference" / "checks.py", ROOT / "c2f_nnunet" / "io" / "rtstruct_in.py"]  # sentences for people all over
OTHERS = [ROOT / "c2f_nnunet" / "web" / "viewer.js", *ROOT.glob("*.sh"), *(ROOT / "scripts").glob("*.sh")]
ERRORS = re.findall(r"^class (\w+)\(", (ROOT / "c2f_nnunet" / "errors.py").read_text(encoding="utf-8"), re.MULTILINE)
# what is called with a message → which argument that is; failed: cli/common.py
STATED = {**dict.fromkeys([*ERRORS, "ArgumentTypeError", "failed", "log.info", "log.warning", "log.error", "notes.append"], 0),
          "self.send_error": -1}
NAMING = ("Check", "_between", "check_place")  # in checks.py: called with a check's name first
GAP = "…"


def quotes(page: str) -> list[str]:
    """What the tables' first columns quote."""
    return [quote for cell in re.findall(r"^\| (`.+?) \|", page, re.MULTILINE) for quote in re.findall(r"`([^`]+)`", cell)]


def pattern(quote: str) -> str:
    return ".*".join(map(re.escape, quote.split(GAP)))


def wordings(node: ast.expr, names: dict[str, list[ast.expr]], depth: int = 3) -> list[str]:
    """What an expression may say, with GAP for what only a run knows. names: variable → the expressions assigned to it."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.FormattedValue(value=inner):
            return wordings(inner, names, depth)
        case ast.JoinedStr(values=parts):
            return ["".join(chosen) for chosen in islice(product(*(wordings(part, names, depth) for part in parts)), 64)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a, b in product(wordings(left, names, depth), wordings(right, names, depth))]
        case ast.IfExp(body=one, orelse=other):
            return wordings(one, names, depth) + wordings(other, names, depth)
        case ast.Name(id=name) if depth and name in names:
            return [text for value in names[name] for text in wordings(value, names, depth - 1)]
    return [GAP]


def assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """Variable → the expressions that a function or module assigns to it."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = list(zip(names, values))
            case ast.Assign(targets=names, value=value):
                pairs = [(name, value) for name in names]
            case ast.NamedExpr(target=name, value=value) | ast.AugAssign(target=name, value=value):
                pairs = [(name, value)]
            case _:
                continue
        for name, value in pairs:
            if isinstance(name, ast.Name):
                found.setdefault(name.id, []).append(value)
    return found


def by_scope(tree: ast.Module) -> Iterator[tuple[ast.AST, dict[str, list[ast.expr]]]]:
    """Every node with the variables of the innermost function around it."""
    scope_of = {node: tree for node in ast.walk(tree)}
    for function in ast.walk(tree):  # from the outside in
        if isinstance(function, (ast.FunctionDef, ast.Lambda)):
            scope_of |= dict.fromkeys(ast.walk(function), function)
    names = {scope: assigned(scope) for scope in set(scope_of.values())}
    yield from ((node, names[scope]) for node, scope in scope_of.items())


def stated(source: str) -> dict[int, list[str]]:
    """Line → the wordings of the error or warning that is stated there; what merely hands on another's sentence is left out."""
    found = {}
    for node, names in by_scope(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and (at := STATED.get(ast.unparse(node.func))) is not None:
            texts = [re.sub(r"%[.\d]*[a-z]", GAP, text) for text in wordings(node.args[at], names)]
            if any(re.search(r"[A-Za-z]", text) for text in texts):
                found[node.lineno] = texts
    return found


def sentences(source: str) -> list[tuple[int, list[str]]]:
    """(line, wordings) of each text of three words or more, but for docstrings and the checks' names."""
    found, silent = [], set()
    for node, names in by_scope(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant() as docstring):
                silent.add(docstring)
            case ast.Call(func=ast.Name(id=called), args=[name, *_]) if called in NAMING:
                silent.add(name)
            case ast.Constant() | ast.JoinedStr() | ast.BinOp() if node not in silent:
                texts = [re.sub(r"{[^}]*}", GAP, text) for text in wordings(node, names)]
                words = max(len(re.findall(r"[A-Za-z_]+", text)) for text in texts)
                silent |= set(ast.walk(node)) if words else set()  # its parts are no texts of their own
                found += [(node.lineno, texts)] if words > 2 else []
    return found


def said_by_script(text: str, ending: str) -> list[str]:
    """What a shell script ends with by `fail`, or the page's script by an Error."""
    called = r"\bnew Error\((?P<q>[\"`])(?P<said>.*?)(?P=q)" if ending == ".js" else r'(?m)\bfail (?P<q>")(?P<said>.*?)"'
    return [re.sub(r"\$\{[^}]*\}|\$\w+", GAP, found["said"]) for found in re.finditer(called, text)]


def all_texts(source: str) -> list[str]:
    """The wordings of every text of a module."""
    return [text for node, names in by_scope(ast.parse(source)) if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp))
            for text in wordings(node, names)]


def test_each_quote_is_in_the_source():
    texts = [text.replace("\n", " ") for path in MODULES for text in all_texts(path.read_text(encoding="utf-8"))]
    texts += [line for path in OTHERS for line in path.read_text(encoding="utf-8").splitlines()]
    source = re.sub(r"%[.\d]*[a-z]", GAP, "\n".join(texts))
    assert quotes(PAGE) and not [quote for quote in quotes(PAGE) if not re.search(pattern(quote), source)]


def test_each_message_is_on_the_page():
    known = [re.compile(pattern(quote), re.DOTALL) for quote in quotes(PAGE)]
    messages = []  # (place, wordings)
    for path in [*MODULES, *OTHERS]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            lines = [*stated(text).items(), *(sentences(text) if path in SPEAKING else [])]
        else:
            lines = [(0, [said]) for said in said_by_script(text, path.suffix)]
        messages += [(f"{path.relative_to(ROOT)}:{line}", texts) for line, texts in lines]
    missing = [f"{place}: {texts[0]}" for place, texts in messages if not any(k.search(text) for k in known for text in texts)]
    assert messages and not missing, "\n".join(missing)


@pytest.mark.parametrize("file, some", [
    ("c2f_nnunet/inference/checks.py", "mean probability …, to be expected are … or more"),
    ("c2f_nnunet/inference/checks.py", "ends … mm above its lower end"),
    ("c2f_nnunet/io/rtstruct_in.py", "referring to no slice: matched by position"),
    ("c2f_nnunet/running/serve.py", "only for this computer"),
    ("c2f_nnunet/running/preprocess.py", "…: removing the stored volumes of …, which is not in the data set any more"),
    ("c2f_nnunet/web/viewer.js", "the list of cases cannot be read (…)"),
    ("quickstart.sh", "quickstart.sh: … needs a value; see ./quickstart.sh --help"),
])  # fmt: skip
def test_where_messages_are_found(file, some):
    text = (ROOT / file).read_text(encoding="utf-8")
    found = [*stated(text).values(), *(texts for _, texts in sentences(text))] if file.endswith(".py") else []
    assert some in [*sum(found, []), *said_by_script(text, Path(file).suffix)]


def test_quotes_are_long_enough_to_tell_messages_apart():
    assert not [quote for quote in quotes(PAGE) if len(re.sub(r"[^A-Za-z]", "", quote)) < 7]


@pytest.mark.parametrize("source, texts", [
    ("raise C2FError(f'{x}: is wrong; mend it')", ["…: is wrong; mend it"]),
    ("def f():\n    return ImageError('a ' + 'b')", ["a b"]),                                    # made here, raised elsewhere
    ("def f():\n    why = 'old' if x else 'new'\n    raise PlanError(f'it is {why}')", ["it is old", "it is new"]),
    ("def f():\n    a, b = 'left', 1\n    raise PlanError(f'{a} of {b}')", ["left of …"]),
    ("log.warning('%s: %.4f of %d', a, b, c)", ["…: … of …"]),
    ("log.info('%s: skipped', x)", ["…: skipped"]),
    ("self.send_error(403, 'not here')", ["not here"]),
    ("self.send_error(404)", None),
    ("notes.append(f'incomplete: {e}')", ["incomplete: …"]),
    ("log.debug('all is well')", None),
    ("raise ValueError('ours')", None),                                                          # no stated error
    ("raise ModelError(str(e))", None),                                                          # another's sentence
])  # fmt: skip
def test_what_a_module_states(source, texts):
    assert list(stated(source).values()) == ([] if texts is None else [texts])


@pytest.mark.parametrize("source, found", [
    ("def f():\n    'What it does, at length.'\n    said = f'in {n} pieces, the largest'", ["in … pieces, the largest"]),
    ("_between('size beside its partner', x, limit, 'far too large')", ["far too large"]),        # a check's name is no sentence
    ("notes = old + [f'{n} contours are left out']", ["… contours are left out"]),
    ("def f():\n    return 'cut ' + ('at its top' if x else 'below') + ' by the scan'",
     ["cut at its top by the scan", "cut below by the scan"]),
    ("A = {'low': 'ends {:.0f} mm above it'}", ["ends … mm above it"]),
    ("x = 'two words'\nf('and', 'prior', 3)", []),
])  # fmt: skip
def test_the_sentences_of_a_module(source, found):
    assert [text for _, texts in sentences(source) for text in texts] == found


@pytest.mark.parametrize("text, ending, found", [
    ('[[ -f $data/x ]] || fail "$data: no ${1#--} there" 2\n    *) fail "unknown \'$1\'" ;;\nfail() {\n', ".sh",
     ["…: no … there", "unknown '…'"]),
    ('throw new Error("no canvas; use another");\nnew Error(`gone (${answer.status})`)', ".js", ["no canvas; use another", "gone (…)"]),
])  # fmt: skip
def test_what_a_script_says(text, ending, found):
    assert said_by_script(text, ending) == found


@pytest.mark.parametrize("quote, text, fits", [
    ("is … of", "a.nii: is 3 of 4", True),
    ("is … of", "a.nii: has 3 of 4", False),
    ("(pid …)", "already running (pid 7); wait", True),
])  # fmt: skip
def test_how_a_quote_fits_a_message(quote, text, fits):
    assert bool(re.search(pattern(quote), text)) == fits


def test_quotes_of_a_page():
    messages = "| message | what to do |\n|---|---|\n| `one …`, `two` (warning) | `no quote` |\n"
    assert quotes(f"{messages}\n| code | meaning |\n|---|---|\n| 0 | `done` |\n") == ["one …", "two"]
