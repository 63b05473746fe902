"""Sets in another codec: the only place where what is stored is encoded, and may lose what it was."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

import torch

from fedcondense.ambient import in_own_state
from fedcondense.contract import Parametrization
from fedcondense.sets.codecs import Codec, Inexact, codec_named
from fedcondense.sets.codecs.labels import likeliest, soft_kept
from fedcondense.sets.coded import Coded, encode
from fedcondense.sets.parts import Part

__all__ = ["decoders", "recode_part", "takes_codecs"]

_LOG = logging.getLogger(__name__)


@in_own_state
def recode_part(part: Part, codec: str | None = None, labels: str | None = None) -> Part:
    """Return a part in another codec; one that has it already is returned itself.

    Args:
        part: Any.
        codec: A name, as `codec_named` reads it, or ``"raw"``; None: its codes stay as they are.
        labels: How soft labels are stored, ``"top-3"`` say: the likeliest three in 8 bits each. None: as they are.

    Raises:
        SettingError: An unknown name, or images that the codec does not take.
    """
    if labels is not None:
        kept = soft_kept(labels)
        if part.targets.ndim == 2:
            part = replace(part, targets=likeliest(part.targets, kept))
    if codec is None:
        return part
    chosen = codec_named(codec)
    if codec == part.codec:
        return part
    if chosen is None:
        return replace(part, codes={name: code.clone() for name, code in part.codes.items()})
    storage, record = part.parametrization.storage, part.record
    if not takes_codecs(part.parametrization):
        what = f"the {record.method} set's {', '.join(storage)}"
        _LOG.warning("%s keep their bytes: codecs take 8-bit images that stand alone (pixels, multi-formation)", what)
        return part
    if isinstance(part.codes, Coded):
        what = f"{record.data} was coded by {part.codec}"
        _LOG.warning("%s: %s is a second loss; recode the original if you have it", what, codec)
    return _encoded(part, chosen)


def takes_codecs(parametrization: Parametrization) -> bool:
    """Say whether the codes are 8-bit images that stand alone, which codecs take."""
    return not parametrization.shared and set(parametrization.storage.values()) == {torch.uint8}


def _encoded(part: Part, codec: Codec) -> Part:
    if part.targets.ndim == 2:  # soft labels are not taken class by class
        return replace(part, codes=encode(part.codes, torch.zeros(part.stored, dtype=torch.int64), codec))
    labels = part.labels()
    if not codec.by_class:
        return replace(part, codes=encode(part.codes, labels, codec))
    order = labels.argsort(stable=True)
    codes = {name: code[order] for name, code in part.codes.items()}
    return replace(part, codes=encode(codes, labels[order], codec), targets=part.targets[order])


def decoders(parts: Iterable[Part]) -> dict[str, str]:
    """Return what an evaluation says of codecs that are not exact: under `decoder`, what decodes them here."""
    codecs = [part.codes.codec for part in parts if isinstance(part.codes, Coded)]
    found = sorted({codec.decoder() for codec in codecs if isinstance(codec, Inexact)})
    return {"decoder": "; ".join(found)} if found else {}
