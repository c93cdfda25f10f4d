"""Predicting a folder: bad cases, cut results, parts, the exact geometry of the input, probabilities."""
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch

from c2f_nnunet.cli import predict as command
from c2f_nnunet.data.dataset import Case, read_dataset
from c2f_nnunet.errors import C2FError, ImageError, WorkspaceError
from c2f_nnunet.geometry import Box, Geometry, from_canonical, reorientation, same_grid, to_canonical
from c2f_nnunet.inference.cascade import OrganMaps
from c2f_nnunet.inference.fusion import probabilities
from c2f_nnunet.io.images import Image, Source, read_image, read_label
from c2f_nnunet.io.rtstruct_in import full_mask, read_rtstruct
from c2f_nnunet.io.rtstruct_out import NOTICE
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running import predict as running
from c2f_nnunet.running.model import build_cascade
from c2f_nnunet.running.predict import PredictOptions, part_of, predict_array
from c2f_nnunet.training import checkpoint
from tests.io.dicom_rules import dciodvfy
from tests.io.rt_files import scan
from tests.io.test_dicom import write_series


def predict(tiny, source, out, *args) -> int:
    return command.main(tiny.args("-i", source, "-o", out, "-d", 901, "-device", "cpu", "--disable_tta", *args))


@pytest.fixture(scope="module")
def predicted(tiny_trained, tmp_path_factory) -> Path:
    """Both test scans, with probabilities; the folder's name is looked up in the raw data set."""
    out = tmp_path_factory.mktemp("predicted")
    assert predict(tiny_trained, "imagesTs", out, "--save_probabilities") == 0
    return out


def test_outputs_lie_exactly_where_the_inputs_do(tiny_trained, predicted):
    for case in ("s0", "s1"):
        image, result = nib.load(tiny_trained.raw / "imagesTs" / f"{case}_0000.nii.gz"), nib.load(predicted / f"{case}.nii.gz")
        assert result.shape == image.shape and result.get_data_dtype() == np.uint8
        assert np.array_equal(result.affine, image.affine) and result.header.get_zooms() == image.header.get_zooms()
        for code in ("sform_code", "qform_code"):
            assert result.header[code] == image.header[code]
        assert set(np.unique(result.dataobj)) <= {0, 1, 2, 3}
    assert (predicted / "dataset.json").exists() and not list(predicted.glob(".*"))


def test_probabilities_are_in_the_files_order_and_agree_with_the_labels(predicted):
    label = np.asarray(nib.load(predicted / "s0.nii.gz").dataobj).T  # the file's (i, j, k) as (k, j, i), as nnU-Net has it
    p = np.load(predicted / "s0.npz")["probabilities"]
    assert p.shape == (4, *label.shape) and p.dtype == np.float16
    np.testing.assert_allclose(p.astype(float).sum(0), 1, atol=5e-3)
    stem = label == 3
    assert stem.any() and (p[3][stem] > 0.45).all() and (p.argmax(0)[stem] == 3).mean() > 0.99


@pytest.fixture(scope="module")
def cascade(tiny_trained):
    return build_cascade(tiny_trained.model, None, "best", torch.device("cpu"), flips=False)[0]


def test_an_array_gives_what_its_file_gives(tiny_trained, predicted, cascade):
    image = read_image(tiny_trained.raw / "imagesTs" / "s0_0000.nii.gz")
    turn = image.source.turn
    hu = from_canonical(image.array, turn).astype(float)  # in the file's order: x and y reversed
    ids, reports = predict_array(tiny_trained.model, cascade, hu, image.source.geometry)
    assert ids.shape == hu.shape and ids.dtype == np.uint8 and turn.flipped_axes == (1, 2)
    np.testing.assert_array_equal(to_canonical(ids, turn), read_label(predicted / "s0.nii.gz").array)
    note = json.loads((predicted / "s0.json").read_text())
    assert [(r.organ, r.how, r.volume_ml) for r in reports] == [(o["organ"], o["how"], o["volume_ml"]) for o in note["organs"]]


@pytest.mark.parametrize("hu, shape, sentence", [
    (np.zeros((4, 4, 5)), (4, 4, 4), r"shape \(4, 4, 5\): its geometry has the shape \(4, 4, 4\); give the array's own"),
    (np.full((4, 4, 4), np.nan), (4, 4, 4), "array: 64 of 64 voxels are NaN"),
    (np.zeros((4, 4, 4)), (4, 4, 4), "array: every voxel is 0"),
    (np.zeros((4, 4, 1)), (4, 4, 1), "array: its shape .* is no volume"),
])  # fmt: skip
def test_an_array_that_is_no_ct_is_refused(tiny_trained, cascade, hu, shape, sentence):
    with pytest.raises(C2FError, match=sentence):
        predict_array(tiny_trained.model, cascade, hu, Geometry(shape, (3.0, 1.0, 1.0)))


