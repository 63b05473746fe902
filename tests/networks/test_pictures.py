from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcondense.errors import DataError
from fedcondense.networks.pictures import pictures_in, pictures_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size, mode in (("b/2.png", (40, 30), "RGB"), ("b/1.png", (16, 16), "L"), ("a.jpg", (20, 60), "RGB")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), (250, 100, 0), np.uint8)).convert(mode).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"")
    return tmp_path


def test_folders_give_their_images_and_nothing_hidden(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in pictures_in([folder, folder / "a.jpg"])]
    assert names == ["a.jpg", "b/1.png", "b/2.png", "a.jpg"]
    (folder / "linked").symlink_to(folder / "b")
    assert len(pictures_in([folder])) == 5
    (folder / "linked").unlink()
    assert pictures_in([Path(f"folder:{folder}/b")]) == pictures_in([folder / "b"])


def test_pictures_become_what_the_network_takes(folder: Path) -> None:
    files = pictures_in([folder / "b"])
    assert pictures_of(files, (3, 16, 16)).shape == (2, 3, 16, 16)
    grey = pictures_of([folder / "b" / "2.png"], (1, 16, 16))
    assert grey.unique().tolist() == [round(0.299 * 250 + 0.587 * 100)]
    assert pictures_of([folder / "b" / "1.png"], (3, 16, 16)).unique().tolist() == grey.unique().tolist()


def test_what_is_missing_or_broken_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        pictures_in([folder / "c"])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        pictures_in([folder / "empty"])
    (folder / "a.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"1 of 3 images cannot be read"):
        pictures_of(pictures_in([folder]), (3, 16, 16))
    broken: dict[int, str] = {}
    assert len(pictures_of(pictures_in([folder]), (3, 16, 16), broken)) == 2
    assert list(broken) == [0]
