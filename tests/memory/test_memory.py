from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.sets.parts import Part
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

RANDOM = Selector("random")
UPDATES = ("recondense", "reservoir", "append")


def numbered(name: str, first: int, last: int) -> Data:
    """Return images (N, 1, 2, 2) of one group whose bytes count up, so that each says when it came."""
    values = torch.arange(first, last)
    images = torch.stack([values // 256, values % 256], 1).to(torch.uint8).view(-1, 1, 2, 1).repeat(1, 1, 1, 2)
    return Data(images, torch.zeros_like(values), Spec("numbers", (1, 2, 2), (name,), (0.5,), (0.25,)))


def numbers(memory: Memory) -> list[int]:
    assert memory.synthetic is not None
    images = memory.synthetic.pixels().images.mul(255).round().long()
    return (images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0]).tolist()


def stored(memory: Memory) -> dict[str, int]:
    """Return how many stored images a group has: condensed, real or waiting."""
    counts: Counter[str] = Counter()
    for part in SyntheticSet.from_bytes(memory.to_bytes()).parts:
        assert part.targets.ndim == 1
        counts.update(part.record.classes[c] for c in part.targets.tolist())
    return dict(counts)


def replayed(memory: Memory) -> dict[str, int]:
    """Return how many images of each group are replayed."""
    assert memory.synthetic is not None
    return dict(zip(memory.synthetic.classes, memory.synthetic.counts().tolist(), strict=True))


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


class TestBudget:
    @pytest.mark.parametrize("update", UPDATES)
    @pytest.mark.parametrize("real_fraction", [0.0, 0.3, 1.0])
    def test_it_never_holds_more_images_than_its_budget(
        self, piece: Callable[..., Data], update: str, real_fraction: float
    ) -> None:
        memory = Memory(23, RANDOM, update=update, real_fraction=real_fraction)
        for number, classes in enumerate([(0, 1), (2,), (1, 2, 3), (4, 5, 6)]):
            memory.add(piece(*classes, begin=30 * number))
            assert 0 < sum(stored(memory).values()) <= 23
            assert memory.image_bytes <= 23 * 64
            assert {name.partition("#")[0] for name in memory.names} >= set(map(str, classes))
            assert set(replayed(memory)) == set(memory.names)

    def test_groups_share_equally_and_shrink_as_others_come(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM)
        memory.add(piece(0, 1))
        assert stored(memory) == {"0": 10, "1": 10}
        memory.add(piece(2, 3))
        assert stored(memory) == dict.fromkeys("0123", 5)
        memory.add(piece(4))
        assert stored(memory) == dict.fromkeys("01234", 4)

    def test_a_known_number_of_groups_fixes_the_share_from_the_start(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM, groups=5)
        memory.add(piece(0, 1))
        first = memory.synthetic
        assert stored(memory) == {"0": 4, "1": 4}
        memory.add(piece(2, 3, 4))
        assert stored(memory) == dict.fromkeys("01234", 4)
        assert first is not None
        assert memory.synthetic is not None
        assert torch.equal(memory.synthetic.pixels().images[:8], first.pixels().images)

    def test_more_groups_than_were_told_still_fit_the_budget(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, RANDOM, groups=2)
        memory.add(piece(0, 1))
        memory.add(piece(2, 3))
        assert stored(memory) == dict.fromkeys("0123", 2)

    def test_append_makes_each_addition_a_group_of_its_own(self, piece: Callable[..., Data]) -> None:
        memory = Memory(12, RANDOM, update="append")
        memory.add(piece(0, 1))
        memory.add(piece(0, 1, begin=30))
        assert stored(memory) == {"0#1": 3, "1#1": 3, "0#2": 3, "1#2": 3}

    def test_append_keeps_the_first_images_of_what_it_had(self, piece: Callable[..., Data]) -> None:
        memory = Memory(12, RANDOM, update="append")
        memory.add(piece(0))
        assert memory.synthetic is not None
        before = memory.synthetic.pixels().images
        memory.add(piece(1))
        assert torch.equal(memory.synthetic.pixels().images[:6], before[:6])

    def test_recondensed_images_of_a_group_stand_for_old_and_new_records(self, piece: Callable[..., Data]) -> None:
        memory = Memory(4, Condenser(steps=1, parametrization="pixels"))
        memory.add(piece(0, 1, count=10))
        memory.add(piece(0, count=20, begin=10))
        assert memory.synthetic is not None
        weights = dict.fromkeys(memory.names, 0.0)
        labels = memory.synthetic.pixels().targets.argmax(1)
        for name, weight in zip(labels.tolist(), memory.synthetic.weights().tolist(), strict=True):
            weights[memory.synthetic.classes[name]] += weight
        assert weights == {"0": 30, "1": 10}
        assert stored(memory) == {"0": 2, "1": 2}

    def test_a_group_with_fewer_images_than_its_share_gives_what_it_has(
        self, piece: Callable[..., Data], caplog: pytest.LogCaptureFixture
    ) -> None:
        memory = Memory(20, RANDOM)
        with caplog.at_level(logging.WARNING):
            memory.add(piece(0, 1, count=3))
        assert stored(memory) == {"0": 3, "1": 3}
        assert "they get what is there: 0 (3), 1 (3)" in caplog.text


class TestReservoir:
    def test_each_image_of_a_long_stream_is_as_likely_to_be_kept(self) -> None:
        """400 images in pieces of 8, of which 20 stay: of 40 memories, each quarter of the stream gives about 200."""
        found: Counter[int] = Counter()
        for seed in range(40):
            memory = Memory(20, RANDOM, seed=seed)
            for first in range(0, 400, 8):
                memory.add(numbered("a", first, first + 8))
            kept = numbers(memory)
            assert len(kept) == len(set(kept)) == 20
            found.update(number // 100 for number in kept)
        assert sum(found.values()) == 800
        assert all(150 < found[quarter] < 250 for quarter in range(4))  # four standard deviations of 12.2

    def test_the_real_images_of_a_hybrid_memory_are_a_reservoir_too(self) -> None:
        found: Counter[int] = Counter()
        for seed in range(40):
            memory = Memory(20, RANDOM, seed=seed, real_fraction=1.0)
            for first in range(0, 400, 8):
                memory.add(numbered("a", first, first + 8))
            found.update(number // 100 for number in numbers(memory))
        assert all(150 < found[quarter] < 250 for quarter in range(4))

    def test_selected_images_are_images_of_the_stream(self, piece: Callable[..., Data]) -> None:
        memory = Memory(10, RANDOM)
        pieces = [piece(0, 1), piece(1, 2, begin=30), piece(0, 3, begin=60)]
        for one in pieces:
            memory.add(one)
        assert memory.synthetic is not None
        images = memory.synthetic.pixels().images.mul(255).round().to(torch.uint8)
        assert rows(images) <= set().union(*(rows(one.images) for one in pieces))


class TestHybrid:
    def test_the_share_of_real_images_is_what_was_asked_for(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, Condenser(steps=1, parametrization="pixels"), real_fraction=0.4)
        data = piece(0, 1)
        memory.add(data)
        assert stored(memory) == {"0": 10, "1": 10}
        assert memory.real is not None
        assert memory.real.counts().tolist() == [4, 4]
        assert rows(memory.real.pixels().images.mul(255).round().to(torch.uint8)) <= rows(data.images)

    def test_real_images_leave_when_their_share_rounds_to_none(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, RANDOM, real_fraction=0.2)
        memory.add(piece(0))
        assert memory.real is not None
        memory.add(piece(1, 2, 3))  # two images a group, of which 0.4 real ones
        assert memory.real is None
        assert stored(memory) == dict.fromkeys("0123", 2)


@pytest.mark.parametrize(
    ("given", "said"), [({"images": 40}, "40 images"), ({"images": None, "max_bytes": 9000}, "9,000 bytes")]
)
def test_few_records_of_a_group_are_told_once_in_the_words_of_what_was_given(
    given: dict[str, Any], said: str, piece: Callable[..., Data], caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(make=RANDOM, groups=2, **given)
    for number in range(4):
        memory.add(piece(0, count=5, begin=5 * number))
    memory.add(piece(1, count=5))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].endswith("they get what is there: 0 (5)")
    assert told[1].endswith("they get what is there: 1 (5)")
    assert all(line.startswith(f"a memory of {said} has room for ") and "ipc" not in line for line in told)


class TestWaiting:
    def test_a_group_waits_for_enough_images_and_is_replayed_meanwhile(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM, minimum=25)
        memory.add(piece(0, count=10))
        assert not memory.sets
        assert replayed(memory) == {"0": 10}
        assert memory.image_bytes == 10 * 64
        memory.add(piece(0, count=10, begin=10))
        assert not memory.sets
        memory.add(piece(0, count=10, begin=20))
        assert not memory.waiting
        assert memory.image_bytes == 20 * 64
        assert memory.synthetic is not None
        assert memory.synthetic.parts[0].record.counts == (30,)

    def test_no_more_wait_than_the_budget_and_the_largest_group_is_condensed_first(
        self, piece: Callable[..., Data]
    ) -> None:
        memory = Memory(12, RANDOM, minimum=1000)
        for classes, condensed in (((0,), ""), ((0, 1), "0"), ((1, 2), "01"), ((2,), "01")):
            memory.add(piece(*classes, count=5))
            assert memory.seen == dict.fromkeys(condensed, 10)
            assert sum(map(len, memory.waiting.values())) <= 12

    def test_a_known_group_keeps_its_images_while_new_ones_wait(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM, minimum=25)
        memory.add(piece(0))
        before = memory.synthetic
        memory.add(piece(0, count=10, begin=30))
        assert before is not None
        assert memory.synthetic is not None
        assert torch.equal(memory.synthetic.pixels().images, before.pixels().images)

    def test_append_waits_too_and_counts_from_when_it_was_enough(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM, minimum=25, update="append")
        for begin in range(0, 60, 10):
            memory.add(piece(0, count=10, begin=begin))
        assert list(memory.seen.items()) == [("0#3", 30), ("0#6", 30)]
        assert not memory.waiting
        assert stored(memory) == {"0#3": 10, "0#6": 10}

    def test_what_is_replayed_never_exceeds_the_budget(self, piece: Callable[..., Data]) -> None:
        memory = Memory(5, RANDOM, minimum=25)
        for number, classes in enumerate([(0, 1), (0, 2), (0, 1, 3), (0, 4)]):
            memory.add(piece(*classes, count=10, begin=10 * number))
            assert sum(replayed(memory).values()) <= 5


def test_it_shows_what_it_holds(piece: Callable[..., Data]) -> None:
    memory = Memory(20, RANDOM)
    assert repr(memory) == "Memory(0 stored images of 0 groups in 0 bytes)"
    memory.add(piece(0, 1))
    assert repr(memory) == f"Memory(20 stored images of 2 groups in {memory.nbytes:,} bytes)"


class TestResize:
    @pytest.mark.parametrize("update", UPDATES)
    def test_a_smaller_budget_shrinks_all_groups(self, piece: Callable[..., Data], update: str) -> None:
        memory = Memory(20, RANDOM, update=update, real_fraction=0.25)
        memory.add(piece(0, 1))
        memory.resize(9)
        assert list(stored(memory).values()) == [4, 4]
        assert memory.images == 9

    def test_condensed_images_are_condensed_again(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, Condenser(steps=2, parametrization="pixels"))
        memory.add(piece(0, 1))
        memory.resize(2)
        (one,) = memory.sets
        assert one.record.steps == 2
        assert one.record.ipc == 1
        assert one.record.counts == (30, 30)

    def test_a_larger_budget_leaves_what_is_there_and_fills_later(self, piece: Callable[..., Data]) -> None:
        memory = Memory(4, RANDOM)
        memory.add(piece(0, 1))
        memory.resize(20)
        assert stored(memory) == {"0": 2, "1": 2}
        memory.add(piece(0, 1, begin=30))
        assert sum(stored(memory).values()) > 4

    @pytest.mark.parametrize("images", [1, 0, -3])
    def test_below_one_image_a_group_is_refused(
        self, piece: Callable[..., Data], images: int, unchanged: Callable[[Memory], AbstractContextManager[None]]
    ) -> None:
        memory = Memory(20, RANDOM)
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(SettingError, match="cannot hold 2 groups; give it 2 or more"):
            memory.resize(images)


class Broken:
    """A maker that fails when it is told to."""

    per_image = 1
    fails = False

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        if self.fails:
            raise KeyboardInterrupt
        return select(data, ipc, "random", seed)


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "needed"),
        [
            ({"images": 0}, "1 or more"),
            ({"groups": 21}, "give each at least one"),
            ({"groups": 0}, "give each at least one"),
            ({"update": "replace"}, "recondense, reservoir, append"),
            ({"real_fraction": 1.5}, "from 0 to 1"),
            ({"minimum": 0}, "1 or more"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, settings: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            Memory(**{"images": 20, "make": RANDOM, **settings})

    def test_too_many_groups_change_nothing(
        self, piece: Callable[..., Data], unchanged: Callable[[Memory], AbstractContextManager[None]]
    ) -> None:
        memory = Memory(2, RANDOM)
        with unchanged(memory), pytest.raises(SettingError, match="cannot hold 3 groups; give it 3 or more"):
            memory.add(piece(0, 1, 2))
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(SettingError, match="cannot hold 3 groups"):
            memory.add(piece(2))

    def test_images_of_another_shape_change_nothing(
        self, piece: Callable[..., Data], unchanged: Callable[[Memory], AbstractContextManager[None]]
    ) -> None:
        memory = Memory(20, RANDOM)
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(DataError, match=r"\(1, 2, 2\); this memory holds \(1, 8, 8\)"):
            memory.add(numbered("a", 0, 5))

    def test_an_interrupted_maker_changes_nothing_and_the_data_can_be_given_again(
        self, piece: Callable[..., Data], unchanged: Callable[[Memory], AbstractContextManager[None]]
    ) -> None:
        make = Broken()
        memory, other = Memory(20, make), Memory(20, make)
        for one in (memory, other):
            one.add(piece(0, 1))
        make.fails = True
        with unchanged(memory), pytest.raises(KeyboardInterrupt):
            memory.add(piece(0, 2, begin=30))
        with unchanged(memory), pytest.raises(KeyboardInterrupt):
            memory.resize(4)
        make.fails = False
        for one in (memory, other):
            one.add(piece(0, 2, begin=30))
        assert memory.to_bytes() == other.to_bytes()


def test_equal_seeds_give_equal_memories_and_others_do_not(piece: Callable[..., Data]) -> None:
    blobs = []
    for seed in (0, 0, 1):
        memory = Memory(10, RANDOM, seed=seed, real_fraction=0.5)
        for begin in (0, 30):
            memory.add(piece(0, 1, begin=begin))
        assert memory.synthetic is not None
        blobs.append(memory.synthetic.with_record(seconds=0.0, seed=0).to_bytes())
    assert blobs[0] == blobs[1] != blobs[2]


def test_each_addition_is_timed(piece: Callable[..., Data]) -> None:
    memory = Memory(10, RANDOM)
    for begin in (0, 30):
        memory.add(piece(0, 1, begin=begin))
    assert len(memory.seconds) == 2
    assert all(0 < seconds < 60 for seconds in memory.seconds)


def test_parts_of_a_memory_are_part_objects_with_their_own_records(piece: Callable[..., Data]) -> None:
    memory = Memory(10, RANDOM, real_fraction=0.5)
    memory.add(piece(0, 1))
    assert memory.synthetic is not None
    assert all(isinstance(part, Part) for part in memory.synthetic.parts)
    assert [part.record.method for part in memory.synthetic.parts] == ["random", "real"]
