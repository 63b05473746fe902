"""Labels in fewer bytes: runs of equal ones, and of soft ones the likeliest in 8 bits each.

Both are read in one way only, so that what was read is written again as it was.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError

__all__ = ["RUNS", "likeliest", "pack_labels", "pack_soft", "soft_kept", "unpack_labels"]

RUNS = "runs"
_TOP = "top-"


def pack_labels(labels: Tensor) -> bytes:
    """Return runs of hard labels, (M,): how many there are, 4 bytes, and a label, 2 bytes."""
    values = labels.cpu().numpy().astype("<u2")
    begins = np.flatnonzero(np.diff(values, prepend=values[:1] + np.uint16(1)))
    runs = np.zeros(len(begins), [("count", "<u4"), ("label", "<u2")])
    runs["count"], runs["label"] = np.diff(begins, append=len(values)), values[begins]
    return runs.tobytes()


def soft_kept(name: str) -> int:
    """Return how many classes a soft label keeps by a codec's name, ``"top-3"`` say.

    Raises:
        SettingError: It is no such name.
    """
    number = name.removeprefix(_TOP)
    if not (name.startswith(_TOP) and number.isascii() and number.isdigit() and 1 <= int(number[:6]) <= 65_536):
        raise SettingError(f"soft labels by {name[:60]!r}; needed: 'top-3', say, for the three likeliest classes")
    if name != f"{_TOP}{int(number)}":
        raise SettingError(f"soft labels by {name[:60]!r}; needed: '{_TOP}{int(number)}'")
    return int(number)


@in_own_state
def likeliest(targets: Tensor, kept: int) -> Tensor:
    """Return soft labels as `pack_soft` stores them, (M, K) float16: the likeliest `kept`, in 8 bits, that sum to 1."""
    return unpack_labels(f"{_TOP}{kept}", pack_soft(targets, kept), tuple(targets.shape), torch.float16)


def pack_soft(targets: Tensor, kept: int) -> bytes:
    """Return classes, 2 bytes each and ascending, and their probabilities as shares of 255, of (M, K) targets."""
    values = targets.cpu().float().numpy()
    shares = np.round(255 * values / np.maximum(values.max(1, keepdims=True), 1e-9)).astype(np.int64)
    order = np.argsort(-shares, axis=1, kind="stable")  # of shares, so that what was unpacked is packed as it was
    places = np.sort(order[:, : min(kept, values.shape[1])], axis=1)
    return places.astype("<u2").tobytes() + np.take_along_axis(shares, places, 1).astype(np.uint8).tobytes()


def unpack_labels(name: str, data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return targets, (M,) of `dtype` or (M, K) float16.

    Raises:
        ValueError: The data are not those of so many labels.
    """
    if name == RUNS:
        return _runs(data, shape, dtype)
    rows, classes = shape
    kept = min(soft_kept(name), classes)
    if len(data) != 3 * rows * kept:
        raise ValueError(f"{len(data)} bytes of soft labels; needed: {3 * rows * kept}")
    places = np.frombuffer(data, "<u2", rows * kept).reshape(rows, kept).astype(np.int64)
    shares = np.frombuffer(data, np.uint8, rows * kept, 2 * rows * kept).reshape(rows, kept).astype(np.float32)
    if rows and int(places.max()) >= classes:
        raise ValueError(f"soft labels of class {int(places.max())}; needed: below {classes}")
    values: NDArray[np.float32] = np.zeros((rows, classes), np.float32)
    np.put_along_axis(values, places, shares / np.maximum(shares.sum(1, keepdims=True), 1), 1)
    targets = torch.from_numpy(values).half()
    if pack_soft(targets, kept) != data:
        raise ValueError("soft labels that are written in another way")
    return targets


def _runs(data: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if len(data) % 6 or len(shape) != 1 or dtype not in (torch.uint8, torch.int16):
        raise ValueError(f"{len(data)} bytes of runs for labels of {shape}; needed: six a run, of hard labels")
    runs = np.frombuffer(data, [("count", "<u4"), ("label", "<u2")])
    counts, labels = runs["count"].astype(np.int64), runs["label"].astype(np.int64)
    if int(counts.sum()) != shape[0] or not bool((counts > 0).all() and (np.diff(labels) != 0).all()):
        raise ValueError(f"runs of {int(counts.sum())} labels; needed: {shape[0]}, each run of one label and longest")
    if len(labels) and int(labels.max()) > (255 if dtype == torch.uint8 else 32_767):
        raise ValueError(f"label {int(labels.max())}, which {dtype} does not hold")
    return torch.from_numpy(labels.repeat(counts)).to(dtype)
