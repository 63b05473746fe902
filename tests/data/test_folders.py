from __future__ import annotations

import json
import logging
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from fedcondense.data.folders import is_hidden, list_images, part_of, why_no_classes
from fedcondense.data.items import from_dataset
from fedcondense.data.loading import load_data, load_test, load_train
from fedcondense.errors import DataError

ENDINGS = frozenset({".png", ".jpg"})


def tree(top: Path, *files: str) -> Path:
    """Make empty files; what is below is told by names alone."""
    for file in files:
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).touch()
    return top


def pictures(top: Path, *folders: str, count: int = 5) -> Path:
    for k, folder in enumerate(folders):
        (top / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * k + i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(top / folder / f"{i}.png")
    return top


def listed(top: Path) -> tuple[tuple[str, ...], list[str], list[str] | None]:
    found = list_images(top, "toy", ENDINGS)

    def names(files: list[tuple[Path, int]]) -> list[str]:
        return [f"{path.relative_to(top)}={found.classes[label]}" for path, label in files]

    return found.classes, names(found.train), None if found.test is None else names(found.test)


SPELLINGS = {
    "train": [
        "train",
        "Train",
        "TRAIN",
        "training",
        "train_set",
        "trainset",
        "Training-Data",
        "train_images",
        "train2017",
    ],
    "test": ["test", "TEST", "Testing", "test set", "testset", "eval", "test_data"],
    "validation": ["val", "Val", "valid", "validation", "VALIDATION", "val_set", "valset", "dev", "val2017"],
}


@given(
    train=st.sampled_from(SPELLINGS["train"]),
    other=st.sampled_from([*SPELLINGS["test"], *SPELLINGS["validation"]]),
    noise=st.sampled_from([None, "__MACOSX", ".ipynb_checkpoints", ".git", "@eaDir"]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_parts_are_recognised_in_any_spelling(
    tmp_path_factory: pytest.TempPathFactory, train: str, other: str, noise: str | None
) -> None:
    top = tmp_path_factory.mktemp("parts")
    tree(top, f"{train}/a/1.png", f"{train}/b/1.png", f"{other}/a/2.png")
    if noise:
        tree(
            top,
            f"{noise}/a/9.png",
            f"{train}/{noise}/9.png",
            f"{train}/a/{noise}/9.png",
            f"{train}/a/deep/{noise}/9.png",
        )
    assert listed(top) == (("a", "b"), [f"{train}/a/1.png=a", f"{train}/b/1.png=b"], [f"{other}/a/2.png=a"])


def test_a_training_part_alone_is_no_class(tmp_path: Path) -> None:
    assert listed(tree(tmp_path, "Train/a/1.png", "Train/b/1.png")) == (
        ("a", "b"),
        ["Train/a/1.png=a", "Train/b/1.png=b"],
        None,
    )


def test_where_there_are_three_parts_the_validation_part_is_said_not_to_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree(tmp_path, "train/a/1.png", "val/a/2.png", "test/a/3.png")
    assert listed(tmp_path) == (("a",), ["train/a/1.png=a"], ["test/a/3.png=a"])
    assert "validation part val is not read" in caplog.text


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["val/a/1.png"], "val is there, but no training part"),
        (["train/a/1.png", "Training/a/1.png"], "Training and train are both the train part"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "val and valid are both the validation part"),
        (["train/a/1.png", "cat/1.png"], "train is a part of a data set, but cat beside it"),
        (["train/a/1.png", "test/1.png"], "train is a part of a data set, but test beside it has no class folders"),
        (["train/1.png", "test/1.png"], "test, train: parts of a data set, not classes"),
        (["train/1.png"], "train: parts of a data set, not classes"),
        (["train/1.png", "val/1.png", "cat/1.png"], "parts of a data set, not classes"),
        (["data/train/a/1.png", "data/test/a/1.png"], "data/ holds test, train, .* name the folder data itself"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "cat/ holds test, train, which is called as a part"),
        (["cat/1.png", "cat/deep/Val/1.png"], "cat/ holds Val, which"),
        (["photos/cat/1.png", "photos/dog/1.png"], r"one folder photos has no images but the folders cat, dog"),
        (["train/photos/cat/1.png", "train/photos/dog/1.png"], r"one folder photos has no images but the folders"),
        (["A/cat/1.png", "A/dog/1.png", "B/cat/1.png", "B/dog/1.png"], r"no images in A, B but the same folders"),
        (["train/Cat/1.png", "test/cat/1.png"], "'Cat' and 'cat', which differ by case, spaces"),
        (["train/a b/1.png", "test/ab/1.png"], "'a b' and 'ab', which differ by case, spaces"),
        (["e\u0301/1.png", "\u00e9/1.png"], "two folders are called 'é', apart by spaces or Unicode form"),
        (["a/1.heic", "a/2.HEIC"], r"no images found but \.heic; needed"),
    ],
)
def test_what_could_be_parts_or_classes_is_refused(tmp_path: Path, files: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        list_images(tree(tmp_path, *files), "toy", ENDINGS)


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["train/1.png", "bus/1.png", "car/1.png"], ("bus", "car", "train")),  # the vehicle
        (["test/1.png", "control/1.png"], ("control", "test")),
        (["valid/1.png", "invalid/1.png"], ("invalid", "valid")),
        (["n1/images/1.png", "n2/images/1.png"], ("n1", "n2")),
        (["cat/1.png", "cat/2019/1.png", "dog/2019/1.png"], ("cat", "dog")),
        (["only/1.png"], ("only",)),
        (["trainer/1.png", "tested/1.png"], ("tested", "trainer")),
        (["train/e\u0301/1.png", "test/\u00e9/1.png"], ("é",)),
    ],
)
def test_classes_that_are_called_as_parts_are_or_lie_deeper_stay_classes(
    tmp_path: Path, files: list[str], classes: tuple[str, ...]
) -> None:
    assert listed(tree(tmp_path, *files))[0] == classes


