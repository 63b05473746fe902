"""Site by site: who answered, with what, at what cost, and how good the network is there, read tolerantly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcondense.report.by_class import held_of
from fedcondense.report.leads import doubt
from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.results import NONE, ReportRow
from fedcondense.report.units import human_bytes

__all__ = ["SiteTable", "broken_in", "held_back", "sites_in", "uncounted"]

_SHOWN = 100  # sites of a table; the file holds the rest
_NAMED = 4  # classes of a site that are named
_FILES = 50  # that are named


class SiteTable(NamedTuple):
    """A table, ready to be shown."""

    heading: tuple[str, ...]  # of the columns after the site's name
    lines: list[tuple[str, str, str, list[tuple[str, str]]]]  # name, what it did, its kind, and cells with small print
    more: int  # sites that are not shown


class _Site(NamedTuple):
    name: str
    did: str
    kind: str  # answered, held, absent, refused or forgotten
    cells: tuple[tuple[str, str], ...]


_HEADING = ("records", "classes", "sent", "received", "seconds", "broken images", "accuracy there", "macro there")


def sites_in(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> SiteTable:
    """Return a line for each site that the result knows; columns that would be empty are left out."""
    found = _found(result, rows)
    alone = "alone, there" if _evaluated(result) else "alone, on the test data"
    heading = (*_HEADING, alone)
    kept = [k for k in range(len(heading)) if any(site.cells[k][0] != NONE for site in found)]
    lines = [(site.name, site.did, site.kind, [site.cells[k] for k in kept]) for site in found[:_SHOWN]]
    return SiteTable(tuple(heading[k] for k in kept), lines, len(found[_SHOWN:]))


def held_back(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> str:
    """Say whose answers wait for people there, and what then; empty: nobody's."""
    found = _found(result, rows)
    held = [site.name for site in found if site.kind == "held"]
    if not held:
        return ""
    more = f" and {len(held) - 5} more" if len(held) > 5 else ""
    then = "resume = true asks again" if result.get("error") else "another run with the same settings gets it"
    verb = "holds its" if len(held) == 1 else "hold their"
    return (
        f"{len(held)} of {_many(len(found), 'site')} {verb} answer for review there: {', '.join(held[:5])}{more}. Once "
        f"people there have agreed (fedcondense review), {then}."
    )


def uncounted(result: Mapping[str, Any]) -> str:
    """Say which sites have answered whose class counts nobody knows, where those of others are shown; empty: none."""
    held = _classes(result)
    answered = [str(one.get("site")) for one in _entries(result) if math.isfinite(number_of(one.get("last")))]
    missing = [name for name in answered if name not in held]
    if not held or not missing:
        return ""
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    whose = "whose sets have never come" if len(missing) > 1 else "whose set has never come"
    return f"Not among them: {', '.join(missing[:5])}{more}, {whose}, and counts come with sets."


