"""DICOM SEG out: a label map as a binary segmentation that refers to the CT, by highdicom, an optional dependency.

BINARY, one bit for each voxel of each organ, is what viewers read; LABELMAP (Supplement 243) is far smaller, but it is a storage class of
its own that came in 2024, and 3D Slicer, for one, does not read it yet (Slicer issue 8387).
"""
from __future__ import annotations

import warnings
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sr.coding import Code
from skimage.color import rgb2lab

from .. import __version__
from ..errors import C2FError, ImageError
from ..geometry import from_canonical
from ..labels import LabelSet
from . import durable
from .images import Source
from .rtstruct_out import NOTICE, SOFTWARE, content_digest, label_windows, new_uid
from .series import Instance, SeriesReference, by_slice, tell_broken
from .survey import read_dicom, reading

STRUCTURE, ORGAN = Code("91723000", "SCT", "Anatomical Structure"), Code("113343008", "SCT", "Body organ structure")


def require_highdicom() -> None:
    """C2FError unless highdicom can be imported, so that this is told before anything is computed."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        remedy = 'install it (pip install "c2f-nnunet[seg]"), or leave the SEG out'
        raise C2FError(f"a DICOM SEG needs the package highdicom; {remedy}") from None


def write_dicom_seg(
    path: str | Path, labels: np.ndarray, organs: LabelSet, source: Source, series: SeriesReference, made: datetime | None = None
) -> None:
    """Write canonical labels (z, y, x) of the CT `source` durably as a SEG on the slices of `series`; segment i + 1 is organs[i].

    made: the time that its UIDs are made of besides its content (default: now). ImageError where highdicom is not installed, where
    labels, source and series do not fit each other, or where the series lacks what a SEG must have.
    """
    try:
        import highdicom
    except ImportError:
        raise ImageError(f'{path}: DICOM SEG needs the package highdicom; install it by: pip install "c2f-nnunet[seg]"') from None
    label_windows(path, labels, organs, source)
    instances = by_slice(series, source.geometry)
    digest, made = content_digest(labels, organs), made or datetime.now()
    headers = [_header(instance, series, source.geometry.spacing_mm[0]) for instance in instances]
    with reading(instances[0].path):
        for header in headers:  # highdicom asks for equal ones, and scanners round those of single slices
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    voxels = np.ascontiguousarray(from_canonical(organs.to_channels(labels), source.turn))
    content = BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the patient's and study's values that break a rule, which are copied as they are
            dataset = highdicom.seg.Segmentation(
                source_images=headers, pixel_array=voxels, segmentation_type="BINARY", segment_descriptions=_segments(highdicom, organs),
                series_instance_uid=new_uid("SEG series", series, made, digest), series_number=1, instance_number=1,
                sop_instance_uid=new_uid("SEG", series, made, digest), manufacturer=SOFTWARE, manufacturer_model_name=SOFTWARE,
                software_versions=__version__, device_serial_number="none", content_label="AI_NOT_REVIEWED", content_description=NOTICE,
                content_creator_name=f"AI^{SOFTWARE}", series_description=NOTICE, content_qualification="RESEARCH",
            )  # fmt: skip
            dataset.save_as(content, enforce_file_format=True)
    except (AttributeError, KeyError, TypeError, ValueError) as e:  # what highdicom raises for missing or odd attributes
        raise ImageError(f"{path}: no SEG can refer to the series in {instances[0].path.parent} ({e}); export the series again") from e
    durable.write_bytes(Path(path), content.getvalue())
    tell_broken(path, series)


def _header(instance: Instance, series: SeriesReference, gap_mm: float) -> pydicom.Dataset:
    """A slice's header with what highdicom takes from it: patient and study, empty where the series has none of it, and the gap."""
    with reading(instance.path):
        header = read_dicom(instance.path, header_only=True)
        header.SpecificCharacterSet = "ISO_IR 192"  # in which highdicom is to write the attributes
        for keyword, value in series.attributes:
            setattr(header, keyword, value)
        if header.PatientSex not in ("M", "F", "O"):
            header.PatientSex = ""
        header.SpacingBetweenSlices = f"{gap_mm:.6g}"  # highdicom copies it, and a CT's own may be wrong
        if header.get("SliceThickness") is None:
            header.SliceThickness = header.SpacingBetweenSlices
    return header


def _segments(highdicom, organs: LabelSet) -> list:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=SOFTWARE, version=__version__, family=Code("123110", "DCM", "Artificial Intelligence"))
    segments = []
    for number, organ in enumerate(organs.organs, 1):
        segment = highdicom.seg.SegmentDescription(
            segment_number=number, segment_label=organ[:64], segmented_property_category=STRUCTURE, segmented_property_type=ORGAN,
            algorithm_type="AUTOMATIC", algorithm_identification=algorithm,
        )  # fmt: skip
        light, a, b = rgb2lab(np.array(organs.colour(organ)))
        segment.RecommendedDisplayCIELabValue = [round(v) for v in (light * 655.35, (a + 128) * 257, (b + 128) * 257)]  # PS3.3 C.10.7.1.1
        segments.append(segment)
    return segments
