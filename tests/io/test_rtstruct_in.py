"""RTSTRUCTs written by hand, whole and odd, on a made-up series; and a real one of 104 structures against its masks."""
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Box
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.images import read_label
from c2f_nnunet.io.rtstruct_in import full_mask, read_rtstruct, structure_mask
from c2f_nnunet.io.series import series_reference
from tests.io.rt_files import SERIES, contour, dice, rtstruct_file, scan
from tests.io.test_dicom import without_preamble


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    return scan(tmp_path_factory.mktemp("series") / "ct")  # 6 slices of 20 rows and 24 columns


def uid(ct, z):
    return ct.series.instances[z].uid


def square(ct, z, rows=(3.5, 8.5), columns=(4.5, 10.5), refers_to="own", **options):
    """A rectangle on (fractional) slice z, from index to index."""
    corners = [(z, rows[0], columns[0]), (z, rows[0], columns[1]), (z, rows[1], columns[1]), (z, rows[1], columns[0])]
    refers_to = [uid(ct, round(z))] if refers_to == "own" else refers_to
    return contour(ct.image.geometry.world(corners), refers_to, **options)


def block(z, rows=slice(4, 9), columns=slice(5, 11)):
    mask = np.zeros((6, 20, 24), bool)
    mask[z, rows, columns] = True
    return mask


def read(ct, path):
    return read_rtstruct(path, ct.image.geometry, ct.series)


def one(ct, tmp_path, contours, **tags):
    """The mask and notes of a structure with these contours."""
    rtstruct = read(ct, rtstruct_file(tmp_path / "rt.dcm", {"Organ": contours}, **tags))
    return full_mask(rtstruct, rtstruct.structures[0]), rtstruct.structures[0].notes


def test_names_numbers_colours_and_masks(ct, tmp_path):
    contours = {"Parotid_L": [square(ct, 1), square(ct, 2)], "Cord ": [square(ct, 0, (0.5, 1.5), (0.5, 2.5))]}
    path = rtstruct_file(tmp_path / "rt.dcm", contours)
    rtstruct = read(ct, path)
    assert rtstruct.label == "By hand" and rtstruct.notes == () and rtstruct.shape == (6, 20, 24)
    gland, cord = rtstruct.structures
    assert (gland.number, gland.name, gland.colour, gland.interpreted_type) == (1, "Parotid_L", (255, 0, 10), "ORGAN")
    assert (cord.number, cord.name, cord.notes, cord.refusal) == (2, "Cord", (), "")
    np.testing.assert_array_equal(full_mask(rtstruct, gland), block(slice(1, 3)))
    mask, box = structure_mask(rtstruct, cord)
    assert mask.sum() == 2 and box.start[0] == 0 and box.stop[0] == 1 and np.prod(box.shape) < 30  # not the whole CT
    np.testing.assert_array_equal(full_mask(rtstruct, cord), block(0, 1, slice(1, 3)))


