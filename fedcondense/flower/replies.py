"""Replies become answers and refusals, by site; nothing in a reply is trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from flwr.app import Message

from fedcondense.data import Spec
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.payloads import Payload
from fedcondense.flower.serialised import message_bytes
from fedcondense.flower.sites import names_of, natural
from fedcondense.flower.wire import own_version, read_answer, safe_text, some_names
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Mailbox", "Refusal", "ReplyLimits", "Sent", "by_name", "check_set"]

_LEAST = {"mean": 0.0, "std": 0.02}


@dataclass(frozen=True)
class ReplyLimits:
    """What a reply may hold; whatever breaks it is refused by name and the round goes on.

    Args:
        limits: Caps of the payload's bytes, and of what a set decodes to, checked before memory is allocated.
        shape: (C, H, W) that images must have; None: that of most replies.
        classes: The class names that may occur; None: any, and the joined set has their union.
        mean: What images are normalised by, one value per channel, whatever the sender normalised its own by; None: as
            it says, within what pixels in [0, 1] can have, since other scales could blow up everybody's training.
        std: Likewise.
        records: How many real records a site may claim for a class: what its images weigh if asked for.
    """

    limits: Limits = field(
        default_factory=lambda: Limits(16 << 20, decoded=50_000, decoded_bytes=512 << 20, header=1 << 20)
    )
    shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    records: int = 10_000_000

    @classmethod
    def of(cls, spec: Spec) -> ReplyLimits:
        """Expect sets for a data set that the server knows."""
        return cls(shape=spec.shape, classes=spec.classes, mean=spec.mean, std=spec.std)

    @classmethod
    def none(cls, spec: Spec) -> ReplyLimits:
        """Expect sets of any size, from nodes in the process of whoever asks."""
        wide = Limits(nbytes=1 << 40, decoded=1 << 40, decoded_bytes=1 << 50, header=1 << 30, names=1 << 40)
        return cls(wide, spec.shape, spec.classes, spec.mean, spec.std, 2**62)


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
    """What comes back in one stage of a round, read as it arrives.

    A reply belongs to the node that its question was sent to: an error that the SuperLink makes up for a dead node
    carries another node id. A second reply to one question, or one to another round's, is passed over.

    Args:
        sent: The questions; sending gives them their message ids.
        limits: What a reply may hold.
        examine: Raises UntrustedSetError for an answer that a strategy cannot take; by default it takes all.
    """

    def __init__(
        self,
        sent: Sequence[Sent],
        limits: ReplyLimits,
        examine: Callable[[Answer[Any]], None] = lambda answer: None,
    ) -> None:
        self.sent, self.limits, self.examine = tuple(sent), limits, examine
        self.answers: dict[int, Answer[Payload]] = {}  # by node, under the names that sites are registered by
        self.claims: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self._classes: set[str] = set()
        self._by_id: dict[str, Sent] = {}

    def take(self, message: Message) -> bool:
        """Read a reply; say whether it is a usable answer."""
        if not self._by_id:
            self._by_id = {sent.message.metadata.message_id: sent for sent in self.sent}
        question = self._by_id.get(message.metadata.reply_to_message_id)
        if question is None or question.site.node in self.answers or question.site.node in self.refused:
            return False
        site = question.site
        if message.has_error():
            self.refused[site.node] = _explained(message.error.reason or f"error {message.error.code} without a reason")
            return False
        try:
            received = read_answer(message.content, question.payload, self.limits.limits)
            self.claims[site.node] = received.about.site
            payload = received.payload
            if isinstance(payload, SyntheticSet):
                payload = self._checked(payload)
            nbytes = message_bytes(message)
            answer = Answer(site, payload, received.num_examples, received.seconds, nbytes)
            self.examine(answer)
        except UntrustedSetError as broken:
            self.refused[site.node] = safe_text(str(broken))
            return False
        self.answers[site.node] = answer
        return True

    def silent(self) -> list[Site]:
        """Return who has not answered yet."""
        return [s.site for s in self.sent if s.site.node not in self.answers and s.site.node not in self.refused]

    def sorted(self) -> tuple[list[Answer[Payload]], list[Refusal]]:
        """Return usable answers and refusals by the names of their sites; of several image shapes the rarer go.

        Of shapes that equally many have, the one of the first site by name stays.
        """
        names = names_of([sent.site for sent in self.sent], self.claims)
        answers = [answer._replace(site=names[node]) for node, answer in self.answers.items()]
        answers.sort(key=lambda answer: natural(answer.site.name))
        refused = dict(self.refused)
        shapes = Counter(a.payload.shape for a in answers if isinstance(a.payload, SyntheticSet))
        for answer in list(answers):
            if isinstance(answer.payload, SyntheticSet) and answer.payload.shape != shapes.most_common(1)[0][0]:
                most = shapes.most_common(1)[0][0]
                refused[answer.site.node] = f"images of shape {answer.payload.shape}; those of most others: {most}"
                answers.remove(answer)
        refused |= {site.node: "no reply within the deadline" for site in self.silent()}
        refusals = [Refusal(names[node], reason) for node, reason in refused.items()]
        return answers, sorted(refusals, key=lambda refusal: natural(refusal.site.name))

    def _checked(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Hold a well-formed set against what was asked for, and return it as it is to be normalised."""
        check_set(synthetic, self.limits)
        if len(self._classes.union(synthetic.classes)) > self.limits.limits.classes:
            raise UntrustedSetError(f"with it the sets name more than {self.limits.limits.classes} classes")
        self._classes.update(synthetic.classes)
        normalised = {"mean": self.limits.mean, "std": self.limits.std}
        return synthetic.with_record(**{name: value for name, value in normalised.items() if value is not None})


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
        for name, given in (("mean", part.record.mean), ("std", part.record.std)):
            least = _LEAST[name]
            if not all(least <= value <= 1 for value in given):
                raise UntrustedSetError(f"pixels of {name} {given}; possible of pixels in [0, 1]: {least} to 1")
        # Floats that are finite may still overflow when they are decoded; bytes cannot.
        if any(code.is_floating_point() for code in part.codes.values()):
            images = part.decode().images
            if not bool(torch.isfinite(images).all()) or float(images.min()) < -0.5 or float(images.max()) > 1.5:
                raise UntrustedSetError("decodes to pixels far outside of [0, 1]")


def _explained(reason: str) -> str:
    """Return an error's last line; where a node does not know a task, what its people can do."""
    if "function registered with name" in reason:
        said = safe_text(reason)
        known = f"install fedcondense {own_version()} there, or name the task: make_client_app(..., tasks=[...])"
        return f"{said[:120]}: this node does not know the task; {known}"
    return safe_text(reason)


def by_name(answers: Sequence[Answer[SyntheticSet]]) -> dict[str, SyntheticSet]:
    """Return sets by the names of their sites."""
    return {answer.site.name: answer.payload for answer in answers}
