"""Whether a DICOM object keeps the standard's rules: by lists of the attributes that it asks for, and by David Clunie's dciodvfy."""
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

Rules = dict[str, list[str]]  # sequence ("" for the object itself) → attributes that each of its items must have


def broken_rules(dataset: pydicom.Dataset, type_1: Rules, type_2: Rules, place: str = "") -> list[str]:
    """Missing or empty attributes, and values that break the rules of their representation, in a data set and all within it.

    type_1: what must have a value; it names every sequence that the object may hold. type_2: what must be there and may be empty.
    """
    broken = [f"{place}/{k} has no value" for k in type_1.get(place, ()) if k not in dataset or dataset[k].is_empty]
    broken += [f"{place}/{k} is missing" for k in type_2.get(place, ()) if k not in dataset]
    for element in dataset:
        if element.VR == "SQ":
            assert element.keyword in type_1, element.keyword
            broken += [rule for item in element.value for rule in broken_rules(item, type_1, type_2, element.keyword)]
        elif not element.is_empty and element.keyword != "PixelData":
            for value in element.value if element.VM > 1 else [element.value]:
                text = getattr(value, "original_string", str(value)) if element.VR in ("DS", "IS") else value
                try:
                    pydicom.valuerep.validate_value(element.VR, text, pydicom.config.RAISE)
                except ValueError as e:
                    broken.append(f"{place}/{element.keyword}: {e}")
    return broken


def dciodvfy(path: Path, kind: str) -> tuple[list[str], list[str]]:
    """The errors and the warnings of Debian's dicom3tools on a file, which it must have taken for `kind`; skips where it is missing.

    What the patient's and study's attributes lack for a DICOMDIR is left out: no object can have more of it than its CT has.
    """
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian: apt-get install dicom3tools)")
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    told = (said.stdout + said.stderr).splitlines()
    assert kind in told, told
    return [t for t in told if t.startswith("Error")], [t for t in told if t.startswith("Warning") and "build DICOMDIR" not in t]
