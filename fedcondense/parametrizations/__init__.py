"""How the images of a set are stored, by name: settings that decode a dict of tensors into images."""

from fedcondense.contract import Parametrization
from fedcondense.parametrizations.multi_formation import MultiFormation
from fedcondense.parametrizations.pixels import Pixels

__all__ = ["PARAMETRIZATIONS", "MultiFormation", "Pixels"]

PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    "pixels": Pixels,
    "multi-formation": MultiFormation,
}
"""What files may name and receivers look up; a user adds a line with a frozen dataclass of plain numbers."""
