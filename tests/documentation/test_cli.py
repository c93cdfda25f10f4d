"""The page of the commands beside their parsers: every option is there, and none that is not."""
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "documentation" / "cli.md").read_text(encoding="utf-8")
COMMANDS = ("plan_and_preprocess", "train", "predict", "evaluate", "crossval", "view", "export_model", "import_model")
OPTION = r"`(--?[a-z]\w*)[^`]*`"


def section(title: str) -> str:
    """The page's text under a heading of the second level."""
    return re.search(rf"(?ms)^## {title}\n(.*?)(?=^## |\Z)", PAGE)[1]


def options_of_page(command: str) -> set[str]:
    """What the section's table lists, and what it says that the command takes besides."""
    text = section(f"c2f_{command}")
    shared = re.search(r"(?s)Takes (.*?)\.\n", text)
    rows = re.findall(r"(?m)^\| (.*?) \|", text)
    return {name for cell in [*rows, shared[1] if shared else ""] for name in re.findall(OPTION, cell)}


@pytest.mark.parametrize("command", COMMANDS)
def test_options(command):
    parser = importlib.import_module(f"c2f_nnunet.cli.{command}").parser()
    own = {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}
    assert options_of_page(command) == own


def test_what_commands_share_is_explained():
    shared = {name for command in COMMANDS for taken in re.findall(r"(?s)Takes (.*?)\.\n", section(f"c2f_{command}"))
              for name in re.findall(OPTION, taken)}
    assert shared == set(re.findall(OPTION, "".join(re.findall(r"(?m)^\| .*", section("Folders")))))


def test_each_command_has_a_section():
    assert re.findall(r"(?m)^## c2f_(\w+)", PAGE) == list(COMMANDS)
