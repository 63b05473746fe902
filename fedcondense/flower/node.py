"""What a node does about a question: its config first, then caps and ledger, then the work, then what it keeps."""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fedcondense.ambient import in_own_state
from fedcondense.condensing import Checkpoint, Own
from fedcondense.condensing.meaning import meaning
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.deadline import OutOfTime, stop_at
from fedcondense.errors import OutputError, SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Job, Keeper, Node, Question
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.held import HELD, TOLD
from fedcondense.flower.holding import Holding
from fedcondense.flower.kept import Kept
from fedcondense.flower.ledger import Charge, Ledger
from fedcondense.flower.node_config import KEPT_BYTES, Desk, Placed, held_path, ledger_of, place_of
from fedcondense.flower.node_log import note_outcome
from fedcondense.flower.payloads import Payload, Weights
from fedcondense.flower.replies import check_normalisation
from fedcondense.flower.serialised import content_bytes
from fedcondense.flower.untrusted import safe_text
from fedcondense.flower.wire import CARRIED, WIRE, About, carried_by, own_version, pack_answer, read_question
from fedcondense.identity import identity
from fedcondense.progress import reporting
from fedcondense.sets.format import Limits

__all__ = ["answer", "check_carried", "check_seen", "check_wire", "drawer_of", "kept_by"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_STATE = "fedcondense"  # a node's state in a run
_STATE_BYTES = 64 << 20
_MESSAGE = 160  # bytes of a message around its content: its name, kind and numbers, each as wide as it may become


class _Drawer(NamedTuple):
    """What a task keeps: nodes of one process may share a folder, and must not read each other's secrets.

    Where the node's config names no folder, it also goes into the state that Flower keeps of a node in a run: each
    message of a deployment is served by a process of its own, whose memory ends with it.
    """

    kept: Kept
    place: int
    context: Context

    def get(self, name: str) -> bytes | None:
        """Return what this node put under a name."""
        blob = self.kept.get(f"{self.place}.{name}")
        return self._in_run().get(name) if blob is None else blob

    def put(self, name: str, blob: bytes) -> None:
        """Keep bytes under a name of this node's own."""
        self.kept.put(f"{self.place}.{name}", blob)
        entries = {**self._in_run(), name: blob}
        if self.kept.folder is None and sum(map(len, entries.values())) <= _STATE_BYTES:
            self.context.state[_STATE] = ConfigRecord(dict(entries))

    def _in_run(self) -> dict[str, bytes]:
        record = self.context.state.get(_STATE)
        entries = record.items() if isinstance(record, ConfigRecord) else ()
        return {name: blob for name, blob in entries if isinstance(blob, bytes)}


def kept_by(placed: Placed, desk: Desk) -> Kept:
    """Return where a node keeps things: the app's folder, that of its config, or its process's memory."""
    folder = desk.cache or (Path(placed.config.cache) if placed.config.cache else None)
    if folder is None and (held := held_path(placed, desk)) is not None:  # an equal question must get an equal answer
        folder = held / "kept"
    return desk.memory if folder is None else Kept(folder, KEPT_BYTES)


def drawer_of(kept: Kept, place: int, context: Context) -> Keeper:
    """Return the part of what is kept that is a node's own."""
    return _Drawer(kept, place, context)


@in_own_state
def answer(
    content: RecordDict, context: Context, kind: type[Question], load: Callable[[Context], Data], desk: Desk
) -> RecordDict:
    """Answer a question: read the node's config and the question, then the data, look at the cost, charge it, work.

    Args:
        content: The message's.
        context: Of the node.
        kind: The node's own class for what is asked.
        load: Returns the node's data.
        desk: What the app settles.

    Raises:
        SettingError: The node refuses; the text may travel.
        UntrustedSetError: What the question carries is not sound.
    """
    began = time.monotonic()
    placed = place_of(context, desk)
    config, caps = placed.config, placed.caps
    about = About.of(content)
    check_carried(kind, caps)
    if config.send == "ask" and not (kind.evaluates and caps.allow_evaluate):
        check_seen(kind)
    task = read_question(content, kind, Limits(nbytes=caps.max_memory))
    if config.threads:
        torch.set_num_threads(config.threads)
    loaded, place, name = load(context), placed.place(context), placed.name(context)
    data, apart = placed.enough(loaded), placed.apart(loaded) if kind.evaluates else None
    check_normalisation(data.spec.mean, data.spec.std)
    kept, records = kept_by(placed, desk), len(data if apart is None else apart)
    key = _key(task, about.round, place, data, apart)
    payload = None if kept.folder is None else _kept_answer(kept, key, kind)
    if payload is None:
        path = None if kept.folder is None else kept.folder / f"{key}.checkpoint"
        checkpoint = None if path is None else Checkpoint(path, resume=True, anew=True)
        report = None if desk.progress is None else (lambda at, tell=desk.progress: tell(place, at))
        until = began + caps.max_seconds if math.isfinite(caps.max_seconds) else math.inf
        takes = partial(_takes, about, (name, place), records, data.spec.classes, len(loaded.broken))
        keeper = drawer_of(kept, place, context)
        node = Node(name, caps, until, keeper, report, place, checkpoint, takes, apart)
        payload = _work(task, Own(data), node, ledger_of(placed, desk), about)
        if kept.folder is not None:
            _keep_answer(kept, key, payload)
        if checkpoint is not None:
            checkpoint.remove()
    else:
        _check_bytes(len(payload.to_bytes()), caps)
        note_outcome("kept")
    held = held_path(placed, desk)
    if held is not None and not kind.evaluates:
        _reviewed(Holding(held), payload, placed, name, task, about, records, data, context)
    seconds = float(getattr(payload, "seconds", 0.0)) or time.monotonic() - began
    shares, broken = config.share_with == "sites", len(loaded.broken)
    answer = pack_answer(payload, about, (name, place), records, seconds, data.spec.classes, shares, broken)
    _LOG.info("%s sends %d bytes for %s, %.1f s", name, content_bytes(answer), task.name, seconds)
    return answer


def _reviewed(
    holding: Holding,
    payload: Payload,
    placed: Placed,
    name: str,
    task: Question,
    about: About,
    records: int,
    data: Data,
    context: Context,
) -> None:
    """Return when this site's people agreed that an answer leaves, and let its bytes go then."""
    counts = dict(zip(data.spec.classes, data.counts.tolist(), strict=True))
    shared = placed.config.share_with == "sites"
    held = holding.hold(
        payload.to_bytes(),
        site=name,
        task=task.name,
        round=about.round,
        version=safe_text(about.version),
        records=records,
        counts={label: n for label, n in counts.items() if n},
        seen="the server, and the other sites of its runs" if shared else "the server",
    )
    config = holding.note(context.node_config)
    command = shlex.join(["fedcondense", "review", str(config), held.sha256[:8]])
    most = about.waits if about.answers >= TOLD else math.inf
    seconds = min(placed.config.review_seconds, most)
    try:
        holding.wait(held, seconds, command)
    except SettingError as error:
        note_outcome("held" if HELD in str(error) else "withheld")
        raise
    holding.forget(held)
    note_outcome("answered", f"reviewed, payload {held.sha256}")


def _takes(
    asked: About, site: tuple[str, int], records: int, classes: Sequence[str], broken: int, payload: Payload
) -> int:
    """Return how many bytes an answer takes at most, as Flower sends it."""
    return content_bytes(pack_answer(payload, asked, site, records, 1e6, classes, True, broken)) + _MESSAGE


def _kept_answer(kept: Kept, key: str, kind: type[Question]) -> Payload | None:
    """Return the answer that was kept, or None: there is none, or another version wrote it."""
    blob = kept.get(key)
    try:
        return None if blob is None else kind.payload.from_bytes(blob)
    except UntrustedSetError as error:
        _LOG.warning("the answer kept as %s cannot be read (%s); it is made again", key, error)
        kept.discard(key)
        return None


def _keep_answer(kept: Kept, key: str, payload: Payload) -> None:
    """Keep an answer where there is room; it is sent in any case."""
    try:
        kept.put(key, payload.to_bytes())
    except (OutputError, SettingError) as error:
        _LOG.warning("the answer is sent, but not kept: %s", error)


def check_wire(about: About) -> None:
    """Refuse a question of a wire that this node does not read yet.

    Raises:
        SettingError: One line with both versions; it travels to the server.
    """
    if about.wire > WIRE:
        raise SettingError(
            f"the server speaks wire {about.wire} (fedcondense {about.version}), this node wire {WIRE} (fedcondense "
            f"{own_version()}); update fedcondense here"
        )


def check_carried(kind: type[Question], caps: Caps) -> None:
    """Refuse a task that carries weights, unless the node's config allows them."""
    kinds = [carried for carried, _ in carried_by(kind).values()]
    is_allowed = caps.allow_weights or (kind.evaluates and caps.allow_evaluate)
    if (Weights in kinds or Packed in kinds) and not is_allowed:
        key = "allow-evaluate" if kind.evaluates else "allow-weights"
        raise SettingError(f"task {kind.name!r} carries weights; this node's config has no {key} = true")


def check_seen(kind: type[Question]) -> None:
    """Refuse a task about weights at a node whose answers are looked at before they leave."""
    if {Weights, Packed} & {kind.payload, *(carried for carried, _ in carried_by(kind).values())}:
        raise SettingError(f"task {kind.name!r} is about weights, which nobody can look at: this node has send = ask")


def _work(task: Question, holder: Holder, node: Node, ledger: Ledger | None, about: About) -> Payload:
    """Prepare, look at the cost, charge it, and do it."""
    said = f"{node.name}, {task.name}"
    with _timed(task, node), reporting(said, bar=False, log=_LOG):
        job: Job[Payload] = task.prepare(holder, node)
    node.caps.check(job.cost)
    if ledger is not None:
        cost = job.cost
        charge = Charge(images=cost.images, decoded=cost.decoded, nbytes=cost.nbytes, epsilon=cost.epsilon)
        ledger.charge(f"{task.name}, round {about.round}, asked by fedcondense {about.version}", charge)
    takes = f"about {max(1, round(job.cost.seconds))} s, " if job.cost.seconds else ""  # 0: nobody knows
    asked = (node.name, task.name, about.round, about.version, takes, job.cost.nbytes)
    _LOG.info("%s is asked for %s (round %d, fedcondense %s): %sat most %d bytes", *asked)
    with _timed(task, node), reporting(said, bar=False, log=_LOG):
        payload = job.run()
    _check_bytes(len(payload.to_bytes()), node.caps)
    return payload


@contextmanager
def _timed(task: Question, node: Node) -> Iterator[None]:
    """Refuse what is not done by the end of the node's time."""
    try:
        with stop_at(node.until):
            yield
    except OutOfTime:
        limit = f"this node allows {node.caps.max_seconds:.0f} seconds (max-seconds)"
        raise SettingError(f"{task.name} was not done in time; {limit}: ask for less") from None


def _check_bytes(nbytes: int, caps: Caps) -> None:
    if nbytes > caps.max_bytes:
        raise SettingError(
            f"a reply of {nbytes} bytes; this node sends at most {caps.max_bytes}: ask for a smaller ipc"
        )


def _key(task: Question, server_round: int, place: int, data: Data, apart: Data | None = None) -> str:
    """Name an answer by everything that it follows from: the same question in another round is another question."""
    carried = {
        item.name: hashlib.sha256(value.to_bytes()).hexdigest() if isinstance(value, CARRIED) else value
        for item in fields(task)  # type: ignore[arg-type]
        for value in [getattr(task, item.name)]
    }
    methods = meaning(type(task), *(value for value in carried.values() if isinstance(value, str)))
    told = (task.name, carried, methods, place, data.fingerprint, data.spec, own_version(), server_round)
    more = () if apart is None else (apart.fingerprint,)
    return hashlib.sha256(identity((*told, *more)).encode()).hexdigest()[:32]
