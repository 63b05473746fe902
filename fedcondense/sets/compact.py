"""Short forms of what the header of a coded set says: beside a few kilobytes of codes, each of its bytes counts.

They are part of version 2, and stand in files whose parts are coded alone, which no reader of before opens. What is
written shortly is always written shortly: a long form of it is refused, so that a file has one meaning and one text.

- a record whose `counts` are all equal names that number once;
- a record without `augmentation` has all six operations, and one without any has an empty list;
- an evaluation's `recipe` names those fields alone that differ from the usual ones.

The tables below belong to the format: where a default of `Fit` or the operations change, these stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedcondense.sets.checks import refuse, shorten

__all__ = ["USUAL_RECIPE", "long_evaluation", "long_record", "short_evaluation", "short_record"]

USUAL_RECIPE: Mapping[str, Any] = {
    "steps": 400,
    "batch": 64,
    "lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "nesterov": True,
    "schedule": "one-cycle",
    "augment": True,
    "cutmix": 0.0,
}
"""How a set is evaluated unless somebody says otherwise, when version 2 was made: the fields of `Fit`."""

_OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def short_record(values: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return a record's fields as a header holds them.

    Args:
        values: Those that differ from their defaults.
        classes: How many the record has.
    """
    short = dict(values)
    counts, operations = tuple(short.get("counts", ())), tuple(short.get("augmentation", ()))
    if len(counts) == classes and len(set(counts)) == 1:
        short["counts"] = counts[0]
    if operations == _OPERATIONS:
        del short["augmentation"]
    else:
        short["augmentation"] = operations
    return short


def long_record(given: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return the fields of a record whose header holds them shortly.

    Raises:
        UntrustedSetError: They would be written in another way.
    """
    values = dict(given)
    operations, counts = values.pop("augmentation", list(_OPERATIONS)), values.get("counts")
    if not isinstance(operations, list) or not isinstance(counts, list | int | None):
        refuse(f"augmentation {shorten(operations)} and counts {shorten(counts)} of a record; needed: lists")
    if operations:
        values["augmentation"] = tuple(operations)
    if type(counts) is int:
        values["counts"] = (counts,) * classes
    again = short_record(values, classes)
    if any(_listed(again.get(name)) != given.get(name) for name in ("counts", "augmentation")):
        refuse(f"counts {shorten(counts)} or augmentation {shorten(operations)} of a record, which is written shortly")
    return values


def short_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation as a header holds it."""
    recipe = evaluation.get("recipe")
    if not isinstance(recipe, Mapping):
        return dict(evaluation)
    return {**evaluation, "recipe": {k: v for k, v in recipe.items() if not _is_usual(k, v)}}


def long_evaluation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation that a header holds shortly.

    Raises:
        UntrustedSetError: It would be written in another way.
    """
    if short_evaluation(given) != given:
        refuse("a recipe of an evaluation with usual values, which are left out")
    recipe = given.get("recipe")
    return {**given, "recipe": {**USUAL_RECIPE, **recipe}} if isinstance(recipe, Mapping) else dict(given)


def _is_usual(name: str, value: Any) -> bool:
    """Say whether a recipe's value is the usual one, of its type too: True is no 1 here."""
    return name in USUAL_RECIPE and repr(USUAL_RECIPE[name]) == repr(value)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