@pytest.mark.parametrize("degrees", [0.2, 15.0])
def test_contours_in_the_slices_of_a_turned_ct_are_read_as_they_are(tmp_path, degrees):
    """A patient lay askew and the slices were turned with them: contours in these slices leave nothing to guess."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turned = scan(tmp_path / "ct", orientation=(1, 0, 0, 0, c, s))
    mask, notes = one(turned, tmp_path, [square(turned, 2)])
    np.testing.assert_array_equal(mask, block(2))
    assert notes == ()


def test_contours_in_the_slices_of_a_coronal_ct_are_refused(tmp_path):
    coronal = scan(tmp_path / "ct", orientation=(1, 0, 0, 0, 0, -1))
    drawn = contour(coronal.image.geometry.world([(4, 2, 3), (9, 2, 3), (9, 2, 8), (4, 2, 8)]), [coronal.series.instances[2].uid])
    with pytest.raises(ImageError, match="no structure can be used on this CT; 'Organ': 1 contour of 1 not in the plane of the CT's axial slices"):
        read(coronal, rtstruct_file(tmp_path / "rt.dcm", {"Organ": [drawn]}))


@pytest.mark.parametrize("charset, name, expected", [
    ("ISO_IR 100", "Ohrspeicheldrüse ", "Ohrspeicheldrüse"), ("ISO_IR 144", "Ствол", "Ствол"), ("ISO_IR 192", "脑干", "脑干"),
    ("ISO_IR 100", "Node\\left", "Node\\left"), ("ISO_IR 100", "", "ROI 1"),
])  # fmt: skip
def test_names_in_other_alphabets_with_backslashes_and_without_letters(ct, tmp_path, charset, name, expected):
    path = rtstruct_file(tmp_path / "rt.dcm", {name: [square(ct, 1)]}, SpecificCharacterSet=charset)
    assert [s.name for s in read(ct, path).structures] == [expected]


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_holes_islands_and_several_contours_on_a_slice(ct, tmp_path, kind):
    contours = [square(ct, 2, (1.5, 12.5), (1.5, 12.5), kind=kind), square(ct, 2, (3.5, 9.5), (3.5, 9.5), kind=kind),
                square(ct, 2, (5.5, 7.5), (5.5, 7.5), kind=kind), square(ct, 2, (14.5, 16.5), (2.5, 4.5), kind=kind)]  # fmt: skip
    expected = block(2, slice(2, 13), slice(2, 13)) ^ block(2, slice(4, 10), slice(4, 10)) ^ block(2, slice(6, 8), slice(6, 8))
    expected |= block(2, slice(15, 17), slice(3, 5))
    for order in (contours, contours[::-1]):
        mask, notes = one(ct, tmp_path, order)
        np.testing.assert_array_equal(mask, expected)
        assert notes == ()


def test_a_keyhole(ct, tmp_path):
    points = [(5.2, 1.5), (1.5, 1.5), (1.5, 12.5), (12.5, 12.5), (12.5, 1.5), (5.2, 1.5),
              (5.2, 3.5), (9.5, 3.5), (9.5, 9.5), (3.5, 9.5), (3.5, 3.5), (5.2, 3.5)]  # fmt: skip
    mask, notes = one(ct, tmp_path, [contour(ct.image.geometry.world([(3, *p) for p in points]), [uid(ct, 3)])])
    np.testing.assert_array_equal(mask, block(3, slice(2, 13), slice(2, 13)) ^ block(3, slice(4, 10), slice(4, 10)))
    assert notes == ()


def test_contours_through_the_voxels_centres_come_back_whole(ct, tmp_path):
    mask, _ = one(ct, tmp_path, [square(ct, 2, (4, 8), (5, 10))])
    np.testing.assert_array_equal(mask, block(2))


def test_contours_between_slices_go_to_the_nearest(ct, tmp_path):
    mask, notes = one(ct, tmp_path, [square(ct, z, refers_to=()) for z in (1.3, 2.7, 4.05, 0.6)])
    np.testing.assert_array_equal(mask, block([1, 3, 4]))  # 0.6 is nearest to slice 1, but 1.3 is nearer
    assert notes == ("4 contours referring to no slice: matched by position", "3 contours between slices: put on the nearest",
                     "1 contour at a slice that has nearer ones: left out", "1 slice between its first and its last contour left empty")


def test_contours_beside_the_slice_that_they_refer_to(ct, tmp_path):
    """As rt-utils writes them where a slice is missing: evenly spread, with the right references."""
    mask, notes = one(ct, tmp_path, [square(ct, 1.7, refers_to=[uid(ct, 1)]), square(ct, 2.9, refers_to=[uid(ct, 2)]), square(ct, 3.05)])
    np.testing.assert_array_equal(mask, block(slice(1, 4)))
    assert notes == ("2 contours beside the slice referred to, by less than a slice: put on it",)


def test_two_planes_at_one_slice_make_no_hole(ct, tmp_path):
    inner = square(ct, 2.4, (5.5, 6.5), (6.5, 8.5))
    for contours in ([square(ct, 2), inner], [inner, square(ct, 2)]):
        mask, notes = one(ct, tmp_path, contours)
        np.testing.assert_array_equal(mask, block(2))
        assert notes == ("1 contour beside the slice referred to, by less than a slice: put on it",
                         "1 contour at a slice that has nearer ones: left out")  # fmt: skip


def test_of_planes_close_to_each_other_the_nearest_is_taken(ct, tmp_path):
    """As from a scan of much thinner slices in the same frame of reference: none of them is filled together with another."""
    steps = [square(ct, 2 + 0.08 * i, (5.5, 6.5), (6.5, 8.5), refers_to=["1.2.3.4"]) for i in range(-5, 6) if i]
    mask, _ = one(ct, tmp_path, [*steps, square(ct, 2, refers_to=["1.2.3.4"])])
    np.testing.assert_array_equal(mask, block(2))


def test_a_contour_that_is_there_twice_is_no_hole(ct, tmp_path):
    """Unless it says that it is combined by exclusive or."""
    mask, notes = one(ct, tmp_path, [square(ct, 1), square(ct, 1), square(ct, 2)])
    np.testing.assert_array_equal(mask, block(slice(1, 3)))
    assert notes == ("1 contour there twice: taken once",)
    mask, notes = one(ct, tmp_path, [square(ct, 1, kind="CLOSEDPLANAR_XOR"), square(ct, 1, kind="CLOSEDPLANAR_XOR"), square(ct, 2)])
    np.testing.assert_array_equal(mask, block(2))
    assert notes == ("1 slice with contours larger than a voxel that hold none: left empty",)


@pytest.mark.parametrize("change", [
    lambda points: points + (0, 0, 0.01),  # mm
    lambda points: points.round(1),
    lambda points: np.roll(points, 2, axis=0),  # another first point
    lambda points: points[::-1],
    lambda points: points[[*range(len(points)), 0]],  # its first point again at its end
    lambda points: np.insert(points, 2, points[1:3].mean(axis=0), axis=0),
])  # fmt: skip
def test_a_contour_that_is_there_twice_in_other_words(ct, tmp_path, change):
    again = square(ct, 1)
    again.ContourData = [f"{v:.4f}" for v in np.ravel(change(np.reshape(again.ContourData, (-1, 3)).astype(float)))]
    for contours in ([square(ct, 1), again, square(ct, 2)], [again, square(ct, 2), square(ct, 1)]):
        mask, notes = one(ct, tmp_path, contours)
        np.testing.assert_array_equal(mask, block(slice(1, 3)))
        assert notes == ("1 contour there twice: taken once",)


def test_contours_that_cross_are_united(ct, tmp_path):
    first, second, hole = square(ct, 1), square(ct, 1, (6.5, 12.5), (8.5, 14.5)), square(ct, 1, (4.5, 5.5), (5.5, 6.5))
    both = block(1) | block(1, slice(7, 13), slice(9, 15))
    mask, notes = one(ct, tmp_path, [first, second, square(ct, 2)])
    np.testing.assert_array_equal(mask, both | block(2))
    assert notes == ("2 contours crossing each other: united",)
    mask, notes = one(ct, tmp_path, [hole, second, first])
    np.testing.assert_array_equal(mask, both & ~block(1, 5, 6))
    assert notes == ("2 contours crossing each other: united",)
    exclusive = [square(ct, 1, kind="CLOSEDPLANAR_XOR"), square(ct, 1, (6.5, 12.5), (8.5, 14.5), kind="CLOSEDPLANAR_XOR")]
    mask, notes = one(ct, tmp_path, exclusive)
    np.testing.assert_array_equal(mask, block(1) ^ block(1, slice(7, 13), slice(9, 15)))
    assert notes == ()


def test_a_hole_over_the_edge_stays_a_hole(ct, tmp_path):
    """Both contours were rounded or thinned out, each on its own; two voxels of the hole lie outside."""
    outer, hole = square(ct, 1, (1.5, 12.5), (1.5, 12.5)), square(ct, 1, (8.5, 13.1), (3.5, 5.5))
    mask, notes = one(ct, tmp_path, [outer, hole])
    np.testing.assert_array_equal(mask, block(1, slice(2, 13), slice(2, 13)) ^ block(1, slice(9, 14), slice(4, 6)))
    assert notes == ("1 contour over the edge of the one around, by a voxel at most: taken as a hole",)


def test_neighbours_that_touch_are_no_crossing(ct, tmp_path):
    mask, notes = one(ct, tmp_path, [square(ct, 1, (3.5, 8.5), (4.5, 7.5)), square(ct, 1, (3.5, 8.5), (7.5, 10.5)),  # an edge of both
                                     square(ct, 2, (4, 8), (5, 7)), square(ct, 2, (4, 8), (7, 10))])  # through the same centres
    np.testing.assert_array_equal(mask, block(slice(1, 3)))
    assert notes == ()


@pytest.mark.parametrize("rows, columns, twice", [((3.5, 8.5), (4.5, 10.5), True), ((4.1, 4.9), (4.5, 10.5), False)])
def test_a_contour_that_holds_no_voxel_is_told(ct, tmp_path, rows, columns, twice):
    """One that goes round twice, and one that runs between two rows of centres with an area of 4.8 voxels; not the speck on slice 3."""
    around = square(ct, 1, rows, columns)
    around.ContourData = list(around.ContourData) * (2 if twice else 1)
    mask, notes = one(ct, tmp_path, [around, square(ct, 2), contour(ct.image.geometry.world([(3, 4.5, 5.5), (3, 4.6, 5.5), (3, 4.6, 5.7)]),
                                                                    [uid(ct, 3)])])  # fmt: skip
    np.testing.assert_array_equal(mask, block(2))
    assert notes == ("1 slice with contours larger than a voxel that hold none: left empty",)


@pytest.mark.parametrize("refers_to, note", [
    ((), "referring to no slice: matched by position"),
    (("1.2.3.4",), "referring to slices of another series: matched by position"),
])  # fmt: skip
def test_missing_and_foreign_references(ct, tmp_path, refers_to, note):
    mask, notes = one(ct, tmp_path, [square(ct, 1, refers_to=refers_to), square(ct, 2)])
    np.testing.assert_array_equal(mask, block(slice(1, 3)))
    assert notes == (f"1 contour {note}",)


def test_a_reference_to_another_slice_than_the_contour_lies_on(ct, tmp_path):
    mask, notes = one(ct, tmp_path, [square(ct, 1, refers_to=[uid(ct, 4)]), square(ct, 2)])
    np.testing.assert_array_equal(mask, block(slice(1, 3)))
    assert notes == ("1 contour referring to a slice elsewhere: matched by position",)


def test_no_frame_of_reference(ct, tmp_path):
    assert one(ct, tmp_path, [square(ct, 1)], frame=None)[1] == ()  # the slices that it refers to say enough
    mask, notes = one(ct, tmp_path, [square(ct, 1, refers_to=())], frame=None)
    np.testing.assert_array_equal(mask, block(1))
    assert notes == ("it names no frame of reference: taken as the CT's", "1 contour referring to no slice: matched by position")


def test_another_frame_of_reference(ct, tmp_path):
    mask, notes = one(ct, tmp_path, [square(ct, 1)], frame="1.2.3")
    np.testing.assert_array_equal(mask, block(1))
    assert notes == ("its frame of reference is not the CT's, but it refers to the CT",)
    with pytest.raises(ImageError, match="rt.dcm: no structure can be used on this CT; 'Organ': it is drawn in another frame of reference "
                                         "than the CT's and does not refer to the CT; give the CT that the contours were drawn on"):
        one(ct, tmp_path, [square(ct, 1, refers_to=["1.2.3.4"])], frame="1.2.3")


def test_another_frame_in_a_file_that_names_the_series(ct, tmp_path):
    """Contours need not refer to slices: the reference of the whole set to the series is enough."""
    frame, study, series = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID, study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = SERIES, [series], [study]
    mask, notes = one(ct, tmp_path, [square(ct, 1, refers_to=())], frame="1.2.3", ReferencedFrameOfReferenceSequence=[frame])
    np.testing.assert_array_equal(mask, block(1))
    assert notes == ("its frame of reference is not the CT's, but it refers to the CT",
                     "1 contour referring to no slice: matched by position")  # fmt: skip
    with pytest.raises(ImageError, match="does not refer to the CT"):
        one(ct, tmp_path, [square(ct, 1, refers_to=["1.2"])], frame="1.2.3", ReferencedFrameOfReferenceSequence=[frame])


def test_a_frame_named_by_the_set_alone(ct, tmp_path):
    named = pydicom.Dataset()
    named.FrameOfReferenceUID = "1.2.3"
    with pytest.raises(ImageError, match="another frame of reference"):
        one(ct, tmp_path, [square(ct, 1, refers_to=())], frame=None, ReferencedFrameOfReferenceSequence=[named])


def test_contours_that_are_not_axial_refuse_their_structure_only(ct, tmp_path):
    sagittal = contour(ct.image.geometry.world([(1, 4, 5), (4, 4, 5), (4, 9, 5), (1, 9, 5)]), [uid(ct, 1)])
    path = rtstruct_file(tmp_path / "rt.dcm", {"Tilted": [square(ct, 1), sagittal], "Organ": [square(ct, 2)]})
    rtstruct = read(ct, path)
    tilted, organ = rtstruct.structures
    assert tilted.refusal == "1 contour of 2 not in the plane of the CT's axial slices (through up to 9 mm of them)"
    with pytest.raises(ImageError, match="rt.dcm: 'Tilted': 1 contour of 2 not in the plane .*; leave it out or draw it on this CT"):
        structure_mask(rtstruct, tilted)
    np.testing.assert_array_equal(full_mask(rtstruct, organ), block(2))


def test_structures_without_contours_and_other_types(ct, tmp_path):
    point = contour(ct.image.geometry.world([(1, 4, 5)]), [uid(ct, 1)], kind="POINT")
    opened = [square(ct, z, kind="OPEN_PLANAR") for z in (1, 2)]
    rtstruct = read(ct, rtstruct_file(tmp_path / "rt.dcm", {"Empty": [], "Isocentre": [point], "Organ": [square(ct, 1), *opened]}))
    empty, isocentre, organ = rtstruct.structures
    assert empty.notes == ("empty: it has no closed contours",)
    assert isocentre.notes == ("1 contour of type POINT is passed over", "empty: it has no closed contours")
    assert organ.notes == ("2 contours of type OPEN_PLANAR are passed over",)
    mask, box = structure_mask(rtstruct, empty)
    assert mask.shape == (0, 0, 0) and box == Box((0, 0, 0), (0, 0, 0))
    assert full_mask(rtstruct, empty).shape == (6, 20, 24) and not full_mask(rtstruct, empty).any()
    np.testing.assert_array_equal(full_mask(rtstruct, organ), block(1))


def test_contours_beyond_the_ct(ct, tmp_path):
    above, aside = square(ct, 5, refers_to=()), square(ct, 1, (15.5, 30.5), (-5.5, 3.5))
    above.ContourData = [f"{v + (4 if i % 3 == 2 else 0):.4f}" for i, v in enumerate(above.ContourData)]
    mask, notes = one(ct, tmp_path, [above, aside, square(ct, 2)])
    np.testing.assert_array_equal(mask, block(1, slice(16, 20), slice(0, 4)) | block(2))
    bare = "1 contour referring to no slice: matched by position"
    assert notes == (bare, "1 contour above or below the CT: left out", "1 contour reaching beyond the CT's edge: cut there")
    mask, notes = one(ct, tmp_path, [square(ct, 1, (40, 50), (40, 50))])
    assert not mask.any()
    mask, notes = one(ct, tmp_path, [above])
    assert not mask.any() and notes == (bare, "1 contour above or below the CT: left out")


def test_contours_of_one_point(ct, tmp_path):
    mask, notes = one(ct, tmp_path, [contour(ct.image.geometry.world([(1, 4, 5)]), [uid(ct, 1)]), contour([], [uid(ct, 1)])])
    np.testing.assert_array_equal(mask, block(1, 4, 5))
    assert notes == ("1 contour of one or two points: voxels under them only",)


@pytest.mark.parametrize("degrees", [0, 7, 90, 180, 200])
def test_slices_turned_in_their_plane(tmp_path, degrees):
    """A head turned aside in an axial scan, and scans of patients that lie prone."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = scan(tmp_path / "ct", orientation=(c, s, 0, -s, c, 0), first=(80, -60, 10))
    grid = turned.image.geometry
    points = [(2, 3.5, 4.5), (2, 3.5, 9.5), (2, 8.5, 9.5), (2, 8.5, 4.5)]
    path = rtstruct_file(tmp_path / "rt.dcm", {"Organ": [contour(grid.world(points), [turned.series.instances[2].uid])]})
    rtstruct = read(turned, path)
    assert rtstruct.structures[0].notes == ()
    expected = np.zeros(grid.shape, bool)
    expected[2, 4:9, 5:10] = True
    np.testing.assert_array_equal(full_mask(rtstruct, rtstruct.structures[0]), expected)


