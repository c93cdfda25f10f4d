"""Made-up CT series with all that RTSTRUCT and SEG refer to, and RTSTRUCTs written by hand."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.images import Image
from c2f_nnunet.io.series import SeriesReference, series_reference

FRAME, SERIES, STUDY = (generate_uid(entropy_srcs=[what]) for what in ("rt frame", "rt series", "rt study"))
AXIAL = (1, 0, 0, 0, 1, 0)
PATIENT = {
    "PatientName": "Doe^Jane", "PatientID": "P1", "PatientBirthDate": "19600102", "PatientSex": "F", "StudyDate": "20260102",
    "StudyTime": "101112", "ReferringPhysicianName": "", "StudyID": "7", "AccessionNumber": "A5", "StudyDescription": "Planning CT",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scan:
    """A series on disk, as an image and as what other objects refer to."""

    files: list[Path]
    image: Image
    series: SeriesReference


def scan(folder, shape=(6, 20, 24), spacing=(3.0, 1.25, 0.8), orientation=AXIAL, first=(-100.0, 50.5, -320.25), **tags) -> Scan:
    """A CT of this shape (slices, rows, columns) and spacing (mm); first: LPS centre of the first pixel of the first slice."""
    files = [ct_slice(folder, k, shape, spacing, orientation, first, **tags) for k in range(shape[0])]
    return Scan(files, read_series(files), series_reference(files))


def ct_slice(folder, k, shape, spacing, orientation, first, **tags) -> Path:
    folder.mkdir(exist_ok=True)
    row, column = np.reshape(orientation, (2, 3))
    header = pydicom.Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=["rt slice", str(k)])
    header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = STUDY, SERIES, FRAME
    header.Modality, header.InstanceNumber, header.SeriesNumber, header.PositionReferenceIndicator = "CT", k + 1, 2, ""
    header.Rows, header.Columns = shape[1:]
    header.PixelSpacing, header.ImageOrientationPatient = list(spacing[1:]), [f"{v:.10g}" for v in orientation]
    header.ImagePositionPatient = [f"{v:.8g}" for v in np.add(first, k * spacing[0] * np.cross(row, column))]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = np.arange(shape[1] * shape[2], dtype=np.uint16).tobytes()
    for name, value in {**PATIENT, **tags}.items():
        setattr(header, name, value)
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, header.SOPInstanceUID
    path = folder / f"CT{k:03}.dcm"
    header.save_as(path, enforce_file_format=True)
    return path


def contour(points_mm, refers_to=(), kind="CLOSED_PLANAR") -> pydicom.Dataset:
    """A contour of points (n, 3) in mm, referring to slices by their UIDs."""
    item = pydicom.Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points_mm)
    item.ContourData = [f"{v:.4f}" for v in np.ravel(points_mm)]
    if refers_to:
        item.ContourImageSequence = [pydicom.Dataset() for _ in refers_to]
        for reference, uid in zip(item.ContourImageSequence, refers_to):
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, uid
    return item


def rtstruct_file(path, structures: dict[str, list[pydicom.Dataset]], frame=FRAME, colour=(255, 0, 10), **tags) -> Path:
    """An RTSTRUCT of structures with these contours, numbered from 1; `tags` override the file's attributes."""
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    dataset.StructureSetLabel = "By hand"
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(structures.items(), 1):
        named, drawn, observed = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        named.ROINumber, named.ROIName = number, name
        if frame:
            named.ReferencedFrameOfReferenceUID = frame
        drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, list(colour)
        if contours:
            drawn.ContourSequence = contours
        observed.ReferencedROINumber, observed.RTROIInterpretedType = number, "ORGAN"
        dataset.StructureSetROISequence.append(named)
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(observed)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
