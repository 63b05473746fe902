from __future__ import annotations

import copy
import json
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

from fedcondense.condensing import condense
from fedcondense.contract import Draw, Objective, Recipe, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.data.loading import load_data
from fedcondense.errors import DataError, OutputError, ResumeError, SettingError, UntrustedSetError
from fedcondense.memory.memory import Condenser, Memory, Selector
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS, MultiFormation
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import Part, SyntheticSet
from fedcondense.sources import Fresh

RANDOM = Selector("random")
UPDATES = ("recondense", "reservoir", "append")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits").train


@pytest.fixture
def piece(digits: Data) -> Callable[..., Data]:
    """Return so many images of each of some digits, from the `begin`-th on; a class a group, named as its digit."""

    def make(*classes: int, count: int = 30, begin: int = 0) -> Data:
        rows = [digits.per_class(None, torch.Generator())[digits.labels.sort().values == c] for c in classes]
        index = torch.cat([row[begin : begin + count] for row in rows])
        spec = replace(digits.spec, classes=tuple(map(str, classes)))
        number = {c: k for k, c in enumerate(classes)}
        return Data(digits.images[index], torch.tensor([number[c] for c in digits.labels[index].tolist()]), spec)

    return make


def numbered(name: str, first: int, last: int) -> Data:
    """Return images (N, 1, 2, 2) of one group whose bytes count up, so that each says when it came."""
    values = torch.arange(first, last)
    images = torch.stack([values // 256, values % 256], 1).to(torch.uint8).view(-1, 1, 2, 1).repeat(1, 1, 1, 2)
    return Data(images, torch.zeros(len(values)), Spec("numbers", (1, 2, 2), (name,), (0.5,), (0.25,)))


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


def state(memory: Memory) -> dict[str, Any]:
    """Return all that a memory is, to be compared."""
    kept = {k: v for k, v in vars(memory).items() if k not in ("sets", "real", "waiting", "make")}
    return kept | {"names": memory.names, "bytes": memory.to_bytes() if memory.names else b""}


@contextmanager
def unchanged(memory: Memory) -> Iterator[None]:
    before = copy.deepcopy(state(memory))
    yield
    assert state(memory) == before


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
        """400 images in pieces of 4, of which 20 stay: of 40 memories, each quarter of the stream gives about 200."""
        found: Counter[int] = Counter()
        for seed in range(40):
            memory = Memory(20, RANDOM, seed=seed)
            for first in range(0, 400, 4):
                memory.add(numbered("a", first, first + 4))
            kept = numbers(memory)
            assert len(kept) == len(set(kept)) == 20
            found.update(number // 100 for number in kept)
        assert sum(found.values()) == 800
        assert all(150 < found[quarter] < 250 for quarter in range(4))  # four standard deviations of 12.2

    def test_the_real_images_of_a_hybrid_memory_are_a_reservoir_too(self) -> None:
        found: Counter[int] = Counter()
        for seed in range(40):
            memory = Memory(20, RANDOM, seed=seed, real_fraction=1.0)
            for first in range(0, 400, 4):
                memory.add(numbered("a", first, first + 4))
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


def test_few_records_of_a_group_are_told_once(piece: Callable[..., Data], caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(40, RANDOM, groups=2)
    for number in range(4):
        memory.add(piece(0, count=5, begin=5 * number))
    memory.add(piece(1, count=5))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].endswith("they get what is there: 0 (5)")
    assert told[1].endswith("they get what is there: 1 (5)")


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
    def test_below_one_image_a_group_is_refused(self, piece: Callable[..., Data], images: int) -> None:
        memory = Memory(20, RANDOM)
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(SettingError, match="2 groups; give it at least one a group"):
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

    def test_too_many_groups_change_nothing(self, piece: Callable[..., Data]) -> None:
        memory = Memory(2, RANDOM)
        with unchanged(memory), pytest.raises(SettingError, match="cannot hold 3 groups; give it at least one"):
            memory.add(piece(0, 1, 2))
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(SettingError, match="cannot hold 3 groups"):
            memory.add(piece(2))

    def test_images_of_another_shape_change_nothing(self, piece: Callable[..., Data]) -> None:
        memory = Memory(20, RANDOM)
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(DataError, match=r"\(1, 2, 2\); this memory holds \(1, 8, 8\)"):
            memory.add(numbered("a", 0, 5))

    def test_an_interrupted_maker_changes_nothing_and_the_data_can_be_given_again(
        self, piece: Callable[..., Data]
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


@dataclass(frozen=True)
class Means(Objective):
    """A method in a few lines: class means of pixels."""

    recipe = Recipe(steps=3, lr=0.05, source=lambda make, operations, classes: Fresh(make, operations, classes))
    siamese: bool = False

    def observe(self, draw: Draw, data: Data) -> Tensor:
        images, targets = data.batch()
        return targets.T @ images.flatten(1) / targets.sum(0).unsqueeze(1)

    def loss(self, draw: Draw, observed: Tensor, synthetic: Synthetic) -> Tensor:
        means = synthetic.targets.T @ synthetic.images.flatten(1) / synthetic.targets.sum(0).unsqueeze(1)
        return (means - observed).square().sum()


def tiny(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return ConvNet(shape, classes, width=8, depth=2)


class Softener:
    """Makes sets with soft labels: a tenth of each image belongs to the other classes of its set."""

    per_image = 4

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        hard = select(data, ipc, "half-resolution", seed)
        (part,) = hard.parts
        targets = nn.functional.one_hot(part.targets.long(), len(data.spec.classes)).float()
        soft = (0.9 * targets + 0.1 / targets.shape[1]).half()
        return SyntheticSet([replace(part, targets=soft)])


class TestMakers:
    def test_a_condenser_that_is_told_so_makes_prefixes_that_serve(self, piece: Callable[..., Data]) -> None:
        data = piece(0, 1)
        told: dict[str, Any] = {"network": "convnet2-w32", "steps": 10}
        made = Condenser("dm-ridge", "pixels", **told, prefixes=True)(
            data, 3, 5, torch.zeros(len(data), dtype=torch.bool)
        )
        expected = condense(data, 3, "dm-ridge", **told, prefixes=True, seed=5)
        assert torch.equal(made.pixels().images, expected.pixels().images)
        assert not torch.equal(made.pixels().images, condense(data, 3, "dm-ridge", **told, seed=5).pixels().images)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    @pytest.mark.parametrize("update", ["recondense", "append"])
    def test_every_objective_fills_a_memory_by_name(
        self, objective: str, update: str, piece: Callable[..., Data]
    ) -> None:
        memory = Memory(4, Condenser(objective, "pixels", network=tiny, steps=1), update=update)
        memory.add(piece(0, 1))
        memory.add(piece(2, 3))
        assert {name.partition("#")[0]: n for name, n in stored(memory).items()} == dict.fromkeys("0123", 1)
        assert memory.synthetic is not None
        assert {part.record.method for part in memory.synthetic.parts} == {objective}

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_every_parametrization_fills_a_memory_by_name(self, name: str, piece: Callable[..., Data]) -> None:
        make = Condenser("dm", name, network=tiny, steps=1)
        memory = Memory(24, make)
        memory.add(piece(0, 1))
        memory.add(piece(2, 3))
        assert memory.image_bytes <= 24 * 64
        assert replayed(memory) == dict.fromkeys("0123", 6 * make.per_image)
        again = Memory(24, make)
        again.from_bytes(memory.to_bytes())
        assert again.to_bytes() == memory.to_bytes()

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_a_group_that_takes_no_more_than_its_share_is_left_alone(
        self, name: str, piece: Callable[..., Data]
    ) -> None:
        """Whatever a stored image decodes to: the budget is counted in plain images."""
        memory = Memory(48, Condenser("dm", name, network=tiny, steps=1), groups=4)
        memory.add(piece(0, 1))
        (first,) = memory.sets
        memory.add(piece(2, 3))
        assert memory.sets[0] is first
        memory.resize(24)
        assert memory.sets[0] is not first
        assert memory.image_bytes <= 24 * 64

    def test_sets_of_shared_codes_are_not_left_in_part(self, piece: Callable[..., Data]) -> None:
        make = Condenser("dm", "bases", network=tiny, steps=1)
        for update in ("reservoir", "append"):
            reason = (
                f"update '{update}' leaves out stored images, but those of Condenser.*'bases'.* share codes: choose "
            )
            with pytest.raises(SettingError, match=reason):
                Memory(24, make, update=update)
        memory = Memory(24, make, update="append", groups=2)
        memory.add(piece(0, 1))
        with unchanged(memory), pytest.raises(SettingError, match="dm: shared codes or soft labels; condense again"):
            memory.resize(12)

    def test_a_new_objective_of_a_few_lines_fills_a_memory(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, Condenser(Means(), network=tiny))
        memory.add(piece(0, 1))
        again = Memory(8, Condenser(Means(), network=tiny))
        again.from_bytes(memory.to_bytes())
        assert again.to_bytes() == memory.to_bytes()

    def test_a_parametrization_as_a_value_says_how_many_images_it_makes(self) -> None:
        assert Condenser(parametrization=MultiFormation(4)).per_image == 16
        assert [Selector(name).per_image for name in ("random", "half-resolution")] == [1, 4]

    def test_unknown_names_are_refused_with_the_closest(self) -> None:
        with pytest.raises(SettingError, match="did you mean 'herding'"):
            _ = Selector("hearding").per_image
        with pytest.raises(SettingError, match="did you mean 'pixels'"):
            _ = Condenser(parametrization="pixel").per_image

    def test_what_is_condensed_again_starts_from_what_is_stored(self, piece: Callable[..., Data]) -> None:
        """Without steps the start is the end: new classes begin as the recipe says, old ones as they were."""
        memory = Memory(20, Condenser("dm", "pixels", network=tiny, start="real", steps=0))
        memory.add(piece(0, 1))
        assert memory.synthetic is not None
        before = memory.synthetic.pixels().images
        new = piece(0, 2, begin=30)
        memory.add(new)  # ten images a class become six, of old and new data alike
        by_class = {name: memory.synthetic.restrict([name]) for name in "012"}
        images = {name: one.pixels().images for name, one in by_class.items() if one is not None}
        assert torch.equal(images["0"], before[:6])
        assert torch.equal(images["1"], before[10:16])
        assert rows(images["2"].mul(255).round().byte()) <= rows(new.images[new.labels == 1])

    def test_an_unknown_precision_is_refused(self) -> None:
        with pytest.raises(SettingError, match="'bfloat17'; needed: 'float32', 'bfloat16', 'float16' or None"):
            Condenser(precision="bfloat17")

    def test_precision_is_that_of_the_features(self, piece: Callable[..., Data]) -> None:
        data, stored = piece(0, 1), torch.zeros(60, dtype=torch.bool)
        sets = [
            Condenser("dm", "pixels", network=tiny, steps=2, precision=name)(data, 1, 0, stored)
            for name in ("float32", "bfloat16", None)
        ]
        images = [one.pixels().images for one in sets]
        assert torch.equal(images[0], images[2])
        assert not torch.equal(images[0], images[1])
        torch.testing.assert_close(images[0], images[1], atol=0.1, rtol=0)

    def test_sets_with_soft_labels_are_made_again_whole(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, Softener())
        memory.add(piece(0, 1))
        memory.add(piece(2, 3))
        assert replayed(memory) == dict.fromkeys("0123", 8)
        memory.add(piece(0, begin=30))  # its set holds the others too: they cannot be told apart
        assert replayed(memory) == dict.fromkeys("0123", 8)
        assert len(memory.sets) == 1
        assert pickle.loads(pickle.dumps(memory)).to_bytes() == memory.to_bytes()

    def test_sets_with_soft_labels_stay_as_they_are_where_nothing_is_cut(self, piece: Callable[..., Data]) -> None:
        memory = Memory(8, Softener(), groups=4)
        memory.add(piece(0, 1))
        (first,) = memory.sets
        memory.add(piece(2, 3))
        assert memory.sets[0] is first
        assert memory.image_bytes == 8 * 64


class TestFile:
    @pytest.fixture
    def memory(self, piece: Callable[..., Data]) -> Memory:
        """A memory with all that it can hold: condensed, real and waiting images."""
        memory = Memory(20, Condenser("dm", steps=1), real_fraction=0.3, minimum=20, seed=3)
        memory.add(piece(0, 1))
        memory.add(piece(2, count=5))
        memory.note = {"who": "a test", "values": [0.1, 1]}
        return memory

    @staticmethod
    def fresh(**changes: Any) -> Memory:
        settings: dict[str, Any] = {"real_fraction": 0.3, "minimum": 20, "seed": 3}
        return Memory(**{"images": 20, "make": Condenser("dm", steps=1), **settings, **changes})

    def test_nbytes_is_the_length_of_the_file_and_mostly_images(self, memory: Memory, tmp_path: Path) -> None:
        path = memory.save(tmp_path / "memory.safetensors")
        assert memory.nbytes == path.stat().st_size
        codes = sum(code.numel() for part in SyntheticSet.load(path).parts for code in part.codes.values())
        assert memory.image_bytes == codes

    def test_the_file_is_at_most_a_tenth_more_than_its_images_and_the_records(self) -> None:
        spec = Spec("noise", (1, 28, 28), tuple("abcdefghij"), (0.5,), (0.25,))
        images = torch.randint(0, 256, (400, 1, 28, 28), dtype=torch.uint8)
        memory = Memory(100, RANDOM)
        memory.add(Data(images, torch.arange(10).repeat(40), spec))
        assert memory.image_bytes == 100 * 784
        assert memory.nbytes <= 1.1 * memory.image_bytes

    def test_an_empty_memory_takes_no_bytes_and_writes_no_file(self, tmp_path: Path) -> None:
        memory = Memory(20, RANDOM)
        assert (memory.nbytes, memory.image_bytes, memory.synthetic) == (0, 0, None)
        with pytest.raises(SettingError, match="train on an experience before"):
            memory.save(tmp_path / "memory.safetensors")
        assert not list(tmp_path.iterdir())

    def test_the_file_opens_as_a_synthetic_set(self, memory: Memory, tmp_path: Path) -> None:
        opened = SyntheticSet.load(memory.save(tmp_path / "memory.safetensors"))
        assert memory.synthetic is not None
        assert torch.equal(opened.pixels().images, memory.synthetic.pixels().images)
        assert opened.classes == ("0", "1", "2")

    def test_a_loaded_memory_goes_on_as_if_it_had_stayed(
        self, memory: Memory, piece: Callable[..., Data], tmp_path: Path
    ) -> None:
        again = self.fresh()
        again.load(memory.save(tmp_path / "memory.safetensors"))
        assert again.to_bytes() == memory.to_bytes()
        assert again.note == {"who": "a test", "values": [0.1, 1]}
        for one in (again, memory):
            one.add(piece(0, 2, count=40, begin=40))
        kept = [one.synthetic.with_record(seconds=0.0).to_bytes() for one in (again, memory) if one.synthetic]
        assert kept[0] == kept[1]

    def test_a_pickled_memory_is_its_file_and_what_it_was_made_with(self, memory: Memory) -> None:
        pickled = pickle.dumps(memory)
        assert pickle.loads(pickled).to_bytes() == memory.to_bytes()
        assert len(pickled) < memory.nbytes + 5000
        assert pickle.loads(pickle.dumps(Memory(20, RANDOM))).names == []
        assert copy.deepcopy(memory).seconds == memory.seconds

    def test_a_maker_with_functions_is_the_same_maker_in_another_process(self, piece: Callable[..., Data]) -> None:
        """The repr of a function holds its address; the settings hold none."""

        def maker() -> Condenser:
            return Condenser(Means(), network=lambda shape, classes: tiny(shape, classes), recipe=Means.recipe)

        first, second = Memory(4, maker()), Memory(4, maker())
        assert first.settings() == second.settings()
        assert "0x" not in json.dumps(first.settings())
        first.add(piece(0, 1))
        second.from_bytes(first.to_bytes())

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"images": 30}, "images was 20, is 30"),
            ({"groups": 5}, "groups was None, is 5"),
            ({"update": "append"}, "update was 'recondense', is 'append'"),
            ({"real_fraction": 0.0}, "real_fraction was 0.3, is 0.0"),
            ({"minimum": 1}, "minimum was 20, is 1"),
            ({"seed": 4}, "seed was 3, is 4"),
            ({"make": Condenser("dm", steps=2)}, "steps=2"),
        ],
    )
    def test_other_settings_are_refused_by_name(
        self, memory: Memory, tmp_path: Path, changes: dict[str, Any], says: str
    ) -> None:
        path, other = memory.save(tmp_path / "memory.safetensors"), self.fresh(**changes)
        with unchanged(other), pytest.raises(ResumeError, match=r"memory\.safetensors.*other settings") as refused:
            other.load(path)
        assert says in str(refused.value)

    def test_what_is_no_memory_is_refused(self, memory: Memory, tmp_path: Path, digits: Data) -> None:
        whole = memory.save(tmp_path / "memory.safetensors").read_bytes()
        plain = select(digits, 1).to_bytes()
        cases = {
            "missing": (None, "No such file"),
            "plain": (plain, "no memory; give a file that a memory's `save` wrote"),
            "truncated": (whole[:-1], "truncated"),
            "longer": (whole + b"x", "after the last tensor"),
            "empty": (b"", "0 bytes"),
            "text": (b"hello, this is no memory", "header"),
        }
        for name, (blob, says) in cases.items():
            path = tmp_path / name
            if blob is not None:
                path.write_bytes(blob)
            with unchanged(memory), pytest.raises(UntrustedSetError, match=f"{name}.*{says}"):
                memory.load(path)

    @pytest.mark.parametrize(
        ("field", "value", "says"),
        [
            ("added", "3", "whole numbers"),
            ("added", -1, "whole numbers"),
            ("seen", {"0": 1.5, "1": 1}, "whole numbers"),
            ("seen", {"0": 30}, "leaves out"),
            ("seen", 5, "no memory"),
            ("settings", None, "no memory"),
            ("note", [1], "no memory"),
        ],
    )
    def test_a_file_whose_description_was_changed_is_refused(
        self, memory: Memory, field: str, value: Any, says: str
    ) -> None:
        blob = memory.to_bytes()
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        content = json.loads(header["__metadata__"]["fedcondense"])
        content["memory"][field] = value
        header["__metadata__"]["fedcondense"] = json.dumps(content)
        text = json.dumps(header).encode()
        changed = len(text).to_bytes(8, "little") + text + blob[8 + length :]
        with unchanged(memory), pytest.raises(UntrustedSetError, match=says):
            memory.from_bytes(changed)

    def test_many_small_additions_still_load(self) -> None:
        """Each has a record of its own: the header outgrows what is allowed of a stranger's set."""
        memory = Memory(2500, RANDOM, update="append", groups=2500)
        for k in range(2500):
            memory.sets.append(select(numbered(f"a#{k}", k, k + 1), 1))
            memory.seen[f"a#{k}"] = 1
        assert int.from_bytes(memory.to_bytes()[:8], "little") > 1 << 20
        assert len(pickle.loads(pickle.dumps(memory)).sets) == 2500

    def test_an_existing_file_is_not_replaced_unasked(self, memory: Memory, tmp_path: Path) -> None:
        path = memory.save(tmp_path / "memory.safetensors")
        with pytest.raises(OutputError, match="overwrite=True"):
            memory.save(path)
        memory.save(path, overwrite=True)
        assert os.listdir(tmp_path) == ["memory.safetensors"]

    def test_any_safetensors_reader_opens_it(self, memory: Memory, tmp_path: Path) -> None:
        with safetensors.safe_open(memory.save(tmp_path / "memory.safetensors"), framework="pt") as file:
            assert file.get_tensor("0.images").dtype == torch.uint8


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
