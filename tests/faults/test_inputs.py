"""FAULTS rows 22 to 37, 40 and 41: bad scans, label maps and data sets, through the commands."""
import json
import shutil
from itertools import permutations, product
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from c2f_nnunet.cli import evaluate, train
from c2f_nnunet.data.fingerprint import Fingerprint
from c2f_nnunet.data.store import Store
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_label, write_volume
from c2f_nnunet.running import model, planning
from c2f_nnunet.running import predict as running
from tests.faults.inputs import (
    Fault, affine, at, convert, cut, edit_json, error, flipped, header, kept, plan, refused_by_planning, segment, skipped_by_prediction,
    state, told_of, voxels,
)  # fmt: skip

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
IMAGE, LABEL = "imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"
DAMAGED = r"(truncated|cannot be read|header|damaged|does not begin as|not in the file itself).*; (copy|export|save)"


@pytest.fixture
def planned(tiny_planned, tmp_path):
    return tiny_planned.copy(tmp_path / "planned")


@pytest.fixture
def refuses(planned, capsys):
    """Planning refuses these faults, one per case."""

    def refuses(faults: list[Fault], where: str = IMAGE) -> None:
        refused_by_planning(planned, capsys, where, {f"t{i}": fault for i, fault in enumerate(faults)})

    return refuses


@pytest.fixture
def skips(tiny_trained, tmp_path, capsys):
    """Prediction skips these faults, one per scan."""
    return lambda faults: skipped_by_prediction(tiny_trained, tmp_path, capsys, faults)


@pytest.fixture
def preprocessing_refuses(planned, capsys, monkeypatch):
    """Files that were sound when the data set was verified, and are harmed when they are preprocessed."""

    def refuses(harmed: str, fault: Fault) -> None:
        verified = records.read(Fingerprint, planned.folder.fingerprint)
        monkeypatch.setattr(planning, "fingerprint", lambda *args: verified)
        fault.harm(planned.raw / harmed)
        before = state(planned.root)
        assert plan(planned) == 1
        assert state(planned.root) == before
        told_of(error(capsys.readouterr().err), harmed.split("/")[1], fault.told)

    return refuses


# Damaged files


