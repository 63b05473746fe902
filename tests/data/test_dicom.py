from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcondense.data.decoding import read_images
from fedcondense.data.dicom import pixels_of, size_of
from fedcondense.data.loading import load_train
from fedcondense.errors import DataError

pydicom = pytest.importorskip("pydicom")

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 16  # 0 to 1008 of 12 bits


def write(path: Path, pixels: np.ndarray[Any, Any] = RAMP, kind: str = "MONOCHROME2", **tags: Any) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    header = Dataset()
    header.file_meta = meta
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.PatientName = "Doe^Jane"
    colours = pixels.ndim == 3
    bits = 8 * pixels.dtype.itemsize
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = (3, "RGB") if colours else (1, kind)
    if colours:
        header.PlanarConfiguration = 0
    header.BitsAllocated, header.BitsStored = bits, 8 if colours else 12
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, 0
    for name, value in tags.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


def test_the_window_is_black_to_white(tmp_path: Path) -> None:
    """After the modality's rescaling: of 2 v - 100, what lies between 99.5 and 899.5 fills 16 bits."""
    path = write(tmp_path / "a.dcm", WindowCenter=500, WindowWidth=801, RescaleSlope=2, RescaleIntercept=-100)
    values = 2.0 * RAMP - 100
    expected = np.clip((values - 99.5) / 800, 0, 1) * 65535
    assert abs(pixels_of(path, "a")[..., 0] - expected).max() <= 0.5 + 1e-6


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    one = write(tmp_path / "a.dcm", WindowCenter=500, WindowWidth=801)
    two = write(tmp_path / "b.dcm", WindowCenter=[500, 40], WindowWidth=[801, 80])
    assert np.array_equal(pixels_of(one, "a"), pixels_of(two, "b"))


def test_without_a_window_all_values_are_kept(tmp_path: Path) -> None:
    found = pixels_of(write(tmp_path / "a.dcm"), "a")[..., 0]
    assert abs(found - RAMP / 4095 * 65535).max() <= 0.5 + 1e-6


def test_higher_is_brighter_in_either_monochrome(tmp_path: Path) -> None:
    inverted = pixels_of(write(tmp_path / "a.dcm", kind="MONOCHROME1"), "a")[..., 0]
    assert inverted[0, 0] == 65535
    assert (np.diff(inverted.ravel().astype(int)) < 0).all()


def test_colours_stay(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    path = write(tmp_path / "a.dcm", colours)
    assert size_of(path) == (8, 9)
    assert np.array_equal(pixels_of(path, "a"), colours)


def test_a_folder_of_them_is_a_site(tmp_path: Path) -> None:
    for name in ("clear", "ill"):
        for k in range(3):
            write(tmp_path / name / f"{k}.DCM", RAMP + 10 * k, WindowCenter=500, WindowWidth=1000)
    data = load_train(f"folder:{tmp_path}", size=16)
    assert data.spec.shape == (1, 16, 16)
    assert data.counts.tolist() == [3, 3]
    assert int(data.images.max()) > 200


def test_frames_and_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.dcm", NumberOfFrames=5)
    with pytest.raises(DataError, match=r"a\.dcm: 5 frames; needed: one"):
        read_images([frames], tmp_path)
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be read \(b\.dcm"):
        read_images([tmp_path / "b.dcm"], tmp_path)
