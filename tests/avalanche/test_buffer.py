from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from fedcondense.avalanche import CondensedBuffer
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data
from fedcondense.errors import DataError, FedcondenseError, ResumeError, SettingError, UntrustedSetError
from fedcondense.memory import Condenser, Selector
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

RANDOM = Selector("random")
UPDATES = ("recondense", "reservoir", "append")


def fill(buffer: CondensedBuffer, bench: Any) -> CondensedBuffer:
    for experience in bench.train_stream:
        buffer.post_adapt(None, experience)
    return buffer


def images_of(dataset: AvalancheDataset) -> Tensor:
    return torch.stack([sample[0] for sample in dataset])


def distance_to_stream(images: Tensor, streamed: Tensor) -> float:
    """Return the largest difference of a value of an image to that of the stream's image that it is closest to."""
    return float((images.unsqueeze(1) - streamed.unsqueeze(0)).abs().flatten(2).amax(2).amin(1).max())


def state(buffer: CondensedBuffer) -> dict[str, Any]:
    kept = {k: v for k, v in vars(buffer).items() if k not in ("memory", "_cache", "_buffer")}
    memory = {k: v for k, v in vars(buffer.memory).items() if k not in ("sets", "real", "waiting", "make")}
    return copy.deepcopy(kept | {"memory": memory, "bytes": buffer.memory.to_bytes() if buffer.memory.names else b""})


@contextmanager
def unchanged(buffer: CondensedBuffer) -> Iterator[None]:
    before, samples = state(buffer), list(buffer.buffer)
    yield
    assert state(buffer) == before
    assert len(samples) == len(buffer.buffer)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(samples, buffer.buffer, strict=True))


class TestSamples:
    @pytest.mark.parametrize("stream", ["with_tasks", "without_tasks", "tasks"])
    def test_they_look_as_the_stream_s_do(self, stream: str, few: Any) -> None:
        bench = getattr(few, stream)(2)
        buffer = fill(CondensedBuffer(20, condenser=RANDOM), bench)
        theirs, mine = bench.train_stream[1].dataset[0], buffer.buffer[0]
        assert [type(value) for value in mine] == [type(value) for value in theirs]
        assert mine[0].shape == theirs[0].shape
        assert mine[0].dtype == theirs[0].dtype

    def test_labels_that_are_tensors_stay_tensors(self, few: Any) -> None:
        class Tensors(Dataset[tuple[Tensor, Tensor]]):
            def __len__(self) -> int:
                return 6

            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                return torch.full((1, 8, 8), index / 5), torch.tensor(index % 2)

        dataset = AvalancheDataset([Tensors()], data_attributes=[DataAttribute([0, 1] * 3, "targets")])
        buffer = CondensedBuffer(4, condenser=RANDOM)
        buffer.update_from_dataset(dataset)
        assert isinstance(buffer.buffer[0][1], Tensor)
        assert sorted(int(label) for _, label in buffer.buffer) == [0, 0, 1, 1]

    def test_labels_belong_to_their_images(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(40, condenser=RANDOM), few.with_tasks(2))
        pairs = zip(few.train.images, few.train.labels.tolist(), strict=True)
        real = {image.numpy().tobytes(): label for image, label in pairs}
        for image, label, _ in buffer.buffer:
            assert real[image.mul(255).round().byte().numpy().tobytes()] == label

    def test_attributes_agree_with_samples(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(20, condenser=RANDOM), few.tasks(2))
        assert [y for _, y, _ in buffer.buffer] == list(buffer.buffer.targets)
        assert [t for *_, t in buffer.buffer] == list(buffer.buffer.targets_task_labels)

    def test_groups_are_the_samples_of_a_label_and_make_the_whole(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(20, condenser=Selector("half-resolution")), few.without_tasks(2))
        assert buffer.buffer_groups.keys() == buffer.seen_classes == {0, 1, 2, 3}
        assert sum(len(group.buffer) for group in buffer.buffer_groups.values()) == len(buffer.buffer)
        for label, group in buffer.buffer_groups.items():
            assert set(group.buffer.targets) == {label}

    def test_before_the_first_experience_there_are_none(self) -> None:
        buffer = CondensedBuffer(20)
        assert len(buffer.buffer) == 0
        assert buffer.decoded is None
        assert (buffer.buffer_groups, buffer.seen_classes, buffer.nbytes) == ({}, set(), 0)


