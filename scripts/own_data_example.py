"""Write the patients of documentation/own_data.md: phantoms in DICOM, as a planning system exports them.

    python dataset_conversion/phantom.py raw --train 12 --test 2
    python scripts/own_data_example.py raw/Dataset900_Phantom .

OUT/export gets P01 to P12, each a CT series with an RTSTRUCT beside it: seven contoured in English, three in French, two by TG-263, every
one with an outline and a target, which are no organs. OUT/new gets the next two, without structures. A patient without an organ has no
structure of it. Nobody's patients; the same data set gives the same CTs again.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from c2f_nnunet.data.dataset import Case, read_dataset
from c2f_nnunet.errors import C2FError
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.images import Image, read_image, read_label
from c2f_nnunet.io.rtstruct_out import write_rtstruct
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet

NAMES = {  # what is drawn, an organ of the data set or one of the two others → its name in each style
    "BrainStem": ("Brain Stem", "Tronc cerebral", "Brainstem"),
    "Mandible": ("Mandible", "Mandibule", "Bone_Mandible"),
    "Parotid_R": ("Parotid Rt", "Parotide D", "Parotid_R"),
    "Parotid_L": ("Parotid Lt", "Parotide G", "Parotid_L"),
    "outline": ("BODY", "Contour externe", "External"),
    "target": ("PTV 70", "PTV 70", "PTV_7000"),
}
ENGLISH, FRENCH, TG263 = range(3)
STYLES = [ENGLISH] * 7 + [FRENCH] * 3 + [TG263] * 2  # of P01 to P12
NEW = 2
BODY_HU = -300


def write_ct(folder: Path, patient: str, image: Image) -> list[Path]:
    """The canonical image as an axial series, a file for each slice, from the lowest on."""
    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(entropy_srcs=[patient, what]) for what in ("study", "series", "frame"))
    spacing = [round(mm, 4) for mm in image.geometry.spacing_mm[1:]]
    files = []
    for z, hu in enumerate(image.array.astype(np.int16)):
        slice_ = pydicom.Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[patient, "slice", str(z)])
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.InstanceNumber, slice_.Manufacturer = "CT", z + 1, "c2f_nnunet phantom"
        slice_.PatientID = slice_.PatientName = patient
        slice_.ImagePositionPatient = np.round(image.geometry.world((z, 0, 0)), 4).tolist()
        slice_.ImageOrientationPatient, slice_.PixelSpacing = [1, 0, 0, 0, 1, 0], spacing
        slice_.Rows, slice_.Columns = hu.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.PixelData = 1, 0, hu.tobytes()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID, slice_.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, slice_.SOPInstanceUID
        files.append(folder / f"CT{z:03}.dcm")
        slice_.save_as(files[-1], enforce_file_format=True)
    return files


def drawn(hu: np.ndarray, labels: np.ndarray, organs: LabelSet) -> np.ndarray:
    """Ids (z, y, x) of NAMES, from 1: the outline, a target in the middle, and over them the organs."""
    ids, out = {name: i for i, name in enumerate(NAMES, 1)}, np.zeros(labels.shape, np.uint8)
    out[hu > BODY_HU] = ids["outline"]
    z, y, x = (n // 2 for n in labels.shape)
    out[z - 6 : z + 6, y - 8 : y + 2, x - 6 : x + 6] = ids["target"]
    for organ, i in zip(organs.organs, organs.ids):
        if organ in ids:
            out[labels == i] = ids[organ]
    return out


def write_patient(folder: Path, case: Case, organs: LabelSet, style: int | None) -> None:
    """CT/*.dcm in the patient's folder, whose name is the patient's, and RS.dcm beside it unless style is None."""
    image = read_image(case.image)
    files = write_ct(folder / "CT", folder.name, image)
    if style is not None:
        names = LabelSet(tuple(styles[style] for styles in NAMES.values()), tuple(range(1, len(NAMES) + 1)))
        structures = drawn(image.array, read_label(case.label).array, organs)
        write_rtstruct(folder / "RS.dcm", structures, names, read_series(files).source, series_reference(files))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("raw", type=Path, metavar="RAW", help="the raw data set that phantom.py made")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder that export/ and new/ are made in")
    args = p.parse_args()
    dataset = read_dataset(args.raw)
    for folder in (args.out / "export", args.out / "new"):
        if folder.exists():
            raise C2FError(f"{folder}: is there already; remove it, or choose another folder")
    for number, (case, style) in enumerate(zip(dataset.training, STYLES), 1):
        write_patient(args.out / "export" / f"P{number:02}", case, dataset.labels, style)
    for number, case in enumerate(dataset.test[:NEW], len(STYLES) + 1):
        write_patient(args.out / "new" / f"P{number:02}", case, dataset.labels, None)


if __name__ == "__main__":
    try:
        main()
    except C2FError as e:
        sys.exit(f"error: {e}")