CUT = [Fault(cut(1), DAMAGED), Fault(cut(3000), DAMAGED), Fault(kept(200), DAMAGED), Fault(kept(0), DAMAGED)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_22_truncated_files_at_planning(planned, capsys, ending):
    if ending != ".nii.gz":
        convert(planned.raw, ending)
    faults = {f"t{i}": fault for i, fault in enumerate(CUT)}
    refused_by_planning(planned, capsys, f"imagesTr/{{}}_0000{ending}", faults)


def test_row_22_truncated_labels_at_planning(refuses):
    refuses(CUT[2:], LABEL)


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_22_truncated_files_at_prediction(tiny_trained, tmp_path, capsys, ending):
    tiny = tiny_trained.copy(tmp_path / "w")
    if ending != ".nii.gz":
        convert(tiny.raw, ending)
        edit_json(tiny.folder.plan, lambda p: p | {"file_ending": ending})
    skipped_by_prediction(tiny, tmp_path, capsys, CUT, ending)


@pytest.mark.parametrize("harmed", ["imagesTr/t2_0000.nii.gz", "labelsTr/t2.nii.gz"])
def test_row_22_truncated_between_verifying_and_preprocessing(preprocessing_refuses, harmed):
    preprocessing_refuses(harmed, Fault(kept(200), DAMAGED))


# checksum, length, data, and the trailer cut off
GZIP = [Fault(flipped(-8), DAMAGED), Fault(flipped(-4), DAMAGED), Fault(flipped(-3000), DAMAGED), Fault(cut(8), DAMAGED)]


def test_row_23_gzip_damage_at_planning(refuses):
    refuses(GZIP)


def test_row_23_gzip_damage_at_prediction(skips):
    skips(GZIP)


@pytest.mark.parametrize("byte", [-8, -4])
def test_row_23_gzip_damage_between_verifying_and_preprocessing(preprocessing_refuses, byte):
    preprocessing_refuses("imagesTr/t1_0000.nii.gz", Fault(flipped(byte), DAMAGED))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_row_23_damage_inside_other_compressed_files(planned, tiny_trained, tmp_path, capsys, ending):
    convert(planned.raw, ending)
    faults = [Fault(flipped(-2), DAMAGED), Fault(flipped(-3000), DAMAGED)]
    refused_by_planning(planned, capsys, f"imagesTr/{{}}_0000{ending}", {f"t{i}": f for i, f in enumerate(faults)})
    tiny = tiny_trained.copy(tmp_path / "w")
    convert(tiny.raw, ending)
    edit_json(tiny.folder.plan, lambda p: p | {"file_ending": ending})
    skipped_by_prediction(tiny, tmp_path, capsys, faults, ending)


# Voxels


NOT_FINITE = [
    Fault(voxels(at(np.nan)), "1 of [0-9]+ voxels are NaN or infinite; export the image again"),
    Fault(voxels(at(np.inf, -np.inf)), "2 of [0-9]+ voxels are NaN or infinite; export the image again"),
    Fault(voxels(at(1e300), np.float64), "1 of [0-9]+ voxels are NaN or infinite"),  # beyond what a network computes with
]


def test_row_24_voxels_that_are_no_numbers_at_planning(refuses):
    refuses(NOT_FINITE)


def test_row_24_voxels_that_are_no_numbers_at_prediction(skips):
    skips(NOT_FINITE)


def test_row_24_voxels_that_are_no_numbers_at_preprocessing(preprocessing_refuses):
    preprocessing_refuses("imagesTr/t3_0000.nii.gz", NOT_FINITE[0])


CONSTANT = [
    Fault(voxels(np.zeros_like), "every voxel is 0, so it shows nothing; export the image again"),
    Fault(voxels(lambda a: np.full_like(a, -1024)), "every voxel is -1024, so it shows nothing"),
]


def test_row_25_an_image_of_one_value_at_planning(refuses):
    refuses(CONSTANT)


def test_row_25_an_image_of_one_value_at_prediction(skips):
    skips(CONSTANT)


def colours(path) -> None:
    image = nib.load(path)
    rgb = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, image.affine).to_filename(path)


NO_VOLUME = [
    Fault(voxels(lambda a: np.stack([a, a], -1)), "not three-dimensional; give one 3D image per file"),
    Fault(voxels(lambda a: a[:, :, 0]), "not three-dimensional"),
    Fault(voxels(lambda a: a[:, :, :1]), r"its shape \(1, .* is no volume; give a 3D image"),
    Fault(colours, "colours or complex numbers.*export it as a greyscale image"),
]


def test_row_26_what_is_no_greyscale_volume_at_planning(refuses):
    refuses(NO_VOLUME)


def test_row_26_what_is_no_greyscale_volume_at_prediction(skips):
    skips(NO_VOLUME)


# Grids


def moved(column: int, mm: float):
    def change(a: np.ndarray) -> np.ndarray:
        a[column, 3] += mm
        return a

    return affine(change)


def turned(degrees: float):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return affine(lambda a: np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ a)


def test_row_27_a_label_in_another_place(refuses):
    tolerance = r"\(its corners may be 0\.05 voxels apart\); export the label on the image grid"
    refuses([
        Fault(moved(0, 4), rf"label origin \(x, y, z\) .* mm differs from image .* mm {tolerance}"),
        Fault(moved(2, -0.3), rf"label origin .* {tolerance}"),
        Fault(turned(2), rf"label direction .* differs from image .* {tolerance}"),
        Fault(affine(lambda a: a @ np.diag([-1.0, 1, 1, 1])), rf"label (direction|origin) .* {tolerance}"),  # left and right swapped
    ], LABEL)


