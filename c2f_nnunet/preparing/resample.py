"""From one explicit grid to another (SimpleITK), images and masks; grids are Geometry, so nothing is rounded on the way."""
from __future__ import annotations

from itertools import product

import numpy as np
import SimpleITK as sitk

from ..geometry import Box, Geometry, bounding_box, boxed, crop

AIR_HU = -1024


def to_itk(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """(z, y, x) array and its grid as a SimpleITK image."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(geometry.spacing_mm)])
    image.SetOrigin([float(o) for o in geometry.origin_mm])
    image.SetDirection(_itk_direction(geometry))
    return image


def _itk_direction(geometry: Geometry) -> list[float]:
    return np.asarray(geometry.direction)[:, ::-1].ravel().tolist()  # ITK's axes are (i, j, k) = our (x, y, z)


def resample(array: np.ndarray, source: Geometry, target: Geometry, fill: float, smooth: bool = True) -> np.ndarray:
    """Linear interpolation of an image onto target's voxel centres, as float32; outside the source it is `fill`.

    Where the target is coarser by more than a quarter, the image is first blurred to the target's resolution
    (sigma = half a target voxel, less the source's own), so that thin structures do not alias away.
    """
    image = to_itk(np.ascontiguousarray(array, np.float32), source)
    if smooth:
        for axis in range(3):
            new, old = target.spacing_mm[axis], source.spacing_mm[axis]
            if new > 1.25 * old and source.shape[axis] >= 4:
                sigma = 0.5 * float(np.sqrt(new**2 - old**2))
                image = sitk.RecursiveGaussian(image, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, 2 - axis)
    out = sitk.Resample(
        image, [int(n) for n in reversed(target.shape)], sitk.Transform(), sitk.sitkLinear,
        [float(o) for o in target.origin_mm], [float(s) for s in reversed(target.spacing_mm)], _itk_direction(target),
        float(fill), sitk.sitkFloat32,
    )  # fmt: skip
    return sitk.GetArrayFromImage(out)


def resample_map(values: np.ndarray, grid: Geometry, image: Geometry, box: Box, fill: float) -> np.ndarray:
    """A network's map (z, y, x) on its grid, e.g. of log-odds, onto the image's voxels in `box`, as float32; beyond the grid it is `fill`.

    Never blurred, however coarse the image: the background's log-odds are far below 0 and would drown a thin organ's. Grid voxels beyond
    the image take the value of the last one within: they hold air, so a network calls them background, and an organ that the scan cuts
    would lose its last slices to the interpolation. The grid lies along the image's axes.
    """
    kept = [np.arange(n) for n in grid.shape]
    for axis, first in enumerate(image.index(grid.world((0, 0, 0)))):
        at = first + kept[axis] * grid.spacing_mm[axis] / image.spacing_mm[axis]
        within = np.flatnonzero((at >= -0.5) & (at <= image.shape[axis] - 0.5))
        if 0 < len(within) < len(at):
            kept[axis] = np.clip(kept[axis], within[0], within[-1])
    if any(len(np.unique(k)) < len(k) for k in kept):
        values = values[np.ix_(*kept)]
    return resample(values, grid, boxed(image, box), fill, smooth=False)


def resample_hu(array: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """A CT onto another grid as int16 HU; air outside the scan."""
    return np.rint(np.clip(resample(array, source, target, AIR_HU), -32768, 32767)).astype(np.int16)


def resample_labels(labels: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """A label map (small non-negative integers) onto another grid: each label linearly, its volume kept, the largest share wins.

    A label takes as many voxels as its shares sum up to, those of the largest share: at a fixed share of one half,
    interpolation would round off every convex shape (organs of this size lost 4 to 6 % of their volume). Smoother than
    nearest neighbour and without its half-voxel jumps; each label is done in a crop of its own.
    """
    out = np.zeros(target.shape, labels.dtype)
    share = np.zeros(target.shape, np.float32)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        # not beyond the image: a label that the scan's end cuts off does not taper there; four voxels can be blurred
        box = bounding_box(mask).grown(3).clipped(labels.shape)
        region = covering_box(boxed(source, box), target).clipped(target.shape)
        if not all(region.shape):
            continue
        part = resample(crop(mask, box), boxed(source, box), boxed(target, region), 0.0)
        here = share[region.slices]
        wins = (part >= _volume_keeping_share(part)) & (part > here)
        here[wins] = part[wins]
        out[region.slices][wins] = value
    return out


def _volume_keeping_share(part: np.ndarray) -> float:
    """The share from which on as many voxels lie as the shares sum up to; near one half, so that a thin shape is not smeared."""
    count = int(round(float(part.sum())))
    flat = part.ravel()
    share = float(np.partition(flat, flat.size - count)[flat.size - count]) if 0 < count < flat.size else 0.5
    return min(max(share, 0.3), 0.6)


def covering_box(part: Geometry, grid: Geometry) -> Box:
    """The box of `grid`'s voxels that covers all of `part` (both in one world), not clipped."""
    corners = np.array(list(product(*[(-0.5, n - 0.5) for n in part.shape])))
    index = grid.index(part.world(corners))
    start, stop = np.floor(index.min(0) + 0.5 + 1e-6), np.ceil(index.max(0) + 0.5 - 1e-6)
    return Box(tuple(int(a) for a in start), tuple(int(b) for b in np.maximum(stop, start + 1)))
