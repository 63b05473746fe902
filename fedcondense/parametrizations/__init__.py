"""How the images of a set are stored, by name: settings that decode a dict of tensors into images."""

from collections.abc import Callable
from functools import partial

from fedcondense.contract import Parametrization
from fedcondense.parametrizations.bases import Bases
from fedcondense.parametrizations.hallucinators import Hallucinators
from fedcondense.parametrizations.latents import Latents
from fedcondense.parametrizations.multi_formation import MultiFormation
from fedcondense.parametrizations.pixels import Pixels

__all__ = ["PARAMETRIZATIONS", "Bases", "Hallucinators", "Latents", "MultiFormation", "Pixels"]

PARAMETRIZATIONS: dict[str, Callable[..., Parametrization]] = {
    "pixels": Pixels,
    "multi-formation": MultiFormation,
    "multi-formation-4": partial(MultiFormation, factor=4),
    "bases": Bases,
    "hallucinators": Hallucinators,
    "latents": Latents,
}
"""What files may name and receivers look up; a user adds a line with a frozen dataclass of plain numbers.

A file holds the class's name and all its settings: a `functools.partial` is a name for settings, never one in a file.
"""
