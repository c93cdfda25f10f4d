"""What every command shares: folder options, logging, errors → exit codes, signals."""
from __future__ import annotations

import argparse
import logging
import signal
import sys
from contextlib import contextmanager
from typing import Callable

from ..errors import C2FError, SomeCasesFailed

EXIT_ERROR, EXIT_SOME_FAILED = 1, 3


class ExactParser(argparse.ArgumentParser):
    """Options match exactly. argparse's allow_abbrev=False leaves out options of one dash: -dj would be -djfile, -num 2 would
    be -num_gpus 2, and -device1 a -d with the value evice1."""

    def _get_option_tuples(self, option_string: str) -> list:
        return []


def new_parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser with the house's habits: no abbreviations, an example at the end of --help."""
    shown = argparse.RawDescriptionHelpFormatter
    return ExactParser(prog, description=description, epilog=f"example:\n  {example}", allow_abbrev=False, formatter_class=shown)


def add_folders(p: argparse.ArgumentParser) -> None:
    """-d, -pl and --workspace."""
    p.add_argument("-d", dest="dataset", metavar="ID", help="data set: 15, 015 or Dataset015_Name (default: the only one there is)")
    p.add_argument("-pl", dest="plan", metavar="PLAN", help="plan (default: auto, or the only one made)")
    p.add_argument("--workspace", metavar="DIR", 
                   help="folder holding raw/ preprocessed/ results/ (default: C2F_RAW, C2F_PREPROCESSED, C2F_RESULTS)")


def add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument("-device", choices=("cpu", "cuda", "mps"), help="where to compute (default: the best there is)")


def whole(text: str) -> int:
    """An argparse type: a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive_number(text: str) -> float:
    """An argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def failed(told: object, code: int = EXIT_ERROR) -> int:
    """Say on stderr what is wrong; the exit code."""
    print(f"error: {told}", file=sys.stderr)
    return code


def entry(
    build_parser: Callable[[], argparse.ArgumentParser], body: Callable[[argparse.Namespace], int | None]
) -> Callable[[list[str] | None], int]:
    """A command's main(argv): parses, runs the body, turns stated errors into one line on stderr and exit code 1 (3: some cases).

    So too what the system says where no module foresaw it: a full disk, a folder that cannot be read, no memory.
    """

    def main(argv: list[str] | None = None) -> int:
        args = build_parser().parse_args(argv)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr, force=True)
        logging.getLogger("c2f_nnunet").setLevel(logging.INFO)
        try:
            return body(args) or 0
        except SomeCasesFailed as e:
            return failed(e, EXIT_SOME_FAILED)
        except C2FError as e:
            return failed(e)
        except OSError as e:
            place = f"{e.filename}: " if e.filename else ""
            return failed(f"{place}{e.strerror or e}; check that it is there, its permissions and the free space")
        except MemoryError as e:
            return failed(f"the memory is too small ({str(e) or 'no more is given'}); free some")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return main


class StopRequest:
    """SIGTERM, SIGINT and SIGUSR1 ask the training to stop after its current step; further ones change nothing."""

    def __init__(self):
        self.signal: int | None = None
        self.raises: type[Exception] | None = None
        names = ("SIGTERM", "SIGINT", "SIGUSR1")
        for name in names:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number, frame) -> None:
        first, self.signal = self.signal is None, self.signal or number
        if first and self.raises:
            raise self.raises

    @contextmanager
    def at_once(self, error: type[Exception]):
        """Inside, the first signal raises `error` where it arrives, for long work that leaves nothing half done."""
        if self():
            raise error
        self.raises = error
        try:
            yield
        finally:
            self.raises = None

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 130 if self.signal == signal.SIGINT else 143
