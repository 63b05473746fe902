"""What sites say of a run's network, in words: of a server without test data all that is known of how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedcondense.report.leads import doubt
from fedcondense.report.reading import list_of, mapping_of, number_of

__all__ = ["at_sites"]

_NAMED = 5  # sites in a sentence


def at_sites(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on ``sites_evaluated`` of ``result.json``; none if no site was asked."""
    found = mapping_of(result.get("sites_evaluated"))
    sites = [mapping_of(one) for one in list_of(found.get("sites"))]
    refused = [mapping_of(one) for one in list_of(found.get("refused"))]
    said = []
    if math.isfinite(accuracy := number_of(found.get("accuracy"))):
        records = sum(
            int(number_of(one.get("records"))) for one in sites if math.isfinite(number_of(one.get("records")))
        )
        mean, worst = number_of(found.get("accuracy_mean")), number_of(found.get("accuracy_worst"))
        said.append(
            f"After round {found.get('round')} the network is right for {accuracy:.1f} % of {records} records that "
            f"{_many(len(sites), 'site')} kept apart (mean over sites {mean:.1f} %, macro "
            f"{number_of(found.get('macro_accuracy')):.1f} %, worst {found.get('worst')} with {worst:.1f} %)."
        )
    if math.isfinite(alone := number_of(found.get("local_only_mean"))):
        unclear = {str(one.get("site")) for one in sites if not _is_clear(one)}
        below = [name for name in map(str, list_of(found.get("below_local_only"))) if name not in unclear]
        named = f"better for {_some(below)}" if below else "better for none of them, as far as their records tell"
        if not below and (ahead := _ahead_together(sites)):
            named = f"better by {ahead:.1f} points on all their records together, though no single site's tell"
        said.append(f"Networks that they trained alone reach {alone:.1f} % on average, and are {named}.")
    if refused:
        named = _some([str(one.get("client")) for one in refused])
        said.append(f"{named} did not evaluate: {refused[0].get('reason')}.")
    return said


def _is_clear(one: Mapping[str, Any]) -> bool:
    """Say whether a site's records show that its own network is better; of an older file they are not asked."""
    own, together, records = (number_of(one.get(name)) for name in ("local_only", "accuracy", "records"))
    return not own - together <= doubt((own, together), records)


def _ahead_together(sites: Sequence[Mapping[str, Any]]) -> float:
    """Return by how many points sites are better alone, over all their records; 0 where these do not tell."""
    found = [[number_of(one.get(name)) for name in ("local_only", "accuracy", "records")] for one in sites]
    known = [one for one in found if all(map(math.isfinite, one))]
    records = sum(n for _, _, n in known)
    if not records:
        return 0.0
    own, together = (sum(one[k] * one[2] for one in known) / records for k in (0, 1))
    return own - together if own - together > doubt((own, together), records) else 0.0


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
