from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.data.catalogue import CATALOGUE, Arrays, Entry
from fedcondense.data.images import Spec
from fedcondense.data.items import from_dataset
from fedcondense.data.loading import count_listed, data_root, load_data
from fedcondense.errors import DataError, SettingError


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def arrays(n: int = 12, classes: int = 3, shape: tuple[int, ...] = (8, 8)) -> dict[str, Any]:
    labels = np.arange(n) % classes
    images = random_images(n, *shape)
    return {"x_train": images, "y_train": labels, "x_test": images[:6], "y_test": labels[:6]}


def save(path: Path, **changed: Any) -> Path:
    held = {key: value for key, value in {**arrays(), **changed}.items() if value is not None}
    np.savez(path, **held)
    return path


def write_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "L", value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


class Listed:
    """A map-style Dataset of a list."""

    def __init__(self, items: list[tuple[Any, Any]], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.items[i]


class TestNpz:
    @pytest.mark.parametrize(
        ("stored", "shape"),
        [
            ((12, 10, 9), (1, 10, 9)),
            ((12, 10, 9, 3), (3, 10, 9)),
            ((12, 3, 10, 9), (3, 10, 9)),
            ((12, 10, 9, 1), (1, 10, 9)),
        ],
    )
    def test_every_usual_layout_gives_the_same_pixels(
        self, tmp_path: Path, stored: tuple[int, ...], shape: tuple[int, int, int]
    ) -> None:
        images = random_images(12, *shape)
        held = {(12, *shape): images, (12, *shape[1:]): images[:, 0]}.get(stored, images.transpose(0, 2, 3, 1))
        train, _ = load_data(f"npz:{save(tmp_path / 'a.npz', x_train=held, x_test=held[:6])}")
        assert train.spec.shape == shape
        assert torch.equal(train.images, torch.from_numpy(images))

    def test_floating_point_and_wide_integers_become_bytes(self, tmp_path: Path) -> None:
        images = random_images(12, 8, 8)
        for other in (images / 255, (images / 255).astype(np.float32), images.astype(np.int64)):
            train = load_data(f"npz:{save(tmp_path / 'a.npz', x_train=other)}").train
            assert torch.equal(train.images[:, 0], torch.from_numpy(images))

    def test_constants_are_the_channels_of_train(self, tmp_path: Path) -> None:
        images = random_images(12, 8, 8, 3)
        images[..., 1] //= 2
        images[..., 2] = 51
        spec = load_data(f"npz:{save(tmp_path / 'a.npz', x_train=images, x_test=images[:6])}").train.spec
        assert spec.mean == pytest.approx(images.mean((0, 1, 2)) / 255, abs=5e-5)
        assert spec.std[:2] == pytest.approx(images.std((0, 1, 2))[:2] / 255, abs=5e-5)
        assert spec.std[2] == pytest.approx(1 / 255, abs=5e-5)  # a flat channel is not divided by zero
        assert "flip" in spec.operations

    def test_class_names_come_from_the_file_or_are_numbers(self, tmp_path: Path) -> None:
        assert load_data(f"npz:{save(tmp_path / 'a.npz')}").train.spec.classes == ("0", "1", "2")
        named = save(tmp_path / "b.npz", classes=np.array(["x", "y", "z", "never"]))
        assert load_data(f"npz:{named}").train.counts.tolist() == [4, 4, 4, 0]
        for names in ([b"x", b"y", b"z"], ["x", "y", "z"]):
            path = save(tmp_path / "c.npz", classes=np.array(names))
            assert load_data(f"npz:{path}").train.spec.classes == ("x", "y", "z")

    def test_a_class_that_only_the_test_split_has_gets_its_name(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.npz", y_test=np.array([0, 1, 2, 3, 4, 4]))
        assert load_data(f"npz:{path}").train.spec.classes == ("0", "1", "2", "3", "4")

    def test_the_name_holds_no_folder(self, tmp_path: Path) -> None:
        """It travels in the record of a set."""
        assert load_data(f"npz:{save(tmp_path / 'a.npz')}").train.spec.name == "npz:a.npz"

    def test_a_named_set_in_the_root_keeps_its_constants_and_class_names(self, tmp_path: Path) -> None:
        images = random_images(20, 32, 32, 3)
        save(tmp_path / "cifar10.npz", x_train=images, y_train=np.arange(20) % 10, x_test=images[:6])
        train, _ = load_data("cifar10", tmp_path)
        assert train.spec.mean == (0.4914, 0.4822, 0.4465)
        assert train.spec.classes[:2] == ("airplane", "automobile")

    def test_any_file_of_the_root_goes_by_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "mine.npz")
        monkeypatch.setenv("FEDCONDENSE_DATA", str(tmp_path))
        assert load_data("mine").train.spec.name == "mine"
        assert len(load_data("npz:mine.npz").test) == 6

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"y_test": None}, r"y_test missing; it holds .*x_train.*; needed: x_train, y_train, x_test, y_test"),
            (
                {"x_train": np.full((12, 8, 8), np.nan)},
                r"12 of 12 images hold NaN or infinity \(image 0, image 1, .*\.\.\.",
            ),
            ({"x_train": np.linspace(-2, 2, 768).reshape(12, 8, 8)}, r"float64, -2.0 to 2.0; needed: .*not normalised"),
            ({"x_train": np.full((12, 8, 8), 256)}, r"256 to 256; needed: uint8"),
            ({"x_train": np.full((12, 8, 8), "a")}, r"no numbers; needed: uint8"),
            ({"x_train": random_images(12, 8, 8, 4)}, r"images are \(12, 8, 8, 4\); needed: .*C 1 or 3"),
            ({"x_train": random_images(12, 64)}, r"images are \(12, 64\)"),
            ({"x_train": random_images(0, 8, 8), "y_train": np.zeros(0, int)}, r"no images; needed: at least one"),
            ({"x_train": random_images(12, 7, 8)}, r"images are 7x8; needed: 8 to 128 pixels a side"),
            ({"x_train": random_images(12, 129, 64)}, r"images are 129x64; needed: 8 to 128"),
            ({"x_test": random_images(6, 9, 8)}, r"train images are \(8, 8, 1\), test images \(9, 8, 1\)"),
            ({"y_train": np.arange(11)}, r"labels are int64 \(11,\); needed: \(12,\) whole numbers"),
            ({"y_train": np.eye(12)}, r"labels are float64 \(12, 12\)"),
            ({"y_train": np.arange(12) - 1}, r"labels go from -1 to 10; needed: 0"),
            ({"y_train": np.arange(12) * 10**8}, r"labels go from 0 to 1100000000; .*below 10000"),
            ({"classes": np.array(["a", "b"])}, r"labels go from 0 to 2; needed: 0 to 1"),
            ({"classes": np.array(["a", "b", "a"])}, r"class name 'a' of labels 0 and 2"),
            ({"classes": np.array([["a", "b", "c"]])}, r"classes are an array \(1, 3\); needed: \(K,\)"),
            ({"classes": np.array([b"\xff", b"b", b"c"])}, r"class name b'\\xff' of label 0 is not UTF-8"),
            ({"classes": np.array([0.5, 1.5, 2.5])}, "class name .*0.5.* of label 0 is of type"),
        ],
    )
    def test_bad_arrays_are_refused_by_what_is_wrong(
        self, tmp_path: Path, changed: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            load_data(f"npz:{save(tmp_path / 'a.npz', **changed)}")

    def test_pickled_objects_are_never_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{**arrays(), "x_train": np.array([{}] * 12, dtype=object)})
        with pytest.raises(DataError, match=r"not a whole \.npz of plain arrays .*write it anew with numpy\.savez"):
            load_data(f"npz:{tmp_path / 'a.npz'}")

    def test_a_file_cut_anywhere_or_damaged_is_refused(self, tmp_path: Path) -> None:
        whole = save(tmp_path / "a.npz").read_bytes()
        for end in (0, 10, len(whole) // 3, len(whole) // 2, len(whole) - 30):
            (tmp_path / "b.npz").write_bytes(whole[:end])
            with pytest.raises(DataError, match=r"b\.npz: not a whole"):
                load_data(f"npz:{tmp_path / 'b.npz'}")
        middle = len(whole) // 4
        (tmp_path / "b.npz").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
        with pytest.raises(DataError, match=r"b\.npz: not a whole"):
            load_data(f"npz:{tmp_path / 'b.npz'}")

    def test_a_lone_array_and_a_missing_file_are_refused(self, tmp_path: Path) -> None:
        with (tmp_path / "a.npz").open("wb") as stream:
            np.save(stream, np.zeros(3))
        with pytest.raises(DataError, match="not a whole"):
            load_data(f"npz:{tmp_path / 'a.npz'}")
        with pytest.raises(DataError, match=r"b\.npz: no such file; needed: an \.npz with x_train"):
            load_data(f"npz:{tmp_path / 'b.npz'}")


class TestFolder:
    def test_one_folder_a_class_is_split_one_in_five(self, tmp_path: Path) -> None:
        for i in range(10):
            write_image(tmp_path / "cat" / f"{i}.png", value=i)
            write_image(tmp_path / "dog" / "deeper" / f"{i}.jpg", value=i)
        (tmp_path / "cat" / "notes.txt").write_text("not an image")
        train, test = load_data(f"folder:{tmp_path}")
        assert train.spec.classes == ("cat", "dog")
        assert train.counts.tolist() == [8, 8]
        assert test.counts.tolist() == [2, 2]
        assert train.spec.shape == (1, 8, 8)
        levels = torch.cat([train.images, test.images])[torch.cat([train.labels, test.labels]) == 0, 0, 0, 0]
        assert sorted(levels.tolist()) == list(range(10))

    def test_train_and_test_folders_are_taken_as_they_are_and_share_class_names(self, tmp_path: Path) -> None:
        write_image(tmp_path / "train" / "b" / "1.png")
        write_image(tmp_path / "test" / "a" / "1.png")
        train, test = load_data(f"folder:{tmp_path}")
        assert train.spec.classes == test.spec.classes == ("a", "b")
        assert train.labels.tolist() == [1]
        assert test.labels.tolist() == [0]

    def test_a_grey_image_among_coloured_ones_becomes_coloured(self, tmp_path: Path) -> None:
        for i in range(5):
            write_image(tmp_path / "a" / f"{i}.png", mode="L" if i == 2 else "RGB", value=40)
        train, test = load_data(f"folder:{tmp_path}")
        assert train.spec.shape == (3, 8, 8)
        grey = torch.cat([train.images, test.images]).flatten(1).eq(40).all(1)
        assert int(grey.sum()) == 1

    def test_sixteen_bit_grey_keeps_its_upper_byte(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        for i in range(5):
            Image.fromarray(np.full((8, 8), 0x1234, dtype=np.uint16)).save(tmp_path / "a" / f"{i}.png")
        assert load_data(f"folder:{tmp_path}").train.images.unique().tolist() == [0x12]

    def test_images_of_different_sizes_are_counted_and_the_first_named(self, tmp_path: Path) -> None:
        for i in range(10):
            write_image(tmp_path / "a" / f"{i}.png", (9, 10) if i >= 6 else (8, 8))
        message = (
            r"6 of 10 images are 8x8, the rest not \(a/6.png: 10x9, a/7.png: 10x9, a/8.png: 10x9, \.\.\.\); needed"
        )
        with pytest.raises(DataError, match=message):
            load_data(f"folder:{tmp_path}")

    def test_photographs_are_refused_by_their_size_before_they_are_decoded(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a" / "1.png", (400, 300))
        whole = (tmp_path / "a" / "1.png").read_bytes()
        (tmp_path / "a" / "1.png").write_bytes(whole[:60])  # the header alone: decoding would fail
        with pytest.raises(DataError, match="images are 300x400; needed: 8 to 128 pixels a side"):
            load_data(f"folder:{tmp_path}")

    def test_files_that_are_no_images_are_counted_and_named(self, tmp_path: Path) -> None:
        for i in range(5):
            write_image(tmp_path / "a" / f"{i}.png")
        (tmp_path / "a" / "3.png").write_bytes(b"no image")
        with pytest.raises(DataError, match=r"1 of 5 images cannot be read \(a/3.png: .*remove them"):
            load_data(f"folder:{tmp_path}")

    def test_broken_files_are_left_out_where_that_is_asked(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for i in range(10):
            write_image(tmp_path / "a" / f"{i}.png", value=20 * i)
        (tmp_path / "a" / "3.png").write_bytes(b"no image")
        (tmp_path / "a" / "7.png").write_bytes((tmp_path / "a" / "7.png").read_bytes()[:50])
        train, test = load_data(f"folder:{tmp_path}", skip_broken=True)
        levels = sorted([*train.images[:, 0, 0, 0].tolist(), *test.images[:, 0, 0, 0].tolist()])
        assert levels == [0, 20, 40, 80, 100, 120, 160, 180]
        assert "2 of 10 images are left out: a/3.png" in caplog.text
        assert (train.broken, test.broken) == (("a/3.png", "a/7.png"), ())
        assert train.to("cpu").broken == train.named("other").broken == train.broken
        (tmp_path / "b").mkdir()
        for path in (tmp_path / "a").iterdir():
            path.write_bytes(b"")
        with pytest.raises(DataError, match="10 of 10 images cannot be read"):
            load_data(f"folder:{tmp_path}", skip_broken=True)

    def test_a_size_unifies_what_differs(self, tmp_path: Path) -> None:
        for i in range(10):
            write_image(tmp_path / "a" / f"{i}.png", (90, 300) if i >= 6 else (8, 8), value=100)
        train, _ = load_data(f"folder:{tmp_path}", size=32)
        assert train.spec.shape == (1, 32, 32)
        assert train.images.unique().tolist() == [100]

    def test_empty_and_missing_folders_show_what_is_needed(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"no images found; needed: one sub-folder for each class, as in .*/cat/1.png"
        ):
            load_data(f"folder:{tmp_path}")
        (tmp_path / "test" / "a").mkdir(parents=True)
        write_image(tmp_path / "train" / "a" / "1.png")
        with pytest.raises(DataError, match=r"/test: no images found"):
            load_data(f"folder:{tmp_path}")
        with pytest.raises(DataError, match=r"no such folder; needed"):
            load_data(f"folder:{tmp_path / 'nowhere'}")

    def test_too_few_images_to_split_are_refused(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a" / "1.png")
        with pytest.raises(DataError, match="no class has 5 images, so none is left for testing"):
            load_data(f"folder:{tmp_path}")


class TestTorchDatasets:
    def test_pil_arrays_and_tensors_give_the_same_pixels(self) -> None:
        pixels = random_images(8, 9, 3)
        forms: list[Any] = [
            Image.fromarray(pixels),
            pixels,
            torch.from_numpy(pixels).permute(2, 0, 1),
            torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
        ]
        data = from_dataset(Listed([(form, 0) for form in forms]), "toy")
        for image in data.images:
            assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))

    def test_labels_may_be_tensors_or_numpy_numbers_but_not_fractions(self) -> None:
        image = random_images(8, 8)
        data = from_dataset(Listed([(image, torch.tensor(1)), (image, np.int32(0))]))
        assert data.labels.tolist() == [1, 0]
        with pytest.raises(DataError, match=r"item 0 is not \(image, label\) with a whole-number label"):
            from_dataset(Listed([(image, 0.5)]))

    def test_a_spec_gives_the_test_split_the_constants_and_names_of_train(self) -> None:
        spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.1,), (0.2,))
        data = from_dataset(Listed([(random_images(8, 8), 1)]), spec)
        assert data.spec == spec
        assert data.counts.tolist() == [0, 1]

    def test_class_names_are_given_or_the_data_sets_own(self) -> None:
        held = Listed([(random_images(8, 8), 1)], ["x", "y"])
        assert from_dataset(held).spec.classes == ("x", "y")
        assert from_dataset(held, classes=["p", "q", "r"]).spec.classes == ("p", "q", "r")

    def test_load_data_takes_a_pair_or_splits_one(self) -> None:
        held = Listed([(random_images(8, 8, seed=i), i % 2) for i in range(20)])
        train, test = load_data(held)
        assert train.counts.tolist() == test.counts.mul(4).tolist() == [8, 8]
        pair = load_data((held, Listed([(random_images(8, 8), 1)])))
        assert (len(pair.train), pair.test.labels.tolist()) == (20, [1])
        assert pair.test.spec == pair.train.spec
        assert load_data(pair) is pair

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            ([], "the data set is empty"),
            ([1, 2], r"item 0 is not \(image, label\)"),
            ([("a.png", 0)], "item 0: the image is a str; needed: a PIL image, an array or a tensor"),
            ([(torch.full((1, 8, 8), -1.5), 0)], r"item 0: pixels are float32, -1.5 to -1.5; needed"),
            (
                [(torch.zeros(8, 8), 0), (torch.full((8, 8), torch.inf), 0)],
                "item 1: 1 of 1 images hold NaN or infinity",
            ),
            (
                [(torch.zeros(8, 8), 0)] * 3 + [(torch.zeros(9, 8), 0)],
                r"3 of 4 images are 8x8, the rest not \(item 3: 9x8\)",
            ),
        ],
    )
    def test_bad_items_are_named(self, items: list[Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            from_dataset(Listed(items))

    def test_what_cannot_be_indexed_is_refused(self) -> None:
        with pytest.raises(DataError, match="generator is not a map-style Dataset"):
            load_data(i for i in range(3))


class TestNames:
    def test_an_unknown_name_shows_the_closest_and_the_other_ways(self) -> None:
        with pytest.raises(DataError, match=r"no data set is called 'mnits'; did you mean 'mnist'\?.*folder:<dir>"):
            load_data("mnits")

    def test_a_path_is_said_to_be_one(self, tmp_path: Path) -> None:
        (file := tmp_path / "x.npz").touch()
        for path, kind in ((tmp_path, "folder"), (file, "npz")):
            with pytest.raises(DataError, match=f"no data set is called '{path}', but a .* is: {kind}:{path}"):
                load_data(str(path))

    @pytest.mark.parametrize("name", ["folder:", "npz:"])
    def test_a_kind_without_a_path_is_refused(self, name: str) -> None:
        with pytest.raises(SettingError, match=f"'{name}' has no path; needed: {name}<"):
            load_data(name)

    def test_a_name_does_not_leave_the_root(self, tmp_path: Path) -> None:
        save(tmp_path / "secret.npz")
        (tmp_path / "root").mkdir()
        with pytest.raises(DataError, match="no data set is called"):
            load_data("../secret", tmp_path / "root")

    def test_a_failed_download_says_which_files_are_expected_where(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(root: Path, train: bool, download: bool) -> Arrays:
            raise OSError("no\nnetwork")

        entry = Entry((1, 8, 8), (1, 1), ("a",), (), (), ("one/file", "other"), read)
        monkeypatch.setitem(CATALOGUE, "far", entry)
        message = (
            r"far: 2 of its files are missing in .*root \(one/file, other\); the download failed, so put them there"
        )
        with pytest.raises(DataError, match=message + r".*far\.npz.*\(OSError: no network\)"):
            load_data("far", tmp_path / "root")
        for name in entry.files:
            (tmp_path / "root" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "root" / name).touch()
        with pytest.raises(
            DataError, match=r"its files cannot be read in .*; delete them to have them downloaded anew"
        ):
            load_data("far", tmp_path / "root")


def test_the_root_is_the_argument_then_the_variable_then_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCONDENSE_DATA", "/somewhere")
    monkeypatch.setenv("HOME", "/home/me")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/somewhere")
    monkeypatch.delenv("FEDCONDENSE_DATA")
    assert data_root() == Path("/home/me/.cache/fedcondense")


def test_importing_the_module_loads_neither_scikit_learn_nor_torchvision() -> None:
    import subprocess
    import sys

    heavy = "('sklearn', 'torchvision', 'PIL')"
    code = f"import sys, fedcondense.data.loading; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestCountListed:
    """What a folder holds, without opening a file: the counts are those of what is loaded."""

    @pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("",)])
    def test_counts_are_those_of_what_is_loaded(self, tmp_path: Path, parts: tuple[str, ...]) -> None:
        for part, more in zip(parts, (6, 0), strict=False):
            for name, count in (("cat", 5), ("dog", 7)):
                for k in range(count + more):
                    write_image(tmp_path / part / name / f"{k}.png")
        (tmp_path / parts[-1] / "ant").mkdir()
        write_image(tmp_path / parts[0] / "ant" / "1.png")
        found = count_listed(f"folder:{tmp_path}")
        train, test = load_data(f"folder:{tmp_path}")
        classes, per_test = train.spec.classes, test.counts.tolist()
        assert found == (classes, train.counts.tolist(), per_test)
        assert per_test[classes.index("ant")] == 0

    def test_files_are_not_opened_and_the_log_is_not_told_twice(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for k in range(5):
            (tmp_path / "cat").mkdir(exist_ok=True)
            (tmp_path / "cat" / f"{k}.png").write_bytes(b"no image")
        (tmp_path / "cat" / "notes.txt").touch()
        assert count_listed(f"folder:{tmp_path}") == (("cat",), [4], [1])
        assert caplog.text == ""

    def test_other_sources_are_counted_once_they_are_loaded(self, tmp_path: Path) -> None:
        assert count_listed("digits") is None
        assert count_listed(f"npz:{save(tmp_path / 'some.npz')}") is None

    def test_what_is_no_folder_of_classes_is_refused(self, tmp_path: Path) -> None:
        write_image(tmp_path / "1.png")
        with pytest.raises(DataError, match="no images found"):
            count_listed(f"folder:{tmp_path}")
