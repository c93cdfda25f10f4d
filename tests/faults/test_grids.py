"""FAULTS rows 27 to 32: grids, of an image and of its label map, that are impossible, contradictory or turned, through the commands."""
import json
import shutil
from itertools import permutations, product

import nibabel as nib
import numpy as np

from c2f_nnunet.data.store import Store
from c2f_nnunet.io.images import read_label
from tests.faults.inputs import IMAGE, LABEL, Fault, affine, edit_json, header, plan, segment, voxels


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
