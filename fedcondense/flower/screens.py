"""Screens by name, and what becomes of a set of which one wants less."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fedcondense.errors import SettingError, look_up
from fedcondense.flower.agreement import NOT_ENOUGH, Agreement, Means
from fedcondense.flower.contract import Answer, Known, Screen, Site, Verdict
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["SCREENS", "All", "Screened", "Share", "check_screens", "log_verdicts", "screen_of", "screened", "weighed"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


@dataclass(frozen=True)
class Share:
    """Cut what a site sends of a class to some times what is usual in this run.

    Usual is the median, over sites, of the stored images of the class that a site has most of: what all were asked
    for. Sites that hold little send less, and none of them sends more.

    Args:
        most: How many times that a class of one site may have.
    """

    most: float = 2.0

    def __call__(self, answers: Sequence[Answer[SyntheticSet]], known: Known) -> Mapping[tuple[Site, str], Verdict]:
        """Judge sets per site and class."""
        stored = [_stored(answer.payload) for answer in answers]
        largest = sorted(max(images.values(), default=0) for images in stored)
        usual = largest[(len(largest) - 1) // 2]
        verdicts = {}
        for answer, images in zip(answers, stored, strict=True):
            for name, count in images.items():
                verdict = Verdict(1.0) if len(answers) > 2 else Verdict(1.0, NOT_ENOUGH)
                if len(answers) > 2 and count > self.most * usual:
                    why = f"{count} images, where sites send up to {usual} of a class"
                    verdict = Verdict(self.most * usual / count, why)
                verdicts[answer.site, name] = verdict
        return verdicts


@dataclass(frozen=True)
class All:
    """Several screens, one after the other, each on what the ones before have left.

    Args:
        screens: In order; the smallest weight counts, with its reason.
    """

    screens: tuple[Screen, ...]

    def __call__(self, answers: Sequence[Answer[SyntheticSet]], known: Known) -> Mapping[tuple[Site, str], Verdict]:
        """Judge sets per site and class."""
        verdicts: dict[tuple[Site, str], Verdict] = {}
        for screen in self.screens:
            if not answers:
                break
            found = screen(answers, known)
            for pair, verdict in found.items():
                before = verdicts.get(pair, Verdict(1.0))
                verdicts[pair] = verdict if verdict.weight < before.weight or not before.why else before
            left = []
            for answer in answers:
                own = {name: v for (site, name), v in found.items() if site == answer.site and v.weight < 1}
                payload = weighed(answer.payload, own) if own else answer.payload
                left += [] if payload is None else [answer._replace(payload=payload)]
            answers = left
        return verdicts


SCREENS: dict[str, Screen] = {"agreement": Agreement(), "means": Means(), "share": Share()}
"""By the names that a server's ``screens`` takes, in the order in which several are applied."""


def screen_of(names: str) -> Screen | None:
    """Return the screen that a server's ``screens`` names: names with commas between them, ``all``, or nothing.

    Raises:
        SettingError: A name is not in `SCREENS`.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if asked == ["all"]:
        asked = list(SCREENS)
    for name in asked:
        look_up("screen", name, SCREENS)
    return All(tuple(screen for name, screen in SCREENS.items() if name in asked)) if asked else None


def check_screens(names: str, strategy: object) -> None:
    """Refuse screens that a strategy would pass over in silence.

    Raises:
        SettingError: It does not combine sets, or a name is none.
    """
    if screen_of(names) is not None and getattr(strategy, "screen", None) is None:
        raise SettingError(
            f"screens = {names!r}; {type(strategy).__name__} combines no synthetic sets to be screened: leave it out"
        )


class Screened(NamedTuple):
    """What a screen has left of a stage's answers."""

    answers: list[Answer[Any]]
    gone: dict[Site, str]  # whose sets are left out as a whole, and why
    cut: dict[str, SyntheticSet]  # what was left out, by the names of sites
    verdicts: Mapping[tuple[Site, str], Verdict]


def screened(screen: Screen, answers: Sequence[Answer[Any]], known: Known) -> Screened:
    """Judge the sets among answers, and take of each site and class what the screen wants."""
    sets = [answer for answer in answers if isinstance(answer.payload, SyntheticSet)]
    verdicts = screen(sets, known) if sets else {}
    found = Screened([], {}, {}, verdicts)
    for answer in answers:
        own = {name: v for (site, name), v in verdicts.items() if site == answer.site and v.weight < 1}
        if not own:
            found.answers.append(answer)
            continue
        left, out = weighed(answer.payload, own), weighed(answer.payload, _but(answer.payload, own))
        if left is None:
            found.gone[answer.site] = "; ".join(sorted({verdict.why for verdict in own.values()}))[:300]
        else:
            found.answers.append(answer._replace(payload=left))
        found.cut[answer.site.name] = answer.payload if left is None or out is None else out
    return found


def log_verdicts(server_round: int, verdicts: Mapping[tuple[Site, str], Verdict], gone: Container[Site]) -> None:
    """Say which classes of which sites count less, of sites that are not left out as a whole."""
    for (site, name), verdict in verdicts.items():
        if verdict.weight < 1 and site not in gone:
            said = f"class {name!r} of {site.name} counts {100 * verdict.weight:.0f} %"
            _LOG.warning("round %d: %s: %s", server_round, said, verdict.why)


def _but(synthetic: SyntheticSet, judged: Mapping[str, Verdict]) -> dict[str, Verdict]:
    """Return verdicts that leave the classes alone of which something was left out."""
    return {name: Verdict(0.0) for name in synthetic.classes if name not in judged}


def weighed(synthetic: SyntheticSet, judged: Mapping[str, Verdict]) -> SyntheticSet | None:
    """Return what is left of a set when some of its classes count less; None: nothing.

    A class of weight w keeps the first w of its stored images, rounded up, and stands for as large a share of the
    records that it claims. A set of soft labels or shared codes cannot be cut, and is left out as a whole.
    """
    stored = _stored(synthetic)
    left = {name for name in synthetic.classes if name not in judged or judged[name].weight > 0}
    most = {name: math.ceil(verdict.weight * stored[name]) for name, verdict in judged.items()}
    try:
        cut = synthetic.restrict(left, most)
    except SettingError:
        return None
    if cut is None or cut is synthetic:
        return cut
    parts = []
    for part in cut.parts:
        pairs = zip(part.record.classes, part.record.counts, strict=False)
        counts = tuple(math.ceil(judged[name].weight * n) if name in judged else n for name, n in pairs)
        parts.append(replace(part, record=replace(part.record, counts=counts)))
    return SyntheticSet(parts)


def _stored(synthetic: SyntheticSet) -> Counter[str]:
    """Return how many stored images each class has."""
    stored: Counter[str] = Counter()
    for part in synthetic.parts:
        stored.update(part.record.classes[label] for label in part.labels().tolist())
    return stored
