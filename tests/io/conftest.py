"""Small image files, good and bad ones, and how a bad one must be refused."""
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import read_image, write_volume

CT = np.arange(-12, 12, dtype=np.int16).reshape(2, 3, 4)


@pytest.fixture
def nifti():
    def nifti(path, array_ijk=CT.T, affine=np.diag([1.5, 2.0, 3.0, 1.0]), kind=nib.Nifti1Image, **header):
        """A NIfTI file by nibabel; header fields by name are set on the file's bytes, past nibabel's own checks."""
        image = kind(array_ijk, affine)
        image.to_filename(path)
        if header:
            whole = bytearray(path.read_bytes())
            raw = image.header.structarr.copy()
            raw = np.frombuffer(bytes(whole[: raw.dtype.itemsize]), raw.dtype).copy()
            for name, value in header.items():
                raw[name] = value
            whole[: raw.dtype.itemsize] = raw.tobytes()
            path.write_bytes(whole)
        return path

    return nifti


@pytest.fixture
def write_itk():
    def write_itk(path, array_kji):
        """An NRRD or MHA file by SimpleITK."""
        sitk.WriteImage(sitk.GetImageFromArray(array_kji), str(path))
        return path

    return write_itk


@pytest.fixture
def written(tmp_path):
    def written(ending, compressed):
        """A volume of noise, which does not compress away."""
        noise = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20), np.int16)
        path = tmp_path / f"ct{ending}"
        write_volume(path, noise, Geometry(noise.shape, (3.0, 1.0, 1.0)))
        if ending in (".nrrd", ".mha"):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path), useCompression=compressed)
        return path

    return written


@pytest.fixture
def refused():
    def refused(path, sentence, read=read_image):
        """Reading fails with one sentence that begins with the file's path."""
        with pytest.raises(ImageError, match=sentence) as told:
            read(path)
        assert str(told.value).startswith(str(path)) and "\n" not in str(told.value)

    return refused
