"""Replies become answers and refusals, by site; nothing in a reply is trusted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID

from fedcondense.data import Spec
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.payloads import Payload
from fedcondense.flower.serialised import message_bytes
from fedcondense.flower.sites import names_of, natural
from fedcondense.flower.together import Held, in_common, normalised, over_limits
from fedcondense.flower.untrusted import safe_text, some_names
from fedcondense.flower.wire import own_version, read_answer
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Mailbox", "Refusal", "ReplyLimits", "Sent", "by_name", "check_normalisation", "check_set", "kind_of"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


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


class Sent(NamedTuple):
    """A question that goes out: to whom, and what its answer is."""

    message: Message
    site: Site
    payload: type[Payload]


class Mailbox:
    """What comes back in one stage of a round: each reply is read as it arrives, and they are judged together.

    A reply belongs to the node that its question was sent to, and counts if that node sent it; an error may also be one
    that the SuperLink makes up for a dead node. A second reply to one question, or one to another round's, is passed
    over.

    Args:
        sent: The questions; sending gives them their message ids.
        limits: What replies may hold, each and together.
        examine: Raises UntrustedSetError for an answer that a strategy cannot take; by default it takes all.
        kind: Says in words what an answer must have in common with the others, or nothing.
        kept: Sets of earlier rounds, by the names of their sites: they count where their site sends no new one.
        names: Of sites that are known, by their keys (`names_of`).
        again: Returns what a site that refuses is asked instead, or None; once per site.
    """

    def __init__(
        self,
        sent: Sequence[Sent],
        limits: ReplyLimits,
        examine: Callable[[Answer[Any]], None] = lambda answer: None,
        kind: Callable[[Answer[Any]], str] | None = None,
        kept: Mapping[str, SyntheticSet] | None = None,
        names: Mapping[str, str] | None = None,
        again: Callable[[Site, str], Sent | None] = lambda site, reason: None,
    ) -> None:
        self.sent, self.limits, self.examine, self.kind = tuple(sent), limits, examine, kind or kind_of
        self.pushed, self.again = self.sent, again  # all that was asked, those who refused and were asked again twice
        self.kept, self.names = dict(kept or {}), dict(names or {})
        self.answers: dict[int, Answer[Payload]] = {}  # by node, under the names that sites are registered by
        self.claims: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self._by_id: dict[str, Sent] = {}

    def take(self, message: Message) -> bool:
        """Read a reply; say whether it is a usable answer, as far as it alone can tell."""
        if not self._by_id:
            self._by_id = {sent.message.metadata.message_id: sent for sent in self.sent}
        question = self._by_id.get(message.metadata.reply_to_message_id)
        if question is None or question.site.node in self.answers or question.site.node in self.refused:
            return False
        site = question.site
        if message.metadata.src_node_id not in (site.node, *([SUPERLINK_NODE_ID] if message.has_error() else [])):
            return False  # another node's, under this one's name
        if message.has_error():
            self.refused[site.node] = _explained(message.error.reason or f"error {message.error.code} without a reason")
            return False
        try:
            received = read_answer(message.content, question.payload, self.limits.limits, self.limits.classes)
            self.claims[site.node] = received.about.site
            if isinstance(received.payload, SyntheticSet):
                check_set(received.payload, self.limits)
            nbytes = message_bytes(message)
            numbers = received.num_examples, received.seconds, nbytes, received.about.shares
            answer = Answer(site, received.payload, *numbers)
            self.examine(answer)
        except UntrustedSetError as broken:
            self.refused[site.node] = safe_text(str(broken))
            return False
        except Exception as surprise:  # what a sender thought of and nobody here did ends this answer, not the round
            _LOG.debug("the answer of node %d", site.node, exc_info=True)
            self.refused[site.node] = safe_text(f"cannot be used ({type(surprise).__name__}: {surprise})")
            return False
        self.answers[site.node] = answer
        return True

    def second(self) -> list[Sent]:
        """Return what is to be asked of those who refused and may be asked again; it is for the caller to push."""
        asked_twice = {sent.site.node for sent in self.pushed if sent not in self.sent}
        more = {}
        for sent in self.sent:
            node = sent.site.node
            question = self.again(sent.site, self.refused[node]) if node in self.refused else None
            if question is not None and node not in asked_twice:
                more[node] = question
                del self.refused[node]
        self.sent = tuple(more.get(sent.site.node, sent) for sent in self.sent)
        self.pushed += tuple(more.values())
        self._by_id = {}
        return list(more.values())

    def silent(self) -> list[Site]:
        """Return who has not answered yet."""
        return [s.site for s in self.sent if s.site.node not in self.answers and s.site.node not in self.refused]

    def open(self) -> set[str]:
        """Return the ids of the questions that nobody has answered yet: another node's reply answers none."""
        nodes = {site.node for site in self.silent()}
        return {sent.message.metadata.message_id for sent in self.sent if sent.site.node in nodes}

    def usable(self) -> int:
        """Return how many answers would be left if nobody else sent one."""
        try:
            return len(self.answers) - len(self._odd()[0])
        except UntrustedSetError:
            return 0

    def sorted(self) -> tuple[list[Answer[Payload]], list[Refusal]]:
        """Return usable answers and refusals by the names of their sites, whatever order they arrived in.

        Raises:
            UntrustedSetError: Answers of several kinds came, and as many of one as of another.
        """
        odd, _ = self._odd()
        refused = {**self.refused, **odd, **{s.node: "no reply within the deadline" for s in self.silent()}}
        names = self._names(refused)
        answers = [a._replace(site=names[node]) for node, a in self.answers.items() if node not in odd]
        answers.sort(key=lambda answer: natural(answer.site.name))
        sets = [answer.payload for answer in answers if isinstance(answer.payload, SyntheticSet)]
        before = list(self.kept.values())  # they have a say in what is a median, and stay as they are
        scaled = iter(normalised([*before, *sets], self.limits.mean, self.limits.std)[len(before) :])
        answers = [a._replace(payload=next(scaled)) if isinstance(a.payload, SyntheticSet) else a for a in answers]
        refusals = [Refusal(names[node], reason) for node, reason in refused.items()]
        return answers, sorted(refusals, key=lambda refusal: natural(refusal.site.name))

    def outgrown(self) -> dict[str, str]:
        """Return which kept sets are too large beside the others, by name, and why."""
        return self._odd()[1]

    def _names(self, doubtful: Container[int]) -> dict[int, Site]:
        return names_of([sent.site for sent in self.sent], self.claims, self.names, doubtful)

    def _odd(self) -> tuple[dict[int, str], dict[str, str]]:
        """Return who does not go with the others, by node, and which kept sets do not, by name; and why."""
        names = self._names(self.refused)
        said = {node: kind for node, answer in self.answers.items() if (kind := self.kind(answer))}
        odd = {}
        if said:
            before = next((f"images of shape {one.shape}" for one in self.kept.values()), None)
            common = before or in_common({names[node].name: kind for node, kind in said.items()})
            odd = {node: f"{kind}; needed: {common}, as of most" for node, kind in said.items() if kind != common}
        sets = {
            node: Held(answer.payload, answer.nbytes)
            for node, answer in self.answers.items()
            if isinstance(answer.payload, SyntheticSet) and node not in odd
        }
        if not sets:
            return odd, {}
        kept = {name: one for name, one in self.kept.items() if name not in {names[node].name for node in sets}}
        held = {f"{node}": one for node, one in sets.items()}
        held |= {f"kept {name}": Held(one, one.nbytes) for name, one in kept.items()}
        gone = over_limits(held, self.limits.together)
        odd |= {node: gone[f"{node}"] for node in sets if f"{node}" in gone}
        return odd, {name: gone[f"kept {name}"] for name in kept if f"kept {name}" in gone}


