"""The command that tries what strangers do: its judges can fail, and small counts of it are sound."""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from trust import coded, kills, mutants, unsafe
from trust.__main__ import CHECKS, table
from trust.rows import Row, Tally

from fedcondense.sets.coded import Coded
from fedcondense.sets.synthetic import SyntheticSet


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load\nimport torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "import os\nos.system('ls')",
        "import importlib\nimportlib.import_module('x')",
    ],
)
def test_a_module_that_runs_what_a_file_holds_is_found(source: str) -> None:
    assert unsafe.unsafe_calls(source)


def test_the_product_calls_nothing_unsafe() -> None:
    row = unsafe.check(1, 0)
    assert row.is_sound, row.notes
    assert row.tried > 100


def test_the_judge_sees_a_set_that_is_not_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SyntheticSet.from_bytes(mutants.originals()["pixels"])
    assert mutants.judge(one) == ""
    images, targets = one.pixels()
    monkeypatch.setattr(SyntheticSet, "pixels", lambda self: (images + 2, targets))
    assert "outside" in mutants.judge(one)


def test_the_judge_of_coded_sets_sees_cuts_that_decode_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SyntheticSet.from_bytes(coded.coded_originals()["bits-1 grey"])
    assert coded.judge_coded(one) == ""
    monkeypatch.setattr(Coded, "rows", lambda self, rows: {name: self[name][: len(rows)] for name in self})
    assert "images cut from part 0 (bits-1) are others" in coded.judge_coded(one)


def test_mutants_of_coded_sets_differ_where_nothing_else_is_wrong() -> None:
    for blob in coded.coded_originals().values():
        again = coded.put_together(*coded.taken_apart(blob))
        assert SyntheticSet.from_bytes(again).to_bytes() == blob
        spoiled = [coded.mutate_coded(blob, random.Random(k)) for k in range(20)]
        assert sum(mutant != blob for mutant in spoiled) > 12


def test_mutants_differ_and_are_of_all_kinds_and_follow_from_the_seed() -> None:
    blob = mutants.originals()["pixels"]
    first, second = ([mutants.mutate(blob, random.Random(k)) for k in range(200)] for _ in range(2))
    assert first == second
    assert sum(mutant != blob for mutant, _ in first) > 190
    assert {is_sealed for _, is_sealed in first} == {True, False}


def test_a_reader_that_raises_anything_else_is_counted_as_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(SyntheticSet, "from_bytes", broken)
    tally = Tally()
    mutants.read(tally, struct.pack("<Q", 0), "nothing", must_refuse=True)
    assert (tally.tried, tally.crashed) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_kill_at_a_marker_is_a_kill(tmp_path: Path) -> None:
    def work() -> None:
        (tmp_path / "reached").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)

    assert kills.forked(work) == (-signal.SIGKILL, "")
    assert (tmp_path / "reached").exists()
    assert kills.forked(lambda: print("said"))[1] == "said"


def test_a_check_that_could_not_be_made_or_resumed_unequal_is_not_sound() -> None:
    assert Row(1).is_sound
    for row in (Row(0), Row(1, crashed=1), Row(1, wrong=1), Row(1, equal=(1, 2)), Row(1, not_run="no fork")):
        assert not row.is_sound
    assert "not run: no fork" in table({"a": Row(1, not_run="no fork")})


@pytest.mark.parametrize(
    "name", ["mutants of set files", "mutants of coded sets", "hostile servers, a node", "hostile nodes, a server"]
)
def test_small_counts_are_sound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    monkeypatch.setattr("trust.coded.bombs", lambda: {"small": bytes(9)})  # real ones take seconds to make
    monkeypatch.setattr("trust.coded.forget_peak", lambda: None)
    for module in ("trust.mutants", "trust.coded", "trust.messages"):  # the bound would hold for the whole test process
        monkeypatch.setattr(f"{module}.limit_memory", lambda more: None, raising=False)
    try:
        row = CHECKS[name].run(40 if "node" not in name else 6, 1)
    finally:
        logging.disable(logging.NOTSET)
    assert row.is_sound, row.notes
