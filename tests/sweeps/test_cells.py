"""Cells are computed once, kept whole, and say what went wrong."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcondense.sweeps.cells as cells
from fedcondense.checksums import dump_json
from fedcondense.condensing.starts import STARTS
from fedcondense.networks import NETWORKS, ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.parametrizations.pixels import Pixels
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps.cells import cell_path, run, set_path
from fedcondense.sweeps.compute import compute
from fedcondense.sweeps.grids import Cell, EvaluationPlan, SetRecipe, TableRow, Tuning, scaling
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
QUICK = EvaluationPlan((NETWORK,), networks=2, fit=Fit(steps=3))
DM = Cell(SetRecipe("digits", "dm", network=NETWORK, tuning=Tuning(steps=2)), QUICK)
RANDOM = Cell(SetRecipe("digits", "random", parametrization=""), QUICK)


def changed(kind: Any) -> Any:
    """Return a class of the same name that has one more method."""
    return type(kind.__name__, (kind,), {"added": lambda self: 1})


def line(cell: Cell) -> TableRow:
    return TableRow((cell,), NETWORK)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.*")}


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

    @pytest.mark.parametrize(
        ("table", "name", "value"),
        [
            (OBJECTIVES, "dm", changed(DistributionMatching)()),
            (PARAMETRIZATIONS, "pixels", changed(Pixels)),
            (NETWORKS, NETWORK, lambda shape, classes: ConvNet(shape, classes, width=8, depth=1)),
            (STARTS, "gaussian", lambda data, counts, generator: torch.zeros(sum(counts), *data.spec.shape)),
        ],
        ids=["objective", "parametrization", "network", "start"],
    )
    def test_other_code_of_a_name_is_another_file(
        self, table: dict[str, Any], name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when a plugin's file was changed between two runs of a sweep."""
        before = cell_path(tmp_path, DM), set_path(tmp_path, DM.making)
        monkeypatch.setitem(table, name, value)
        after = cell_path(tmp_path, DM), set_path(tmp_path, DM.making)
        assert before[0] != after[0]
        assert before[1] != after[1]

    @given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
    @settings(max_examples=25, deadline=None, derandomize=True)
    def test_a_damaged_cell_is_none(self, place: int, bit: int) -> None:
        blob = bytearray(dump_json({"settings": {"seed": 0}, "measured": {"mlp": {"accuracies": [17.3, 20.1]}}}))
        blob[place % len(blob)] ^= 1 << bit
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(bytes(blob))
            assert cells.read_json(Path(file.name)) is None

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
        real_compute, calls = compute, list[Any]()

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
