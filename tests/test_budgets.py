"""Sizes as people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.budgets import Budget, budget_bytes, read_budget
from fedcondense.errors import SettingError


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("20 kB", 20_000),
        ("20kB", 20_000),
        (" 20  kB ", 20_000),
        ("64 KiB", 65_536),
        ("1.5 kB", 1_500),
        ("0.25 MB", 250_000),
        ("2 MiB", 2 << 20),
        ("1 GB", 10**9),
        ("20000", 20_000),
        ("20_000", 20_000),
        ("20000 B", 20_000),
        ("1 byte", 1),
        ("7 bytes", 7),
        (20_000, 20_000),
        (np.int32(20_000), 20_000),
    ],
)
def test_what_people_write(text: Any, nbytes: int) -> None:
    assert budget_bytes(text) == read_budget(text).nbytes == nbytes


def test_a_size_per_client_says_so_and_is_for_a_federation_alone() -> None:
    assert read_budget("4 kB per client") == Budget(4000, per_client=True, has_unit=True)
    assert not read_budget("4 kB").per_client
    with pytest.raises(SettingError, match="'4 kB per client' is for a federation; needed: the bytes of one set"):
        budget_bytes("4 kB per client")


def test_whether_a_unit_was_written_is_kept() -> None:
    """A bare number may be meant as one of images, where images are another way to say how much."""
    assert read_budget("20 B").has_unit
    assert not read_budget("20").has_unit
    assert not read_budget(20).has_unit
    assert read_budget(Budget(5)) == Budget(5)


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ("20 KB", r"kB \(1,000 bytes\) or KiB \(1,024 bytes\)"),
        ("20 kb", r"kB \(1,000 bytes\) or KiB \(1,024 bytes\)"),
        ("20k", r"kB \(1,000 bytes\) or KiB \(1,024 bytes\)"),
        ("20 mb", "the unit MB"),
        ("20 stones", "one of the units B, bytes, kB"),
        ("20,000", "a number of bytes with its unit"),
        ("20,5 kB", "a number of bytes with its unit"),
        ("20.000", "a unit beside a decimal number"),
        ("20.000 kB", "three digits after the point"),
        ("1.5 B", "whole bytes"),
        ("0.0001 kB", "whole bytes"),
        ("-20 kB", "a number of bytes with its unit"),
        ("0 kB", "from 1 byte"),
        ("2000000 GB", "below 1099511627776 bytes"),
        ("", "a number of bytes with its unit"),
        ("kB", "a number of bytes with its unit"),
        ("nan kB", "a number of bytes with its unit"),
        ("inf", "a number of bytes with its unit"),
        ("1e4 B", "a number of bytes with its unit"),
        ("4 kB per class", "a number of bytes with its unit"),
        ("4 kB a client", "a number of bytes with its unit"),
        ("\u0664 kB", "a number of bytes with its unit"),
        ("9" * 5000, "a number of bytes with its unit"),
        (0, "a whole number from 1"),
        (-5, "a whole number from 1"),
        (2**50, "a whole number from 1"),
        (20_000.0, "a whole number from 1"),
        (float("nan"), "a whole number from 1"),
        (True, "a whole number from 1"),
        (None, "a whole number from 1"),
        ([20], "a whole number from 1"),
    ],
)
def test_what_is_no_size_or_could_be_two_is_refused_in_one_line(given: Any, needed: str) -> None:
    with pytest.raises(SettingError, match=f"^max_bytes .*needed: .*{needed}") as caught:
        budget_bytes(given, "max_bytes")
    assert len(str(caught.value)) < 260
    assert "\n" not in str(caught.value)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.text(max_size=12) | st.from_regex(r"[0-9]{1,4}[._,]?[0-9]{0,3} ?[kKMGBib]{0,3}( per client)?", fullmatch=True)
)
def test_any_text_is_a_whole_number_of_bytes_or_a_setting_error(text: str) -> None:
    try:
        found = read_budget(text)
    except SettingError:
        return
    assert type(found.nbytes) is int
    assert 1 <= found.nbytes < 2**40
