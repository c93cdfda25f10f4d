"""Commands in the pages, compared with the parsers that would read them; nothing is run."""
import argparse
import importlib
import os
import re
import runpy
import shlex
import sys
import warnings
from functools import cache
from itertools import dropwhile
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.documentation.markdown import ROOT

_PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONSOLE = dict(re.findall(r'^(c2f_\w+) = "(c2f_nnunet\.cli\.\w+):main"$', _PROJECT, re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", _PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE))
SCRIPTS = ("benchmarks", "dataset_conversion", "scripts")  # folders of scripts with options
PYTEST = {"-k", "-x"}
OTHERS = {"cd", "cp", "export", "ls", "mkdir", "source"}  # what the pages may use beside this project's own


class _Caught(Exception):
    """Holds the parser of a script that was about to read its command line."""


def simple_commands(text: str) -> list[list[str]]:
    """The words of each command of a shell text, without comments, leading assignments, and the file that output goes to."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        found.append([])
        for word in lexer:
            if set(word) <= set(";&|"):
                found.append([])
            else:
                found[-1].append(word)
    commands = [list(dropwhile(lambda word: re.match(r"\w+=", word), words)) for words in found]
    return [words[: words.index(">")] if ">" in words else words for words in commands if words]


@cache
def parser_of(command: str) -> argparse.ArgumentParser | None:
    """The parser of a console command, or of a script (its path in the repository); None for a script that has none."""
    if command in CONSOLE:
        return importlib.import_module(CONSOLE[command]).parser()
    script = ROOT / command
    if "argparse" not in script.read_text(encoding="utf-8"):
        return None

    def catch(parser, *args):
        raise _Caught(parser)

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what the scripts import
        patched.setattr(argparse.ArgumentParser, "parse_args", catch)
        patched.setattr(sys, "argv", [command])
        patched.syspath_prepend(str(script.parent))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except _Caught as caught:
            return caught.args[0]
    raise AssertionError(f"{command}: ended without reading its command line")


def problem(words: list[str], whole: bool = True) -> str | None:
    """What is wrong with a command. whole: it could be run as it stands; else only its options must exist."""
    command, *args = words
    if command in CONSOLE:
        return _options_problem(command, args, whole)
    if command == "python" and args:
        return _script_problem(args[0], args[1:], whole)
    if command.startswith("./"):
        return _bash_problem(command, args)
    if command == "pip":
        return _pip_problem(args)
    return None if command in OTHERS else f"{command}: not a command that is known here; see OTHERS in tests/documentation/shell.py"


def _script_problem(script: str, args: list[str], whole: bool) -> str | None:
    if not (ROOT / script).is_file():
        return f"{script}: no such script"
    return _options_problem(script, args, whole) if script.split("/")[0] in SCRIPTS else None


def _options_problem(command: str, args: list[str], whole: bool) -> str | None:
    parser = parser_of(command)
    if parser is None:
        return None
    if not whole:
        unknown = [a for a in args if re.match(r"--?[a-zA-Z]", a) and a.split("=")[0] not in parser._option_string_actions]
        return f"{command}: no option {', '.join(unknown)}" if unknown else None

    def error(message):
        raise ValueError(message)

    with patch.object(parser, "error", error), patch.object(Path, "is_dir", return_value=True):  # an example's folders need not exist
        try:
            parser.parse_args(args)
        except ValueError as e:
            return f"{command}: {e}"
        except SystemExit:  # --help
            pass
    return None


def _bash_problem(script: str, args: list[str]) -> str | None:
    """A script of the repository's root: it can be started, its options are in its text, and paths that test.sh is given exist."""
    file = ROOT / script
    if not os.access(file, os.X_OK):
        return f"{script}: no such script that can be started"
    testing = script == "./test.sh"
    known = file.read_text(encoding="utf-8") + ((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8") if testing else "")
    unknown = [a for a in args if a.startswith("-") and not (testing and a in PYTEST) and not re.search(re.escape(a) + r"(?![\w-])", known)]
    missing = [a for a in args if testing and "/" in a and not (ROOT / a).exists()]
    return f"{script}: no {', '.join(unknown + missing)}" if unknown or missing else None


def _pip_problem(args: list[str]) -> str | None:
    """pip install: the constraints are there, and the extras are the project's."""
    files = [b for a, b in zip(args, args[1:]) if a in ("-c", "-r")]
    missing = [f for f in files if not (ROOT / f).is_file()]
    unknown = {extra for a in args for found in re.findall(r"\[([\w,]+)\]", a) for extra in found.split(",")} - EXTRAS
    return f"pip: no {', '.join([*missing, *sorted(unknown)])}" if missing or unknown else None
