"""What the tests of bad input share: ways to harm a file, and commands that must refuse it, or skip it, and change nothing else."""
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Callable, NamedTuple

import nibabel as nib
import numpy as np

from c2f_nnunet.cli import plan_and_preprocess, predict
from c2f_nnunet.io.images import read_image, read_label, write_label, write_volume

Harm = Callable[[Path], None]


IMAGE, LABEL = "imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"
DAMAGED = r"(truncated|cannot be read|header|damaged|does not begin as|not in the file itself).*; (copy|export|save)"


class Fault(NamedTuple):
    """How a file is harmed, and the pattern of what must be told of it."""

    harm: Harm
    told: str


# Files


def state(*roots: Path) -> dict[str, bytes]:
    """Every file below the roots, and what it holds."""
    return {str(f): f.read_bytes() for root in roots for f in root.rglob("*") if f.is_file()}


def cut(missing: int) -> Harm:
    """Without its last bytes."""
    return lambda path: path.write_bytes(path.read_bytes()[:-missing])


def kept(count: int) -> Harm:
    """Its first bytes alone."""
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def flipped(at: int) -> Harm:
    """With one bit of one byte flipped."""

    def harm(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return harm


def header(**fields) -> Harm:
    """A .nii.gz with header fields set in its bytes, past nibabel's own checks."""

    def harm(path: Path) -> None:
        content = gzip.decompress(path.read_bytes())
        raw = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
        for name, value in fields.items():
            raw[name] = value
        path.write_bytes(gzip.compress(raw.tobytes() + content[348:]))

    return harm


def voxels(change: Callable[[np.ndarray], np.ndarray], dtype=np.float32) -> Harm:
    """A NIfTI file with other voxels (i, j, k), in the same place."""

    def harm(path: Path) -> None:
        image = nib.load(path)
        array = change(np.asarray(image.dataobj).astype(dtype))
        nib.Nifti1Image(array, image.affine, dtype=array.dtype).to_filename(path)

    return harm


def at(*values) -> Callable[[np.ndarray], np.ndarray]:
    """The first voxels along the first axis set to these values."""

    def change(array: np.ndarray) -> np.ndarray:
        array[: len(values), 0, 0] = values
        return array

    return change


def affine(change: Callable[[np.ndarray], np.ndarray]) -> Harm:
    """A NIfTI file in another place."""

    def harm(path: Path) -> None:
        image = nib.load(path)
        nib.Nifti1Image(np.asarray(image.dataobj), change(image.affine.copy())).to_filename(path)

    return harm


def convert(raw: Path, ending: str) -> None:
    """A raw data set's files in another format, and its dataset.json."""
    for path in sorted(raw.glob("*/*.nii.gz")):
        target = path.with_name(path.name.removesuffix(".nii.gz") + ending)
        if path.parent.name.startswith("images"):
            image = read_image(path)
            write_volume(target, image.array, image.geometry)
        else:
            label = read_label(path)
            write_label(target, label.array, label.source)
        path.unlink()
    edit_json(raw / "dataset.json", lambda d: d | {"file_ending": ending})


def edit_json(path: Path, change: Callable[[dict], dict]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


# Commands


def plan(tiny, *args) -> int:
    return plan_and_preprocess.main(tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 1, *args))


def segment(tiny, source: Path, out: Path, *args) -> int:
    return predict.main(tiny.args("-i", source, "-o", out, "-d", 901, "-device", "cpu", "--disable_tta", *args))


def error(shown: str) -> str:
    """The one stated error in what stderr shows."""
    assert "Traceback" not in shown, shown
    before, *errors = re.split(r"(?m)^error: ", shown)
    assert len(errors) == 1, shown
    return errors[0]


def told_of(message: str, name: str, pattern: str) -> None:
    """Some line of the message names the file and then says the pattern."""
    lines = [line for line in re.split(r"\n|(?<=file); (?=bad)", message) if name in line]
    assert any(re.search(pattern, line[line.index(name):]) for line in lines), (name, pattern, message)


def refused_by_planning(tiny, capsys, where: str, faults: dict[str, Fault]) -> None:
    """Planning with each fault in one case's file (`where`, of the case's id) names every one of them and changes nothing."""
    for case, fault in faults.items():
        fault.harm(tiny.raw / where.format(case))
    before = state(tiny.root)
    capsys.readouterr()
    assert plan(tiny) == 1
    message = error(capsys.readouterr().err)
    assert state(tiny.root) == before
    assert f"{len(faults)} of 7 training cases cannot be used" in message
    for case, fault in faults.items():
        told_of(message, case, fault.told)


def skipped_by_prediction(tiny, tmp_path: Path, capsys, faults: list[Fault], ending: str = ".nii.gz") -> None:
    """Prediction of a good scan, and of one with each fault, skips and names these alone."""
    source, out = tmp_path / "scans", tmp_path / "out"
    source.mkdir()
    good = tiny.raw / "imagesTs" / f"s0_0000{ending}"
    shutil.copy(good, source / good.name)
    for i, fault in enumerate(faults):
        bad = source / f"bad{i}_0000{ending}"
        shutil.copy(good, bad)
        fault.harm(bad)
    out.mkdir()
    (out / f"bad0{ending}").write_text("an older result")
    before = state(source)
    capsys.readouterr()
    assert segment(tiny, source, out) == 3
    message = error(capsys.readouterr().err)
    assert state(source) == before and (out / f"bad0{ending}").read_text() == "an older result"
    assert message.startswith(f"{len(faults)} of {len(faults) + 1} cases failed, the others are done: ")
    for i, fault in enumerate(faults):
        told_of(message, f"bad{i}_0000{ending}", fault.told)
    assert {f.name for f in out.iterdir()} == {"checks.json", "dataset.json", "s0.json", f"s0{ending}", f"bad0{ending}"}
    assert read_label(out / f"s0{ending}").array.any()