def test_one_bad_case_is_named_and_the_others_are_done(tiny_trained, predicted, tmp_path, capsys):
    source = Path(shutil.copytree(tiny_trained.raw / "imagesTs", tmp_path / "in"))
    (source / "bad_0000.nii.gz").write_bytes((source / "s0_0000.nii.gz").read_bytes()[:300])
    assert predict(tiny_trained, source, tmp_path / "out") == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 3 cases failed, the others are done: bad: ") and "bad_0000.nii.gz" in error
    for case in ("s0", "s1"):
        assert (tmp_path / "out" / f"{case}.nii.gz").read_bytes() == (predicted / f"{case}.nii.gz").read_bytes()
    assert not (tmp_path / "out" / "bad.nii.gz").exists()


def test_continuing_redoes_what_is_cut_or_of_another_input_or_stage(tiny_trained, predicted, tmp_path):
    source = Path(shutil.copytree(tiny_trained.raw / "imagesTs", tmp_path / "in"))
    out = Path(shutil.copytree(predicted, tmp_path / "out"))

    def redone(*args) -> set[str]:
        before = {c: (out / f"{c}.json").stat().st_mtime_ns for c in ("s0", "s1")}
        assert predict(tiny_trained, source, out, "--continue_prediction", *args) == 0
        return {c for c in before if (out / f"{c}.json").stat().st_mtime_ns != before[c]}

    assert redone() == set()
    (out / "s1.nii.gz").write_bytes((out / "s1.nii.gz").read_bytes()[:100])
    assert redone() == {"s1"} and (out / "s1.nii.gz").read_bytes() == (predicted / "s1.nii.gz").read_bytes()
    (out / "s0.npz").unlink()
    # s1 was redone without probabilities: what lies there is of an earlier result
    assert redone() == set() and redone("--save_probabilities") == {"s0", "s1"} and redone("--save_probabilities") == set()
    shutil.copy(source / "s1_0000.nii.gz", source / "s0_0000.nii.gz")
    assert redone() == {"s0"}
    assert redone("--stage", "coarse") == {"s0", "s1"} and json.loads((out / "s0.json").read_text())["stage"] == "coarse"


def test_continuing_redoes_what_another_model_or_way_of_computing_gave(tiny_trained, predicted, tmp_path):
    """Results of two models must not stand beside each other as one's."""
    tiny, out = tiny_trained.copy(tmp_path / "w"), Path(shutil.copytree(predicted, tmp_path / "out"))

    def redone(*args) -> set[str]:
        before = {c: (out / f"{c}.json").stat().st_mtime_ns for c in ("s0", "s1")}
        assert command.main(tiny.args("-i", "imagesTs", "-o", out, "-d", 901, "-device", "cpu", "--continue_prediction", *args)) == 0
        return {c for c in before if (out / f"{c}.json").stat().st_mtime_ns != before[c]}

    assert redone("--disable_tta") == set()
    assert redone() == {"s0", "s1"} and redone() == set()
    assert redone("-chk", "final") == {"s0", "s1"} and redone("-chk", "final") == set()
    path = tiny.folder.run("3d_Stem", 0).checkpoint("final")  # trained again
    tensors, state, _ = checkpoint.load(path)
    checkpoint.save(path, {name: value * 1.01 for name, value in tensors.items()}, state)
    assert redone("-chk", "final") == {"s0", "s1"}


def test_whatever_goes_wrong_with_a_scan_costs_that_scan_alone(tiny_trained, tmp_path, capsys, monkeypatch):
    run_coarse = running.run_coarse

    def fails_once(*args):
        monkeypatch.setattr(running, "run_coarse", run_coarse)
        raise IndexError("list index out of range")

    monkeypatch.setattr(running, "run_coarse", fails_once)
    assert predict(tiny_trained, "imagesTs", tmp_path) == 3
    shown = capsys.readouterr().err
    assert "s0_0000.nii.gz: cannot be predicted (IndexError: list index out of range); export it again, or report this" in shown
    assert "Traceback" in shown and shown.splitlines()[-1].startswith("error: 1 of 2 cases failed, the others are done: s0: ")
    assert (tmp_path / "s1.nii.gz").exists() and not (tmp_path / "s0.nii.gz").exists()


