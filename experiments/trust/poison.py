"""Poisoned sites in small: the table of screens for one division of the digits, one and four bad sites of ten."""

from __future__ import annotations

import tempfile
from pathlib import Path

import screens
import torch

from fedcondense.sets.synthetic import SyntheticSet
from trust.rows import Row, Tally

__all__ = ["check"]

_SEEN = ("shift", "noise", "one class", "inflated", "patch")  # what screens are to see; a clean patch they do not
_LOST = 10.0  # points, or percent of patched images: what gets through with less is no success
_ALPHA = 0.5


def check(count: int, seed: int) -> Row:
    """Let `count` kinds of bad sites send among honest ones: what gets through all screens is accepted wrongly."""
    torch.set_num_threads(1)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        bench = screens.Bench("digits", Path(folder))
        clean, _ = bench.measure(SyntheticSet.join(bench.of(_ALPHA, seed)), False, seed)
        notes = [f"without bad sites and screens {clean:.1f}"]
        for attack in _SEEN[:count]:
            for bad in (1, 4):
                tally.tried += 1
                answers, who = screens.answers_of(bench.of(_ALPHA, seed), attack, bad, seed)
                left, verdicts = screens.screened(answers, "all", seed)
                unions = (SyntheticSet.join([answer.payload for answer in answers]), SyntheticSet.join(left))
                before, after = (bench.measure(union, attack == "inflated", seed) for union in unions)
                gone = screens.refused(answers, verdicts, who)["honest"][0]
                said = f"{attack}, {bad} bad: {before[0]:.1f}, with all screens {after[0]:.1f}"
                said += f", patches taken for class 0 {before[1]:.0f} and {after[1]:.0f} %" if "patch" in attack else ""
                notes.append(f"{said}, honest sites left out {gone}")
                if after[0] < clean - _LOST or ("patch" in attack and after[1] > _LOST):
                    tally.note("wrong", said)
    return tally.row(notes=tuple(notes))
