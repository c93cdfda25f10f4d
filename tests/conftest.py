"""Fixtures shared by all tests."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real patients' CTs; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("C2F_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (folder / "raw").is_dir():
        pytest.skip(f"real data not found at {folder}; set C2F_TEST_DATA to run this test")
    return folder
