"""One structure set read by another project's reader, in that project's environment: masks as .npy (slices, rows, columns) or .nii.gz.

  python read_rtstruct.py rt-utils|dcmrtstruct2nii SERIES RTSTRUCT OUT
"""
import sys
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")
reader, series, rtstruct, out = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
out.mkdir(parents=True, exist_ok=True)
if reader == "rt-utils":
    from rt_utils import RTStructBuilder

    opened = RTStructBuilder.create_from(dicom_series_path=series, rt_struct_path=rtstruct)
    for name in opened.get_roi_names():
        np.save(out / f"{name}.npy", np.transpose(opened.get_roi_mask_by_name(name), (2, 0, 1)))  # it gives (rows, columns, slices)
else:
    from dcmrtstruct2nii import dcmrtstruct2nii

    dcmrtstruct2nii(rtstruct, series, str(out), convert_original_dicom=False)