def test_row_28_a_label_of_another_grid(refuses):
    refuses([
        Fault(voxels(lambda a: a[:-1], np.uint8), r"label shape .* differs from image .*; export the label on the image grid"),
        Fault(voxels(lambda a: a[::2, ::2, ::2], np.uint8), "label shape .* differs from image"),
        Fault(affine(lambda a: a @ np.diag([1.1, 1, 1, 1])), r"label spacing \(z, y, x\) 4, 4, 4.4 mm differs from image 5, 4, 4 mm|"
              r"label spacing \(z, y, x\) .*4\.4 mm differs from image"),
    ], LABEL)


def spaced(mm: float):
    """The header's spacing along x, in pixdim and in the sform, so that neither contradicts the other."""
    return header(pixdim=[1, mm, 4, 4, 0, 0, 0, 0], srow_x=[-mm, 0, 0, 0])


IMPOSSIBLE_SPACING = [
    Fault(spaced(mm), rf"(spacing .*{said}.* mm is not within 0\.05 to 50 mm; mend the header|header|affine)")
    for mm, said in ((0.0, "0"), (-4.0, ""), (0.001, "0.001"), (400.0, "400"), (np.nan, "nan"))
]


def test_row_29_impossible_spacing_at_planning(refuses):
    refuses(IMPOSSIBLE_SPACING)


def test_row_29_impossible_spacing_at_prediction(skips):
    skips(IMPOSSIBLE_SPACING)


def test_row_30_axes_swapped_in_one_case(tiny_raw, tmp_path, capsys):
    """Slices 8 mm apart with pixels of 2 mm; in one case the header has it the other way round."""
    tiny = tiny_raw.copy(tmp_path / "w")
    shutil.rmtree(tiny.root / "preprocessed")
    for case in [f"t{i}" for i in range(7)]:
        for where in (IMAGE, LABEL):
            path = tiny.raw / where.format(case)
            array = np.asarray(nib.load(path).dataobj)
            spacing = np.diag([-8.0, -2, 2, 1] if case == "t5" else [-2.0, -2, 8, 1])
            nib.Nifti1Image(array, spacing).to_filename(path)
    assert plan(tiny, "--no_pp") == 0
    told = r"t5: spacing (z, y, x) 2, 2, 8 mm fits the median 8, 2, 2 mm only with its axes swapped; check the file's header"
    assert f"WARNING {told}" in capsys.readouterr().err.splitlines()
    assert told in json.loads(tiny.folder.fingerprint.read_text())["warnings"]


ALL_48 = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def in_orientation(path, target, axes, signs) -> None:
    """The same voxels in the same places of the world, stored in another order."""
    image = nib.load(path)
    array, turn = np.asarray(image.dataobj), np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, signs)):
        turn[old, new] = sign
        turn[old, 3] = 0 if sign > 0 else array.shape[old] - 1
    turned = array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    nib.Nifti1Image(turned, image.affine @ turn).to_filename(target)


def test_row_31_forty_eight_orientations_at_preprocessing(tiny_raw, tmp_path):
    tiny = tiny_raw.copy(tmp_path / "w")
    shutil.rmtree(tiny.root / "preprocessed")
    for i, orientation in enumerate(ALL_48):
        for where in (IMAGE, LABEL):
            in_orientation(tiny.raw / where.format("t2"), tiny.raw / where.format(f"o{i:02}"), *orientation)
    for case in [f"t{i}" for i in range(7)]:
        for where in (IMAGE, LABEL):
            (tiny.raw / where.format(case)).unlink()
    edit_json(tiny.raw / "dataset.json", lambda d: {k: v for k, v in d.items() if k not in ("annotated", "numTraining")})
    assert plan(tiny) == 0
    folders = {f.parent for f in tiny.store.root.rglob("*.b2nd")}
    assert len(folders) == 3  # the views' volumes, and the crops of each fine member
    for folder in folders:
        by_organ: dict[str, list] = {}
        for volume in Store(folder).read():
            by_organ.setdefault(volume.record.id[3:], []).append(volume)
        for first, *others in by_organ.values():
            assert len(others) == 47
            for other in others:
                assert np.array_equal(other.image[:], first.image[:]) and np.array_equal(other.labels[:], first.labels[:])
                np.testing.assert_allclose(other.record.geometry.origin_mm, first.record.geometry.origin_mm, atol=1e-4)
                np.testing.assert_allclose(other.record.geometry.direction, first.record.geometry.direction, atol=1e-6)


