"""Random changes of a training sample, composed by a preset; the only module that uses augmentation libraries.

The transforms are batchgeneratorsv2's, which draw from the GLOBAL generators of numpy and torch: `with seeded(...)`
makes a sample a pure function of its key. That is safe with worker processes, not with threads.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform, create_affine_matrix_2d, create_affine_matrix_3d
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor
from torch.nn.functional import affine_grid

LONG_PATCH = 1.5  # nnU-Net: beyond this ratio of a patch's sides a large rotation turns the content out of the patch
LONG_PATCH_DEGREES = 15.0
THICK_SLICES = 3.0  # nnU-Net's ratio of spacings from which slices are not mixed by rotation or low resolution


@dataclass(frozen=True)
class Preset:
    """Chances and ranges. degrees: of rotation about each axis; shift: share of the patch's side, either way;
    scaling: factors on the size of the sampled region, so above 1 the patient shrinks; missing: largest share of the
    patch's side beyond which the scan ends."""

    p_rotation: float = 0.0
    degrees: float = 0.0
    p_translation: float = 0.0
    shift: float = 0.1
    p_scaling: float = 0.0
    scaling: tuple[float, float] = (0.7, 1.4)
    p_end: float = 0.0
    missing: float = 0.5
    intensity: bool = False
    mirror: bool = False


PRESETS = {
    "none": Preset(),
    # the paper gives no numbers: patients lie upright in the scanner, so the angles are small
    "paper": Preset(p_rotation=0.5, degrees=15, p_translation=0.5),
    # nnU-Net's chances and ranges; it has no translation, because it draws patches at random places, and no ends of scans
    "full": Preset(p_rotation=0.2, degrees=30, p_translation=0.2, p_scaling=0.2, p_end=0.3, intensity=True, mirror=True),
}