def check_set(synthetic: SyntheticSet, limits: ReplyLimits) -> None:
    """Check what a well-formed set says against what was asked for.

    Raises:
        UntrustedSetError: It says something else.
    """
    if limits.shape is not None and synthetic.shape != limits.shape:
        raise UntrustedSetError(f"images of shape {synthetic.shape}; needed: {limits.shape}")
    if limits.classes is not None and not set(synthetic.classes) <= set(limits.classes):
        extra = [name for name in synthetic.classes if name not in limits.classes]
        raise UntrustedSetError(f"classes {some_names(extra)} are not among the {len(limits.classes)} of this run")
    if not len(synthetic):
        raise UntrustedSetError("holds no images")
    largest = max((max(part.record.counts, default=0) for part in synthetic.parts), default=0)
    if largest > limits.records:
        raise UntrustedSetError(f"claims to stand for {largest} records of a class; allowed: {limits.records}")
    for part in synthetic.parts:
        try:
            check_normalisation(part.record.mean, part.record.std)
        except SettingError as impossible:
            raise UntrustedSetError(str(impossible)) from None
        # Floats that are finite may still overflow when they are decoded; bytes cannot.
        if any(dtype.is_floating_point for dtype in part.parametrization.storage.values()):
            images = part.decode().images
            if not bool(torch.isfinite(images).all()) or float(images.min()) < -0.5 or float(images.max()) > 1.5:
                raise UntrustedSetError("decodes to pixels far outside of [0, 1]")


def kind_of(answer: Answer[Any]) -> str:
    """Return in words what sets must have in common to be joined; nothing of other answers."""
    return f"images of shape {answer.payload.shape}" if isinstance(answer.payload, SyntheticSet) else ""


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a mean or deviation that no pixels in [0, 1] have; a node does so before it works, a server on arrival.

    Raises:
        SettingError: It is none.
    """
    for name, given in (("mean", mean), ("std", std)):
        if not all(0 <= value <= 1 for value in given) or (name == "std" and min(given, default=1) <= 0):
            least = "0" if name == "mean" else "above 0"
            raise SettingError(f"pixels of {name} {tuple(given)}; possible of pixels in [0, 1]: {least} to 1")


def _explained(reason: str) -> str:
    """Return an error's last line; where a node does not know a task, what its people can do."""
    if "function registered with name" in reason:
        said = safe_text(reason)
        known = f"install fedcondense {own_version()} there, or name the task: make_client_app(..., tasks=[...])"
        return f"{said[:120]}: this node does not know the task; {known}"
    return safe_text(reason)


def by_name(answers: Sequence[Answer[Any]]) -> dict[str, SyntheticSet]:
    """Return sets by the names of their sites."""
    return {answer.site.name: answer.payload for answer in answers}
