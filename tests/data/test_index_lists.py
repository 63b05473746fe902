"""Divisions that others publish as lists of indices: three forms are read, everything else is one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.index_lists import partition_from_file
from fedcondense.data.partitions import partition
from fedcondense.errors import DataError, FedcondenseError, SettingError

LABELS = torch.arange(12) % 3
LISTS = [[0, 1, 3], [5, 2], []]


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "lists.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [
        LISTS,
        {"north": LISTS[0], "south": LISTS[1], "": LISTS[2]},
        {"client_idx": LISTS, "client_classes": [[0, 1], [2], []]},
    ],
    ids=["lists", "names", "FedVCK"],
)
def test_each_form_gives_the_listed_indices(tmp_path: Path, content: Any) -> None:
    path = written(tmp_path, content)
    split = partition(LABELS, 3, f"file:{path}")
    assert [part.tolist() for part in split] == LISTS
    assert split.counts.tolist() == [[2, 1, 0], [0, 0, 2], [0, 0, 0]]
    assert split.by == "file"


def test_the_record_keeps_the_files_name_and_sha256(tmp_path: Path) -> None:
    path = written(tmp_path, LISTS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = partition_from_file(LABELS, path=path).to_dict()
    assert record["settings"] == {"file": "lists.json", "sha256": digest}
    json.dumps(record)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([[0, 1], [2, 1, 0]], "index 0 is listed twice, by client 0 and client 1, and 1 more occur more than once"),
        ([[4, 4]], "index 4 is listed twice, by client 0 and client 0"),
        ({"a": [3], "b": [3]}, "index 3 is listed twice, by client 'a' and client 'b'"),
        ([[0], [12, -1]], "client 1: index 12 and 1 more is out of range; the data have records 0 to 11"),
        ([[-1]], "index -1 is out of range"),
        ([[10**30]], "a number of more than 18 digits is out of range"),
        ([[0, 1.0]], "'1.0' is no index; needed: whole numbers"),
        ([[True]], "'True' is no index"),
        ([["0"]], "'0' is no index"),
        ("[[NaN]]", "'nan' is no index"),
        ([], "lists no clients"),
        ({}, "lists no clients"),
        ({"client_idx": []}, "lists no clients"),
        ([[], []], "lists no record for any of its 2 clients"),
        ([0, 1], "holds no list of indices per client"),
        ("7", "holds no list of indices per client"),
        ({"client_idx": 3}, "holds no list of indices per client"),
        ('{"a": [0], "a": [1]}', "'a' occurs twice"),
        ("[[0, 1]", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[[" + "9" * 5000 + "]]", "is no JSON"),
        (" " * (2 << 20), "is larger than the 1049344 bytes"),
    ],
)
def test_what_is_no_division_is_refused_in_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        partition_from_file(LABELS, path=written(tmp_path, content))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lists.json"
    with pytest.raises(DataError, match="No such file"):
        partition_from_file(LABELS, path=path)
    path.write_bytes(b"\xff\xfe[[0]]")
    with pytest.raises(DataError, match="is no JSON"):
        partition_from_file(LABELS, path=path)


def test_another_number_of_clients_is_refused_with_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, LISTS)
    with pytest.raises(SettingError, match=r"lists 3 clients, 10 were asked for; ask for 3 \(--clients\)"):
        partition(LABELS, by=f"file:{path}")
    assert issubclass(SettingError, FedcondenseError)
    assert len(partition_from_file(LABELS, path=path)) == 3
