"""The streams of the continual experiment, on embedded data."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("avalanche")


@pytest.fixture(scope="module")
def streams() -> Iterator[Any]:
    """The script as a module: its folder is no package."""
    folder = str(Path(__file__).parent.parent.parent / "experiments")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("continual_streams")
    finally:
        sys.path.remove(folder)


def stream(streams: Any, name: str) -> tuple[Any, list[Any], Any]:
    protocols = importlib.import_module("continual_protocols").PROTOCOLS
    protocol = replace(protocols[name], data="digits", per_class=60, experiences=5)
    domains, test = streams.load(protocol, 0)
    return *streams.experiences(protocol, domains, test, 0), domains


def test_domains_hold_all_classes_and_turn_further_each_time(streams: Any) -> None:
    _, experiences, domains = stream(streams, "domain")
    assert [sorted(set(e.classes_in_this_experience)) for e in experiences] == [list(range(10))] * 5
    assert [len(e.dataset) for e in experiences] == [600] * 5
    assert torch.equal(streams.turned(domains[0], 0.0).images, domains[0].images)
    assert not torch.equal(streams.turned(domains[0], 20.0).images, domains[0].images)


@pytest.mark.parametrize(("name", "sizes"), [("prototype", [120] * 5), ("online", [50, 50, 20] * 5)])
def test_classes_come_two_by_two_and_an_online_stream_in_fifties(streams: Any, name: str, sizes: list[int]) -> None:
    benchmark, experiences, _ = stream(streams, name)
    assert all(len(e.classes_in_this_experience) == 2 for e in benchmark.train_stream)
    assert [len(e.dataset) for e in experiences] == sizes
