"""RTSTRUCT out: a label map as contours that refer to the CT they were drawn on.

The attributes are those that PS3.3 A.19.3 asks of an RT Structure Set (types 1 and 2 of its mandatory modules), and Approval and Frame of
Reference besides. Choices that planning systems depend on:

- Implicit VR: in explicit VR a contour's points may take 64 kB at most, and longer ones become an unknown type that few systems read.
- At most 10 characters a number: decimal strings longer than 16 are refused by Eclipse, for one.
- Holes by keyhole, one polygon for each piece: what PS3.3 C.8.8.6.3 prescribes for CLOSED_PLANAR. Separate contours for holes would be
  CLOSEDPLANAR_XOR, which older systems do not know; and readers that unite closed contours fill such holes.
"""
from __future__ import annotations

import hashlib
import warnings
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy import ndimage

from .. import __version__
from ..errors import ImageError
from ..geometry import Geometry, canonical_geometry
from ..labels import LabelSet
from . import durable
from .images import Source
from .polygons import trace
from .series import Instance, SeriesReference, axial_slices, tell_broken

NOTICE = "AI-generated, not for clinical use without review"  # 49 characters, of the 64 that names and descriptions (LO) may have
SHORT_NOTICE = "AI, not reviewed"  # the label is what lists of structure sets show: 16 characters, as many as an SH may have
SOFTWARE = "c2f_nnunet"
STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # the retired class by which every RTSTRUCT refers to its study
POINT_DECIMALS = 4  # of a millimetre


def write_rtstruct(
    path: str | Path, labels: np.ndarray, organs: LabelSet, source: Source, series: SeriesReference, made: datetime | None = None
) -> None:
    """Write canonical labels (z, y, x) of the CT `source` durably as an RTSTRUCT that refers to its slices, those of `series`.

    An organ without voxels is left out; where none has any, all are listed without contours, since a structure set must list one.
    made: the date and time that the file bears (default: now). Its UIDs come from content and time: the same arguments give the same
    file, and a later run is another object, as DICOM asks for. ImageError where labels, source and series do not fit each other.
    """
    windows = label_windows(path, labels, organs, source)
    geometry, made = canonical_geometry(source.geometry, source.turn), made or datetime.now()
    instances = axial_slices(series, geometry)
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the series' identifiers that break a rule, which are copied as they are
        dataset = _head(series, made, content_digest(labels, organs))
        _structure_set(dataset, series, instances, made)
        _add_structures(dataset, labels, windows, organs, geometry, series.frame, instances)
        pydicom.dcmwrite(content, dataset, enforce_file_format=True)
    durable.write_bytes(Path(path), content.getvalue())
    tell_broken(path, series)


def label_windows(path: str | Path, labels: np.ndarray, organs: LabelSet, source: Source) -> dict[int, tuple[slice, slice, slice]]:
    """Label id → the window of the canonical labels (z, y, x) that holds it; ImageError where the labels do not fit source or organs."""
    shape = canonical_geometry(source.geometry, source.turn).shape
    if labels.shape != shape:
        raise ImageError(f"{path}: labels of shape {labels.shape} do not fit {source.path} of shape {shape}; give the labels of that image")
    windows = {i: window for i, window in enumerate(ndimage.find_objects(labels), 1) if window}
    unknown = [i for i in windows if i not in organs.ids]
    if unknown:
        raise ImageError(f"{path}: the labels hold {', '.join(map(str, unknown[:5]))}, which no organ has; give the organs of these labels")
    return windows


def item_of(**values) -> Dataset:
    """A DICOM data set with these attributes."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def new_uid(what: str, series: SeriesReference, made: datetime, digest: str) -> str:
    """A UID under pydicom's root that the same content and time give again."""
    return generate_uid(entropy_srcs=[SOFTWARE, what, series.series, *(i.uid for i in series.instances), made.isoformat(), digest])


def content_digest(labels: np.ndarray, organs: LabelSet) -> str:
    return hashlib.sha256(repr((organs.organs, organs.ids, labels.shape, labels.dtype.str)).encode() + labels.tobytes()).hexdigest()


def _head(series: SeriesReference, made: datetime, digest: str) -> Dataset:
    """File meta and the modules Patient, General Study, RT Series, General Equipment, Frame of Reference, Approval, SOP Common."""
    date, time = made.strftime("%Y%m%d"), made.strftime("%H%M%S")
    dataset = item_of(
        SpecificCharacterSet="ISO_IR 192", InstanceCreationDate=date, InstanceCreationTime=time,
        SOPClassUID=RTStructureSetStorage, SOPInstanceUID=new_uid("RTSTRUCT", series, made, digest), **dict(series.attributes),
        StudyInstanceUID=series.study, Modality="RTSTRUCT", SeriesInstanceUID=new_uid("RTSTRUCT series", series, made, digest),
        SeriesNumber=1, SeriesDate=date, SeriesTime=time, SeriesDescription=NOTICE, OperatorsName="",
        Manufacturer=SOFTWARE, ManufacturerModelName=SOFTWARE, SoftwareVersions=__version__,
        FrameOfReferenceUID=series.frame, PositionReferenceIndicator="", ApprovalStatus="UNAPPROVED",
    )  # fmt: skip
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return dataset


