"""DSC and surface DSC of two folders of NIfTI label maps by DeepMind's surface-distance library; for reader_agreement.py.

Runs in an environment of its own, which needs none of this project. Masks go in as the file has them (nibabel's axis order and spacing),
cut to the box around both masks, as the library would itself; that takes the cutting out of its time.

  python peers/deepmind_surface.py FOLDER_A FOLDER_B TOLERANCES.json OUT.json
"""
import json
import sys
from pathlib import Path
from time import perf_counter

import nibabel as nib
import numpy as np
from scipy.ndimage import find_objects
from surface_distance import metrics


def score(a: np.ndarray, b: np.ndarray, label: int, spacing_mm, tolerance_mm: float) -> dict:
    box = find_objects(((a == label) | (b == label)).astype(np.uint8))[0]
    a, b = a[box] == label, b[box] == label
    began = perf_counter()
    distances = metrics.compute_surface_distances(a, b, spacing_mm)
    share = metrics.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return {"dsc": float(metrics.compute_dice_coefficient(a, b)), "surface_dsc": float(share), "seconds": perf_counter() - began}


def main() -> None:
    first, second, tolerances, out = map(Path, sys.argv[1:])
    tolerance_mm = {int(label): mm for label, mm in json.loads(tolerances.read_text()).items()}
    done = json.loads(out.read_text()) if out.exists() else {}
    for path in sorted(first.glob("*.nii.gz")):
        a, b = nib.load(path), nib.load(second / path.name)
        mine = done.setdefault(path.name.removesuffix(".nii.gz"), {})
        arrays, spacing_mm = [np.asarray(f.dataobj) for f in (a, b)], [float(s) for s in a.header.get_zooms()]
        both = set(np.unique(arrays[0])) & set(np.unique(arrays[1]))
        for label in sorted(both & tolerance_mm.keys()):
            if str(label) not in mine:
                mine[str(label)] = score(*arrays, label, spacing_mm, tolerance_mm[label])
        out.write_text(json.dumps(done))  # after each case, so that a run that is cut short goes on there


if __name__ == "__main__":
    main()
