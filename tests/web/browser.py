"""A headless Chromium for tests: opens an address, lets the page's own scripts run, and gives back the page and what it logged."""
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--enable-logging=stderr",
)  # fmt: skip


class Opened(NamedTuple):
    """The page after its scripts ran, and the lines of its console."""

    dom: str
    console: list[str]


def find() -> str:
    """Chromium's path; the test is skipped where it is not installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium found; install it (Debian: apt-get install chromium) to test the pages in a browser")
    return found


def visit(url: str, profile: Path, *more: str, milliseconds: int = 60000) -> Opened:
    """Open the address and wait until its scripts are done, at most so many milliseconds of the page's own clock."""
    command = [find(), *FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={milliseconds}", *more, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return Opened(done.stdout, re.findall(r"CONSOLE[(:]\S* (.*)", done.stderr))