def _structure_set(dataset: Dataset, series: SeriesReference, instances: tuple[Instance, ...], made: datetime) -> None:
    """The module Structure Set without its structures: labels, and every slice of the series."""
    dataset.InstanceNumber = 1
    dataset.StructureSetLabel, dataset.StructureSetName = SHORT_NOTICE, NOTICE
    dataset.StructureSetDescription = f"{NOTICE}. Made by {SOFTWARE} {__version__}, a research software and no medical device."
    dataset.StructureSetDate, dataset.StructureSetTime = made.strftime("%Y%m%d"), made.strftime("%H%M%S")
    referred = item_of(SeriesInstanceUID=series.series, ContourImageSequence=[_reference(instance) for instance in instances])
    study = item_of(ReferencedSOPClassUID=STUDY_MANAGEMENT, ReferencedSOPInstanceUID=series.study, RTReferencedSeriesSequence=[referred])
    dataset.ReferencedFrameOfReferenceSequence = [item_of(FrameOfReferenceUID=series.frame, RTReferencedStudySequence=[study])]


def _add_structures(dataset: Dataset, labels: np.ndarray, windows, organs: LabelSet, geometry: Geometry, frame: str, instances) -> None:
    """The organs in Structure Set, and the modules ROI Contour and RT ROI Observations. A structure has its organ's id as its number."""
    listed = [(organ, i) for organ, i in zip(organs.organs, organs.ids) if i in windows] or list(zip(organs.organs, organs.ids))
    structures, contoured, observed = [], [], []
    for order, (organ, number) in enumerate(listed, 1):
        name = organ.replace("\\", "_")[:64]  # LO: at most 64 characters, and a backslash would part it in two
        structures.append(item_of(ROINumber=number, ReferencedFrameOfReferenceUID=frame, ROIName=name, ROIDescription=NOTICE,
                                  ROIGenerationAlgorithm="AUTOMATIC", ROIGenerationDescription=f"{SOFTWARE} {__version__}"))
        contour = item_of(ROIDisplayColor=[round(255 * c) for c in organs.colour(organ)], ReferencedROINumber=number)
        if number in windows:
            contour.ContourSequence = _contours(labels, number, windows[number], geometry, instances)
        contoured.append(contour)
        observed.append(item_of(ObservationNumber=order, ReferencedROINumber=number, RTROIInterpretedType="ORGAN",
                                ROIInterpreter=f"AI^{SOFTWARE}"))
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = structures, contoured, observed


def _contours(labels: np.ndarray, number: int, window, geometry: Geometry, instances) -> list[Dataset]:
    """The contour items of one label, slice by slice from below, each in the plane of its slice's own position.

    Positions are often rounded, so that the even grid's planes are a little off; some planning systems compare the two.
    """
    items, depth = [], geometry.index([instance.position_mm for instance in instances])[:, 0]
    for z in range(window[0].start, window[0].stop):
        for polygon in trace(labels[z][window[1:]] == number):
            index = np.column_stack([np.full(len(polygon), depth[z]), polygon + (window[1].start, window[2].start)])
            item = item_of(ContourImageSequence=[_reference(instances[z])], ContourGeometricType="CLOSED_PLANAR",
                           NumberOfContourPoints=len(polygon), ContourNumber=len(items) + 1)
            tag = Tag("ContourData")
            value = _decimals(geometry.world(index))
            # as raw bytes, marked as in their final form: pydicom would make an object of each number, seconds for a head and neck
            item[tag] = RawDataElement(tag, "DS", len(value), value, 0, True, True)
            item.set_original_encoding(True, True, default_encoding)
            items.append(item)
    return items


def _decimals(points_mm: np.ndarray) -> bytes:
    """Points (n, 3) as one multi-valued decimal string of even length."""
    rounded = np.round(points_mm.ravel(), POINT_DECIMALS) + 0.0  # + 0.0: no negative zeros
    text = "\\".join(f"{value:.{POINT_DECIMALS}f}".rstrip("0").rstrip(".") for value in rounded.tolist())
    return (text + " " * (len(text) % 2)).encode("ascii")


def _reference(instance: Instance) -> Dataset:
    return item_of(ReferencedSOPClassUID=instance.sop_class, ReferencedSOPInstanceUID=instance.uid)