def broken_in(result: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Say how many image files were left out, since they cannot be read, and name them where the result does."""
    files = [str(name) for name in list_of(result.get("broken"))]
    if files:
        more = f", of which the first {_FILES} are named" if len(files) > _FILES else ""
        return f"{_files(len(files))}{more}:", files[:_FILES]
    counts = {str(one.get("site")): _whole(one.get("broken")) for one in _entries(result)}
    total = sum(counts.values())
    if not total:
        return "", []
    named = ", ".join(f"{site} {count}" for site, count in counts.items() if count)
    return f"{_files(total)} ({named}); their names stay at the sites (fedcondense node check).", []


def _files(count: int) -> str:
    if count == 1:
        return "1 image file was left out, since it cannot be read"
    return f"{count} image files were left out, since they cannot be read"


def _found(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> list[_Site]:
    """Return the sites: those that were asked, then others that have a set, were left out or evaluated."""
    entries = {str(one.get("site")): one for one in _entries(result) if one.get("site")}
    classes, evaluated, refused = _classes(result), _evaluated(result), _refused(result, rows)
    names = dict.fromkeys([*entries, *classes, *evaluated, *refused])
    gone = {str(mapping_of(one).get("site")) for one in list_of(result.get("forgotten"))}
    alone = _alone(result)
    broken = [str(name).partition("/")[0] for name in list_of(result.get("broken"))]
    found = []
    for name in names:
        entry, held, said = entries.get(name, {}), classes.get(name, {}), evaluated.get(name, {})
        records = number_of(entry.get("records"))
        records = records if math.isfinite(records) else float(sum(held.values())) if held else math.nan
        unread = _whole(entry.get("broken")) or broken.count(name)
        right, apart = number_of(said.get("accuracy")), number_of(said.get("records"))
        own = number_of(said.get("local_only")) if evaluated else alone.get(name, math.nan)
        cells = (
            (_shown(records, "{:,.0f}"), ""),
            (f"{len(held)}" if held else NONE, _some(held)),
            (_bytes(entry.get("bytes_up")), ""),
            (_bytes(entry.get("bytes_down")), ""),
            (_shown(number_of(entry.get("seconds")), "{:,.1f}"), ""),
            (f"{unread}" if unread else NONE, ""),
            (_shown(right, "{:.1f} %"), f"of {apart:,.0f} kept apart" if math.isfinite(apart) else ""),
            (_shown(number_of(said.get("macro_accuracy")), "{:.1f} %"), ""),
            (_shown(own, "{:.1f} %"), "better than together" if own - right > doubt((own, right), apart) else ""),
        )
        did, kind = ("forgotten", "forgotten") if name in gone else _did(result, name, entry, refused.get(name))
        found.append(_Site(name, did, kind, cells))
    return found


def _did(
    result: Mapping[str, Any], name: str, entry: Mapping[str, Any], refusal: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Return in words what came of asking a site last, and its kind."""
    away = mapping_of(mapping_of(result.get("ages")).get(name))
    rounds, last = number_of(away.get("rounds")), number_of(entry.get("last"))
    if math.isnan(last) and name in list_of(result.get("sites")):  # of a file that says no more of it
        last = number_of(away.get("round")) if away else math.inf
    since = ""
    if rounds >= 1:
        day = f", {str(away['at'])[:10]}" if away.get("at") else ""
        since = f"its last answer is of round {number_of(away.get('round')):.0f}, {_many(rounds, 'round')} ago{day}"
    if refusal is not None and not number_of(refusal.get("round")) <= last:
        if refusal.get("held"):
            return _joined("answer held for review there", since), "held"
        if refusal.get("absent"):
            return _joined(f"absent: {refusal.get('reason')}", since), "absent"
        return _joined(f"left out: {refusal.get('reason', 'no reason was kept')}", since), "refused"
    return (since, "absent") if since else ("answered", "answered")


def _joined(*texts: str) -> str:
    return "; ".join(filter(None, texts))


def _entries(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mapping_of(one) for one in list_of(result.get("by_site"))]


def _classes(result: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return how many records of each class a site holds, by the site's name, where there are any."""
    about = held_of(result)
    rows = [list_of(row) for row in list_of(about.get("counts"))]
    names = [str(name) for name in list_of(about.get("names"))]
    names = names if len(names) == len(rows) else [f"client-{k}" for k in range(len(rows))]
    classes = list_of(about.get("classes")) or list_of(result.get("classes"))
    found: dict[str, dict[str, int]] = {}
    for name, row in zip(names, rows, strict=True):
        site = found.setdefault(name.partition("+")[0], {})  # sets of several rounds are of the same records
        for label, count in zip(map(str, classes), map(_whole, row), strict=False):
            if count:
                site[label] = max(site.get(label, 0), count)
    return found


def _evaluated(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    sites = map(mapping_of, list_of(mapping_of(result.get("sites_evaluated")).get("sites")))
    return {str(one.get("site")): one for one in sites}


def _refused(result: Mapping[str, Any], rows: Sequence[ReportRow]) -> dict[str, Mapping[str, Any]]:
    """Return the last refusal of each site, of the row that sends images, or of the one that there is."""
    entries = [mapping_of(one) for one in list_of(result.get("refused"))]
    main = next((row.name for row in rows if "image" in row.travels), rows[0].name if rows else None)
    mine = [one for one in entries if one.get("row") in (main, None)] if main is not None else entries
    return {str(one.get("client", "?")): one for one in mine}


def _alone(result: Mapping[str, Any]) -> dict[str, float]:
    """Return how good each site is alone on the server's test data, in percent, where a comparison has measured it."""
    row = next((row for row in map(mapping_of, mapping_of(result.get("rows")).values()) if "sites" in row), {})
    return dict(zip(map(str, list_of(row.get("names"))), map(number_of, list_of(row.get("sites"))), strict=False))


def _some(held: Mapping[str, int]) -> str:
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    return ", ".join(list(held)[:_NAMED]) + more


def _many(number: float, what: str) -> str:
    return f"{number:.0f} {what}{'' if number == 1 else 's'}"


def _whole(value: Any) -> int:
    number = number_of(value)
    return int(number) if math.isfinite(number) else 0


def _shown(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else NONE


def _bytes(value: Any) -> str:
    number = number_of(value)
    return human_bytes(number) if math.isfinite(number) else NONE