class TestValues:
    def test_selected_images_are_images_of_the_stream(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(20, condenser=RANDOM), few.with_tasks(2))
        assert distance_to_stream(images_of(buffer.buffer), few.pixels(few.train)) < 1e-6

    @pytest.mark.parametrize("told", [False, True])
    def test_after_normalising_they_still_are(self, told: bool, few: Any) -> None:
        """8-bit images come back exactly, whether the range is told or found: black and white occur here."""
        streamed = (few.pixels(few.train) - 0.3) / 0.4
        mean, std = ((0.3,), (0.4,)) if told else (None, None)
        buffer = CondensedBuffer(20, condenser=RANDOM, mean=mean, std=std)
        buffer.update_from_dataset(few.plain(streamed, few.train.labels))
        assert buffer.memory.synthetic is not None
        assert distance_to_stream(images_of(buffer.buffer), streamed) < 2e-6
        assert distance_to_stream(buffer.memory.synthetic.pixels().images, few.pixels(few.train)) < 1e-6

    def test_channels_have_their_own_range(self, few: Any) -> None:
        grey = few.pixels(few.train)
        streamed = torch.cat([grey, 2 * grey - 1, 100 + grey], 1)
        buffer = CondensedBuffer(20, condenser=RANDOM)
        buffer.update_from_dataset(few.plain(streamed, few.train.labels))
        assert buffer.range is not None
        assert buffer.range.low == pytest.approx((0, -1, 100))
        assert buffer.range.high == pytest.approx((1, 1, 101))
        assert distance_to_stream(images_of(buffer.buffer), streamed) < 2e-5

    def test_the_augmentation_s_grey_is_the_stream_s_mean(self, few: Any) -> None:
        streamed = (few.pixels(few.train) - 0.3) / 0.4
        buffer = CondensedBuffer(20, condenser=RANDOM)
        buffer.update_from_dataset(few.plain(streamed, few.train.labels))
        assert buffer.decoded is not None
        torch.testing.assert_close(buffer.decoded.mean, streamed.mean().view(1), atol=1e-4, rtol=0)
        torch.testing.assert_close(buffer.decoded.std, streamed.std().view(1), atol=1e-4, rtol=0)

    def test_an_image_of_one_value_is_stored(self, few: Any) -> None:
        buffer = CondensedBuffer(2, condenser=RANDOM)
        buffer.update_from_dataset(few.plain(torch.full((4, 1, 8, 8), 0.7), [0, 0, 1, 1]))
        torch.testing.assert_close(images_of(buffer.buffer), torch.full((2, 1, 8, 8), 0.7))

    def test_augmentations_of_the_stream_are_not_condensed(self, few: Any) -> None:
        """The training transform shifts; the evaluation transform, which is read, does not."""
        shift = transforms.RandomAffine(0, translate=(0.5, 0.5))
        groups = TransformGroups({"train": (shift, None), "eval": (None, None)})
        plain = few.plain(few.pixels(few.train), few.train.labels)
        shifted = AvalancheDataset([plain], transform_groups=groups).train()
        assert not torch.equal(shifted[0][0], plain[0][0])
        buffer = CondensedBuffer(20, condenser=RANDOM)
        buffer.update_from_dataset(shifted)
        assert distance_to_stream(images_of(buffer.buffer), few.pixels(few.train)) < 1e-6

    def test_values_outside_the_range_are_clipped_with_a_warning(
        self, few: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM)
        dark = few.pixels(few.train) / 2
        with caplog.at_level(logging.WARNING):
            buffer.update_from_dataset(few.plain(dark, few.train.labels))
            assert not caplog.records
            buffer.update_from_dataset(few.plain(2 * dark, few.train.labels))
        (said,) = caplog.messages
        assert "outside of what a byte stands for" in said
        assert "give the buffer mean and std" in said
        assert images_of(buffer.buffer).max() <= 0.5


