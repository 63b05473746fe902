"""Sweeps: objectives, parametrizations, networks and settings side by side, with the controls at equal bytes.

>>> base = Cell(SetRecipe("digits", "dm", network="convnet2-w32"), EvaluationPlan(("convnet2-w32",), networks=1))
>>> [line.cells[0].making.method for line in scaling(base, ipc=[1, 5], controls=["random"], sets=3)]
['random', 'dm', 'random', 'dm']
"""

from fedcondense.sweeps.budget import with_budget, with_kept_budget
from fedcondense.sweeps.cells import SweepProgress, finished, run
from fedcondense.sweeps.compute import LOCAL, Site
from fedcondense.sweeps.grids import (
    ALL_REAL,
    Cell,
    EvaluationPlan,
    SetRecipe,
    TableRow,
    Tuning,
    architectures,
    parametrizations,
    scaling,
    sensitivity,
    table,
)
from fedcondense.sweeps.paired import references
from fedcondense.sweeps.rows import KEYS, Row, read
from fedcondense.sweeps.tables import conclusions, matrix, to_csv, to_markdown
from fedcondense.sweeps.workers import Here, Processes, Ray, Workers

__all__ = [
    "ALL_REAL",
    "KEYS",
    "LOCAL",
    "Cell",
    "EvaluationPlan",
    "Here",
    "Processes",
    "Ray",
    "Row",
    "SetRecipe",
    "Site",
    "SweepProgress",
    "TableRow",
    "Tuning",
    "Workers",
    "architectures",
    "conclusions",
    "finished",
    "matrix",
    "parametrizations",
    "read",
    "references",
    "run",
    "scaling",
    "sensitivity",
    "table",
    "to_csv",
    "to_markdown",
    "with_budget",
    "with_kept_budget",
]