def test_long_contours_of_unknown_type_in_explicit_files(ct, tmp_path):
    """Explicit VR holds 64 kB at most as a decimal string; longer ones are stored as UN, which is read all the same."""
    angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    index = np.stack([0 * angle + 2, 9 + 5.3 * np.sin(angle), 11 + 5.3 * np.cos(angle)], axis=1)
    circle = contour(ct.image.geometry.world(index), [uid(ct, 2)])
    path = rtstruct_file(tmp_path / "rt.dcm", {"Organ": [circle]})
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with pytest.warns(UserWarning, match="to 'UN'"):
        pydicom.dcmwrite(tmp_path / "explicit.dcm", dataset, implicit_vr=False, little_endian=True)
    rtstruct = read(ct, tmp_path / "explicit.dcm")
    r, c = np.indices((20, 24))
    np.testing.assert_array_equal(full_mask(rtstruct, rtstruct.structures[0])[2], (r - 9) ** 2 + (c - 11) ** 2 < 5.3**2)


def test_a_file_without_a_preamble(ct, tmp_path):
    path = rtstruct_file(tmp_path / "rt.dcm", {"Organ": [square(ct, 1)]})
    rtstruct = read(ct, without_preamble(path))
    np.testing.assert_array_equal(full_mask(rtstruct, rtstruct.structures[0]), block(1))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="rt.dcm: "):
        read(ct, path)