@dataclass(frozen=True)
class Augmentation:
    """Callable: one sample in, the changed sample out; the arguments are left as they were.

    image: float (channels, *spatial); segmentation: int16 (1, *spatial); known: bool (C,), which output channels are
    annotated: a mirrored sample's left organ is what was its right one, so this is swapped with the labels.
    """

    transforms: ComposeTransforms

    def __call__(self, image: Tensor, segmentation: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = self.transforms(image=image, segmentation=segmentation, known=known)
        return out["image"], out["segmentation"], out["known"]


def make_transforms(
    preset: Preset,
    patch_shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    *,
    air: tuple[float, ...],
    mirror_axis: int | None = None,
    mirrored_channel: tuple[int, ...] = (),
    odd_channels: tuple[int, ...] = (),
    mirrored_input: tuple[int, ...] | None = None,
) -> Augmentation:
    """The augmentation of a member whose patches have this shape and spacing, both per spatial axis (two or three).

    A larger image is cropped to patch_shape about its centre, and what turns into view is then real tissue instead of
    padding. air: what air is in each of the image's first channels, which are intensities; the others are coordinates: they
    are moved but never blurred, brightened, …. mirror_axis, mirrored_channel, odd_channels, mirrored_input: see LeftRightMirror;
    without mirror_axis and odd_channels, or without mirrored_channel, nothing is mirrored. Give no mirrored_channel
    where a sided organ lacks its partner: a mirrored one would be taught under the wrong name.
    """
    transforms: list[BasicTransform] = [AffineInMm(patch_shape, spacing_mm, preset)]
    if preset.p_end:
        transforms.append(RandomTransform(EndOfScan(air, preset.missing), preset.p_end))
    if preset.intensity:
        transforms.append(OnIntensities(len(air), _intensity_transforms(spacing_mm)))
    if preset.mirror and mirrored_channel and (mirror_axis is not None or odd_channels):
        transforms.append(LeftRightMirror(mirror_axis, mirrored_channel, odd_channels, mirrored_input))
    return Augmentation(ComposeTransforms(transforms))


def rotation_limits(degrees: float, extent_mm: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Largest angle (radians) per axis of rotation: one in 2D, three in 3D; each turns the plane of the other axes.

    A plane with sides of more than 1:1.5 gets at most 15°, one with spacings of more than 1:3 none at all.
    """
    axes = range(len(extent_mm))
    planes = [list(axes)] if len(extent_mm) == 2 else [[a for a in axes if a != axis] for axis in axes]
    limits = []
    for plane in planes:
        limit = min(degrees, LONG_PATCH_DEGREES) if np.ptp(np.log(extent_mm[plane])) > np.log(LONG_PATCH) else degrees
        limits.append(0.0 if np.ptp(np.log(spacing_mm[plane])) > np.log(THICK_SLICES) else limit)
    return np.radians(limits)


class AffineInMm(SpatialTransform):
    """Rotation, translation and scaling about the image's centre, in mm: a ball stays a ball whatever the spacing.

    (SpatialTransform turns the voxel grid, which shears the patient where the spacing differs between the axes.)
    Outside the image both image and labels repeat their border: the edge of a whole slice is air, and an organ that
    leaves the field of view goes on in both alike, where zeros would be an intensity that no tissue has.
    """

    def __init__(self, patch_shape: tuple[int, ...], spacing_mm: tuple[float, ...], preset: Preset):
        super().__init__(patch_shape, 0, False, mode_seg="nearest", border_mode_seg="border", padding_mode_image="border")
        self.preset, self.spacing_mm = preset, np.asarray(spacing_mm, float)
        self.half_extent_mm = np.asarray(patch_shape) * self.spacing_mm / 2
        self.limits = rotation_limits(preset.degrees, self.half_extent_mm, self.spacing_mm)

    def get_parameters(self, image: Tensor, **_) -> dict:
        shape, p = image.shape[1:], self.preset
        rotate, move, scale = np.random.uniform(size=3) < (p.p_rotation, p.p_translation, p.p_scaling)
        if not (rotate or move or scale):
            return {"grid": None, "center_location_in_pixels": [n / 2 for n in shape]}
        dimensions = len(shape)
        angles = np.random.uniform(-self.limits, self.limits) if rotate else np.zeros(len(self.limits))
        scales = np.full(dimensions, np.random.uniform(*p.scaling) if scale else 1.0)
        shift_mm = 2 * p.shift * self.half_extent_mm * (np.random.uniform(-1, 1, dimensions) if move else 0.0)
        affine = create_affine_matrix_2d(angles[0], scales) if dimensions == 2 else create_affine_matrix_3d(angles, scales)
        # affine_grid's coordinates run from -1 to 1 over the patch (in) and the image (out), last axis first
        image_half_mm = np.asarray(shape) * self.spacing_mm / 2
        theta = np.column_stack([(affine * self.half_extent_mm)[:, ::-1], shift_mm]) / image_half_mm[:, None]
        theta = torch.from_numpy(theta[::-1].copy()).float()[None]
        return {"grid": affine_grid(theta, [1, 1, *self.patch_size], align_corners=False)[0]}

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> Tensor:
        # torch repeats borders for floats only; channel numbers are exact in float32
        return super()._apply_to_segmentation(segmentation.float(), **params).to(segmentation.dtype)


class EndOfScan(BasicTransform):
    """Lets the scan end at a plane across one axis, up to `missing` of the patch's side from its border: beyond are air and no organ.

    Scans end where the radiographer stopped, and parts of them are removed before they are shared: a network that has seen
    few such patients relies on surroundings that another patient lacks. The coordinates stay: they count from what is left.
    """

    def __init__(self, air: tuple[float, ...], missing: float):
        super().__init__()
        self.air, self.missing = torch.tensor(air), missing

    def get_parameters(self, image: Tensor, **_) -> dict:
        axis = np.random.randint(1, image.ndim)
        end = round(np.random.uniform(0, self.missing) * image.shape[axis])
        return {"axis": axis, "beyond": slice(0, end) if np.random.uniform() < 0.5 else slice(image.shape[axis] - end, None)}

    def _apply_to_image(self, image: Tensor, axis: int, beyond: slice) -> Tensor:
        image = image.clone()
        image[: len(self.air)].movedim(axis, -1)[..., beyond] = self.air.view(-1, *[1] * (image.ndim - 1))
        return image

    def _apply_to_segmentation(self, segmentation: Tensor, axis: int, beyond: slice) -> Tensor:
        segmentation = segmentation.clone()
        segmentation.movedim(axis, -1)[..., beyond] = 0
        return segmentation


class OnIntensities(BasicTransform):
    """Applies transforms to the first `channels` channels of a copy of the image; they may work in place."""

    def __init__(self, channels: int, transforms: ComposeTransforms):
        super().__init__()
        self.channels, self.transforms = channels, transforms

    def __call__(self, **data) -> dict:
        image = data["image"].clone()
        image[: self.channels] = self.transforms(image=image[: self.channels])["image"]
        return data | {"image": image}


class LeftRightMirror(MirrorTransform):
    """Mirrors the patient left to right, half of the time, and with it everything that tells the sides apart.

    axis: the spatial axis that runs left-right, the only one ever flipped; None where the patch has none (a sagittal
    slice): only the following change then. mirrored_channel (LabelSet.mirrored_channel): label c becomes
    mirrored_channel[c], and `known` moves along. odd_channels: image channels that hold the left-right position
    relative to the middle of the patient; they change sign. mirrored_input: image channel i becomes what was channel
    mirrored_input[i], for neighbouring sagittal slices, whose order is reversed; None leaves the order.
    """

    def __init__(
        self,
        axis: int | None,
        mirrored_channel: tuple[int, ...],
        odd_channels: tuple[int, ...] = (),
        mirrored_input: tuple[int, ...] | None = None,
    ):
        super().__init__(() if axis is None else (axis,))
        self.mirrored_channel, self.odd_channels, self.mirrored_input = mirrored_channel, odd_channels, mirrored_input

    def get_parameters(self, **_) -> dict:
        return {"mirrored": torch.rand(1).item() < 0.5, "axes": self.allowed_axes}

    def apply(self, data_dict: dict, *, mirrored: bool, axes: tuple[int, ...]) -> dict:
        if not mirrored:
            return data_dict
        known = data_dict["known"][list(self.mirrored_channel)]
        return super().apply(data_dict, axes=axes) | {"known": known}

    def _apply_to_image(self, img: Tensor, **params) -> Tensor:
        img = super()._apply_to_image(img, **params)
        img = img[list(range(len(img)) if self.mirrored_input is None else self.mirrored_input)]  # a list: indexing copies
        img[list(self.odd_channels)] *= -1
        return img

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> Tensor:
        table = torch.tensor(self.mirrored_channel, dtype=segmentation.dtype)
        return table[super()._apply_to_segmentation(segmentation, **params).long()]


def _noise_sigma(image: Tensor, *_, **__) -> float:
    """nnU-Net's noise of up to a tenth of a standard deviation; its images have deviation 1, windowed ones their own."""
    return np.random.uniform(0, 0.1) * float(image.std())


def _intensity_transforms(spacing_mm: tuple[float, ...]) -> ComposeTransforms:
    """nnU-Net's intensity transforms with its chances, alike for all channels: they are slices or windows of one scan.

    Blur and low resolution, which nnU-Net applies to each channel with chance 0.5 of 0.2 and 0.25, have the product.
    """
    thick = tuple(a for a, mm in enumerate(spacing_mm) if mm > THICK_SLICES * min(spacing_mm)) or None
    changes = [
        (0.1, GaussianNoiseTransform(_noise_sigma, synchronize_channels=True)),
        (0.1, GaussianBlurTransform((0.5, 1.0), synchronize_channels=True)),
        (0.15, MultiplicativeBrightnessTransform(BGContrast((0.75, 1.25)), synchronize_channels=True)),
        (0.15, ContrastTransform(BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=True)),
        (0.125, SimulateLowResolutionTransform((0.5, 1.0), True, True, thick)),
        (0.1, GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=1, synchronize_channels=True, p_per_channel=1, p_retain_stats=1)),
        (0.3, GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=True, p_per_channel=1, p_retain_stats=1)),
    ]
    return ComposeTransforms([RandomTransform(transform, chance) for chance, transform in changes])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, numpy's and torch's global generators start from a state that the key alone decides, e.g. (seed, step, index).

    Afterwards they are as they were. torch's CPU generator only: seeding an accelerator's would be slow and is not needed.
    """
    numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(2)
    before = np.random.get_state(), torch.default_generator.get_state()
    np.random.seed(numpy_seed)
    torch.default_generator.manual_seed(int(torch_seed))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        torch.default_generator.set_state(before[1])
