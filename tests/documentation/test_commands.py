"""Commands that the pages show exist with these options: the project's own parsers read them."""
import argparse
import re

import pytest

from tests.documentation.markdown import FILES, FOLDER, ROOT, name, read_page
from tests.documentation.shell import CONSOLE, SCRIPTS, parser_of, problem, simple_commands

CONVERTERS = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "dataset_conversion").glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_shell_blocks_could_be_run(path):
    blocks = [block for block in read_page(path).blocks if block.language == "bash"]
    found = [(block.line, problem(words)) for block in blocks for words in simple_commands(block.text)]
    assert not [f"{name(path)}:{line}: {wrong}" for line, wrong in found if wrong]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_commands_within_the_text_have_these_options(path):
    wrong = []
    for span in read_page(path).spans:
        words = span.text.split()
        if len(words) > 1 and (words[0] in ("python", "pip") or words[0].startswith(("c2f_", "./"))):
            wrong += [f"{name(path)}:{span.line}: {said}" for said in [problem(words, whole=False)] if said]
    assert not wrong


@pytest.mark.parametrize("command", [*CONSOLE, *CONVERTERS])
def test_the_example_in_help_could_be_run(command):
    (words,) = simple_commands(parser_of(command).epilog.split("example:")[1])
    assert words[words[0] == "python"] == command and problem(words) is None


@pytest.mark.parametrize("command", CONSOLE)
def test_the_page_of_the_commands_has_it_and_its_help_tells_every_option(command):
    assert re.search(rf"\b{command}\b", (FOLDER / "cli.md").read_text(encoding="utf-8"))
    assert not [action.dest for action in parser_of(command)._actions if action.help in (None, "", argparse.SUPPRESS)]


def test_scripts_are_where_the_commands_say():
    assert all((ROOT / folder).is_dir() for folder in SCRIPTS) and len(CONSOLE) == 8 and CONVERTERS


@pytest.mark.parametrize("text, wrong", [
    ("c2f_train all 0 -d 15 --minutes 40   # a comment", None),
    ("c2f_train all 0 --minuts 40", "c2f_train: unrecognized arguments: --minuts"),
    ("c2f_train all", "c2f_train: the following arguments are required: FOLD"),
    ("c2f_train all 0 --minutes M", "'M' is not a number above 0"),
    ("c2f_traim all 0", "c2f_traim: not a command"),
    ("c2f_crossval -d 15 --compare other=predictions", None),  # an example's folders need not exist
    ("cd x && c2f_view", "c2f_view: the following arguments are required: OUT"),
    ("A=1 C2F_RAW=/data c2f_predict -i in \\\n  -o out > log.txt", None),
    ("python benchmarks/main_job.py --raw RAW --workspace WS -d 15 --minutes 40", None),
    ("python benchmarks/main_job.py --raw RAW -d 15", "benchmarks/main_job.py: the following arguments are required: --workspace"),
    ("python dataset_conversion/pddca.py SRC -d 17 --mapping x.json", "unrecognized arguments: --mapping"),
    ("python dataset_conversion/nothing.py", "dataset_conversion/nothing.py: no such script"),
    ("./quickstart.sh --data D --minutes 3", None),
    ("./quickstart.sh --min 3", "./quickstart.sh: no --min"),
    ("./nothing.sh", "./nothing.sh: no such script"),
    ("./test.sh tests/faults --kills 20 -k name -x", None),
    ("./test.sh tests/nowhere --kill 20", "./test.sh: no --kill, tests/nowhere"),
    ('pip install -c constraints.txt -e ".[test]"', None),
    ('pip install -c constraint.txt ".[tests]"', "pip: no constraint.txt, tests"),
    ("rm -r results", "rm: not a command"),
])  # fmt: skip
def test_a_wrong_command_is_noticed(text, wrong):
    found = [p for words in simple_commands(text) if (p := problem(words))]
    assert len(found) == (wrong is not None) and (wrong or "") in "".join(found)


@pytest.mark.parametrize("text, wrong", [
    ("c2f_predict --rtstruct", None), ("c2f_predict --rtstrukt", "c2f_predict: no option --rtstrukt"),
    ("c2f_train 2d_top 0 -dev cpu", "no option -dev"), ("python benchmarks/step_time.py --turns 3", None),
])  # fmt: skip
def test_part_of_a_command_needs_its_options_only(text, wrong):
    found = problem(text.split(), whole=False)
    assert (found is None) == (wrong is None) and (wrong or "") in (found or "")
