"""A cell measures what `evaluate` measures, and says what went wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fedcondense.sweeps.compute as computing
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, OutputError
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps.compute import compute
from fedcondense.sweeps.grids import ALL_REAL, Cell, EvaluationPlan, SetRecipe, Tuning
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
QUICK = EvaluationPlan((NETWORK,), networks=2, fit=Fit(steps=3))
DM = Cell(SetRecipe("digits", "dm", network=NETWORK, tuning=Tuning(steps=2)), QUICK)
RANDOM = Cell(SetRecipe("digits", "random", parametrization=""), QUICK)


class TestCompute:
    def test_measures_what_evaluate_measures_with_networks_of_its_own(self) -> None:
        cell = replace(RANDOM, making=replace(RANDOM.making, seed=3))
        outcome, made = compute(cell, None)
        assert made is not None
        train, test = load_data("digits")
        synthetic = select(train, 1, "random", seed=3)
        result = evaluate(synthetic, test, network=NETWORK, recipe=QUICK.fit, seeds=(6, 7))
        assert outcome["measured"][NETWORK]["accuracies"] == [round(a, 3) for a in result.accuracies]
        assert torch.equal(SyntheticSet.from_bytes(made).pixels().images, synthetic.pixels().images)

    def test_distilled_and_real_images_take_equal_bytes(self) -> None:
        """Up to what the headers say: the codes and labels take the same."""
        distilled, real = (compute(cell, None)[1] for cell in (DM, RANDOM))
        assert distilled is not None
        assert real is not None
        sizes = [
            sum(code.nbytes for code in part.codes.values()) + part.targets.nbytes
            for part in (SyntheticSet.from_bytes(distilled).parts[0], SyntheticSet.from_bytes(real).parts[0])
        ]
        assert sizes == [10 * 65, 10 * 65]
        assert abs(len(distilled) - len(real)) < 64

    def test_a_held_set_is_measured_and_not_made_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first, made = compute(DM, None)
        monkeypatch.setattr(computing, "condense", lambda *_, **__: pytest.fail("made again"))
        again, none = compute(DM, made)
        assert none is None
        assert again == first | {"peak_bytes": None}  # its CPU seconds too: the set's record holds them

    def test_scores_add_hard_labels_and_plain_training(self) -> None:
        scored = replace(RANDOM, measuring=replace(QUICK, scores=True))
        measured = compute(scored, None)[0]["measured"][NETWORK]
        assert measured["hard"] == measured["accuracies"]  # they are hard already
        test = load_data("digits").test
        synthetic = SyntheticSet.from_bytes(compute(RANDOM, None)[1] or b"")
        plain = evaluate(synthetic, test, network=NETWORK, recipe=Fit(steps=3, augment=False), seeds=(0, 1))
        assert measured["plain"] == [round(a, 3) for a in plain.accuracies]

    def test_soft_labels_become_hard_by_their_largest_entry(self) -> None:
        hard = SyntheticSet.from_bytes(compute(RANDOM, None)[1] or b"")
        (part,) = hard.parts
        soft = torch.full((10, 10), 0.05, dtype=torch.float16).fill_diagonal_(0.55)
        softened = SyntheticSet([replace(part, targets=soft)])
        assert torch.equal(computing._hard(softened).pixels().targets, hard.pixels().targets)
        assert computing._hard(hard) is hard

    def test_all_real_data_are_trained_on_for_five_epochs_at_least(self) -> None:
        cell = Cell(SetRecipe("digits", ALL_REAL, ipc=0, parametrization=""), QUICK)
        outcome, made = compute(cell, None)
        assert made is None
        assert outcome["nbytes"] == 1433 * 65
        assert outcome["steps"] == 5 * 23  # 1433 images, 64 a step
        assert min(outcome["measured"][NETWORK]["accuracies"]) > 50

    def test_what_the_user_named_wrongly_is_an_outcome(self) -> None:
        cell = replace(DM, making=replace(DM.making, network="convnet4-w16"))
        outcome, made = compute(cell, None)
        assert made is None
        assert outcome["kind"] == "error"
        assert "halves 8x8 to nothing" in outcome["error"]

    def test_divergence_is_an_outcome_of_its_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def diverge(*_: object, **__: object) -> None:
            raise DivergenceError("the loss is nan at step 7")

        monkeypatch.setattr(computing, "condense", diverge)
        outcome, _ = compute(DM, None)
        assert (outcome["kind"], outcome["error"]) == ("divergence", "the loss is nan at step 7")

    def test_a_full_disk_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("no space left")

        monkeypatch.setattr(computing, "condense", full)
        with pytest.raises(OutputError):
            compute(DM, None)