def test_what_is_passed_over_is_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, "a/1.PNG", "a/2.heic", "a/deep/3.HEIC", "a/notes.txt", "a/plain", "4.png", "a/.5.png", "labels.csv")
    assert listed(tmp_path)[1] == ["a/1.PNG=a"]
    assert [record.message for record in caplog.records] == [
        "toy: files that are passed over: 2 .heic, 1 .txt, 1 without an ending, 1 images outside of the class folders"
    ]


def test_the_file_of_an_export_says_which_folder_is_which_class(tmp_path: Path) -> None:
    tree(tmp_path, "train/1.png", "T-shirt_top/1.png", "__MACOSX/1.png")
    note: dict[str, Any] = {"classes": ["T-shirt/top", "train", "a/b"], "folders": ["T-shirt_top", "train", "__MACOSX"]}
    (tmp_path / "fedcondense.json").write_text(json.dumps(note))
    found = list_images(tmp_path, "toy", ENDINGS)
    assert found.classes == ("T-shirt/top", "train", "a/b")
    assert [label for _, label in found.train] == [0, 1, 2]
    assert found.is_export
    assert found.test is None


@pytest.mark.parametrize(
    "note", [b"", b"[]", b"{", b'{"folders": 1}', b'{"classes": ["a"], "folders": ["../x"]}', b"[" * 100_000, b"\xff"]
)
def test_a_damaged_file_of_an_export_is_refused(tmp_path: Path, note: bytes) -> None:
    tree(tmp_path, "a/1.png")
    (tmp_path / "fedcondense.json").write_bytes(note)
    with pytest.raises(DataError, match=r"fedcondense\.json: not what an export writes"):
        list_images(tmp_path, "toy", ENDINGS)


def test_names_alone() -> None:
    assert all(part_of(name) == part for part, names in SPELLINGS.items() for name in names)
    assert not any(map(part_of, ("cat", "trainer", "train-cats", "protest", "", "valley", "set", "1", "contest")))
    assert all(map(is_hidden, (".a", "._1.png", "__MACOSX", "__macosx", "lost+found")))
    assert why_no_classes({"a": [PurePath("1.png")], "empty": []}) == ""


class TestWhoReadsFolders:
    """Parts of a fifth are made where a test part is asked for, and by nobody else."""

    def test_load_data_divides_and_load_train_does_not(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a", "b")
        train, test = load_data(f"folder:{tmp_path}")
        assert (len(train), len(test)) == (8, 2)
        assert len(load_train(f"folder:{tmp_path}")) == 10

    def test_few_images_of_a_class_are_enough_to_train_on(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a", "b", count=1)
        assert load_train(f"folder:{tmp_path}").counts.tolist() == [1, 1]
        with pytest.raises(DataError, match="no class has 5 images, so none is left for testing"):
            load_data(f"folder:{tmp_path}")

    def test_classes_that_are_too_small_to_be_tested_are_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        pictures(pictures(tmp_path, "a"), "b", count=2)
        load_data(f"folder:{tmp_path}")
        assert "1 classes of fewer than 5 images are not tested" in caplog.text

    def test_a_test_part_stays_one(self, tmp_path: Path) -> None:
        pictures(tmp_path, "train/a", "val/a")
        train, test = load_data(f"folder:{tmp_path}")
        assert len(train) == len(test) == len(load_train(f"folder:{tmp_path}")) == 5

    def test_a_class_of_the_test_part_alone_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        pictures(tmp_path, "train/b", "test/a", "test/b")
        assert load_data(f"folder:{tmp_path}").train.spec.classes == ("a", "b")
        assert "the test part has classes that training lacks: 'a' (5 images)" in caplog.text

    def test_letters_may_differ_by_case_and_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert load_data(f"folder:{pictures(tmp_path, 'a', 'A')}").train.spec.classes == ("A", "a")
        assert "'A' and 'a'" in caplog.text


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (["train", "val"], "train, val: parts of a data set"),
        (["train/a", "train/b", "Test/a"], "parts of a data set"),
        (["a", "b", "a/.ipynb_checkpoints"], "5 images are hidden files"),
        (["a", "__MACOSX"], "5 images are hidden files"),
        (["A/cat", "A/dog", "B/cat", "B/dog"], "the same folders in them"),
    ],
)
def test_an_image_folder_of_something_else_than_classes_is_refused(
    tmp_path: Path, folders: list[str], says: str
) -> None:
    with pytest.raises(DataError, match=rf"{says}.*load_data\('folder:"):
        from_dataset(ImageFolder(pictures(tmp_path, *folders)))


def test_a_folder_with_a_test_part_alone_is_all_for_testing(tmp_path: Path) -> None:
    pictures(tmp_path, "test/a", "test/b", count=7)
    test = load_test(f"folder:{tmp_path}")
    assert (len(test), test.spec.classes, test.spec.name) == (14, ("a", "b"), f"folder:{tmp_path.name}")
    with pytest.raises(DataError, match="no training part"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("parts", [("train", "test"), ("",)])
def test_other_folders_are_tested_on_as_they_are_divided(tmp_path: Path, parts: tuple[str, ...]) -> None:
    pictures(tmp_path, *(f"{part}/{name}" if part else name for part in parts for name in "ab"), count=10)
    name = f"folder:{tmp_path}"
    assert len(load_test(name)) == len(load_data(name).test)
