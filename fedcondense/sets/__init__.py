"""The synthetic set: the one artefact, its file and wire format, exchange, real-image controls, ready sets."""

from fedcondense.sets.codecs import CODECS, codec_named
from fedcondense.sets.exchange import export, import_tensors
from fedcondense.sets.fitting import Within
from fedcondense.sets.format import Limits
from fedcondense.sets.parts import Part, Record, to_storage
from fedcondense.sets.pictures import show_set
from fedcondense.sets.selection import SELECTIONS, select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sets.zoo import load_set, ready_sets

__all__ = [
    "CODECS",
    "SELECTIONS",
    "Limits",
    "Part",
    "Record",
    "SyntheticSet",
    "Within",
    "codec_named",
    "export",
    "import_tensors",
    "load_set",
    "ready_sets",
    "select",
    "show_set",
    "to_storage",
]
