"""FAULTS.md, rows 9 to 13: full disks while predicting and preprocessing, preprocessing that is killed, stored volumes that are damaged."""
import hashlib
from pathlib import Path

import pytest

from tests.faults.processes import Command, largest_file, run, survivors, took


def preprocess(tiny, *before, processes=1) -> tuple[int, str]:
    return run(tiny.root / "printed", "plan_and_preprocess", planning(tiny, processes), *before)


def planning(tiny, processes: int) -> list[str]:
    return tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", processes)


def train(tiny, member="3d_Stem") -> tuple[int, str]:
    return run(tiny.root / "printed", "train", tiny.args(member, 0, "-device", "cpu", "-np", 0, "--epochs", 1))


def stored(tiny) -> dict[str, str]:
    """SHA-256 of every file of the store; of a marker without its line of the source files' times, which are a copy's own."""
    root, found = tiny.store.root, {}
    for path in (p for p in root.rglob("*") if p.is_file()):
        lines = path.read_bytes().split(b"\n")
        content = b"\n".join(lines[:1] + lines[2:] if path.suffix == ".done" else lines)
        found[path.relative_to(root).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def test_row_09_disk_full_at_a_label_map(tiny_trained, tmp_path):
    out = tmp_path / "out"
    command = tiny_trained.args("-i", "imagesTs", "-o", out, "-device", "cpu", "--stage", "coarse")
    code, printed = run(tmp_path / "printed", "predict", command, largest_file(500))
    assert code == 1 and "s0.nii.gz: could not be written (File too large); free some space or choose another folder" in printed
    assert "Traceback" not in printed and list(out.iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_row_10_disk_full_at_preprocessing(tiny_raw, tiny_planned, tmp_path, processes):
    tiny = tiny_raw.copy(tmp_path / "w")
    sizes = sorted(p.stat().st_size for p in tiny_planned.store.root.rglob("*.b2nd"))
    code, printed = preprocess(tiny, largest_file(sizes[-1] - 1), processes=processes)
    assert code == 1 and ".b2nd: could not be written (" in printed and "; free some space or choose another folder" in printed
    assert "Traceback" not in printed and not list(tiny.root.rglob(".tmp*"))
    code, printed = preprocess(tiny)
    assert code == 0, printed
    assert stored(tiny) == stored(tiny_planned)


@pytest.mark.parametrize("processes, share", [(1, 1.0), (2, 0.2)])  # starting worker processes takes seconds each time
def test_row_11_killed_while_preprocessing(tiny_raw, tiny_planned, tmp_path, kills, record_property, processes, share):
    """Killed at random moments and started again, until it is done; the store is that of an undisturbed run.

    What was done when it was killed is not done again: no marker is written a second time.
    """
    written: dict[Path, int] = {}

    def start(tiny) -> Command:
        return Command(tiny.root / "printed", "plan_and_preprocess", planning(tiny, processes))

    def begun(command) -> bool:
        return any(path.stat().st_ctime > command.began for path in command.output.parent.rglob("t*.done"))

    def compare(tiny) -> None:
        for path in tiny.store.root.rglob("t*.done"):
            assert written.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, path

    kills = max(1, round(share * kills))
    took_s = took(start(tiny_raw.copy(tmp_path / "timed")), begun)
    record_property("kills", kills)
    places = survivors(start, lambda attempt: tiny_raw.copy(tmp_path / str(attempt)), took_s, kills, 11, begun, compare)
    for runs, tiny in enumerate(places, 1):
        record_property("runs", runs)
        compare(tiny)
        assert stored(tiny) == stored(tiny_planned)
    assert written


FILES = ["t1__Stem_image.b2nd", "t1__Stem_labels.b2nd", "t1__Stem.json"]


@pytest.mark.parametrize("lost", FILES)
def test_row_12_half_of_a_stored_case_is_missing(tiny, lost):
    before = stored(tiny)
    (tiny.store.volumes("3d_Stem") / lost).unlink()
    code, printed = train(tiny)
    assert code == 1 and "3d_Stem: stored files are missing of t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert preprocess(tiny)[0] == 0 and stored(tiny) == before


def test_row_12_a_coarse_record_is_missing(tiny):
    before = stored(tiny)
    (tiny.store.volumes("coarse") / "t1.json").unlink()
    code, printed = train(tiny, "2d_top")
    assert code == 1 and "coarse: stored files are missing of t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert preprocess(tiny)[0] == 0 and stored(tiny) == before


@pytest.mark.parametrize("harmed", FILES)
def test_row_13_a_flipped_bit_in_a_stored_volume(tiny, harmed):
    before = stored(tiny)
    path = tiny.store.volumes("3d_Stem") / harmed
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, printed = train(tiny)
    assert code == 1 and f"{harmed}: stored volume is damaged (its" in printed and "; run c2f_plan_and_preprocess again" in printed
    assert preprocess(tiny)[0] == 0 and stored(tiny) == before  # what the error asks for mends it
