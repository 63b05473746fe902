"""What names of methods mean today: plugins may give a name another code tomorrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from fedcondense.condensing.starts import STARTS
from fedcondense.identity import identity
from fedcondense.networks import NETWORKS
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.selection import SELECTIONS

__all__ = ["meaning"]

_TABLES = (OBJECTIVES, PARAMETRIZATIONS, NETWORKS, STARTS, SELECTIONS)


def meaning(*values: object) -> str:
    """Return the identity of values and of all that they name: themselves, or as fields of a dataclass.

    Args:
        values: Texts such as ``"dm"`` or ``"convnet3-w32+mlp"``, tasks, makers, anything.
    """
    texts = [text for value in values for text in _texts(value)]
    named = {text: [table[text] for table in _TABLES if text in table] for text in texts}
    return identity((values, named))


def _texts(value: object) -> Iterator[str]:
    if is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            if item.compare:
                yield from _texts(getattr(value, item.name))
    elif isinstance(value, str):
        yield from value.split("+")
