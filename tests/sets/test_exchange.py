from __future__ import annotations

import json
import logging
import os
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedcondense.sets.exchange
from fedcondense.data.images import Data, Spec
from fedcondense.data.loading import load_data
from fedcondense.errors import DataError, OutputError, SettingError, UntrustedSetError
from fedcondense.networks import ConvNet
from fedcondense.parametrizations import Pixels
from fedcondense.sets.exchange import export, import_tensors, spec_of
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit

COLOUR = Spec("toy", (3, 8, 8), ("a", "b", "c"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), ("flip",))
DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def pixels(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def write(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


@pytest.fixture
def dc(tmp_path: Path) -> Path:
    """A result file as DC, DSA and DM write them: two experiments, and accuracies of numpy's."""
    images = COLOUR.normalise(pixels(6, 3, 8, 8))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    pairs = [[images, labels], [-images, labels.flip(0)]]
    return write(tmp_path / "res_DC.pt", {"data": pairs, "accs_all_exps": {"ConvNet": [np.float64(44.9)]}})


class TestImport:
    def test_of_a_result_file_of_dc(self, dc: Path) -> None:
        synthetic = import_tensors(dc, data=COLOUR, method="dc, imported")
        batch = synthetic.pixels()
        torch.testing.assert_close(batch.images, pixels(6, 3, 8, 8), rtol=0, atol=0.5 / 255 + 1e-6)
        assert batch.targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2]
        assert synthetic.record == Record(
            "toy", (3, 8, 8), ("a", "b", "c"), COLOUR.mean, COLOUR.std, "dc, imported", 2, augmentation=("flip",)
        )
        again = SyntheticSet.from_bytes(synthetic.to_bytes())
        torch.testing.assert_close(again.decode().images, synthetic.decode().images, rtol=0, atol=0)

    def test_of_another_experiment(self, dc: Path) -> None:
        second = import_tensors(dc, data=COLOUR, experiment=1)
        assert second.pixels().targets.argmax(1).tolist() == [2, 2, 1, 1, 0, 0]
        with pytest.raises(
            UntrustedSetError, match="2 sets of images and labels, number 2 was asked for; count from 0"
        ):
            import_tensors(dc, data=COLOUR, experiment=2)

    def test_of_two_files_as_mtt_writes_them(self, tmp_path: Path) -> None:
        images = write(tmp_path / "images_best.pt", COLOUR.normalise(pixels(3, 3, 8, 8)).requires_grad_())
        labels = write(tmp_path / "labels_best.pt", torch.arange(3))
        synthetic = import_tensors(images, labels, data=COLOUR)
        torch.testing.assert_close(synthetic.pixels().images, pixels(3, 3, 8, 8), rtol=0, atol=0.5 / 255 + 1e-6)
        assert synthetic.record.method == "imported"

    def test_of_values_that_were_not_normalised(self, tmp_path: Path) -> None:
        labels = write(tmp_path / "labels.pt", torch.arange(3, dtype=torch.int32))
        for kept in (pixels(3, 3, 8, 8).double(), (pixels(3, 3, 8, 8) * 255).round().to(torch.uint8)):
            images = write(tmp_path / "images.pt", kept)
            synthetic = import_tensors(images, labels, data=COLOUR, normalised=False)
            torch.testing.assert_close(synthetic.pixels().images, pixels(3, 3, 8, 8), rtol=0, atol=0.5 / 255 + 1e-6)

    def test_of_soft_labels(self, tmp_path: Path) -> None:
        soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
        images = write(tmp_path / "images.pt", torch.zeros(2, 3, 8, 8))
        synthetic = import_tensors(images, write(tmp_path / "labels.pt", soft), data=COLOUR)
        torch.testing.assert_close(synthetic.pixels().targets, soft, rtol=0, atol=1e-3)

    def test_by_the_name_of_a_data_set_that_is_not_at_hand(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDCONDENSE_DATA", str(tmp_path / "empty"))
        content = {"data": [[torch.zeros(10, 3, 32, 32), torch.arange(10)]]}
        synthetic = import_tensors(write(tmp_path / "a.pt", content), data="cifar10")
        assert synthetic.classes[0] == "airplane"
        assert float(synthetic.pixels().images[0, 0].mean()) == pytest.approx(0.4914, abs=0.5 / 255)

    def test_says_how_much_was_clipped(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = {"data": [[torch.full((3, 3, 8, 8), 50.0), torch.arange(3)]]}
        with caplog.at_level(logging.WARNING):
            import_tensors(write(tmp_path / "a.pt", content), data=COLOUR)
        assert (
            "100 % of the values are outside [0, 1] and are clipped; are they not normalised, or whitened"
            in caplog.text
        )

    @pytest.mark.parametrize(
        ("images", "labels", "says"),
        [
            (torch.zeros(2, 3, 9, 8), torch.zeros(2).long(), r"images are \(2, 3, 9, 8\); toy needs \(N, 3, 8, 8\)"),
            (torch.zeros(2, 1, 8, 8), torch.zeros(2).long(), r"images are \(2, 1, 8, 8\)"),
            (torch.zeros(0, 3, 8, 8), torch.zeros(0).long(), "no images in it"),
            (torch.zeros(3, 8, 8), torch.zeros(3).long(), r"images are \(3, 8, 8\)"),
            (torch.zeros(2, 3, 8, 8).long(), torch.zeros(2).long(), "images are torch.int64; needed: floating point"),
            (torch.full((2, 3, 8, 8), torch.nan), torch.zeros(2).long(), "images hold NaN or infinity"),
            ([1, 2], torch.zeros(2).long(), "images are a list; needed: a tensor"),
            (torch.zeros(2, 3, 8, 8), torch.tensor([0, 3]), "labels go from 0 to 3; needed: .* from 0 to 2"),
            (torch.zeros(2, 3, 8, 8), torch.tensor([-1, 0]), "labels go from -1 to 0"),
            (torch.zeros(2, 3, 8, 8), torch.zeros(3).long(), r"labels are torch.int64 \(3\); needed: \(2,\) whole"),
            (torch.zeros(2, 3, 8, 8), torch.zeros(2), r"labels are torch.float32 \(2\)"),
            (torch.zeros(2, 3, 8, 8), torch.ones(2, 3), "no probabilities; if they are logits, save their softmax"),
            (torch.zeros(2, 3, 8, 8), torch.full((2, 3), torch.nan), "no probabilities"),
            (torch.zeros(2, 3, 8, 8), "cat", "labels are a str; needed: a tensor"),
        ],
    )  # fmt: skip
    def test_refuses_what_is_no_set(self, images: Any, labels: Any, says: str, tmp_path: Path) -> None:
        both = write(tmp_path / "both.pt", {"data": [[images, labels]]})
        with pytest.raises(UntrustedSetError, match=rf"both\.pt: {says}|both\.pt: .*{says}"):
            import_tensors(both, data=COLOUR)

    @pytest.mark.parametrize(
        "content", [torch.zeros(2, 3, 8, 8), {"images": torch.zeros(1)}, {"data": [torch.zeros(1)]}]
    )
    def test_says_what_a_file_of_both_is(self, content: Any, tmp_path: Path) -> None:
        with pytest.raises(
            UntrustedSetError,
            match=r"needed: \(images, labels\), \{'images': .*\{'data': \[\[images, labels\], ...\]\}, or --labels",
        ):
            import_tensors(write(tmp_path / "a.pt", content), data=COLOUR)

    @pytest.mark.parametrize("normalised", [True, False])
    @pytest.mark.parametrize("least", [0, -5])  # what was optimised leaves the range a little
    def test_bytes_as_floating_point_are_no_images(self, normalised: bool, least: float, tmp_path: Path) -> None:
        pair = (least + 255 * torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
        with pytest.raises(
            UntrustedSetError, match=r"as bytes have; divide by 255 and pass .*--unit\), or save them as"
        ):
            import_tensors(write(tmp_path / "a.pt", pair), data=COLOUR, normalised=normalised)

    def test_a_single_far_value_is_clipped(self, tmp_path: Path) -> None:
        images = torch.randn(2, 3, 8, 8)
        images[0, 0, 0, 0] = 70
        found = import_tensors(write(tmp_path / "a.pt", (images, torch.tensor([0, 1]))), data=COLOUR)
        assert float(found.pixels().images.max()) == 1

    def test_a_pair_of_tensors_is_a_set(self, tmp_path: Path) -> None:
        pair = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
        found = import_tensors(write(tmp_path / "a.pt", pair), data=COLOUR)
        assert found.counts().tolist()[:2] == [1, 1]

    @pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("data", "targets")])
    def test_so_is_a_dict_that_names_them(self, names: tuple[str, str], tmp_path: Path) -> None:
        pair = (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
        found = import_tensors(write(tmp_path / "a.pt", dict(zip(names, pair, strict=True))), data=COLOUR)
        assert found.counts().tolist()[:2] == [1, 1]
        with pytest.raises(UntrustedSetError, match="a dict; needed: "):
            import_tensors(write(tmp_path / "b.pt", {names[0]: pair[0]}), data=COLOUR)

    def test_runs_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt", {"data": [[torch.zeros(2, 3, 8, 8), ConvNet((3, 8, 8), 2, width=4, depth=1)]]})
        with pytest.raises(UntrustedSetError, match=r"holds fedcondense\.networks\.convnet\.ConvNet.*nothing was run"):
            import_tensors(path, data=COLOUR)


def test_the_spec_of_a_name_is_that_of_an_npz_of_one_s_own_where_there_is_one(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 0, 1])
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert spec_of("mnist", tmp_path) == load_data("mnist", tmp_path).train.spec
    assert spec_of("mnist", tmp_path).shape == (3, 8, 8)


def test_the_spec_of_a_name_is_that_of_the_data() -> None:
    train = load_data("digits").train
    assert spec_of("digits") == train.spec
    assert spec_of("fashion-mnist").classes[0] == "T-shirt/top"


@pytest.fixture(scope="module")
def digits() -> SyntheticSet:
    return select(load_data("digits").train, 6, "random")


class TestExport:
    def test_of_a_folder_comes_back_byte_by_byte(self, digits: SyntheticSet, tmp_path: Path) -> None:
        """All of a set is for training, in the set's order; nothing of it is held out."""
        path = export(digits, tmp_path / "images")
        assert sorted(p.name for p in path.iterdir()) == [*DIGITS, "fedcondense.json"]
        train, test = load_data(f"folder:{path}")
        assert train.spec.classes == DIGITS
        assert torch.equal(train.images, digits.parts[0].codes["images"])
        assert train.labels.tolist() == digits.parts[0].targets.tolist()
        assert len(test) == 0
        with pytest.raises(DataError, match=r"folder:images: no images to test on; give a test part"):
            evaluate(digits, test)

    def test_with_test_images_both_kinds_are_what_a_loader_reads(self, digits: SyntheticSet, tmp_path: Path) -> None:
        test = load_data("digits").test
        for name in ("folder:images", "npz:images.npz"):
            path = export(digits, tmp_path / name.partition(":")[2], test=test)
            back = load_data(f"{name.partition(':')[0]}:{path}")
            assert torch.equal(back.train.images, digits.parts[0].codes["images"])
            assert back.train.labels.tolist() == digits.parts[0].targets.tolist()
            assert back.train.spec.classes == DIGITS
            order = test.labels.argsort(stable=True) if name.startswith("folder") else torch.arange(len(test))
            assert torch.equal(back.test.images, test.images[order])
            assert torch.equal(back.test.labels, test.labels[order])

    def test_of_colour_images_and_class_names_keeps_both(self, tmp_path: Path) -> None:
        images = (pixels(6, 3, 8, 8) * 255).to(torch.uint8)
        synthetic = select(Data(images, torch.arange(6) % 3, COLOUR), 2, "random")
        for name in ("npz:a.npz", "folder:a"):
            kind, _, file = name.partition(":")
            test = Data(images, torch.arange(6) % 3, COLOUR)
            back = load_data(f"{kind}:{export(synthetic, tmp_path / file, test=test)}")
            assert torch.equal(back.train.images, synthetic.parts[0].codes["images"])
            assert back.train.spec.classes == ("a", "b", "c")

    def test_an_npz_alone_repeats_the_images_as_its_test_split(self, digits: SyntheticSet, tmp_path: Path) -> None:
        back = load_data(f"npz:{export(digits, tmp_path / 'a.npz')}")
        assert torch.equal(back.train.images, back.test.images)

    def test_trains_as_the_set_itself(self, digits: SyntheticSet, tmp_path: Path) -> None:
        test = load_data("digits").test
        back = load_data(f"npz:{export(digits, tmp_path / 'a.npz', test=test)}")
        spec = replace(back.train.spec, mean=test.spec.mean, std=test.spec.std, operations=test.spec.operations)
        again = select(Data(back.train.images, back.train.labels, spec), 6, "herding")
        recipe = Fit(steps=5)
        first, second = (evaluate(one, test, recipe=recipe, seeds=[0]).accuracy for one in (digits, again))
        assert first == pytest.approx(second, abs=15)  # the same images in another order

    def test_soft_labels_become_their_largest_entry(self, tmp_path: Path) -> None:
        codes = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}
        soft = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]]).half()
        synthetic = SyntheticSet(
            [Part(codes, soft, Pixels(), Record("toy", (3, 8, 8), ("a", "b", "c"), COLOUR.mean, COLOUR.std))]
        )
        with np.load(export(synthetic, tmp_path / "a.npz")) as held:
            assert held["y_train"].tolist() == [1, 0]
            assert held["x_train"].shape == (2, 8, 8, 3)

    def test_class_names_stay_inside_the_folder_and_apart(self, tmp_path: Path) -> None:
        names = ("../../etc", "T-shirt/top", "a", "A", ".", "..", "x" * 190, "a 3", "/")
        codes = {"images": torch.zeros(9, 1, 8, 8, dtype=torch.uint8)}
        record = Record("toy", (1, 8, 8), names, (0.5,), (0.5,))
        synthetic = SyntheticSet([Part(codes, torch.arange(9, dtype=torch.uint8), Pixels(), record)])
        path = export(synthetic, tmp_path / "inner" / "images")
        assert [p.name for p in tmp_path.iterdir()] == ["inner"]
        assert [p.name for p in path.parent.iterdir()] == ["images"]
        folders = [p.name for p in path.iterdir() if p.is_dir()]
        assert len({name.casefold() for name in folders}) == 9
        assert {"T-shirt_top", "a", "A 3"} <= set(folders)
        assert json.loads((path / "fedcondense.json").read_text())["classes"] == list(names)

    @given(
        names=st.lists(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=70)
            | st.sampled_from(["train", "Test", "val", "__MACOSX", ".git", "a", "A", "a/b", "a_b", "lost+found"]),
            min_size=1,
            max_size=6,
            unique_by=lambda name: unicodedata.normalize("NFC", name),
        ),
        ipc=st.integers(1, 6),
        with_test=st.booleans(),
    )
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_a_folder_is_read_back_in_whole_whatever_classes_are_called(
        self, tmp_path_factory: pytest.TempPathFactory, names: list[str], ipc: int, with_test: bool
    ) -> None:
        names = [unicodedata.normalize("NFC", name) for name in names]
        count = len(names) * ipc
        labels = torch.arange(count) % len(names)
        spec = Spec("toy", (1, 8, 8), tuple(names), (0.5,), (0.5,))
        data = Data((pixels(count, 1, 8, 8) * 255).to(torch.uint8), labels, spec)
        path = export(select(data, ipc, "random"), tmp_path_factory.mktemp("a") / "x", test=data if with_test else None)
        train, test = load_data(f"folder:{path}")
        assert train.spec.classes == tuple(names)
        assert train.counts.tolist() == [ipc] * len(names)
        assert len(test) == (count if with_test else 0)
        assert test.spec == train.spec

    def test_nothing_is_overwritten_unless_asked(self, digits: SyntheticSet, tmp_path: Path) -> None:
        for name in ("images", "images.npz"):
            path = export(digits, tmp_path / name)
            with pytest.raises(OutputError, match="exists; choose another path or pass overwrite=True"):
                export(digits, path)
            (path / "0" / "99999.png").write_bytes(b"") if path.is_dir() else None
            assert export(digits, path, overwrite=True) == path
        assert not (tmp_path / "images" / "0" / "99999.png").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "images.npz"]

    def test_a_folder_of_something_else_is_never_replaced(self, digits: SyntheticSet, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "precious").write_text("data")
        with pytest.raises(OutputError, match="is nothing that `export` wrote, and is not replaced"):
            export(digits, mine, overwrite=True)
        assert [p.name for p in mine.iterdir()] == ["precious"]
        (mine / "precious").unlink()
        export(digits, mine)  # an empty one is free

    def test_is_whole_or_not_at_all(
        self, digits: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = export(digits, tmp_path / "images")
        kept = sorted(p.relative_to(before) for p in before.rglob("*"))
        written: list[bytes] = []

        def full(image: Any) -> bytes:
            if len(written) == 20:
                raise OSError(28, "No space left on device")
            written.append(b"")
            return b"png"

        monkeypatch.setattr(fedcondense.sets.exchange, "png", full)
        for path in (before, tmp_path / "other"):
            written.clear()
            with pytest.raises(OutputError, match="No space left on device; free the disk"):
                export(digits, path, overwrite=True)
        assert sorted(p.relative_to(before) for p in before.rglob("*")) == kept
        assert [p.name for p in tmp_path.iterdir()] == ["images"]

    def test_ctrl_c_leaves_what_was_there(
        self, digits: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = export(digits, tmp_path / "images")
        real = os.replace
        calls: list[int] = []

        def interrupted(*paths: Any) -> None:
            calls.append(1)
            if len(calls) == 2:  # the old folder is out of the way, the new one not yet there
                raise KeyboardInterrupt
            real(*paths)

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(digits, before, overwrite=True)
        assert (before / "fedcondense.json").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["images"]

    def test_refuses_test_images_of_another_kind(self, digits: SyntheticSet, tmp_path: Path) -> None:
        images = (pixels(3, 3, 8, 8) * 255).to(torch.uint8)
        with pytest.raises(SettingError, match=r"images of \(1, 8, 8\), the test data of \(3, 8, 8\)"):
            export(digits, tmp_path / "a", test=Data(images, torch.arange(3), COLOUR))
        grey = replace(COLOUR, shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
        with pytest.raises(SettingError, match="no test image is of a class of the set"):
            export(digits, tmp_path / "a", test=Data(images[:, :1], torch.arange(3), grey))
        assert not (tmp_path / "a").exists()
