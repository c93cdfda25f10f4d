"""The benchmarks as modules, as they see each other when they are run."""
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_of(monkeypatch):
    """The module of a name in benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module