def test_parts_share_the_cases_out(tiny_trained, tmp_path):
    cases = tuple(Case(str(i), Path(), None, None) for i in range(5))
    parts = [part_of(cases, 3, k) for k in range(3)]
    assert [[c.id for c in p] for p in parts] == [["0", "3"], ["1", "4"], ["2"]]
    assert predict(tiny_trained, "imagesTs", tmp_path, "-num_parts", 2, "-part_id", 1) == 0
    assert sorted(p.name for p in tmp_path.glob("*.nii.gz")) == ["s1.nii.gz"]


def test_a_scan_above_the_memory_limit_is_refused(tiny_trained, tmp_path, capsys):
    assert predict(tiny_trained, "imagesTs", tmp_path, "--max_memory", 0.01) == 1
    assert "s0_0000.nii.gz: predicting it needs about" in capsys.readouterr().err


def test_memory_that_runs_out_is_told_with_the_scan(tiny_trained, tmp_path, capsys, monkeypatch):
    def run_coarse(*args):
        raise MemoryError("Unable to allocate 2.00 GiB for an array")

    monkeypatch.setattr(running, "run_coarse", run_coarse)
    assert predict(tiny_trained, "imagesTs", tmp_path) == 1
    told = "s0_0000.nii.gz: the memory is too small for it (Unable to allocate 2.00 GiB for an array); free some, or crop the scan"
    assert told in capsys.readouterr().err


def write_probabilities(folder: Path) -> tuple[list[OrganMaps], tuple[int, ...]]:
    """case.npz; its maps and shape: 'A' has no box, those of 'B' and 'C' overlap."""
    rng, shape = np.random.default_rng(0), (5, 7, 6)
    boxes = {"B": Box((0, 1, 2), (3, 5, 6)), "C": Box((2, 0, 0), (5, 7, 4))}
    maps = [OrganMaps(o, b, None, rng.normal(0, 5, b.shape).astype(np.float32)) for o, b in boxes.items()]
    maps.append(OrganMaps("A", Box((0, 0, 0), (0, 0, 0)), None, np.zeros((0, 0, 0), np.float32)))
    geometry = Geometry(shape, (1.0, 1.0, 1.0))
    image = Image(np.zeros(shape, np.int16), geometry, Source(folder / "x.nii", geometry, reorientation(geometry)))
    running._write_probabilities(folder / "case.nii.gz", ("A", "B", "C"), maps, image)
    return maps, shape


def test_probabilities_are_the_softmax_of_all_organs_over_the_whole_scan(tmp_path):
    """Slice by slice as in one piece, to the last bit."""
    maps, shape = write_probabilities(tmp_path)
    logits = np.full((3, *shape), -12.0, np.float32)
    for m in maps[:2]:
        logits[("ABC".index(m.organ), *m.box.slices)] = m.coarse
    p = probabilities(logits)
    expected = np.concatenate([1 - p.sum(0, keepdims=True), p]).astype(np.float16)
    np.testing.assert_array_equal(np.load(tmp_path / "case.npz")["probabilities"], expected)


