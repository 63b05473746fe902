from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from fedcondense.data.items import from_dataset
from fedcondense.data.loading import load_train
from fedcondense.errors import DataError

GREY = np.full((8, 8), 50, np.uint8)
FORMS: list[Any] = [
    int,
    bool,
    np.int32,
    np.uint8,
    np.bool_,
    torch.tensor,
    lambda n: torch.tensor([n]),
    lambda n: np.array([[n]]),
]


@given(forms=st.lists(st.sampled_from(FORMS), min_size=2, max_size=6))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_label_is_one_whole_number_in_any_form(forms: list[Any]) -> None:
    labels = [k % 2 for k in range(len(forms))]
    data = from_dataset([(GREY, form(n)) for form, n in zip(forms, labels, strict=True)])
    assert data.labels.tolist() == labels


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("cat", "with str 'cat'; needed: a place among the classes"),
        (b"1", "with bytes"),
        (None, "with NoneType"),
        (1.0, "with float"),
        (torch.tensor(0.5), "with Tensor"),
        (np.array([0, 1, 0]), r"with int64 \(3,\); needed: of a one-hot vector its argmax\(\)"),
        (torch.tensor([0.0, 1.0]), r"needed: of a one-hot vector its argmax\(\)"),
        (torch.tensor([2, 5]), r"with int64 \(2,\); needed: a place among the classes"),
        ({"label": 1}, "with dict"),
        ([], r"with float64 \(0,\)"),
        ([[1], [1, 2]], "with a whole-number label"),
    ],
)
def test_other_labels_are_refused_by_their_item(label: Any, says: str) -> None:
    with pytest.raises(DataError, match=rf"item 1 is not \(image, label\) .*{says}"):
        from_dataset([(GREY, 0), (GREY, label)])


@pytest.mark.parametrize("label", [-1, 10_000, 2**63, 2**70])
def test_labels_that_are_no_place_are_refused(label: int) -> None:
    with pytest.raises(DataError, match=r"labels (are|go from)|with int"):
        from_dataset([(GREY, 0), (GREY, label)])


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("two\nlines"), KeyError(3), NotImplementedError()])
def test_whatever_a_data_set_raises_names_the_item_and_the_cause(error: Exception) -> None:
    class Broken(list[Any]):
        def __getitem__(self, i: Any) -> Any:
            if i == 13:
                raise error
            return super().__getitem__(i)

    with pytest.raises(DataError, match=rf"item 13 cannot be read \({type(error).__name__}:.*\); mend it") as raised:
        from_dataset(Broken([(GREY, 0)] * 20))
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is error


class TestDicts:
    @pytest.mark.parametrize("image", ["image", "img"])
    @pytest.mark.parametrize("label", ["label", "labels"])
    def test_as_hugging_face_gives_them_are_read_with_their_names(self, image: str, label: str) -> None:
        class Held(list[Any]):
            features: ClassVar[dict[str, Any]] = {image: None, label: SimpleNamespace(names=["ant", "bee"])}

        held = Held({image: Image.fromarray(GREY), label: k % 2, "id": k} for k in range(4))
        assert from_dataset(held).spec.classes == ("ant", "bee")
        assert from_dataset(Subset(held, [1, 3])).counts.tolist() == [0, 2]  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "item",
        [
            {"img": GREY, "fine_label": 1, "coarse_label": 0},
            {"pixel_values": GREY, "label": 1},
            {"image": GREY, "img": GREY, "label": 1},
            {},
        ],
    )
    def test_of_other_keys_are_refused_by_them(self, item: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=r"item 0 is a dict of .*; needed: one of image and img, and one of label"):
            from_dataset([item])


class TestTorchvisionsLoader:
    """It converts to RGB before anybody sees the file."""

    def test_files_of_which_it_loses_something_are_refused_and_named(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        drawn = np.zeros((8, 8, 4), np.uint8)
        drawn[2:5, 3, 3] = 255
        wide = np.full((8, 8), 40_000, np.uint16)
        for image, lost in ((drawn, "transparency"), (wide, "bits beyond 8")):
            Image.fromarray(image).save(tmp_path / "a" / "1.png")
            with pytest.raises(DataError, match=rf"item 0: torchvision's loader drops {lost} of .*1\.png; give"):
                from_dataset(Subset(ImageFolder(tmp_path), [0]))
        assert from_dataset(ImageFolder(tmp_path, loader=Image.open)).images.unique().tolist() == [40_000 >> 8]

    def test_other_files_are_as_the_folder_itself(self, tmp_path: Path) -> None:
        for k in range(6):
            (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
            pixels = np.random.default_rng(k).integers(0, 256, (8, 9, 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            exif = image.getexif()
            exif[0x0112] = 3
            image.save(tmp_path / "ab"[k % 2] / f"{k}.png", exif=exif)
        assert torch.equal(from_dataset(ImageFolder(tmp_path)).images, load_train(f"folder:{tmp_path}").images)
        with pytest.raises(DataError, match="drops the EXIF orientation"):
            from_dataset(ImageFolder(tmp_path, lambda image: np.asarray(image)))
