"""A node's own config: what it is, what it allows, where it keeps things; read before anything else is done."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context
from torch import Tensor

from fedcondense.arguments import device_of
from fedcondense.condensing import Progress
from fedcondense.data import Data
from fedcondense.data.layouts import SIDES
from fedcondense.errors import SettingError
from fedcondense.flower.apart import HANDFUL, is_apart
from fedcondense.flower.caps import Caps
from fedcondense.flower.kept import Kept
from fedcondense.flower.ledger import Allowance, Ledger
from fedcondense.flower.settings import keys_of, number, place, read, read_all
from fedcondense.flower.sites import is_name
from fedcondense.flower.wire import NO_DATA
from fedcondense.machine import MOST_THREADS, usual_device

__all__ = [
    "KEPT_APART",
    "KEPT_BYTES",
    "Desk",
    "NodeConfig",
    "Placed",
    "held_path",
    "ledger_of",
    "ledger_path",
    "log_path",
    "place_of",
]

KEPT_APART = 0.1
"""Share of each class that a node with data of its own keeps apart, to evaluate networks on."""
KEPT_BYTES = 1 << 30
"""What a node keeps between messages, all in all."""
_OURS = {"max", "min", "maximum", "minimum", "allow", "life", "share", "records", "ipc"}  # words of caps and allowance


@dataclass(frozen=True)
class NodeConfig:
    """What a node's own config says besides `Caps` and `Allowance`, by these names in kebab-case; a server cannot.

    Args:
        name: What the site is called, unless it is registered by a name: letters, digits, ``-_.``.
        partition_id: The node's number: its part where a data set is divided, and the root of its seeds.
        num_partitions: How many parts `data` is divided into; 0: it is the node's own as a whole.
        data: What the node holds, as `load_data` takes it; empty: a public data set that the run names.
        data_root: Where that lies; empty: the variable FEDCONDENSE_DATA.
        size: Pixels a side that its images are brought to; 0: what the run says, or none.
        skip_broken: Leave image files out that cannot be read; the node's log names them. Else none is used.
        partition_by: How the node's own `data` are divided.
        alpha: As `partition_by`.
        partition_seed: As `partition_by`.
        min_partition_size: As `partition_by`.
        device: Where it computes; empty: a GPU if there is one.
        threads: Of torch; 0: as many as torch takes.
        cache: A folder that keeps answers, checkpoints and decoded data; empty: nothing is kept.
        share_with: Who may have the sets that this node sends: ``server`` alone, or other ``sites`` too, to which some
            strategies send them on. A node of public data shares them.
        ledger: The file of what was answered over the node's life; empty: one in the home folder for a node with data
            of its own, none for public data.
        send: ``always``, or ``ask``: an answer waits until somebody here has looked at it (`fedcondense review`).
            Weights cannot be looked at: such a node answers no question that trains or tests some.
        review_seconds: How long an answer waits within one question; then the server is told to ask again later.
        keep_apart: Share of the records of each class that no question sees but one on how good a network is; by
            default 0.1 of the node's own `data`, and of public data what the run says. Classes that would be left with
            fewer than ``min-records`` keep fewer, or none.
        log: The file of who asked what and what left (`fedcondense.flower.node_log`); empty: beside the ledger, with
            ``.log`` behind its name, none where there is no ledger.
    """

    name: str = ""
    partition_id: int = -1
    num_partitions: int = number(0, 0)
    data: str = place()
    data_root: str = place()
    size: int = number(0, 0, SIDES[1])
    skip_broken: bool = False
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)
    device: str = ""
    threads: int = number(0, 0, MOST_THREADS)
    cache: str = place()
    ledger: str = place()
    log: str = place()
    share_with: str = "server"
    send: str = "always"
    review_seconds: float = number(3600.0, 0)
    keep_apart: float | None = number(None, 0, 1)  # type: ignore[arg-type]


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
        """Return what a node learns from, where it computes: nothing kept apart, and no class of too few records.

        Raises:
            SettingError: Nothing is left.
        """
        if not len(data):
            raise SettingError(NO_DATA)
        if self.kept_share:
            data = data.subset(~self._apart(data))
        few = data.counts < self.caps.min_records
        left = data.subset(~few.to(data.device)[data.labels]) if bool(few[data.counts > 0].any()) else data
        if not len(left):
            most = int(data.counts.max())
            needed = f"no class has {self.caps.min_records} records, of which this node asks (min-records)"
            raise SettingError(f"{needed}; its largest has {most}")
        return left.to(self.config.device or usual_device())

    def apart(self, data: Data) -> Data:
        """Return what a node keeps apart of its data, where it computes; empty if that is nothing."""
        return data.subset(self._apart(data)).to(self.config.device or usual_device())

    @property
    def kept_share(self) -> float:
        """The share of each class that is kept apart."""
        if self.config.keep_apart is None:
            return KEPT_APART if self.config.data else 0.0
        return self.config.keep_apart

    def _apart(self, data: Data) -> Tensor:
        return is_apart(data, self.kept_share, max(HANDFUL, self.caps.min_records))


class Desk(NamedTuple):
    """What the maker of a client app settles for all its nodes."""

    caps: Caps = Caps()
    allowance: Allowance = Allowance()
    is_counted: bool = True  # by a ledger; not where whoever asks is this process
    cache: Path | None = None
    memory: Kept = Kept(
        None, KEPT_BYTES
    )  # shared by all desks that name none: what nodes keep where there is no folder, while their process lives
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
        given = {k: v for k, v in given.items() if k in known or _is_like_ours(str(k), known)}
    config, caps, allowance = read_all(bases, given, "this node's config")
    if desk.is_stock and not config.data:  # a public data set is nobody's
        caps = replace(caps, allow_real=True, allow_weights=True)
        config = replace(config, share_with="sites")
        asked = {key: value for key, value in context.run_config.items() if key == "keep-apart"}
        config = read(NodeConfig, asked, "the run's config", config) if config.keep_apart is None else config
    if config.share_with not in ("server", "sites"):
        raise SettingError(f"share-with = {config.share_with!r} in this node's config; needed: server, or sites")
    if config.send not in ("always", "ask"):
        raise SettingError(f"send = {config.send!r} in this node's config; needed: always, or ask")
    if config.name and not is_name(config.name):
        raise SettingError(f"name = {config.name!r} in this node's config; needed: letters, digits, -_. (64 at most)")
    if "partition-id" in given and config.partition_id < 0:
        raise SettingError(f"partition-id = {config.partition_id} in this node's config; needed: 0 or more")
    if desk.is_stock and config.num_partitions and config.partition_id < 0:
        most = config.num_partitions - 1
        raise SettingError(f"partition-id is missing in this node's config; needed: 0 to {most}, or no num-partitions")
    if config.num_partitions and config.partition_id >= config.num_partitions:
        most = config.num_partitions - 1
        raise SettingError(f"partition-id = {config.partition_id} in this node's config; needed: 0 to {most}")
    if config.device:
        device_of(config.device)
    return Placed(config, caps, allowance)


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


def log_path(placed: Placed, desk: Desk) -> Path | None:
    """Return where questions and decisions are written; None where that is this process, or no ledger is kept."""
    if placed.config.log and desk.is_counted:
        return Path(placed.config.log)
    ledger = ledger_path(placed, desk)
    return None if ledger is None else ledger.with_name(f"{ledger.name}.log")


def held_path(placed: Placed, desk: Desk) -> Path | None:
    """Return the folder in which answers wait for a decision; None where they leave at once."""
    if placed.config.send != "ask":
        return None
    path = ledger_path(placed, desk)
    if path is None:  # of public data, or of this process
        return Path.home() / ".fedcondense" / f"held-{placed.config.name or placed.config.partition_id}"
    return path.with_name(f"{path.name}.held")


def ledger_of(placed: Placed, desk: Desk) -> Ledger | None:
    """Return the ledger of a node's life, which is begun where there is none; None where nothing is counted."""
    path = ledger_path(placed, desk)
    return None if path is None else Ledger.open(path, placed.allowance)


def _is_like_ours(key: str, known: set[str]) -> bool:
    """Say whether an unknown key was perhaps meant for us: a cap that is left out in silence protects nobody."""
    plain = "-".join(re.findall(r"[a-z0-9]+", key.lower()))
    return not _OURS.isdisjoint(plain.split("-")) or bool(difflib.get_close_matches(plain, known, n=1, cutoff=0.85))