def test_row_31_forty_eight_orientations_at_prediction(tiny_trained, tmp_path):
    source, out = tmp_path / "scans", tmp_path / "out"
    source.mkdir()
    for i, orientation in enumerate(ALL_48):
        in_orientation(tiny_trained.raw / "imagesTs" / "s0_0000.nii.gz", source / f"o{i:02}_0000.nii.gz", *orientation)
    assert segment(tiny_trained, source, out) == 0
    first = read_label(out / "o00.nii.gz")
    assert set(np.unique(first.array)) == {0, 1, 2, 3}
    for i in range(48):
        name, found = f"o{i:02}", read_label(out / f"o{i:02}.nii.gz")
        assert np.array_equal(found.array, first.array), ALL_48[i]
        np.testing.assert_allclose(found.geometry.origin_mm, first.geometry.origin_mm, atol=1e-4)
        scan, label = nib.load(source / f"{name}_0000.nii.gz"), nib.load(out / f"{name}.nii.gz")
        assert np.array_equal(scan.affine, label.affine) and scan.shape == label.shape


CONTRADICTORY = [
    Fault(header(qform_code=1, qoffset_x=55.0), "sform and qform place a corner .* mm apart .*; mend the header"),
    Fault(header(srow_x=[-4, 0.5, 0, 0]), "pixdim|its axes are not at right angles .*: a sheared grid; resample it to a rectangular one"),
    Fault(header(srow_z=[0.1, 0, 4, 0]), "its axes are not at right angles .*: a sheared grid; resample it"),
    Fault(header(sform_code=0, qform_code=0), "neither sform nor qform is set, so left and right are unknown"),
]


def test_row_32_headers_that_contradict_themselves_at_planning(refuses):
    refuses(CONTRADICTORY)


def test_row_32_headers_that_contradict_themselves_at_prediction(skips):
    skips(CONTRADICTORY)


# Labels


def test_row_33_labels_that_cannot_be(refuses):
    remedy = "export the label map again"
    refuses([
        Fault(voxels(at(9, 9, 77), np.uint8), r"labels that dataset.json does not declare: 9 \(2 voxels\), 77 \(1 voxels\); declare or"),
        Fault(voxels(at(0.5, 0.5, 2.25)), rf"whole numbers from 0 to 65535 but it holds 0\.5 \(2 voxels\), 2\.25 \(1 voxels\); {remedy}"),
        Fault(voxels(at(-1, -3), np.int16), rf"it holds -3 \(1 voxels\), -1 \(1 voxels\); {remedy}"),
        Fault(voxels(at(np.nan)), rf"it holds nan \(1 voxels\); {remedy}"),
    ], LABEL)


def three_hundred(plan_json: dict) -> dict:
    """The plan of a model that tells 300 organs apart, whose networks are never asked."""
    ids = [*range(1, 300), 1000]
    return plan_json | {"labels": {"organs": [f"Organ{i}" for i in ids], "ids": ids}}


