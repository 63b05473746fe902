"""Cells are computed once, kept whole, and say what went wrong."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcondense.sweeps.cells as cells
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, OutputError
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps.cells import cell_path, compute, run, set_path
from fedcondense.sweeps.grids import ALL_REAL, Cell, Line, Making, Measuring, Tuning, scaling
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
QUICK = Measuring((NETWORK,), networks=2, fit=Fit(steps=3))
DM = Cell(Making("digits", "dm", network=NETWORK, tuning=Tuning(steps=2)), QUICK)
RANDOM = Cell(Making("digits", "random", parametrization=""), QUICK)


def line(cell: Cell) -> Line:
    return Line((cell,), NETWORK)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*")}


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
        monkeypatch.setattr(cells, "condense", lambda *_, **__: pytest.fail("made again"))
        again, none = compute(DM, made)
        assert none is None
        assert again == first  # its CPU seconds too: the set's record holds them

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
        assert torch.equal(cells._hard(softened).pixels().targets, hard.pixels().targets)
        assert cells._hard(hard) is hard

    def test_all_real_data_are_trained_on_for_five_epochs_at_least(self) -> None:
        cell = Cell(Making("digits", ALL_REAL, ipc=0, parametrization=""), QUICK)
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

        monkeypatch.setattr(cells, "condense", diverge)
        outcome, _ = compute(DM, None)
        assert (outcome["kind"], outcome["error"]) == ("divergence", "the loss is nan at step 7")

    def test_a_full_disk_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("no space left")

        monkeypatch.setattr(cells, "condense", full)
        with pytest.raises(OutputError):
            compute(DM, None)


class TestRun:
    def test_what_is_done_is_not_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = [line(RANDOM), line(DM)]
        first = run(lines, tmp_path)
        before = files(tmp_path)
        assert len(before) == 4
        monkeypatch.setattr(cells, "compute", lambda *_: pytest.fail("computed again"))
        assert run(lines, tmp_path) == first
        assert files(tmp_path) == before

    def test_another_setting_is_another_file_and_the_set_is_shared_between_measurings(self, tmp_path: Path) -> None:
        longer = replace(DM, measuring=replace(QUICK, fit=Fit(steps=4)))
        elsewhere = replace(DM, measuring=replace(QUICK, fingerprint="of other test images"))
        faster = replace(DM, making=replace(DM.making, tuning=Tuning(steps=2, lr=0.5)))
        mixed = replace(DM, measuring=replace(QUICK, fit=replace(QUICK.fit, cutmix=0.5)))
        assert len({cell_path(tmp_path, cell) for cell in (DM, longer, elsewhere, faster, mixed)}) == 5
        assert set_path(tmp_path, DM.making) == set_path(tmp_path, longer.making) != set_path(tmp_path, faster.making)

    def test_folders_from_before_images_could_be_mixed_stay_valid(self, tmp_path: Path) -> None:
        before = asdict(QUICK)
        del before["fit"]["cutmix"]
        kept = f"{cells.digest(cells.identity(DM.making), before)}.json"
        assert cell_path(tmp_path, DM).name.endswith(kept)

    def test_another_meaning_of_a_name_is_another_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = cell_path(tmp_path, DM)
        monkeypatch.setitem(OBJECTIVES, "dm", DistributionMatching(per_class=8))
        assert cell_path(tmp_path, DM) != before

    def test_any_name_of_data_is_a_file_name(self, tmp_path: Path) -> None:
        making = replace(RANDOM.making, data="folder:/a b/../c")
        assert cell_path(tmp_path, Cell(making, QUICK)).parent == tmp_path / "cells"
        assert set_path(tmp_path, making).name.startswith("folder-a-b-..-c-random-ipc1-seed0-")

    def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again(self, tmp_path: Path) -> None:
        bad = replace(DM, making=replace(DM.making, network="convnet4-w16"))
        seen: list[tuple[int, int]] = []
        outcomes = run([line(bad), line(RANDOM)], tmp_path, progress=lambda now: seen.append((now.done, now.cells)))
        assert "error" in outcomes[bad]
        assert "measured" in outcomes[RANDOM]
        assert seen == [(0, 2), (1, 2), (2, 2)]
        seen.clear()
        run([line(bad), line(RANDOM)], tmp_path, progress=lambda now: seen.append((now.done, now.found)))
        assert seen == [(1, 1), (2, 1)]

    @pytest.mark.parametrize("broken", ["{", "{}", "[]"])
    def test_damaged_files_are_made_again(self, broken: str, tmp_path: Path) -> None:
        first = run([line(RANDOM)], tmp_path)[RANDOM]
        cell_path(tmp_path, RANDOM).write_text(broken)
        set_path(tmp_path, RANDOM.making).write_bytes(b"torn")
        again = run([line(RANDOM)], tmp_path)[RANDOM]
        assert again["measured"] == first["measured"]
        assert SyntheticSet.load(set_path(tmp_path, RANDOM.making)).record.method == "random"

    def test_an_interrupted_run_keeps_what_was_done(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = run(scaling(RANDOM, [1, 2], ["random", "herding"], 1)[:3], tmp_path / "whole")
        real_compute, calls = cells.compute, list[Any]()

        def interrupted(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real_compute(*arguments)

        monkeypatch.setattr(cells, "compute", interrupted)
        lines = scaling(RANDOM, [1, 2], ["random", "herding"], 1)[:3]
        with pytest.raises(KeyboardInterrupt):
            run(lines, tmp_path / "parts")
        assert len(list((tmp_path / "parts" / "cells").iterdir())) == 1
        after = run(lines, tmp_path / "parts")
        assert {c: o["measured"] for c, o in after.items()} == {c: o["measured"] for c, o in whole.items()}
