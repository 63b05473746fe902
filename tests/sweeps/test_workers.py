"""Where cells are computed changes nothing but the order in which they end."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from functools import partial
from pathlib import Path

import pytest

from fedcondense.errors import FedcondenseError, MissingExtraError, SettingError
from fedcondense.sweeps.workers import Here, Processes, Ray

CALLS = [(1, 2), (3, 4), (5, 6)]


def test_here_calls_in_order() -> None:
    assert list(Here().map(pow, CALLS)) == [(0, 1), (1, 81), (2, 15625)]


def test_processes_give_the_same_and_start_as_told(tmp_path: Path) -> None:
    found = Processes(1, partial(os.chdir, tmp_path)).map(os.path.abspath, [("a",), ("b",)])
    assert sorted(found) == [(0, str(tmp_path / "a")), (1, str(tmp_path / "b"))]


def test_an_error_ends_the_processes() -> None:
    with pytest.raises(ZeroDivisionError):
        list(Processes(1).map(divmod, [(1, 0)]))
    for process in multiprocessing.active_children():
        process.join(120)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_an_error_that_says_how_to_go_on() -> None:
    with pytest.raises(FedcondenseError, match=r"a worker was killed.*; the same command goes on"):
        list(Processes(1).map(os._exit, [(1,)]))


def test_no_calls_start_nothing() -> None:
    assert list(Processes(1).map(pow, [])) == []


def test_less_than_one_worker_is_refused() -> None:
    with pytest.raises(SettingError, match="0 workers; needed: 1 or more"):
        Processes(0)


def test_a_missing_ray_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fedcondense\[simulation\]'"):
        Ray("auto")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert sorted(Ray("local").map(pow, CALLS)) == list(Here().map(pow, CALLS))
