"""The house rules that can be read from the source: imports point down, each library has one door, no pickle, tests mirror the package."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "c2f_nnunet"
LAYERS = (  # a room imports rooms of later rows only; the rooms of one row never import each other
    {"cli"},
    {"running"},
    {"training", "inference", "evaluation"},
    {"network", "preparing"},
    {"planning"},
    {"data"},
    {"io"},
    {"workspace", "geometry", "labels"},
    {"tg263"},
    {"sides"},
    {"errors"},
)
AUGMENTING = {"training/augment.py", "training/sampler.py"}
DOORS = {  # library or name → the rooms or files that may import or use it
    "nibabel": {"io"},
    "pydicom": {"io"},
    "highdicom": {"io"},
    "SimpleITK": {"io", "preparing"},  # resampling
    "SimpleITK.ReadImage": {"io"},
    "SimpleITK.WriteImage": {"io"},
    "SimpleITK.ImageFileReader": {"io"},
    "SimpleITK.ImageFileWriter": {"io"},
    "SimpleITK.ImageSeriesReader": {"io"},
    "pandas": {"evaluation", "running", "cli"},
    "batchgenerators": AUGMENTING,
    "batchgeneratorsv2": AUGMENTING,
    "os.environ": {"workspace.py"},
    "os.getenv": {"workspace.py"},
    "os.putenv": {"workspace.py"},
    "print": {"cli"},
} | dict.fromkeys(
    # what can run code that a file holds, or import a name that a file holds: nowhere
    ["pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "runpy", "importlib.import_module", "importlib.util", "torch.load",
     "torch.save", "torch.jit.load", "torch.package", "eval", "exec", "__import__", "numpy.load(allow_pickle)"],
    set(),
)  # fmt: skip


def used_names(source: str, package: str) -> list[tuple[str, int]]:
    """Dotted names that a module imports or uses, aliases and relative imports resolved, with their lines.

    package: dotted name of the package that the module lies in. Bare calls are listed by their own name ("print").
    """
    tree, names, alias = ast.parse(source), [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                names.append((a.name, node.lineno))
                alias[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            for a in node.names:
                names.append((f"{module}.{a.name}", node.lineno))
                alias[a.asname or a.name] = f"{module}.{a.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := dotted_name(node, alias)):
            names.append((dotted, node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in alias:
            names.append((node.id, node.lineno))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", True) is not False:
            names.append(("numpy.load(allow_pickle)", node.value.lineno))
    return names


def dotted_name(node: ast.expr, alias: dict[str, str]) -> str | None:
    """np.random.normal → numpy.random.normal, for attributes of imported modules; None for other expressions."""
    if isinstance(node, ast.Name):
        return alias.get(node.id)
    if isinstance(node, ast.Attribute) and (base := dotted_name(node.value, alias)):
        return f"{base}.{node.attr}"
    return None


def layer(room: str) -> int | None:
    return next((i for i, rooms in enumerate(LAYERS) if room in rooms), None)


def broken_rules(source: str, place: str) -> list[str]:
    """What a module breaks; place: its path below c2f_nnunet, such as 'io/images.py'."""
    room = place.split("/")[0].removesuffix(".py")
    package = ".".join(["c2f_nnunet", *place.split("/")[:-1]])
    broken = set()
    for name, line in used_names(source, package):
        parts = name.split(".")
        if parts[0] == "c2f_nnunet" and len(parts) > 1 and parts[1] != room:
            above, below = layer(room), layer(parts[1])
            if above is not None and below is not None and below <= above:
                broken.add(f"{place}:{line}: {room} must not import {parts[1]}")
        for door, allowed in DOORS.items():
            if (name == door or name.startswith(door + ".")) and not {room, place} & allowed:
                broken.add(f"{place}:{line}: {door} is not used here, only in {sorted(allowed) or 'no module'}")
    return sorted(broken)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_keeps_the_rules(path):
    place = path.relative_to(PACKAGE).as_posix()
    assert not broken_rules(path.read_text(encoding="utf-8"), place)
    assert layer(place.split("/")[0].removesuffix(".py")) is not None or place == "__init__.py", f"{place}: a room without a layer"


@pytest.mark.parametrize("place, source, word", [
    ("data/dataset.py", "from ..planning.plan import Plan", "must not import planning"),  # upwards
    ("data/dataset.py", "from c2f_nnunet.cli import train", "must not import cli"),
    ("data/dataset.py", "from .. import planning", "must not import planning"),
    ("data/dataset.py", "import c2f_nnunet.running.graph", "must not import running"),
    ("training/train.py", "from ..inference import tiles", "must not import inference"),  # sideways
    ("network/unet.py", "def f():\n    from ..preparing.views import x", "must not import preparing"),  # inside a function
    ("data/body.py", "import nibabel as nib", "nibabel"),
    ("preparing/resample.py", "import SimpleITK as sitk\nsitk.ReadImage('x')", "SimpleITK.ReadImage"),
    ("evaluation/metrics.py", "import SimpleITK", "SimpleITK"),
    ("data/splits.py", "import pandas as pd", "pandas"),
    ("training/train.py", "from batchgeneratorsv2.transforms import x", "batchgeneratorsv2"),
    ("running/graph.py", "import os\nos.environ['A']", "os.environ"),
    ("running/graph.py", "from os import environ", "os.environ"),
    ("training/checkpoint.py", "import torch\ntorch.load('x')", "torch.load"),
    ("training/checkpoint.py", "from torch import save", "torch.save"),
    ("training/checkpoint.py", "import torch as t\nt.jit.load('x')", "torch.jit.load"),
    ("network/unet.py", "from importlib import import_module", "importlib.import_module"),
    ("network/unet.py", "eval('1')", "eval"),
    ("data/store.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
    ("data/store.py", "print(1)", "print"),
])  # fmt: skip
def test_a_broken_rule_is_noticed(place, source, word):
    assert any(word in rule for rule in broken_rules(source, place))


@pytest.mark.parametrize("place, source", [
    ("running/graph.py", "from ..training.train import x\nfrom ..inference import cascade\nfrom ..errors import C2FError"),
    ("io/images.py", "import nibabel\nimport SimpleITK as sitk\nsitk.ReadImage('x')"),
    ("preparing/resample.py", "import SimpleITK as sitk\nsitk.Resample(x)"),
    ("training/checkpoint.py", "import safetensors.torch\nsafetensors.torch.save({})\nimport torch\ntorch.loader"),
    ("training/train.py", "network.eval()\nre.compile('x')"),
    ("data/store.py", "import numpy as np\nnp.save('x', y, allow_pickle=False)"),
    ("labels.py", "from .errors import DatasetError"),
    ("cli/train.py", "print(1)\nimport os\nos.cpu_count()"),
])  # fmt: skip
def test_what_is_allowed_passes(place, source):
    assert broken_rules(source, place) == []


def test_every_module_has_its_own_test_file():
    modules = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]
    expected = [ROOT / "tests" / module.with_name(f"test_{module.name}") for module in modules]
    missing = [path.relative_to(ROOT).as_posix() for path in expected if not path.is_file()]
    assert modules and not missing


def test_tests_that_are_named_elsewhere_are_there():
    named = {cited for path in (ROOT / "tests").rglob("*.py")
             for cited in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", path.read_text(encoding="utf-8"))}
    missing = [(file, test) for file, test in named if f"def {test}" not in (ROOT / file).read_text(encoding="utf-8")]
    assert named and not missing


COMMANDS = re.findall(r'^c2f_\w+ = "c2f_nnunet\.cli\.(\w+):main"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("folder", ["c2f_nnunet", "benchmarks", "dataset_conversion", "scripts", "tests"])
def test_every_name_is_defined_and_every_import_used(folder):
    """Also where no test goes: a script that is run once a month must not end in a NameError."""
    done = subprocess.run([sys.executable, "-m", "pyflakes", folder], cwd=ROOT, capture_output=True, text=True)
    told = [line for line in done.stdout.splitlines() if "'highdicom' imported but unused" not in line]  # it is only asked whether it is there
    assert not done.stderr and not told, "\n".join(told)


def test_what_lies_beside_the_source_is_installed_with_it():
    """Templates, the viewer, NiiVue: without them an installed package would fail where the source tree does not."""
    globs = ast.literal_eval(re.search(r'^"c2f_nnunet" = (\[.*\])$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1])
    installed = {path for glob in globs for path in PACKAGE.glob(glob)}
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there and there == {path for path in installed if path.is_file()}


def test_the_eight_commands_are_installed():
    assert COMMANDS == ["plan_and_preprocess", "train", "predict", "evaluate", "crossval", "export_model", "import_model", "view"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_because_it_does_not_import_torch(command):
    code = f"""
import sys
sys.argv = ["c2f_{command}", "--help"]
from c2f_nnunet.cli import {command}
try:
    {command}.main()
except SystemExit as end:
    assert not end.code, end.code
print("\\nheavy:", [m for m in ("torch", "monai", "matplotlib") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout
    assert "usage:" in done.stdout and "example" in done.stdout.lower()
