"""cli.md names every command, and lists its options as the command has them; after a wanted change, write the lists anew:

PYTHONPATH=. python tests/documentation/test_cli.py
"""
import argparse
import re

import pytest

from tests.documentation.markdown import FOLDER
from tests.documentation.shell import CONSOLE, parser_of

PAGE = FOLDER / "cli.md"
BEFORE, HEADING = "\n## Options\n", "### "


def option_lists() -> str:
    """The end of cli.md: a table of arguments and options for each command."""
    return "".join(f"\n{HEADING}{command}\n\n{_table(parser_of(command))}" for command in CONSOLE)


def _table(parser: argparse.ArgumentParser) -> str:
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    return "".join(["| option | what it does |\n|---|---|\n", *(f"| `{_typed(a)}` | {_told(a)} |\n" for a in actions)])


def _typed(action: argparse.Action) -> str:
    """As it is typed: '-f FOLD …', '-device {cpu,cuda}', 'OUT'."""
    values = action.metavar or ("{" + ",".join(action.choices) + "}" if action.choices else action.dest)
    values = " ".join(values) if isinstance(values, tuple) else values
    return " ".join([*action.option_strings, *([] if action.nargs == 0 else [values]), *(["…"] if action.nargs in ("+", "*") else [])])


def _told(action: argparse.Action) -> str:
    told = re.sub(r"([|<*])", r"\\\1", action.help)
    return told + (" (needed)" if action.required and action.option_strings else "")


def test_every_command_has_a_row():
    rows = [line for line in PAGE.read_text(encoding="utf-8").split(BEFORE)[0].splitlines() if line.startswith("| `")]
    shown = [command for row in rows for command in re.findall(r"`(c2f_\w+)", row.split(" | ")[0])]
    assert shown == list(CONSOLE)


@pytest.mark.parametrize("command", CONSOLE)
def test_every_option_is_told_of_in_words(command):
    for action in parser_of(command)._actions:
        assert action.help and action.help != argparse.SUPPRESS, action
        assert "%" not in action.help or isinstance(action, argparse._HelpAction), "a default of this machine would stand on the page"


def test_the_lists_are_those_of_the_commands():
    text = PAGE.read_text(encoding="utf-8")
    assert text[text.index(BEFORE) :].split(f"\n{HEADING}", 1)[1] == option_lists().split(HEADING, 1)[1], __doc__


def test_what_a_list_shows():
    p = argparse.ArgumentParser()
    p.add_argument("folder", metavar="OUT", help="a folder")
    p.add_argument("-f", nargs="+", required=True, metavar="FOLD", help="3d_<organ>, or a|b")
    p.add_argument("-device", choices=("cpu", "cuda"), help="where")
    p.add_argument("--spacing", nargs=2, metavar=("Y", "X"), help="in mm")
    p.add_argument("--c", dest="resume", action="store_true", help="go on")
    assert _table(p).splitlines()[2:] == [
        "| `OUT` | a folder |", r"| `-f FOLD …` | 3d_\<organ>, or a\|b (needed) |", "| `-device {cpu,cuda}` | where |",
        "| `--spacing Y X` | in mm |", "| `--c` | go on |",
    ]  # fmt: skip


if __name__ == "__main__":
    kept = PAGE.read_text(encoding="utf-8").split(f"\n{HEADING}")[0]
    PAGE.write_text(kept + option_lists(), encoding="utf-8")
