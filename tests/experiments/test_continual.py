"""The streams of the continual experiment, on embedded data."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("avalanche")


@pytest.fixture(scope="module")
def continual() -> Any:
    """The script as a module: its folder is no package."""
    path = Path(__file__).parent.parent.parent / "experiments" / "continual.py"
    spec = importlib.util.spec_from_file_location("continual", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        sys.modules["continual"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def stream(continual: Any, name: str) -> tuple[Any, list[Any], Any]:
    protocol = replace(continual.PROTOCOLS[name], data="digits", per_class=60, experiences=5)
    domains, test = continual.load(protocol, 0)
    return *continual.experiences(protocol, domains, test, 0), domains


def test_domains_hold_all_classes_and_turn_further_each_time(continual: Any) -> None:
    _, experiences, domains = stream(continual, "domain")
    assert [sorted(set(e.classes_in_this_experience)) for e in experiences] == [list(range(10))] * 5
    assert [len(e.dataset) for e in experiences] == [600] * 5
    assert torch.equal(continual.turned(domains[0], 0.0).images, domains[0].images)
    assert not torch.equal(continual.turned(domains[0], 20.0).images, domains[0].images)


@pytest.mark.parametrize(("name", "sizes"), [("prototype", [120] * 5), ("online", [50, 50, 20] * 5)])
def test_classes_come_two_by_two_and_an_online_stream_in_fifties(continual: Any, name: str, sizes: list[int]) -> None:
    benchmark, experiences, _ = stream(continual, name)
    assert all(len(e.classes_in_this_experience) == 2 for e in benchmark.train_stream)
    assert [len(e.dataset) for e in experiences] == sizes
