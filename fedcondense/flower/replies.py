"""Replies become answers and refusals, by site; nothing in a reply is trusted."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from fedcondense.data.augment import check_augmentations
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.held import is_held, once_more
from fedcondense.flower.inbox import GONE, Inbox, Refusal, ReplyLimits, kind_of
from fedcondense.flower.payloads import Payload
from fedcondense.flower.serialised import bytes_of_each, message_bytes
from fedcondense.flower.untrusted import safe_text, some_names
from fedcondense.flower.wire import own_version, read_answer
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "Mailbox",
    "Refusal",
    "ReplyLimits",
    "Sent",
    "by_name",
    "check_normalisation",
    "check_set",
    "is_gone",
    "kind_of",
]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_UNAVAILABLE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)
_WAITED_S = 30.0  # a node that says sooner than this that it holds its answer does not wait, and is asked no more


class Sent(NamedTuple):
    """A question that goes out: to whom, and what its answer is."""

    message: Message
    site: Site
    payload: type[Payload]


class Mailbox(Inbox):
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
        again: Returns what a site that refuses is asked instead, or None; once per site. One that holds its answer for
            review is asked the same, as long as it waits for its people.
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
        super().__init__([one.site for one in sent], limits, kind=kind, kept=kept, names=names)
        self.sent, self.examine = tuple(sent), examine
        self.pushed, self.again = self.sent, again  # all that was asked, those who refused and were asked again twice
        self._by_id: dict[str, Sent] = {}
        self._by_node = {one.site.node: one for one in self.sent}
        self._fresh, self._twice = list[int](), set[int]()  # nodes that refused just now, and that were asked again
        self._told: dict[int, float] = {}  # when nodes that hold their answer were asked again

    def bytes_down(self) -> int:
        """Return what the questions take, as they are sent."""
        return sum(bytes_of_each(sent.message for sent in self.pushed))

    def down_by_node(self) -> dict[int, float]:
        """Return what the questions to each node took, as they were sent."""
        down = dict.fromkeys(self._by_node, 0.0)
        for sent, nbytes in zip(self.pushed, bytes_of_each(one.message for one in self.pushed), strict=True):
            down[sent.site.node] += nbytes
        return down

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
        if is_gone(message):
            self.refused[site.node] = GONE
            return False
        if message.has_error():
            return self._refuse(
                site, _explained(message.error.reason or f"error {message.error.code} without a reason")
            )
        try:
            received = read_answer(message.content, question.payload, self.limits.limits, self.limits.classes)
            self.claims[site.node] = received.about.site
            if isinstance(received.payload, SyntheticSet):
                check_set(received.payload, self.limits)
            nbytes = message_bytes(message)
            about = received.about
            numbers = received.num_examples, received.seconds, nbytes, about.shares, about.broken
            answer = Answer(site, received.payload, *numbers)
            self.examine(answer)
        except UntrustedSetError as broken:
            return self._refuse(site, safe_text(str(broken)))
        except Exception as surprise:  # what a sender thought of and nobody here did ends this answer, not the round
            _LOG.debug("the answer of node %d", site.node, exc_info=True)
            return self._refuse(site, safe_text(f"cannot be used ({type(surprise).__name__}: {surprise})"))
        self.answers[site.node] = answer
        self.held.discard(site.node)
        return True

    def second(self, seconds: float = math.inf) -> list[Sent]:
        """Return what is to be asked of those who refused and may be asked again; it is for the caller to push.

        Args:
            seconds: How long there is for an answer.
        """
        more = {}
        for node in sorted(set(self._fresh)):
            question = None
            if node in self.held:
                question = self._once_more(node, seconds)
            elif node not in self._twice:
                question = self.again(self._by_node[node].site, self.refused[node])
                self._twice |= {node} if question is not None else set()
            if question is not None:
                more[node] = question
                del self.refused[node]
        self._fresh = []
        if more:
            self._by_node |= more
            self.sent = tuple(self._by_node[sent.site.node] for sent in self.sent)
            self.pushed += tuple(more.values())
            self._by_id = {}
        return list(more.values())

    def _once_more(self, node: int, seconds: float) -> Sent | None:
        """Return the question for a node that holds its answer, which may wait now; None: it was told, and did not."""
        now = time.monotonic()
        if now - self._told.get(node, -_WAITED_S) < _WAITED_S:
            return None
        self._told[node] = now
        asked = self._by_node[node]
        about = asked.message.metadata
        content = once_more(asked.message.content, seconds)
        message = Message(content, dst_node_id=node, message_type=about.message_type, group_id=about.group_id)
        return asked._replace(message=message)

    def _refuse(self, site: Site, reason: str) -> bool:
        self.refused[site.node] = reason
        (self.held.add if is_held(reason) else self.held.discard)(site.node)
        self._fresh.append(site.node)
        return False

    def open(self) -> set[str]:
        """Return the ids of the questions that nobody has answered yet: another node's reply answers none."""
        nodes = {site.node for site in self.silent()}
        return {sent.message.metadata.message_id for sent in self.sent if sent.site.node in nodes}


def is_gone(reply: Message) -> bool:
    """Say whether a reply is what Flower says in the place of a node that is not there any more."""
    return reply.has_error() and reply.error.code in _UNAVAILABLE


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
            check_augmentations(part.record.augmentation)
            check_normalisation(part.record.mean, part.record.std)
        except SettingError as impossible:
            raise UntrustedSetError(str(impossible)) from None
        # Floats that are finite may still overflow when they are decoded; bytes cannot.
        if any(dtype.is_floating_point for dtype in part.parametrization.storage.values()):
            images = part.decode().images
            if not bool(torch.isfinite(images).all()) or float(images.min()) < -0.5 or float(images.max()) > 1.5:
                raise UntrustedSetError("decodes to pixels far outside of [0, 1]")


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
