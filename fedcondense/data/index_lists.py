"""Published divisions: a JSON file that lists each client's indices, as papers put beside their code.

Three forms are read: a list of lists of indices; an object of lists by the clients' names; and an object whose
``client_idx`` is one of these two, as FedVCK publishes it (Yan et al., AAAI 2025,
https://github.com/Youth-49/FedVCK_2024, ``dataset/split_file``). Indices count the training records in the order of the
data set's own files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedcondense.data.partition import Partition
from fedcondense.data.splitting import Integers, Labelled, checked_labels, to_partition
from fedcondense.errors import DataError, SettingError

__all__ = ["partition_from_file"]

_PER_RECORD = 64  # bytes of JSON; an index on a line of its own, indented, takes some 20
_BESIDE = 1 << 20  # bytes: names of clients, and what a file says besides
_SOME_NAMES = 100  # characters


def partition_from_file(data: Labelled, num_partitions: int | None = None, *, path: str | Path) -> Partition:
    """Give each client the records that a file lists; what no client lists is left out.

    Args:
        data: What is split, or its labels, (N,) of integers.
        num_partitions: How many clients the file must list, if that is to be checked.
        path: A JSON file in one of the forms above, of at most 64 bytes per record of `data` and 1 MiB more. A client
            may have no records. The partition's settings keep its name and SHA-256.

    Raises:
        DataError: The file cannot be read, is too large or of another form; an index is no whole number, out of range
            or listed twice.
        SettingError: It lists another number of clients.
    """
    path = Path(path)
    labels = checked_labels(data, 1)
    blob = _read(path, _BESIDE + _PER_RECORD * len(labels))
    lists, names = _lists(path, _parse(path, blob))
    if num_partitions not in (None, len(lists)):
        raise SettingError(
            f"{path} lists {len(lists)} clients, {num_partitions} were asked for; ask for {len(lists)} (--clients)"
        )
    held = [_indices(f"{path}: client {names[i]}", one, len(labels)) for i, one in enumerate(lists)]
    all_indices = np.concatenate(held)
    if not len(all_indices):
        raise DataError(f"{path} lists no record for any of its {len(held)} clients; needed: indices")
    times = np.bincount(all_indices, minlength=len(labels))
    if (twice := np.flatnonzero(times > 1)).size:
        first = int(twice[0])
        owners = [names[i] for i, part in enumerate(held) for _ in range(int((part == first).sum()))]
        more = f", and {twice.size - 1} more occur more than once" if twice.size > 1 else ""
        raise DataError(
            f"{path}: index {first} is listed twice, by client {owners[0]} and client {owners[1]}{more}; "
            "a record has one owner"
        )
    settings = {"file": path.name, "sha256": hashlib.sha256(blob).hexdigest()}
    return to_partition(data, labels, held, "file", **settings)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            blob = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; needed: a JSON file with a list of indices per client") from None
    if len(blob) > most:
        raise DataError(
            f"{path} is larger than the {most} bytes that lists of these records may take; is it of other data?"
        )
    return blob


def _parse(path: Path, blob: bytes) -> Any:
    try:
        return json.loads(blob.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as broken:
        raise DataError(f"{path} is no JSON with a list of indices per client ({str(broken)[:100]})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name[:40]!r} occurs twice in one object")
    return found


def _lists(path: Path, content: Any) -> tuple[list[Any], list[str]]:
    """Return each client's list and what to call the client."""
    if isinstance(content, Mapping) and "client_idx" in content:
        content = content["client_idx"]
    named = list(map(repr, content)) if isinstance(content, Mapping) else None
    lists = list(content.values()) if isinstance(content, Mapping) else content
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise DataError(
            f"{path} holds no list of indices per client; needed: [[0, 5], [1, 2]], "
            '{"a": [0, 5], "b": [1, 2]}, or one of them as "client_idx"'
        )
    if not lists:
        raise DataError(f"{path} lists no clients; needed: a list of indices for each")
    return lists, [name[:_SOME_NAMES] for name in named] if named else [str(i) for i in range(len(lists))]


def _indices(client: str, listed: list[Any], count: int) -> Integers:
    """Return a client's indices, (n,), each a whole number from 0, below `count`."""
    odd = [one for one in listed if type(one) is not int]
    if odd:
        raise DataError(f"{client}: {str(odd[0])[:40]!r} is no index; needed: whole numbers")
    outside = [one for one in listed if not 0 <= one < count]
    if outside:
        shown = str(outside[0]) if abs(outside[0]) < 2**63 else "a number of more than 18 digits"
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        raise DataError(f"{client}: index {shown}{more} is out of range; the data have records 0 to {count - 1}")
    return np.array(listed, dtype=np.int64)
