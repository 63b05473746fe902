from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcondense.condensing import condense
from fedcondense.contract import Objective
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.networks import NetworkMaker
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS, MultiFormation
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


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
        self, objective: str, update: str, piece: Callable[..., Data], tiny: NetworkMaker
    ) -> None:
        memory = Memory(4, Condenser(objective, "pixels", network=tiny, steps=1), update=update)
        memory.add(piece(0, 1))
        memory.add(piece(2, 3))
        assert {name.partition("#")[0]: n for name, n in stored(memory).items()} == dict.fromkeys("0123", 1)
        assert memory.synthetic is not None
        assert {part.record.method for part in memory.synthetic.parts} == {objective}

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_every_parametrization_fills_a_memory_by_name(
        self, name: str, piece: Callable[..., Data], tiny: NetworkMaker
    ) -> None:
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
        self, name: str, piece: Callable[..., Data], tiny: NetworkMaker
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

    def test_sets_of_shared_codes_are_not_left_in_part(
        self,
        piece: Callable[..., Data],
        unchanged: Callable[[Memory], AbstractContextManager[None]],
        tiny: NetworkMaker,
    ) -> None:
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

    def test_a_new_objective_of_a_few_lines_fills_a_memory(
        self, piece: Callable[..., Data], tiny: NetworkMaker, means: Objective
    ) -> None:
        memory = Memory(8, Condenser(means, network=tiny))
        memory.add(piece(0, 1))
        again = Memory(8, Condenser(means, network=tiny))
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

    def test_what_is_condensed_again_starts_from_what_is_stored(
        self, piece: Callable[..., Data], tiny: NetworkMaker
    ) -> None:
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

    def test_precision_is_that_of_the_features(self, piece: Callable[..., Data], tiny: NetworkMaker) -> None:
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