def test_files_that_are_no_rtstruct_or_damaged(ct, tmp_path):
    def refused(path, told):
        with pytest.raises(ImageError, match=told) as found:
            read(ct, path)
        assert "\n" not in str(found.value)

    text = tmp_path / "text.dcm"
    text.write_text("no DICOM " * 50)
    refused(text, "text.dcm: is no DICOM file; give the RTSTRUCT of the series")
    refused(tmp_path / "gone.dcm", "gone.dcm: cannot be read")
    refused(ct.files[0], "CT000.dcm: is CT and no RTSTRUCT")
    refused(rtstruct_file(tmp_path / "rt.dcm", {}), "rt.dcm: names no structures; export it again")
    for values in (["1", "2"], ["1", "2", "nan"], ["1", "2", "1e30"]):
        broken = square(ct, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            broken.ContourData = values
        refused(rtstruct_file(tmp_path / "rt.dcm", {"Organ": [broken]}), "a contour of ROI number 1 is damaged")
    path = rtstruct_file(tmp_path / "rt.dcm", {"A": [square(ct, 1)], "B": [square(ct, 1)]})
    dataset = pydicom.dcmread(path)
    dataset.StructureSetROISequence[1].ROINumber = 1
    dataset.save_as(path)
    refused(path, "gives the number 1 to several structures")
    del dataset.ROIContourSequence
    dataset.save_as(path)
    refused(path, "rt.dcm: has no ROIContourSequence, so nothing is drawn in it or it is truncated")


def test_a_file_cut_anywhere(ct, tmp_path):
    """Only what comes after the contours may be missing unnoticed: which structures are organs."""
    path = rtstruct_file(tmp_path / "rt.dcm", {"A": [square(ct, z) for z in (1, 2)], "B": [square(ct, 3)]})
    whole = path.read_bytes()
    after = whole.index(b"\x06\x30\x80\x00")  # RTROIObservationsSequence
    for end in range(140, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        try:
            rtstruct = read(ct, path)
        except ImageError:
            continue
        assert end >= after and [full_mask(rtstruct, s).sum() for s in rtstruct.structures] == [60, 30]


def test_contours_of_no_structure_are_told(ct, tmp_path):
    path = rtstruct_file(tmp_path / "rt.dcm", {"A": [square(ct, 1)], "B": [square(ct, 2)]})
    dataset = pydicom.dcmread(path)
    del dataset.StructureSetROISequence[1]
    dataset.save_as(path)
    assert read(ct, path).notes == ("contours of number 2, which no structure has, are left out",)


def test_sequences_a_thousand_deep(ct, tmp_path):
    path = rtstruct_file(tmp_path / "rt.dcm", {"A": [square(ct, 1)]})
    content = path.read_bytes()
    at = content.index(b"\x06\x30\x20\x00")  # StructureSetROISequence, in implicit VR
    start, end = b"\x06\x30\x10\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(content[:at] + start * 1000 + end * 1000 + content[at:])
    with pytest.raises(ImageError, match=r"rt.dcm: cannot be read \(maximum recursion depth exceeded"):
        read(ct, path)


# Real data


def test_a_real_rtstruct_against_its_masks(real_data):
    """rt-utils wrote it: contours through the centres of the outermost voxels, holes as further contours, slices spread over the gap."""
    folder = real_data / "dicom" / "chest_ct_rtstruct"
    files = sorted((folder / "dcm").glob("*.dcm"))[1:]  # the first lies beyond a missing slice
    image = read_series(files)
    (path,) = (folder / "rtstruct").glob("*.dcm")
    rtstruct = read_rtstruct(path, image.geometry, series_reference(files))
    assert len(rtstruct.structures) == 104
    scores = {}
    for structure in rtstruct.structures:
        mask = full_mask(rtstruct, structure)
        reference = read_label(folder / "nii_seg" / f"{structure.name}.nii.gz").array[1:] > 0  # right voxels under a wrong affine
        assert not structure.refusal
        if reference.any() or mask.any():
            scores[structure.name] = dice(mask, reference)
    assert len(scores) > 30 and min(scores.values()) == 1, sorted(scores.items(), key=lambda item: item[1])[:10]
