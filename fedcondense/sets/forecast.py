"""The bytes of a file before its images exist: a blank set of the same shapes is written as any other is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.contract import Parametrization
from fedcondense.sets.codecs import Chunk, codec_named
from fedcondense.sets.coded import Coded, Stored, chunk_sizes
from fedcondense.sets.compact import USUAL_RECIPE
from fedcondense.sets.format import dump
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.recoding import decoders, takes_codecs

__all__ = ["file_bytes", "largest_file", "widest_evaluation"]

_NETWORK = 24  # characters: room for a network's name


def widest_evaluation(data: str, network: str = "", seeds: int = 3) -> dict[str, Any]:
    """Return an evaluation that takes at least the bytes of any that `evaluate` makes with its usual recipe.

    Args:
        data: Whose test part measures.
        network: The network's name; one of up to 24 characters has room in any case.
        seeds: How many networks.
    """
    return {
        "accuracy": 99.999,
        "accuracy_std": 99.999,
        "accuracies": [99.999] * seeds,
        "network": network if len(network) > _NETWORK else "n" * _NETWORK,
        "protocol": "short",
        "recipe": dict(USUAL_RECIPE),
        "seeds": list(range(seeds)),
        "weighted": False,
        "test": f"{data}, 99999999 images",
        "seconds": 9999999.9,
    }


@in_own_state
def file_bytes(
    parametrization: Parametrization,
    record: Record,
    images: Sequence[int],
    codec: str = "raw",
    code_bytes: float = 0,
    *,
    evaluation: Mapping[str, Any] | None = None,
    soft: bool = False,
) -> int:
    """Return the bytes of a file whose codes take a number of bytes; without a codec they take those of their shapes.

    Args:
        parametrization: Of the codes.
        record: The file's; numbers in it that are not known yet should be as long as they can be.
        images: How many images' bytes each class has, by label.
        codec: A name; codes that no codec takes are raw.
        code_bytes: Of all codes of a codec; no more are taken than the codec takes at most.
        evaluation: What will be added to the file.
        soft: Whether labels are probabilities.
    """
    packs = codec_named(codec)
    if packs is None or not takes_codecs(parametrization):
        return _written(parametrization, record, images, None, evaluation, soft)
    shape, labels = _stored(parametrization, record, images)
    sizes = chunk_sizes(labels, packs, shape[1:])
    each = -(-round(code_bytes) // max(1, len(sizes)))
    bound = getattr(packs, "bound", lambda shape: each)
    chunks = [Chunk(size, bytes(min(each, bound((size, *shape[1:]))))) for size in sizes]
    return _written(
        parametrization, record, images, Coded(packs, _named(parametrization, shape, chunks)), evaluation, soft
    )


@in_own_state
def largest_file(
    parametrization: Parametrization,
    record: Record,
    images: Sequence[int],
    codec: str = "raw",
    *,
    evaluation: Mapping[str, Any] | None = None,
    soft: bool = False,
) -> int | None:
    """Return the bytes that a file takes at most, whatever its images show; None where the codec cannot say so.

    Args:
        parametrization: Of the codes.
        record: As in `file_bytes`.
        images: How many images' bytes each class has, by label.
        codec: A name.
        evaluation: What will be added to the file.
        soft: Whether labels are probabilities.
    """
    packs = codec_named(codec)
    if packs is None or not takes_codecs(parametrization):
        return _written(parametrization, record, images, None, evaluation, soft)
    bound = getattr(packs, "bound", None)
    if bound is None:
        return None
    shape, labels = _stored(parametrization, record, images)
    chunks = [Chunk(size, bytes(bound((size, *shape[1:])))) for size in chunk_sizes(labels, packs, shape[1:])]
    return _written(
        parametrization, record, images, Coded(packs, _named(parametrization, shape, chunks)), evaluation, soft
    )


def _stored(
    parametrization: Parametrization, record: Record, images: Sequence[int]
) -> tuple[tuple[int, int, int, int], Tensor]:
    """Return the shape of the stored images that codecs take, (N, C, H, W), and their labels, (N,) int64."""
    shapes = parametrization.shapes(sum(map(parametrization.start_count, images)), record.shape)
    n, c, height, width = shapes[next(iter(parametrization.storage))]
    return (n, c, height, width), _labels(parametrization, images, n)


def _labels(parametrization: Parametrization, images: Sequence[int], rows: int) -> Tensor:
    counts = torch.tensor([parametrization.start_count(n) if n else 0 for n in images])
    return torch.arange(len(images)).repeat_interleave(counts * rows // max(1, int(counts.sum())))


def _named(
    parametrization: Parametrization, shape: tuple[int, int, int, int], chunks: Sequence[Chunk]
) -> dict[str, Stored]:
    return {name: Stored(shape, tuple(chunks)) for name in parametrization.storage}


def _written(
    parametrization: Parametrization,
    record: Record,
    images: Sequence[int],
    coded: Coded | None,
    evaluation: Mapping[str, Any] | None,
    soft: bool,
) -> int:
    """Return the length of a file of blank codes."""
    shapes = parametrization.shapes(sum(parametrization.start_count(n) for n in images if n), record.shape)
    blank = {name: torch.zeros(1, dtype=parametrization.storage[name]).expand(shape) for name, shape in shapes.items()}
    rows, classes = shapes[next(iter(parametrization.storage))][0], len(record.classes)
    targets = _labels(parametrization, images, rows).to(torch.uint8 if classes <= 256 else torch.int16)
    if soft:
        targets = torch.full((rows, classes), 1 / classes, dtype=torch.float16)
    codes = blank if coded is None else Coded(coded.codec, coded.stored, blank)
    part = Part(codes, targets, parametrization, record)
    return len(dump([part], None if evaluation is None else {**decoders([part]), **evaluation}))
