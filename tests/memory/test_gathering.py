"""Streams without boundaries: what comes is held until there is enough, or until it is time."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.errors import DataError, SettingError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.sets.synthetic import SyntheticSet

RANDOM = Selector("random")


@pytest.fixture(scope="module")
def stream(digits: Data) -> tuple[torch.Tensor, list[str]]:
    """90 digits in the order in which they are in the data, and their names."""
    return digits.images[:90], [digits.spec.classes[label] for label in digits.labels[:90].tolist()]


def fed(stream: tuple[torch.Tensor, list[str]], at_a_time: int, **more: Any) -> Memory:
    memory = Memory(20, Condenser("dm", "pixels", network="convnet1-w16", steps=1), **more)
    images, names = stream
    for begin in range(0, len(images), at_a_time):
        memory.observe(images[begin : begin + at_a_time], names[begin : begin + at_a_time])
    return memory


def test_the_memory_does_not_depend_on_how_many_images_come_at_a_time(stream: tuple[torch.Tensor, list[str]]) -> None:
    """90 images, 40 at a time: condensed twice, and 10 are left, whether frames come one by one or all at once."""
    found = [fed(stream, n, every_samples=40) for n in (1, 7, 90)]
    assert all(memory.synthetic is not None for memory in found)
    for memory in found:
        assert (len(memory.gathered), len(memory.seconds), sum(memory.seen.values())) == (10, 2, 80)
    images = [memory.synthetic.pixels().images for memory in found if memory.synthetic is not None]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_what_is_held_is_in_no_file_and_flushed_on_demand(stream: tuple[torch.Tensor, list[str]]) -> None:
    memory = fed(stream, 30, every_samples=1000)
    assert (memory.nbytes, memory.changes, len(memory.gathered)) == (0, 0, 90)
    again = pickle.loads(pickle.dumps(memory))
    memory.flush()
    again.flush()
    assert memory.synthetic is not None
    assert again.synthetic is not None
    assert torch.equal(memory.synthetic.pixels().images, again.synthetic.pixels().images)
    assert (len(memory.gathered), sum(memory.seen.values())) == (0, 90)
    memory.flush()
    assert len(memory.seconds) == 1


def test_by_the_clock_all_that_came_is_condensed_at_the_first_call_after_it(
    stream: tuple[torch.Tensor, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("fedcondense.memory.gathering.time.monotonic", lambda: now[0])
    memory, (images, names) = Memory(20, RANDOM, every_seconds=10), stream
    for begin, at, held in ((0, 100, 20), (20, 109.9, 40), (40, 110, 0), (60, 119, 20)):
        now[0] = at
        memory.observe(images[begin : begin + 20], names[begin : begin + 20])
        assert len(memory.gathered) == held
    assert sum(memory.seen.values()) == 60


def test_without_either_each_call_condenses_and_arrays_and_numbers_will_do(stream: tuple[Any, list[str]]) -> None:
    memory, (images, names) = Memory(20, RANDOM), stream
    memory.observe(np.asarray(images[:30]), [int(name) for name in names[:30]])
    memory.observe(images[30:60], torch.tensor([int(name) for name in names[30:60]]))
    assert memory.seen == {name: names[:60].count(name) for name in dict.fromkeys(names[:60])}
    assert memory.spec is not None
    pixels = images[:30].float() / 255
    assert memory.spec.mean == pytest.approx([pixels.mean().item()])
    assert memory.spec.std == pytest.approx([pixels.std().item()])


def test_added_data_are_gathered_with_their_own_spec(digits: Data) -> None:
    memory = Memory(20, RANDOM, every_samples=50)
    spec = replace(digits.spec, mean=(0.25,), std=(0.5,))
    for begin in range(0, 60, 20):
        rows = slice(begin, begin + 20)
        memory.add(Data(digits.images[rows], digits.labels[rows], spec), {"place": begin})
    assert memory.spec is not None
    assert (memory.spec.mean, memory.spec.std, memory.note) == ((0.25,), (0.5,), {"place": 40})


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (
            torch.zeros(2, 64, 48, 3, dtype=torch.uint8),
            ["a", "b"],
            "images of (2, 64, 48, 3); needed: (N, C, H, W), channels come first: (3, 64, 48), as images.transpose",
        ),
        (torch.zeros(1, 1, 8, 8), ["a"], "images of torch.float32 (1, 1, 8, 8); needed: torch.uint8 (N, C, H, W)"),
        (torch.zeros(8, 8, dtype=torch.uint8), ["a"], "images of torch.uint8 (8, 8)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), ["a"], "2 images but labels of shape (1,)"),
        (torch.zeros(1, 1, 9, 9, dtype=torch.uint8), ["a"], "images of (1, 9, 9); those before were (1, 8, 8)"),
    ],
)
def test_what_cannot_be_taken_in_is_refused_at_once_and_changes_nothing(
    images: Any, labels: list[str], says: str, stream: tuple[torch.Tensor, list[str]]
) -> None:
    memory = fed((stream[0][:10], stream[1][:10]), 10, every_samples=50)
    with pytest.raises(DataError, match=re.escape(says)):
        memory.observe(images, labels)
    assert len(memory.gathered) == 10


def test_an_error_while_condensing_leaves_what_was_held(
    stream: tuple[torch.Tensor, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> SyntheticSet:
        raise DataError("a camera that broke")

    monkeypatch.setattr(Selector, "__call__", broken)
    memory = Memory(20, RANDOM, every_samples=30)
    memory.observe(stream[0][:20], stream[1][:20])
    held = copy.copy(memory.gathered)
    with pytest.raises(DataError, match="that broke"):
        memory.observe(stream[0][20:40], stream[1][20:40])
    assert memory.gathered is held or memory.gathered == held
    assert (memory.nbytes, memory.added, memory.spec) == (0, 0, None)


@pytest.mark.parametrize("settings", [{"every_samples": 0}, {"every_samples": 2.5}, {"every_seconds": 0}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(settings))} .*; needed"):
        Memory(20, RANDOM, **settings)


def test_a_class_that_began_with_one_image_has_images_that_differ(digits: Data) -> None:
    """Copies get equal gradients and stay copies, however long they are condensed."""
    memory = Memory(20, Condenser("dm", "multi-formation", network="convnet1-w16", steps=3), groups=2)
    ones, twos = (digits.images[digits.labels == k] for k in (1, 2))
    memory.observe(torch.cat([ones[:40], twos[:1]]), ["one"] * 40 + ["two"])
    memory.observe(twos[1:40], ["two"] * 39)
    assert memory.synthetic is not None
    pixels = memory.synthetic.pixels()
    mine = pixels.images[pixels.targets[:, memory.synthetic.classes.index("two")] > 0].flatten(1)
    assert len(mine) == 40
    assert len(mine.unique(dim=0)) == len(mine)


class TestNames:
    @pytest.mark.parametrize(
        ("first", "then", "said"),
        [
            (["healthy"], ["HEALTHY"], "'healthy' and 'HEALTHY'"),
            (["healthy", "Healthy"], ["oak"], "'healthy' and 'Healthy'"),
            (["leaf spot"], ["leaf-spot"], "'leaf spot' and 'leaf-spot'"),
            (["oak"], [0], "label 0 is a class of its own"),
            ([3, 4], ["oak"], "label 3 is a class of its own"),
            ([3], [4], ""),
            (["oak"], ["elm"], ""),
        ],
    )
    @pytest.mark.parametrize("update", ["recondense", "append"])
    def test_a_class_that_is_probably_an_old_one_is_told_of_once(
        self, first: list[Any], then: list[Any], said: str, update: str, digits: Data, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory = Memory(20, RANDOM, update=update)
        for names in (first, then, then, first):
            memory.observe(digits.images[: len(names)], names)
        told = [text for text in caplog.messages if text.startswith("the stream: ")]
        assert len(told) == bool(said)
        assert all(said in text for text in told)

    def test_spaces_at_the_ends_are_no_other_class(self, digits: Data) -> None:
        memory = Memory(20, RANDOM)
        memory.observe(digits.images[:2], ["oak", " oak "])
        assert memory.names == ["oak"]

    def test_what_cannot_be_a_name_is_refused(self, digits: Data) -> None:
        with pytest.raises(DataError, match="is empty"):
            Memory(20, RANDOM).observe(digits.images[:1], [" "])


class TestRoom:
    def test_a_class_too_many_is_refused_before_it_is_held(self, digits: Data) -> None:
        memory = Memory(2, RANDOM, every_samples=100)
        memory.observe(digits.images[:2], ["oak", "elm"])
        with pytest.raises(SettingError, match=r"2 stored images cannot hold 3 groups; give it 3 or more"):
            memory.observe(digits.images[:1], ["ash"])
        assert len(memory.gathered) == 2

    def test_bytes_are_answered_in_bytes(self, digits: Data) -> None:
        memory = Memory(None, RANDOM, max_bytes="0.15 kB", every_samples=100)
        assert memory.max_bytes == 150
        memory.observe(digits.images[:2], ["oak", "elm"])
        with pytest.raises(SettingError, match=r"150 bytes cannot hold 3 groups, .*more than 192"):
            memory.observe(digits.images[:1], ["ash"])
