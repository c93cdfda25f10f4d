"""How commands are tried: signals given back, refusals that must change nothing, and wrong usage."""
import signal
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def signals():
    """Gives the signals' handlers back after a test: c2f_train takes them over."""
    kept = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def files(root: Path) -> dict[str, int]:
    """Every file below root, and when it was changed."""
    return {str(f): f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}


@pytest.fixture
def fails(capsys):
    def fails(command, tiny, *args) -> str:
        """Runs a command that must fail: its one sentence; nothing may have changed in the workspace."""
        before = files(tiny.root)
        assert command.main(tiny.args(*args)) == 1
        assert files(tiny.root) == before
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith("error: ") and not any("Traceback" in line for line in error)
        return error[-1]

    return fails


@pytest.fixture
def misused(capsys):
    def misused(command, *args) -> str:
        """Runs a command with wrong arguments: argparse's sentence after its usage, exit code 2."""
        with pytest.raises(SystemExit) as end:
            command.main([str(a) for a in args])
        shown = capsys.readouterr()
        name = f"c2f_{command.__name__.rsplit('.', 1)[1]}"
        assert end.value.code == 2 and not shown.out and shown.err.startswith(f"usage: {name} ")
        return shown.err.splitlines()[-1].removeprefix(f"{name}: error: ")

    return misused


@pytest.fixture
def helps(capsys):
    def helps(command) -> str:
        """What --help shows, line breaks taken out."""
        with pytest.raises(SystemExit) as end:
            command.main(["--help"])
        assert end.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    return helps
