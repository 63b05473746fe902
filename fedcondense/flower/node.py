"""What a node does about a question: its config first, then caps and ledger, then the work, then what it keeps."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple, get_type_hints

import torch
from flwr.app import Context, RecordDict

from fedcondense.condensing import Checkpoint, Own, Progress
from fedcondense.contract import Holder
from fedcondense.data import Data
from fedcondense.deadline import OutOfTime, stop_at
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Job, Node, Question
from fedcondense.flower.kept import Kept
from fedcondense.flower.ledger import Allowance, Charge, Ledger
from fedcondense.flower.payloads import Payload, Weights
from fedcondense.flower.settings import keys_of, number, read_all
from fedcondense.flower.sites import is_name
from fedcondense.flower.wire import CARRIED, NO_DATA, WIRE, About, own_version, pack_answer, read_question
from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.format import Limits

__all__ = [
    "KEPT_BYTES",
    "Desk",
    "NodeConfig",
    "Placed",
    "answer",
    "check_carried",
    "ledger_of",
    "ledger_path",
    "place_of",
]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
KEPT_BYTES = 1 << 30
"""What a node keeps between messages, all in all."""

_LIKE_OURS = ("max-", "min-", "allow-", "life-", "share-")


@dataclass(frozen=True)
class NodeConfig:
    """What a node's own config says besides `Caps` and `Allowance`, by these names in kebab-case; a server cannot.

    Args:
        name: What the site is called, unless it is registered by a name: letters, digits, ``-_.``.
        partition_id: The node's number: its part where a data set is divided, and the root of its seeds.
        num_partitions: How many parts `data` is divided into; 0: it is the node's own as a whole.
        data: What the node holds, as `load_data` takes it; empty: a public data set that the run names.
        data_root: Where that lies; empty: the variable FEDCONDENSE_DATA.
        partition_by: How the node's own `data` are divided.
        alpha: As `partition_by`.
        partition_seed: As `partition_by`.
        min_partition_size: As `partition_by`.
        device: Where it computes; empty: a GPU if there is one.
        threads: Of torch; 0: as many as torch takes.
        cache: A folder that keeps answers, checkpoints and decoded data; empty: nothing is kept.
        ledger: The file of what was answered over the node's life; empty: one in the home folder for a node with data
            of its own, none for public data.
    """

    name: str = ""
    partition_id: int = -1
    num_partitions: int = number(0, 0)
    data: str = ""
    data_root: str = ""
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)
    device: str = ""
    threads: int = number(0, 0)
    cache: str = ""
    ledger: str = ""


class Placed(NamedTuple):
    """A node's config, read."""

    config: NodeConfig
    caps: Caps
    allowance: Allowance

    def place(self, context: Context) -> int:
        """Return the node's own number, from which its seeds follow."""
        return self.config.partition_id if self.config.partition_id >= 0 else context.node_id % 2**62

    def name(self, context: Context) -> str:
        """Return what the node calls itself."""
        if self.config.name:
            return self.config.name
        return f"client-{self.place(context)}" if self.config.partition_id >= 0 else f"node-{context.node_id}"

    def enough(self, data: Data) -> Data:
        """Return a node's data where it computes, without the classes of fewer records than it asks for.

        Raises:
            SettingError: Nothing is left.
        """
        if not len(data):
            raise SettingError(NO_DATA)
        few = data.counts < self.caps.min_records
        left = data.subset(~few.to(data.device)[data.labels]) if bool(few[data.counts > 0].any()) else data
        if not len(left):
            most = int(data.counts.max())
            needed = f"no class has {self.caps.min_records} records, of which this node asks (min-records)"
            raise SettingError(f"{needed}; its largest has {most}")
        return left.to(self.config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class _Drawer(NamedTuple):
    """What a task keeps: nodes of one process may share a folder, and must not read each other's secrets."""

    kept: Kept
    place: int

    def get(self, name: str) -> bytes | None:
        """Return what this node put under a name."""
        return self.kept.get(f"{self.place}.{name}")

    def put(self, name: str, blob: bytes) -> None:
        """Keep bytes under a name of this node's own."""
        self.kept.put(f"{self.place}.{name}", blob)


class Desk(NamedTuple):
    """What the maker of a client app settles for all its nodes."""

    caps: Caps = Caps()
    allowance: Allowance = Allowance()
    is_counted: bool = True  # by a ledger; not where whoever asks is this process
    cache: Path | None = None
    memory: Kept = Kept(None, KEPT_BYTES)  # of nodes without a folder; shared by all desks that name none
    progress: Callable[[int, Progress], None] | None = None
    is_stock: bool = False  # the installed app: it knows all keys of a node's config, and data are public unless named


def place_of(context: Context, desk: Desk) -> Placed:
    """Read a node's config before anything else is done.

    Keys that are not ours pass where a loader of one's own may read them, unless they look like one of ours. A node of
    the installed app that names no data holds a public data set: its records and what is learned of them are nobody's.

    Raises:
        SettingError: A key that is misspelt or a value that cannot work: all of them in one line.
    """
    bases = (NodeConfig(), desk.caps, desk.allowance)
    known = {key for base in bases for key in keys_of(type(base))}
    given = dict(context.node_config)
    if not desk.is_stock:
        given = {k: v for k, v in given.items() if k in known or k.startswith(_LIKE_OURS) or _is_close(k, known)}
    config, caps, allowance = read_all(bases, given, "this node's config")
    if desk.is_stock and not config.data:  # a public data set is nobody's
        caps = replace(caps, allow_real=True, allow_weights=True)
    if config.name and not is_name(config.name):
        raise SettingError(f"name = {config.name!r} in this node's config; needed: letters, digits, -_. (64 at most)")
    if "partition-id" in given and config.partition_id < 0:
        raise SettingError(f"partition-id = {config.partition_id} in this node's config; needed: 0 or more")
    if config.num_partitions and config.partition_id >= config.num_partitions:
        most = config.num_partitions - 1
        raise SettingError(f"partition-id = {config.partition_id} in this node's config; needed: 0 to {most}")
    return Placed(config, caps, allowance)


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
    if about.wire > WIRE:
        raise SettingError(
            f"the server speaks wire {about.wire} (fedcondense {about.version}), this node wire {WIRE} (fedcondense "
            f"{own_version()}); update fedcondense here"
        )
    check_carried(kind, caps)
    task = read_question(content, kind, Limits(nbytes=caps.max_memory))
    if config.threads:
        torch.set_num_threads(config.threads)
    data, place, name = placed.enough(load(context)), placed.place(context), placed.name(context)
    folder = desk.cache or (Path(config.cache) if config.cache else None)
    kept = desk.memory if folder is None else Kept(folder, KEPT_BYTES)
    key = _key(task, about.round, place, data)
    blob = None if folder is None else kept.get(key)
    if blob is None:
        checkpoint = None if kept.folder is None else Checkpoint(kept.folder / f"{key}.checkpoint", resume=True)
        report = None if desk.progress is None else (lambda at, tell=desk.progress: tell(place, at))
        until = began + caps.max_seconds if math.isfinite(caps.max_seconds) else math.inf
        node = Node(name, caps, until, _Drawer(kept, place), report, place, checkpoint)
        payload = _work(task, Own(data), node, ledger_of(placed, desk), about)
        if folder is not None:
            kept.put(key, payload.to_bytes())
        if checkpoint is not None:
            checkpoint.remove()
    else:
        payload = kind.payload.from_bytes(blob)
        _check_bytes(len(blob), caps)
    seconds = float(getattr(payload, "seconds", 0.0)) or time.monotonic() - began
    _LOG.info("%s sends %d bytes for %s, %.1f s", name, len(payload.to_bytes()), task.name, seconds)
    return pack_answer(payload, about, (name, place), len(data), seconds)


def check_carried(kind: type[Question], caps: Caps) -> None:
    """Refuse a task that carries weights, unless the node's config allows them."""
    if Weights in get_type_hints(kind).values() and not caps.allow_weights:
        raise SettingError(f"task {kind.name!r} carries weights; this node's config has no allow-weights = true")


def _work(task: Question, holder: Holder, node: Node, ledger: Ledger | None, about: About) -> Payload:
    """Prepare, look at the cost, charge it, and do it."""
    job: Job[Payload] = task.prepare(holder, node)
    node.caps.check(job.cost)
    if ledger is not None:
        cost = job.cost
        charge = Charge(images=cost.images, decoded=cost.decoded, nbytes=cost.nbytes, epsilon=cost.epsilon)
        ledger.charge(f"{task.name}, round {about.round}, asked by fedcondense {about.version}", charge)
    asked = f"{node.name} is asked for {task.name} (round {about.round}, fedcondense {about.version})"
    _LOG.info("%s: about %.0f s, %d bytes", asked, job.cost.seconds, job.cost.nbytes)
    try:
        with stop_at(node.until):
            payload = job.run()
    except OutOfTime:
        limit = f"this node allows {node.caps.max_seconds:.0f} seconds (max-seconds)"
        raise SettingError(f"{task.name} was not done in time; {limit}: ask for less") from None
    _check_bytes(len(payload.to_bytes()), node.caps)
    return payload


def _check_bytes(nbytes: int, caps: Caps) -> None:
    if nbytes > caps.max_bytes:
        raise SettingError(
            f"a reply of {nbytes} bytes; this node sends at most {caps.max_bytes}: ask for a smaller ipc"
        )


def ledger_path(placed: Placed, desk: Desk) -> Path | None:
    """Return where a node's life is counted; None where whoever asks is this process, or the data are public."""
    config = placed.config
    if not desk.is_counted or not (config.ledger or config.data):
        return None
    if config.ledger:
        return Path(config.ledger)
    named = f"{config.data}|{config.data_root}|{config.partition_id}|{config.num_partitions}"
    digest = hashlib.sha256(named.encode()).hexdigest()[:16]
    return Path.home() / ".fedcondense" / f"ledger-{digest}.jsonl"


def ledger_of(placed: Placed, desk: Desk) -> Ledger | None:
    """Return the ledger of a node's life, which is begun where there is none; None where nothing is counted."""
    path = ledger_path(placed, desk)
    return None if path is None else Ledger.open(path, placed.allowance)


def _key(task: Question, server_round: int, place: int, data: Data) -> str:
    """Name an answer by everything that it follows from: the same question in another round is another question."""
    carried = {
        item.name: hashlib.sha256(value.to_bytes()).hexdigest() if isinstance(value, CARRIED) else value
        for item in fields(task)  # type: ignore[arg-type]
        for value in [getattr(task, item.name)]
    }
    method = repr(OBJECTIVES.get(str(getattr(task, "objective", ""))))  # one of the same name may have been changed
    told = [task.name, carried, method, place, data.fingerprint, repr(data.spec), own_version()]
    text = json.dumps([*told, server_round], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_close(key: str, known: set[str]) -> bool:
    return bool(difflib.get_close_matches(key, known, n=1, cutoff=0.85))
