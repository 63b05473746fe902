"""What came back in one stage of a round, however it travelled: usable answers and refusals, judged together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from fedcondense.data import Spec
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.copies import part_digests, repeated, same_key
from fedcondense.flower.held import HELD_THERE
from fedcondense.flower.payloads import Payload
from fedcondense.flower.sites import names_of, natural
from fedcondense.flower.together import Held, in_common, normalised, over_limits
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["GONE", "SILENT", "Inbox", "Refusal", "ReplyLimits", "is_absent", "kind_of", "log_odd"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us

SILENT = "no reply within the deadline"
"""Why a site is left out that nothing came from."""

GONE = "its node is gone: stopped, killed or cut off"
"""Why a site is left out of whose node Flower says that it is not there any more."""


@dataclass(frozen=True)
class ReplyLimits:
    """What a reply may hold; whatever breaks it is refused by name and the round goes on.

    Args:
        limits: Caps of the payload's bytes, and of what a set decodes to, checked before memory is allocated.
        shape: (C, H, W) that images must have; None: that of most replies.
        classes: The class names that may occur; None: any, and the joined set has their union.
        mean: What images are normalised by, one value per channel, whatever the sender normalised its own by; None: the
            median of what senders say, since one that divides by almost nothing would drown the others.
        std: Likewise.
        records: How many real records a site may claim for a class: what its images weigh if asked for.
        together: Caps of all sets that are joined, within what a file of them may hold. Where there is too much, the
            largest go, so that a site within its fair share stays whatever others send.
    """

    limits: Limits = field(
        default_factory=lambda: Limits(16 << 20, decoded=50_000, decoded_bytes=512 << 20, header=1 << 20)
    )
    shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    records: int = 10_000_000
    together: Limits = field(default_factory=lambda: Limits(decoded_bytes=1 << 30))

    @classmethod
    def of(cls, spec: Spec) -> ReplyLimits:
        """Expect sets for a data set that the server knows."""
        return cls(shape=spec.shape, classes=spec.classes, mean=spec.mean, std=spec.std)

    @classmethod
    def none(cls, spec: Spec) -> ReplyLimits:
        """Expect sets of any size, from nodes in the process of whoever asks."""
        wide = Limits(nbytes=1 << 40, decoded=1 << 40, decoded_bytes=1 << 50, header=1 << 30, names=1 << 40)
        return cls(wide, spec.shape, spec.classes, spec.mean, spec.std, 2**62, replace(wide, parts=1 << 30))


class Refusal(NamedTuple):
    """A site whose answer is left out, and why, in text that is safe to print and to put into HTML."""

    site: Site
    reason: str


def is_absent(reason: str) -> bool:
    """Say whether a site is left out since nothing came from it: it has refused nothing."""
    return reason in (SILENT, GONE)


class Inbox:
    """Answers that were checked one by one, by the site that each came from; they are judged together.

    Messages come into it through a `Mailbox`, files through `by_files`, what a run kept through `answers_file`.

    Args:
        sites: Who was asked, under the names that they are registered by, if any.
        limits: What answers may hold together.
        kind: Says in words what an answer must have in common with the others, or nothing.
        kept: Sets of earlier rounds, by the names of their sites: they count where their site sends no new one.
        names: Of sites that are known, by their keys (`names_of`).
        bytes_down: What the questions took.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        limits: ReplyLimits,
        *,
        kind: Callable[[Answer[Any]], str] | None = None,
        kept: Mapping[str, SyntheticSet] | None = None,
        names: Mapping[str, str] | None = None,
        bytes_down: int = 0,
    ) -> None:
        self.sites, self.limits, self.kind = tuple(sites), limits, kind or kind_of
        self.kept, self.names = dict(kept or {}), dict(names or {})
        self.answers: dict[int, Answer[Payload]] = {}  # by node, under the names that sites are registered by
        self.claims: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self.held = set[int]()  # nodes whose answer waits for people there
        self._down = bytes_down
        self._digests: dict[int, tuple[str, ...]] = {}  # of the parts of sets, by node
        self._judged: tuple[tuple[tuple[int, ...], tuple[int, ...]], _Odd] | None = None  # for whom, and what

    def bytes_down(self) -> int:
        """Return what the questions took."""
        return self._down

    def down_by_node(self) -> dict[int, float]:
        """Return what the questions to each node took."""
        return {site.node: self._down / len(self.sites) for site in self.sites}

    def silent(self) -> list[Site]:
        """Return who has not answered yet."""
        return [site for site in self.sites if site.node not in self.answers and site.node not in self.refused]

    def usable(self) -> int:
        """Return how many answers would be left if nobody else sent one."""
        try:
            return len(self.answers) - len(self._odd().odd)
        except UntrustedSetError:
            return 0

    def sorted(self) -> tuple[list[Answer[Payload]], list[Refusal]]:
        """Return usable answers and refusals by the names of their sites, whatever order they arrived in.

        Raises:
            UntrustedSetError: Answers of several kinds came, and as many of one as of another.
        """
        found = self._odd()
        odd = found.odd
        refused = {**self.refused, **odd, **{site.node: SILENT for site in self.silent()}}
        refused |= dict.fromkeys(self.held, HELD_THERE)
        names = self._names(refused)
        answers = [
            a._replace(site=names[node], payload=found.rest.get(node, a.payload))
            for node, a in self.answers.items()
            if node not in odd
        ]
        answers.sort(key=lambda answer: natural(answer.site.name))
        sets = [answer.payload for answer in answers if isinstance(answer.payload, SyntheticSet)]
        before = list(self.kept.values())  # they have a say in what is a median, and stay as they are
        scaled = iter(normalised([*before, *sets], self.limits.mean, self.limits.std)[len(before) :])
        answers = [a._replace(payload=next(scaled)) if isinstance(a.payload, SyntheticSet) else a for a in answers]
        refusals = [Refusal(names[node], reason) for node, reason in refused.items()]
        return answers, sorted(refusals, key=lambda refusal: natural(refusal.site.name))

    def outgrown(self) -> dict[str, str]:
        """Return which kept sets are too large beside the others, by name, and why."""
        return self._odd().outgrown

    def thinned(self) -> dict[str, str]:
        """Return of which sets some parts are left out, by name, and why."""
        return self._odd().thinned

    def answered(self) -> dict[str, str]:
        """Return the keys of those whose answers came, by the names that they have beside all others."""
        names = self._names({**self.refused, **self._odd().odd})
        return {names[node].name: names[node].key for node in self.answers}

    def forget(self, key: str) -> None:
        """Drop what the site of a key sent, as if it had been silent."""
        for node in [site.node for site in self.sites if site.key == key]:
            self.answers.pop(node, None)
            self.claims.pop(node, None)
            self._digests.pop(node, None)
            self.refused[node] = "forgotten"

    def _names(self, doubtful: Container[int]) -> dict[int, Site]:
        return names_of(self.sites, self.claims, self.names, doubtful)

    def _odd(self) -> _Odd:
        """Return what does not go with the rest, and why; the answers are looked at once while none comes or goes."""
        there = tuple(self.answers), tuple(self.refused)
        if self._judged is None or self._judged[0] != there:
            self._judged = there, self._judge()
        return self._judged[1]

    def _judge(self) -> _Odd:
        names = self._names(self.refused)
        found = _Odd(same_key([names[node] for node in self.answers]), {}, {}, {})
        said = {node: kind for node, a in self.answers.items() if node not in found.odd and (kind := self.kind(a))}
        if said:
            before = next((f"images of shape {one.shape}" for one in self.kept.values()), None)
            common = before or in_common({names[node].name: kind for node, kind in said.items()})
            found.odd.update({n: f"{kind}; needed: {common}, as of most" for n, kind in said.items() if kind != common})
        sets = {
            node: answer.payload
            for node, answer in self.answers.items()
            if isinstance(answer.payload, SyntheticSet) and node not in found.odd
        }
        if not sets:
            return found
        for node, one in sets.items():
            self._digests[node] = self._digests.get(node) or part_digests(one)
        stays = self.kept.keys() - {names[node].name for node in sets}
        kept_digests = {name: self._kept_digests[name] for name in stays}
        copies = repeated(names, sets, self._digests, kept_digests)
        found.odd.update(copies.whole)
        found.rest.update(copies.rest)
        found.thinned.update(copies.said)
        sets = {node: copies.rest.get(node, one) for node, one in sets.items() if node not in copies.whole}
        renewed = {names[node].name for node in sets}
        kept = {name: one for name, one in self.kept.items() if name not in renewed}
        held = {f"{node}": Held(one, self.answers[node].nbytes) for node, one in sets.items()}
        held |= {f"kept {name}": Held(one, one.nbytes) for name, one in kept.items()}
        gone = over_limits(held, self.limits.together)
        found.odd.update({node: gone[f"{node}"] for node in sets if f"{node}" in gone})
        found.outgrown.update({name: gone[f"kept {name}"] for name in kept if f"kept {name}" in gone})
        return found

    @cached_property
    def _kept_digests(self) -> dict[str, tuple[str, ...]]:
        return {name: part_digests(one) for name, one in self.kept.items()}


class _Odd(NamedTuple):
    """What does not go with the rest."""

    odd: dict[int, str]  # whose answers are left out, by node, and why
    outgrown: dict[str, str]  # which kept sets are too large, by name, and why
    rest: dict[int, SyntheticSet]  # what is left of sets of which others sent some parts, by node
    thinned: dict[str, str]  # of whom that is, by name, and why


def kind_of(answer: Answer[Any]) -> str:
    """Return in words what sets must have in common to be joined; nothing of other answers."""
    return f"images of shape {answer.payload.shape}" if isinstance(answer.payload, SyntheticSet) else ""


def log_odd(server_round: int, inbox: Inbox) -> None:
    """Say which kept sets are left out, and of which sets some parts are."""
    for name, reason in inbox.outgrown().items():
        _LOG.warning("round %d: the set that %s sent earlier is left out: %s", server_round, name, reason)
    for name, reason in inbox.thinned().items():
        _LOG.warning("round %d: of the set of %s, %s", server_round, name, reason)