@pytest.mark.parametrize("wrong, told", [
    (lambda p: p[:-1], "reads back differently from"), (lambda p: p + np.float16(1), "reads back differently from"),
    (lambda p: np.concatenate([p, p]), "reads back differently from"), (lambda p: p.astype(np.float32), "reads back differently from"),
    (None, "cannot be read back after"),
])  # fmt: skip
def test_probabilities_that_come_out_wrong_are_not_left(tmp_path, monkeypatch, wrong, told):
    save = np.savez_compressed

    def spoiled(f, probabilities):
        save(f, probabilities=probabilities if wrong is None else wrong(probabilities))
        if wrong is None:
            f.truncate(f.tell() // 2)  # what a full disk may leave

    (tmp_path / "case.npz").write_text("an older result")
    monkeypatch.setattr(np, "savez_compressed", spoiled)
    with pytest.raises(WorkspaceError, match=f"case.npz: {told} .*; the disk may be full or failing"):
        write_probabilities(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["case.npz"] and (tmp_path / "case.npz").read_text() == "an older result"


# DICOM series


@pytest.fixture
def series(tiny_trained, tmp_path) -> Path:
    """The first test scan as a DICOM series, in the sub-folder P01 of a folder."""
    ct = read_image(tiny_trained.raw / "imagesTs" / "s0_0000.nii.gz")
    write_series(tmp_path / "scans" / "P01", ct.array, ct.geometry, PatientID="HN 1", PatientName="Doe^Jane")
    return tmp_path / "scans"


def test_a_series_gives_what_its_nifti_file_gives(tiny_trained, predicted, series, tmp_path):
    out = tmp_path / "out"
    assert predict(tiny_trained, series, out, "--save_probabilities") == 0
    assert {f.name for f in out.iterdir()} == {"checks.json", "dataset.json", "P01.json", "P01.nii.gz", "P01.npz"}
    a, b = read_label(predicted / "s0.nii.gz"), read_label(out / "P01.nii.gz")
    np.testing.assert_array_equal(a.array, b.array)
    assert same_grid(a.geometry, b.geometry)
    assert json.loads((out / "P01.json").read_text())["organs"] == json.loads((predicted / "s0.json").read_text())["organs"]


def test_continuing_redoes_a_series_of_which_any_file_changed(tiny_trained, series, tmp_path):
    out = tmp_path / "out"

    def redone(*args) -> bool:
        before = (out / "P01.json").stat().st_mtime_ns if out.exists() else 0
        assert predict(tiny_trained, series, out, "--continue_prediction", "--stage", "coarse", *args) == 0
        return (out / "P01.json").stat().st_mtime_ns != before

    assert redone() and not redone()
    (series / "P01" / "CT010.dcm").rename(series / "P01" / "other.dcm")
    assert not redone()
    content = bytearray((series / "P01" / "other.dcm").read_bytes())
    content[-1] ^= 1
    (series / "P01" / "other.dcm").write_bytes(content)
    assert redone() and not redone()


def test_an_rtstruct_refers_to_the_series_and_holds_what_the_label_map_holds(tiny_trained, series, tmp_path):
    out, files = tmp_path / "out", sorted((series / "P01").iterdir())
    assert predict(tiny_trained, series, out, "--rtstruct") == 0
    assert {f.name for f in out.iterdir()} == {"checks.json", "dataset.json", "P01.json", "P01.nii.gz", "P01_rtstruct.dcm"}
    label, organs = read_label(out / "P01.nii.gz"), read_dataset(tiny_trained.raw).labels
    rtstruct = read_rtstruct(out / "P01_rtstruct.dcm", label.geometry, series_reference(files))
    assert not rtstruct.notes and not any("position" in note for s in rtstruct.structures for note in s.notes)
    there = [(organ, i) for organ, i in zip(organs.organs, organs.ids) if (label.array == i).any()]
    assert [s.name for s in rtstruct.structures if s.polygons] == [organ for organ, _ in there] and there
    for s, (_, i) in zip(rtstruct.structures, there):
        np.testing.assert_array_equal(full_mask(rtstruct, s), label.array == i)


def test_a_seg_refers_to_every_slice_and_holds_what_the_label_map_holds(tiny_trained, series, tmp_path):
    highdicom = pytest.importorskip("highdicom", reason='highdicom is not installed (pip install "c2f-nnunet[seg]")')
    out, files = tmp_path / "out", sorted((series / "P01").iterdir())
    assert predict(tiny_trained, series, out, "--dicom_seg") == 0
    assert {f.name for f in out.iterdir()} == {"checks.json", "dataset.json", "P01.json", "P01.nii.gz", "P01_seg.dcm"}
    label, organs = read_label(out / "P01.nii.gz"), read_dataset(tiny_trained.raw).labels
    places = {i.uid: i.position_mm for i in series_reference(files).instances}  # the lowest slice first, as in the label map
    written = highdicom.seg.segread(out / "P01_seg.dcm")
    masks = written.get_pixels_by_source_instance(list(places), ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    assert tuple(written.get_segment_description(n).segment_label for n in written.segment_numbers) == organs.organs
    for k, i in enumerate(organs.ids):
        np.testing.assert_array_equal(masks[..., k] > 0, label.array == i)
    assert masks.any()

    dataset = pydicom.dcmread(out / "P01_seg.dcm")
    assert {i.ReferencedSOPInstanceUID for i in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == set(places)
    for frame in dataset.PerFrameFunctionalGroupsSequence:  # each lies where the slice lies that it refers to
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(places[source])
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, *measures.PixelSpacing) == pytest.approx(label.geometry.spacing_mm)
    assert dataset.SeriesDescription == dataset.ContentDescription == NOTICE and dataset.PatientID == "HN 1"


def test_a_tilted_series_is_told_before_it_is_computed_where_an_rtstruct_is_asked_for(tmp_path):
    tilted = scan(tmp_path / "P01", orientation=(1, 0, 0, 0, 0.8, -0.6))
    case = Case("P01", tuple(tilted.files), None, None)
    assert running._reference(case, tilted.image, PredictOptions(dicom_seg=True)) == tilted.series
    with pytest.raises(ImageError, match="P01: its slices are tilted by 37° from axial ones"):
        running._reference(case, tilted.image, PredictOptions(dicom_seg=True, rtstruct=True))


@pytest.mark.parametrize("extra", ["rtstruct", "dicom_seg"])
def test_the_files_hold_these_names(tmp_path, extra):
    """The data set's own names stay in the label map's dataset.json; what goes to other systems has the standard ones."""
    if extra == "dicom_seg":
        pytest.importorskip("highdicom", reason='highdicom is not installed (pip install "c2f-nnunet[seg]")')
    made, ids = scan(tmp_path / "ct"), np.zeros((6, 20, 24), np.uint8)
    ids[1, 2:4, 3:5], ids[2, 2:4, 3:5], ids[3, 2:4, 3:5] = 1, 2, 7
    labels = LabelSet(("BrainStem", "Optic-Nerve-Lt", "Gland"), (1, 2, 7))
    running._write_dicom(tmp_path / "P1.nii.gz", labels, ids, made.image, made.series, PredictOptions(**{extra: True}))
    (path,) = tmp_path.glob("P1*")
    written = pydicom.dcmread(path)
    names = {"rtstruct": [s.ROIName for s in written.get("StructureSetROISequence", ())],
             "dicom_seg": [s.SegmentLabel for s in written.get("SegmentSequence", ())]}  # fmt: skip
    assert path.name == f"P1_{'seg' if extra == 'dicom_seg' else extra}.dcm" and names[extra] == ["Brainstem", "OpticNrv_L", "Gland"]


def test_continuing_makes_an_rtstruct_that_is_missing_or_cut(tiny_trained, series, tmp_path):
    out = tmp_path / "out"
    target = out / "P01_rtstruct.dcm"

    def redone(*args) -> bool:
        before = (out / "P01.json").stat().st_mtime_ns if out.exists() else 0
        assert predict(tiny_trained, series, out, "--continue_prediction", "--stage", "coarse", *args) == 0
        return (out / "P01.json").stat().st_mtime_ns != before

    assert redone() and redone("--rtstruct") and not redone("--rtstruct") and not redone()
    target.write_bytes(target.read_bytes()[:500])
    assert not redone() and redone("--rtstruct") and target.stat().st_size > 500


@pytest.mark.parametrize("missing, told", [
    ("StudyInstanceUID", "its header has no StudyInstanceUID, so nothing can refer to it"),
    ("FrameOfReferenceUID", "the series has no frame of reference, so nothing can be placed in it"),
])  # fmt: skip
def test_a_series_that_nothing_can_refer_to_is_told_before_it_is_computed(tiny_trained, series, tmp_path, capsys, missing, told):
    for path in (series / "P01").iterdir():
        header = pydicom.dcmread(path)
        delattr(header, missing)
        header.save_as(path)
    assert predict(tiny_trained, series, tmp_path / "out", "--rtstruct") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out" / "P01.nii.gz").exists()


@pytest.fixture(scope="module")
def real_predicted(tiny_trained, real_data, tmp_path_factory) -> tuple[Path, list[Path]]:
    """One real head and neck, by a network that never saw any: the case's CASE.json, beside which all else lies, and the CT's files."""
    out, series = tmp_path_factory.mktemp("real"), real_data / "dicom" / "head_neck_ct"
    seg = ["--dicom_seg"] if find_spec("highdicom") else []
    assert predict(tiny_trained, series, out, "--stage", "coarse", "--rtstruct", *seg) == 0
    (note,) = out.glob("*_*.json")
    return note, sorted(series.glob("*.dcm"))


def test_a_real_series(real_predicted):
    """Files, grid and references are right, whatever is found."""
    note, files = real_predicted
    label, series = read_label(note.with_suffix(".nii.gz")), series_reference(files)
    assert label.array.shape == (90, 511, 511) and label.geometry.spacing_mm == pytest.approx((3.0, 1.0, 1.0)) and label.array.any()
    written = pydicom.dcmread(note.with_name(f"{note.stem}_rtstruct.dcm"))
    study = written.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {i.ReferencedSOPInstanceUID for i in images} == {i.uid for i in series.instances} and len(images) == 90


@pytest.mark.parametrize("ending, kind", [("_rtstruct.dcm", "RTStructureSet"), ("_seg.dcm", "Segmentation")])
def test_dciodvfy_finds_nothing_wrong_of_a_real_series(real_predicted, ending, kind):
    path = real_predicted[0].with_name(real_predicted[0].stem + ending)
    if not path.exists():
        pytest.skip('highdicom is not installed (pip install "c2f-nnunet[seg]")')
    errors, warnings = dciodvfy(path, kind)
    assert errors == [] and all("Patient's Name" in warning for warning in warnings)  # which the CT writes in a retired form
