from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.contract import Draw, NetworkSource, Objective, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.data.images import Data
from fedcondense.errors import SettingError

DRAW = Draw(None, Augmentation.draw((), 1, torch.Generator()), 0)


class Cubes(Objective):
    """The sum of the cubes of all pixels: separable, with a known gradient; it notes the groups that it sees."""

    def __init__(self, *, separable: bool = True, silent: int | None = None) -> None:
        self.separable = separable  # type: ignore[misc]
        self.silent, self.groups = silent, list[list[int]]()

    def observe(self, draw: Draw, data: Data) -> None:
        return None

    def loss(self, draw: Draw, observed: None, synthetic: Synthetic) -> Tensor:
        labels = synthetic.targets.argmax(1).tolist()
        self.groups.append(labels)
        if set(labels) == {self.silent}:
            return torch.zeros(())
        return synthetic.images.pow(3).sum()


def leaves(labels: list[int]) -> Synthetic:
    images = torch.randn(len(labels), 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Synthetic(images.requires_grad_(), F.one_hot(torch.tensor(labels), 5).float())


class Odd(Cubes):
    """A loss that is none."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def loss(self, draw: Draw, observed: None, synthetic: Synthetic) -> Tensor:
        result: Tensor = self.made(synthetic.images)
        return result


class TestBackward:
    @pytest.mark.parametrize(
        ("made", "said"),
        [
            (lambda images: 1.0, "Odd gives a float for its loss"),
            (lambda images: images.flatten(1).sum(1), r"Odd gives a tensor \(2,\) for its loss"),
            (lambda images: None, "Odd gives a NoneType for its loss"),
        ],
    )
    def test_a_loss_that_is_not_one_number_is_refused_in_words(self, made: Any, said: str) -> None:
        with pytest.raises(SettingError, match=f"{said}; needed: one number"):
            Odd(made).backward(DRAW, None, leaves([0, 1]), 5)

    def test_one_number_may_be_of_any_shape(self) -> None:
        synthetic = leaves([0, 1])
        Odd(lambda images: images.sum().reshape(1, 1)).backward(DRAW, None, synthetic, 5)
        assert synthetic.images.grad is not None
        assert torch.equal(synthetic.images.grad, torch.ones_like(synthetic.images))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 25))
    def test_groups_of_classes_give_the_loss_and_gradient_of_the_whole(self, labels: list[int], at_once: int) -> None:
        """Whatever the order of the labels; no class is split, no group is larger than asked unless one class is, and
        none could have taken the next class as well."""
        objective, synthetic = Cubes(), leaves(labels)
        total = objective.backward(DRAW, None, synthetic, at_once)
        expected = synthetic.images.detach()
        assert synthetic.images.grad is not None
        torch.testing.assert_close(total, expected.pow(3).sum())
        torch.testing.assert_close(synthetic.images.grad, 3 * expected.square())
        assert sorted(label for group in objective.groups for label in group) == sorted(labels)
        seen = [label for group in objective.groups for label in set(group)]
        assert len(seen) == len(set(seen))
        for group in objective.groups:
            assert len(group) <= at_once or len(set(group)) == 1
        for group, following in pairwise(objective.groups):
            assert len(group) + following.count(following[0]) > at_once

    def test_what_fits_is_one_graph(self) -> None:
        objective = Cubes()
        objective.backward(DRAW, None, leaves([0, 1, 2, 2]), at_once=4)
        assert objective.groups == [[0, 1, 2, 2]]

    def test_what_is_not_separable_is_one_graph(self) -> None:
        objective = Cubes(separable=False)
        objective.backward(DRAW, None, leaves([0, 1, 2, 2]), at_once=1)
        assert objective.groups == [[0, 1, 2, 2]]

    def test_a_group_about_which_the_real_data_say_nothing_has_no_gradient(self) -> None:
        objective, synthetic = Cubes(silent=1), leaves([0, 1, 1, 2])
        objective.backward(DRAW, None, synthetic, at_once=1)
        assert synthetic.images.grad is not None
        assert not synthetic.images.grad[1:3].any()
        assert synthetic.images.grad[[0, 3]].any()

    def test_the_loss_that_is_returned_holds_no_graph(self) -> None:
        assert not Cubes().backward(DRAW, None, leaves([0, 1]), at_once=1).requires_grad


def test_an_objective_without_observe_or_loss_cannot_be_made() -> None:
    class Half(Objective):
        def observe(self, draw: Draw, data: Data) -> None:
            return None

    with pytest.raises(TypeError, match=r"abstract method '?loss'?"):
        Half()  # type: ignore[abstract]


def test_a_source_that_keeps_nothing_needs_only_draw() -> None:
    class Same(NetworkSource):
        def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
            return DRAW

    source = Same()
    assert source.state_dict() == {}
    source.load_state_dict({})
    assert source.draw(torch.Generator(), leaves([0]), None) is DRAW


def test_an_objective_learns_nothing_of_its_own_unless_it_says_so() -> None:
    assert Cubes().extras() == {}