def test_row_34_three_hundred_labels(tiny_trained, tmp_path, monkeypatch):
    """What a cascade finds of 300 organs is what the file holds, and what c2f_evaluate scores."""
    labels = SimpleNamespace(**three_hundred({})["labels"])
    scan = nib.load(tiny_trained.raw / "imagesTs" / "s1_0000.nii.gz")
    channels = np.arange(np.prod(scan.shape)).reshape(scan.shape[::-1]) % 301
    whole = tiny_trained.model.plan.labels.from_names({"background": 0, **dict(zip(labels.organs, labels.ids))})
    cascade = SimpleNamespace(plan=SimpleNamespace(labels=whole), merge_weights=None)
    monkeypatch.setattr(model, "build_cascade", lambda *args: (cascade, {"2d_top": (0,)}))
    prepared = SimpleNamespace(geometry=Geometry((1, 1, 1), (1.0, 1.0, 1.0)), anchor_index=(0.0, 0.0, 0.0))
    monkeypatch.setattr(running, "run_coarse", lambda *args: SimpleNamespace(located={}, prepared=prepared))
    monkeypatch.setattr(running, "stage_maps", lambda *args: iter(()))
    monkeypatch.setattr(running, "merge", lambda *args: SimpleNamespace(channels=channels.astype(np.uint16), reports=()))
    out, truth = tmp_path / "out", tmp_path / "truth"
    (tmp_path / "in").mkdir()
    shutil.copy(tiny_trained.raw / "imagesTs" / "s1_0000.nii.gz", tmp_path / "in")
    assert segment(tiny_trained, tmp_path / "in", out) == 0
    found = read_label(out / "s1.nii.gz")
    assert found.array.dtype == np.uint16 and nib.load(out / "s1.nii.gz").get_data_dtype() == np.uint16
    assert np.array_equal(found.array, np.array([0, *labels.ids])[channels])

    write_volume(truth / "s1.nii.gz", np.array([0, *labels.ids], np.uint16)[channels], found.geometry)
    (out / "dataset.json").unlink()  # that of the three organs
    assert evaluate.main([str(truth), str(out), "-np", "1"]) == 0
    scores = pd.read_csv(out / "per_case.csv")
    assert scores["organ"].nunique() == 300 and (scores["dsc"] == 1).all()


# Data sets


def test_row_35_missing_files_are_all_listed(planned, capsys):
    for name in ("imagesTr/t1_0000.nii.gz", "imagesTr/t4_0000.nii.gz", "labelsTr/t2.nii.gz"):
        (planned.raw / name).unlink()
    before = state(planned.root)
    assert plan(planned) == 1 and state(planned.root) == before
    message = error(capsys.readouterr().err)
    assert "3 files of training cases are missing: imagesTr/t1_0000.nii.gz, imagesTr/t4_0000.nii.gz, labelsTr/t2.nii.gz; add" in message


def without(label: int):
    return voxels(lambda a: np.where(a == label, 0, a).astype(np.uint8), np.uint8)


def test_row_36_an_organ_that_no_case_shows_at_planning(planned, capsys):
    for case in [f"t{i}" for i in range(7)]:
        without(2)(planned.raw / LABEL.format(case))
    before = state(planned.root)
    assert plan(planned) == 1 and state(planned.root) == before
    message = error(capsys.readouterr().err)
    assert "Gland_R is absent in every case; remove it from dataset.json's labels or add cases that show it" in message


def test_row_36_an_organ_that_the_held_out_case_lacks_at_training(planned):
    """t3 has no right gland: its Dice is undefined there, not 0, and the mean is over the other two."""
    rest = ["t0", "t1", "t2", "t4", "t5", "t6"]
    planned.folder.splits.write_text(json.dumps([{"train": rest, "val": ["t3"]}]))
    assert train.main(planned.args("2d_top", 0, "-d", 901, "-device", "cpu", "-np", 0, "--epochs", 2)) == 0
    rows = [json.loads(line) for line in planned.folder.run("2d_top", 0).log.read_text().splitlines()]
    scores = [row for row in rows if "val_dsc" in row][-1]
    assert scores["val_by_organ"]["Gland_R"] is None
    assert scores["val_dsc"] == pytest.approx((scores["val_by_organ"]["Gland_L"] + scores["val_by_organ"]["Stem"]) / 2)