class TestBudget:
    @pytest.mark.parametrize("update", UPDATES)
    @pytest.mark.parametrize("real_fraction", [0.0, 0.5])
    def test_it_is_kept_at_any_time(self, update: str, real_fraction: float, streams: Any) -> None:
        condenser = Condenser("dm", steps=1)
        buffer = CondensedBuffer(200, condenser=condenser, update=update, real_fraction=real_fraction)
        for bench in (streams.with_tasks(), streams.domains()):
            if update == "append" and len(buffer.memory.names) >= 10:
                break  # a group a class and experience: 40 are more than there are stored images for
            for experience in bench.train_stream:
                buffer.post_adapt(None, experience)
                assert 0 < len(buffer.buffer) <= 200 == buffer.max_size
                assert buffer.memory.image_bytes <= 50 * 64
        labels = torch.bincount(torch.tensor(list(buffer.buffer.targets)))
        assert labels.min() == labels.max() > 0

    def test_bytes_bound_the_file_and_as_many_images_as_fit_are_stored(self, few: Any) -> None:
        buffer = CondensedBuffer(max_bytes=3200, shape=(1, 8, 8), condenser=Condenser("dm", steps=1))
        assert buffer.max_size == 200  # 50 images of 64 bytes, of four tiles each: what there would be without a header
        fill(buffer, few.with_tasks(2))
        assert buffer.nbytes <= 3200 < buffer.nbytes + 4 * 65 + 60  # one more per class, and what the forecast leaves
        assert len(buffer.buffer) == buffer.memory.image_bytes // 64 * 4

    def test_the_file_is_what_it_says_and_never_more_than_its_bytes(self, tmp_path: Path) -> None:
        """As in the experiments: bytes of 100 images of 28x28."""
        images = torch.rand(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        labels = (torch.arange(200) % 10).tolist()
        samples = [(image, label) for image, label in zip(images, labels, strict=True)]
        buffer = CondensedBuffer(max_bytes="78.4 kB", shape=(1, 28, 28), condenser=RANDOM)
        buffer.update_from_dataset(AvalancheDataset([samples], data_attributes=[DataAttribute(labels, "targets")]))
        path = buffer.save(tmp_path / "buffer.safetensors")
        assert buffer.memory.image_bytes == 90 * 784  # ten more would leave nothing for the header
        assert buffer.nbytes == path.stat().st_size <= 78_400

    def test_a_fixed_number_of_groups_keeps_the_share(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM, adaptive_size=False, total_num_groups=4)
        sizes = []
        for experience in few.with_tasks(2).train_stream:
            buffer.post_adapt(None, experience)
            sizes.append(len(buffer.buffer))
        assert sizes == [10, 20]

    def test_resizing_counts_decoded_images(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(64, condenser=Condenser("dm", steps=1)), few.with_tasks(2))
        buffer.resize(None, 39)
        assert buffer.max_size == 36  # nine stored images of four tiles
        assert len(buffer.buffer) == 32
        buffer.resize(None, 100)
        assert (buffer.max_size, len(buffer.buffer)) == (100, 32)

    @pytest.mark.parametrize("size", [12, 3, 0, -4])
    def test_resizing_below_an_image_a_class_is_refused(self, size: int, few: Any) -> None:
        buffer = fill(CondensedBuffer(64, condenser=Condenser("dm", steps=1)), few.with_tasks(2))
        with unchanged(buffer), pytest.raises(SettingError, match=r"; give it 4 or more|decodes to 4"):
            buffer.resize(None, size)


class TestAnyMethod:
    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_every_objective_by_name(self, name: str, few: Any) -> None:
        buffer = fill(CondensedBuffer(16, condenser=Condenser(name, steps=1)), few.with_tasks(2))
        assert len(buffer.buffer) == 16
        assert images_of(buffer.buffer).isfinite().all()

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_every_parametrization_by_name(self, name: str, few: Any) -> None:
        condenser = Condenser("dm", name, steps=2)
        size = 24 * condenser.per_image
        buffer = fill(CondensedBuffer(size, condenser=condenser), few.without_tasks(2))
        assert len(buffer.buffer) == size
        assert 24 * 64 / 2 < buffer.memory.image_bytes <= 24 * 64

    def test_a_maker_of_one_s_own_is_a_function_with_a_number(self, few: Any) -> None:
        class First:
            """Keeps the first images that it sees."""

            per_image = 1

            def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
                return select(data.subset(data.per_class(None, torch.Generator())), ipc, "random", 0)

        buffer = fill(CondensedBuffer(8, condenser=First()), few.with_tasks(2))
        assert sorted(buffer.buffer.targets) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_the_model_and_the_global_random_state_are_left_alone(self, few: Any) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        fill(CondensedBuffer(16, condenser=Condenser("dm", steps=1)), few.with_tasks(2))
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_seed_decides_and_nothing_else(self, few: Any) -> None:
        def made(seed: int) -> Tensor:
            return images_of(fill(CondensedBuffer(16, condenser=Condenser("dm", steps=1), seed=seed), bench).buffer)

        bench = few.with_tasks(2)
        assert torch.equal(made(0), made(0))
        assert not torch.equal(made(0), made(1))


class TestKeeping:
    def test_a_saved_buffer_is_loaded_bit_by_bit(self, few: Any, tmp_path: Path) -> None:
        bench = few.tasks(2)
        first, second = (CondensedBuffer(32, condenser=Condenser("dm", steps=1)) for _ in range(2))
        first.post_adapt(None, bench.train_stream[0])
        second.load(first.save(tmp_path / "buffer.safetensors"))
        for buffer in (first, second):
            buffer.post_adapt(None, bench.train_stream[1])
        assert all(torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first.buffer, second.buffer, strict=True))
        assert first.range == second.range
        assert first.layout == second.layout

    def test_a_pickled_buffer_holds_no_decoded_images(self, few: Any) -> None:
        buffer = fill(CondensedBuffer(32, condenser=Condenser("dm", steps=1)), few.with_tasks(2))
        assert len(buffer.buffer) == 32
        again = pickle.loads(pickle.dumps(buffer))
        assert len(pickle.dumps(buffer)) < buffer.nbytes + 8000
        assert torch.equal(images_of(again.buffer), images_of(buffer.buffer))

    def test_another_configuration_is_refused_by_name(self, few: Any, tmp_path: Path) -> None:
        path = fill(CondensedBuffer(32, condenser=RANDOM), few.with_tasks(2)).save(tmp_path / "buffer.safetensors")
        for other, says in (
            (CondensedBuffer(40, condenser=RANDOM), "images was 32, is 40"),
            (CondensedBuffer(32, condenser=Selector("herding")), "method='herding'"),
            (CondensedBuffer(32, condenser=RANDOM, seed=1), "seed was 0, is 1"),
        ):
            with unchanged(other), pytest.raises(ResumeError, match=says):
                other.load(path)

    def test_a_memory_of_another_stream_is_refused(self, few: Any, tmp_path: Path) -> None:
        path = fill(CondensedBuffer(32, condenser=RANDOM), few.with_tasks(2)).save(tmp_path / "buffer.safetensors")
        other = CondensedBuffer(32, condenser=RANDOM)
        other.update_from_dataset(few.plain(torch.rand(4, 3, 16, 16), [0, 1, 0, 1]))
        with unchanged(other), pytest.raises(ResumeError, match=r"\(1, 8, 8\); this buffer's stream has \(3, 16, 16\)"):
            other.load(path)

    def test_a_plain_set_a_stranger_s_memory_and_a_damaged_file_are_refused(self, few: Any, tmp_path: Path) -> None:
        buffer = fill(CondensedBuffer(32, condenser=RANDOM), few.with_tasks(2))
        whole = buffer.save(tmp_path / "whole").read_bytes()
        (tmp_path / "cut").write_bytes(whole[:-10])
        (tmp_path / "flipped").write_bytes(whole[:20] + bytes([whole[20] ^ 255]) + whole[21:])
        select(few.train, 1).save(tmp_path / "set")
        buffer.memory.note = {}
        buffer.memory.save(tmp_path / "memory")
        buffer.memory.note = {"low": [0.0], "high": [float("nan")], "tasks": True, "tensors": False}
        with pytest.raises(SettingError, match="header cannot be written"):
            buffer.memory.save(tmp_path / "nan")
        buffer.memory.note = {"low": [0.0, 0.0], "high": [1.0, 1.0], "tasks": True, "tensors": False}
        buffer.memory.save(tmp_path / "two")
        empty = CondensedBuffer(32, condenser=RANDOM)
        for name, says in {
            "missing": "No such file",
            "cut": "damaged",
            "flipped": "",
            "set": "no memory; give a file",
            "memory": "not of a buffer; give what a buffer's `save` wrote",
            "two": "a range of 2 channels",
        }.items():
            with unchanged(empty), pytest.raises(UntrustedSetError, match=f"{name}: .*{says}"):
                empty.load(tmp_path / name)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "needed"),
        [
            ({"max_size": None}, "give one of them"),
            ({"max_bytes": 1000}, "give one of them"),
            ({"max_size": None, "max_bytes": 1000}, r"shape None; max_bytes needs \(C, H, W\)"),
            ({"max_size": None, "max_bytes": 1000, "shape": (8, 8)}, r"shape \(8, 8\); max_bytes needs"),
            (
                {"max_size": None, "max_bytes": 99_000, "shape": (64, 48, 3)},
                r"shape \(64, 48, 3\); needed: .* channels come first: \(3, 64, 48\)",
            ),
            ({"max_size": None, "max_bytes": 1000, "shape": (1, 0, 8)}, r"shape \(1, 0, 8\); max_bytes needs"),
            ({"max_size": None, "max_bytes": 63, "shape": (1, 8, 8)}, "63 bytes for 1 class; needed: more than 64"),
            ({"max_size": None, "max_bytes": 192, "shape": (1, 8, 8)}, r"192 bytes; needed: \d+ at least, the file of"),
            ({"max_size": None, "max_bytes": "20 KB", "shape": (1, 8, 8)}, r"max_bytes '20 KB'; needed: kB"),
            ({"max_size": 3}, "3 decoded images for 1 class; needed: 4 or more, as a stored image decodes to 4"),
            ({"adaptive_size": False}, "total_num_groups with adaptive_size=False"),
            ({"total_num_groups": 5}, "total_num_groups with adaptive_size=False"),
            ({"adaptive_size": False, "total_num_groups": 6}, "20 decoded images for 6 classes; needed: 24 or more"),
            ({"mean": (0.5,)}, "give both of the stream's transform"),
            ({"mean": (0.5,), "std": (0.5, 0.5)}, "give both of the stream's transform"),
            ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
            ({"update": "never"}, "recondense, reservoir, append"),
            ({"real_fraction": -1}, "from 0 to 1"),
            ({"min_samples": 0}, "1 or more"),
            ({"condenser": Condenser(parametrization="tiles")}, "no parametrization is called 'tiles'"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, settings: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            CondensedBuffer(**{"max_size": 20, **settings})

    def test_a_budget_below_an_image_a_class_is_refused_without_a_trace(self, few: Any) -> None:
        first, second = few.with_tasks(2).train_stream
        two = CondensedBuffer(2, condenser=RANDOM)
        two.post_adapt(None, first)
        enough = two.nbytes + 120  # for two images, and not for the 128 bytes of two more
        small = CondensedBuffer(max_bytes=enough, shape=(1, 8, 8), condenser=RANDOM)
        for buffer, says in (
            (CondensedBuffer(3, condenser=RANDOM), "3 stored images cannot hold 4 groups; give"),
            (small, r"bytes cannot hold 4 groups: .* takes \d+ bytes; give it that at least"),
        ):
            buffer.post_adapt(None, first)
            with unchanged(buffer), pytest.raises(SettingError, match=says):
                buffer.post_adapt(None, second)
        untouched = CondensedBuffer(1, condenser=RANDOM)
        with unchanged(untouched), pytest.raises(SettingError, match="1 stored images cannot hold 2 groups"):
            untouched.post_adapt(None, first)
        assert (untouched.range, untouched.shape, untouched.layout, untouched.memory.spec) == (None,) * 4

    @pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 8), (1, 8, 9)])
    def test_images_that_change_their_shape_are_refused(self, shape: tuple[int, int, int], few: Any) -> None:
        buffer = fill(CondensedBuffer(20, condenser=RANDOM), few.without_tasks(2))
        with unchanged(buffer), pytest.raises(DataError, match=r"made for \(1, 8, 8\): resize the stream's"):
            buffer.post_adapt(None, few.of(torch.rand(4, *shape), [0, 1, 2, 3]))

    def test_a_shape_that_was_promised_is_held(self, few: Any) -> None:
        buffer = CondensedBuffer(max_bytes=5000, shape=(1, 28, 28), condenser=RANDOM)
        with unchanged(buffer), pytest.raises(DataError, match=r"images of \(1, 8, 8\); this buffer was made for"):
            buffer.post_adapt(None, few.with_tasks(2).train_stream[0])

    def test_an_experience_without_samples_is_refused(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM)
        with unchanged(buffer), pytest.raises(DataError, match="without samples; leave it out"):
            buffer.update_from_dataset(few.plain(torch.zeros(0, 1, 8, 8), []))

    def test_a_mean_for_other_channels_is_refused(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM, mean=(0.5,) * 3, std=(0.25,) * 3)
        with unchanged(buffer), pytest.raises(DataError, match=r"\(1, 8, 8\); the mean and std given are of 3"):
            buffer.post_adapt(None, few.with_tasks(2).train_stream[0])

    @pytest.mark.parametrize(
        ("samples", "says"),
        [
            ([(torch.rand(5), 0)], r"samples of \(\(5,\), int\)"),
            ([("a text", 0)], r"samples of \(str, int\)"),
            ([(torch.rand(32, 24, 3), 0)], r"images \(32, 24, 3\); needed: \(C, H, W\), .* first: \(3, 32, 24\)"),
            ([(torch.rand(1, 8, 8), 0, 0, 0)], r"samples of \(\(1, 8, 8\), int, int, int\)"),
            ([(torch.rand(1, 8, 8), 0), (torch.rand(1, 8, 9), 0)], "do not stack.*one size"),
            ([(torch.full((1, 8, 8), torch.nan), 0)], "not finite; look at the stream's transform"),
            ([(torch.full((1, 8, 8), torch.inf), 0)], "not finite; look at the stream's transform"),
        ],
    )
    def test_samples_that_are_no_images_are_refused(self, samples: Any, says: str) -> None:
        dataset = AvalancheDataset([samples], data_attributes=[DataAttribute([0] * len(samples), "targets")])
        buffer = CondensedBuffer(20, condenser=RANDOM)
        with unchanged(buffer), pytest.raises(DataError, match=says):
            buffer.update_from_dataset(dataset)

    def test_tiles_that_do_not_fit_the_images_are_refused_without_a_trace(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=Condenser("dm", steps=1))
        with unchanged(buffer), pytest.raises(SettingError, match="factor 2 does not divide images of 9x9"):
            buffer.post_adapt(None, few.of(torch.rand(4, 1, 9, 9), [0, 1, 0, 1]))

    def test_a_network_that_does_not_fit_is_refused_without_a_trace(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=Condenser("dm", network="convnet4-w32", steps=1))
        with unchanged(buffer), pytest.raises(SettingError, match="smaller depth"):
            buffer.post_adapt(None, few.with_tasks(2).train_stream[0])

    def test_the_samples_cannot_be_set(self, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM)
        with pytest.raises(SettingError, match="made by `update`"):
            buffer.buffer = few.plain(torch.zeros(0, 1, 8, 8), [])

    def test_an_unknown_augmentation_is_refused(self) -> None:
        with pytest.raises(FedcondenseError, match="no augmentation is called 'blur'"):
            CondensedBuffer(20, operations=("blur",))

    def test_the_mirror_image_is_no_augmentation_unless_named(self) -> None:
        assert set(OPERATIONS) - set(CondensedBuffer(20).operations) == {"flip"}
        assert CondensedBuffer(20, operations=("flip",)).operations == ("flip",)


def test_a_class_with_fewer_samples_than_its_share_gives_what_it_has(
    few: Any, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = CondensedBuffer(40, condenser=RANDOM)
    rare = torch.cat([torch.where(few.train.labels == 0)[0][:3], torch.where(few.train.labels == 1)[0]])
    with caplog.at_level(logging.WARNING):
        buffer.update_from_dataset(few.plain(few.pixels(few.train)[rare], few.train.labels[rare]))
    assert torch.bincount(torch.tensor(list(buffer.buffer.targets))).tolist() == [3, 20]
    assert "they get what is there: 0 (3)" in caplog.text
