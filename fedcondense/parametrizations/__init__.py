"""How the images of a set are stored, by name: settings that decode a dict of tensors into images."""

from collections.abc import Callable

from fedcondense.contract import Parametrization
from fedcondense.parametrizations.multi_formation import MultiFormation
from fedcondense.parametrizations.pixels import Pixels

__all__ = ["PARAMETRIZATIONS", "MultiFormation", "Pixels"]

PARAMETRIZATIONS: dict[str, Callable[..., Parametrization]] = {
    "pixels": Pixels,
    "multi-formation": MultiFormation,
}
"""What files may name and receivers look up; a user adds a line with a frozen dataclass of plain numbers.

A file holds the class's name and all its settings: a `functools.partial` is a name for settings, never one in a file.
"""