def test_row_36_an_organ_that_a_case_lacks_at_the_report(tiny_trained, tmp_path):
    """s1 has no right gland: perfect label maps score 1 everywhere, and there it is undefined."""
    truth = shutil.copytree(tiny_trained.raw / "labelsTs", tmp_path / "truth")
    args = [str(truth), str(tiny_trained.raw / "labelsTs"), "-djfile", str(tiny_trained.raw / "dataset.json"), "-o", str(tmp_path / "out")]
    assert evaluate.main([*args, "-np", "1"]) == 0
    scores = pd.read_csv(tmp_path / "out" / "per_case.csv").set_index(["case", "organ"])
    assert np.isnan(scores.loc[("s1", "Gland_R"), "dsc"]) and (scores["dsc"].drop(("s1", "Gland_R")) == 1).all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["2"]["Dice"] == 1


@pytest.mark.parametrize("one, other", [("Case", "case"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")])
def test_row_37_ids_that_are_one_file_on_some_systems(planned, capsys, one, other):
    for case, name in (("t0", one), ("t1", other)):
        for where in (IMAGE, LABEL):
            (planned.raw / where.format(case)).rename(planned.raw / where.format(name))
    before = state(planned.root)
    assert plan(planned) == 1 and state(planned.root) == before
    assert "differ only by upper case or Unicode form; rename one" in error(capsys.readouterr().err)


def test_row_37_one_scan_twice(planned, capsys):
    for where in (IMAGE, LABEL):
        shutil.copy(planned.raw / where.format("t1"), planned.raw / where.format("t6"))
    assert plan(planned, "--no_pp") == 0
    assert "WARNING t1, t6 have identical image voxels; remove all but one, or give them one patient" in capsys.readouterr().err


# Predictions


def test_row_40_one_bad_case_of_ten(tiny_trained, tmp_path, capsys):
    source, out = tmp_path / "scans", tmp_path / "out"
    source.mkdir()
    for i in range(10):
        shutil.copy(tiny_trained.raw / "imagesTs" / f"s{i % 2}_0000.nii.gz", source / f"c{i}_0000.nii.gz")
    kept(1000)(source / "c4_0000.nii.gz")
    assert segment(tiny_trained, source, out) == 3
    message = error(capsys.readouterr().err)
    assert message.startswith("1 of 10 cases failed, the others are done: c4: ")
    told_of(message, "c4_0000.nii.gz", DAMAGED)
    assert sorted(f.name for f in out.glob("*.nii.gz")) == [f"c{i}.nii.gz" for i in range(10) if i != 4]
    assert all((out / f"c{i}.nii.gz").read_bytes() == (out / f"c{i % 2}.nii.gz").read_bytes() for i in range(10) if i != 4)


@pytest.mark.parametrize("harmed, harm", [
    ("s1.nii.gz", cut(100)), ("s1.nii.gz", kept(0)), ("s1.nii.gz", flipped(-200)), ("s1.json", cut(20)), ("s1.npz", cut(50)),
    ("s1.npz", kept(0)),
])  # fmt: skip
def test_row_41_a_cut_result_is_redone(tiny_trained, tmp_path, harmed, harm):
    out = tmp_path / "out"
    options = ["--save_probabilities", "--continue_prediction"]
    assert segment(tiny_trained, tiny_trained.raw / "imagesTs", out, *options) == 0
    whole, s0 = state(out), (out / "s0.nii.gz").stat().st_mtime_ns
    harm(out / harmed)
    assert segment(tiny_trained, tiny_trained.raw / "imagesTs", out, *options) == 0
    again = state(out)
    assert again.keys() == whole.keys() and again[str(out / "s1.nii.gz")] == whole[str(out / "s1.nii.gz")]
    with np.load(out / "s1.npz") as found:
        assert np.isfinite(found["probabilities"]).all()
    assert (out / "s0.nii.gz").stat().st_mtime_ns == s0
