"""The client app: it condenses its partition on whatever device its node has, within caps that the node sets."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from fedcondense.condensing import Progress, condense, estimate, prepare
from fedcondense.condensing.checkpoints import Checkpoint
from fedcondense.condensing.starts import STARTS
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.images import Data
from fedcondense.errors import DivergenceError, SettingError, look_up, unknown
from fedcondense.flower.inprocess import CLIENT_RAISED, NO_DATA
from fedcondense.flower.message import CONDENSE, pack, safe_text
from fedcondense.networks import default_network, parts
from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import child_seed
from fedcondense.sets.selection import SELECTIONS, select
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["ClientCaps", "Request", "app", "load_partition", "make_client_app"]

_log = logging.getLogger(__name__)

LIMIT = 0.5
"""The share of a class's records whose bytes a set may take, but one at least: more would save nobody a byte."""


@dataclass(frozen=True)
class ClientCaps:
    """What a node lets a server ask of it; the node's config overrides each by its name in kebab-case, ``max-ipc`` say.

    Args:
        max_ipc: Images per class.
        max_steps: Optimisation steps.
        max_seconds: As `plan` estimates them for this machine.
        max_bytes: Of the reply's set.
        allow_real: Whether sets may hold real images or start from them, which publishes records.
        min_records: Classes of fewer records are left out. The images of a class of one or a few are close to them,
            whatever they start from: raise it where a record must not be seen.
    """

    max_ipc: int = 50
    max_steps: int = 5000
    max_seconds: float = 3600.0
    max_bytes: int = 8 << 20
    allow_real: bool = False
    min_records: int = 1

    def of_node(self, context: Context) -> ClientCaps:
        """Return these caps with what the node's own config says."""
        changes: dict[str, Any] = {}
        for item in fields(self):
            name, kind = item.name.replace("_", "-"), type(getattr(self, item.name))
            value = context.node_config.get(name)
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float):
                if value is not None:
                    raise SettingError(f"{name} = {value!r} in the node's config; needed: a {kind.__name__}")
                continue
            changes[item.name] = kind(value)
        return replace(self, **changes)


class Request(NamedTuple):
    """What the server asks for, checked; the fields are the message's config keys, in kebab-case."""

    ipc: int
    method: str  # a name in OBJECTIVES, or in SELECTIONS
    parametrization: str
    steps: int | None
    seed: int
    network: str
    start: str

    @classmethod
    def read(cls, config: ConfigRecord, data: Data) -> Request:
        """Read a message's config; names are looked up in this node's dicts and never imported.

        Raises:
            SettingError: A key or a name is unknown, or a value is of the wrong type.
        """
        known = {"ipc", "objective", "method", "parametrization", "steps", "seed", "network", "start"}
        for key in config:
            if key not in known:
                raise SettingError(unknown("setting", key[:60], known))
        method = _text(config, "method", _text(config, "objective", DEFAULT_OBJECTIVE))
        if method not in SELECTIONS:
            look_up("objective", method, OBJECTIVES)
        parametrization = _text(config, "parametrization", "pixels")
        look_up("parametrization", parametrization, PARAMETRIZATIONS)
        network = _text(config, "network", "") or default_network(data.spec.shape)
        parts(network)
        steps = _whole(config, "steps", 0)
        start = _text(config, "start", "gaussian")
        look_up("start", start, STARTS)
        return cls(
            ipc=_whole(config, "ipc", 10),
            method=method,
            parametrization=parametrization,
            steps=steps or None,
            seed=_whole(config, "seed", 0),
            network=network,
            start=start,
        )


LoadPartition = Callable[[Context], Data]
"""Returns a node's data; empty where it has none."""


def make_client_app(
    load_partition: LoadPartition,
    *,
    caps: ClientCaps = ClientCaps(),
    cache: Path | None = None,
    progress: Callable[[int, Progress], None] | None = None,
) -> ClientApp:
    """Return a ClientApp that answers ``query.condense`` with the synthetic set of its partition.

    A request that breaks the caps, names something unknown or meets no data is answered with an error and its reason.
    What is unexpected goes into the node's log only: an exception's text may quote the data.

    Args:
        load_partition: Returns the node's data.
        caps: What a server may ask for, before the node's config has its say.
        cache: A folder that keeps each answer and the checkpoint of one in progress, so that a node which died or is
            asked the same again goes on where it was. None: ``cache`` of the node's config, or nothing is kept.
        progress: Called with the partition id and how far condensing is.
    """
    client = ClientApp()

    @client.query(CONDENSE.partition(".")[2])
    def answer(message: Message, context: Context) -> Message:
        partition = int(context.node_config.get("partition-id", context.node_id % 2**62))  # what a reply may hold
        try:
            threads = int(context.node_config.get("threads", 0))
            if threads:
                torch.set_num_threads(threads)
            data = load_partition(context)
            if not len(data):
                raise SettingError(NO_DATA)
            request = Request.read(message.content.config_records.get("config", ConfigRecord()), data)
            report = None if progress is None else lambda step: progress(partition, step)
            kept = cache or (Path(str(context.node_config["cache"])) if "cache" in context.node_config else None)
            synthetic = _answer(data.to(_device(context)), request, caps.of_node(context), partition, kept, report)
        except (SettingError, DivergenceError) as refused:
            return Message(Error(CLIENT_RAISED, safe_text(f"partition {partition}: {refused}")), reply_to=message)
        except Exception as surprise:
            _log.exception("condensing partition %d failed", partition)
            reason = f"partition {partition}: failed with {type(surprise).__name__}; the node's log says more"
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)
        content = pack(
            synthetic,
            partition=partition,
            num_examples=len(data),
            seconds=synthetic.seconds,
        )
        return Message(content, reply_to=message)

    return client


def _answer(
    data: Data,
    request: Request,
    caps: ClientCaps,
    partition: int,
    cache: Path | None,
    progress: Callable[[Progress], None] | None,
) -> SyntheticSet:
    """Condense or select within the caps, or take the answer from the cache."""
    few = data.counts < caps.min_records
    data = data.subset(~few[data.labels]) if bool(few.any()) else data
    if not len(data):
        raise SettingError(f"no class has {caps.min_records} records, of which this node asks (min-records)")
    _check_caps(data, request, caps)
    kept = cache and cache / f"{_key(data, request, partition)}.safetensors"
    if kept and kept.exists():
        synthetic = SyntheticSet.load(kept)
        _check_bytes(synthetic.nbytes, caps)
        return synthetic
    seed = child_seed(request.seed, "client", partition)  # clients that start alike would send the same images
    if request.method in SELECTIONS:
        synthetic = select(data, request.ipc, request.method, seed=seed, limit=LIMIT)
    else:
        synthetic = condense(
            data,
            request.ipc,
            request.method,
            request.parametrization,
            network=request.network,
            seed=seed,
            steps=request.steps,
            start=request.start,
            limit=LIMIT,
            checkpoint=Checkpoint(kept.with_suffix(".checkpoint"), resume=True) if kept else None,
            progress=progress,
        )
    _check_bytes(synthetic.nbytes, caps)
    if kept:
        synthetic.save(kept, overwrite=True)
        kept.with_suffix(".checkpoint").unlink(missing_ok=True)
    return synthetic


def _check_caps(data: Data, request: Request, caps: ClientCaps) -> None:
    """Refuse what this node does not do for a server, before any work."""
    if not 1 <= request.ipc <= caps.max_ipc:
        raise SettingError(f"ipc {request.ipc} asked for; this node condenses to 1 to {caps.max_ipc} images per class")
    if request.method in SELECTIONS or request.start == "real":
        if not caps.allow_real:
            what = "start 'real'" if request.start == "real" else f"method {request.method!r}"
            raise SettingError(f"{what} publishes real records; this node's config has no allow-real = true")
        if request.method in SELECTIONS:
            return
    steps = OBJECTIVES[request.method].recipe.steps if request.steps is None else request.steps
    if steps > caps.max_steps:
        raise SettingError(f"{steps} steps asked for; this node allows {caps.max_steps}")
    if math.isinf(caps.max_seconds):
        return  # an estimate takes some seconds itself
    began = time.monotonic()
    loop = prepare(
        *(data, request.ipc, request.method, request.parametrization),
        network=request.network,
        steps=request.steps,
        limit=LIMIT,
    )
    took = time.monotonic() - began
    expected = estimate(loop)
    seconds = took + expected.seconds
    if seconds > caps.max_seconds:
        needed = f"about {seconds:.0f} seconds would be needed"
        raise SettingError(f"{needed}; this node allows {caps.max_seconds:.0f}: ask for fewer steps or a smaller ipc")
    _check_bytes(expected.nbytes, caps)


def _check_bytes(nbytes: int, caps: ClientCaps) -> None:
    if nbytes > caps.max_bytes:
        raise SettingError(f"a set of {nbytes} bytes; this node sends at most {caps.max_bytes}: ask for a smaller ipc")


def _key(data: Data, request: Request, partition: int) -> str:
    """Name an answer by everything that it follows from."""
    method = repr(OBJECTIVES.get(request.method, request.method))  # a recipe of the same name may have been changed
    text = json.dumps([*request, method, partition, data.fingerprint, data.spec.name, data.spec.classes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _device(context: Context) -> str:
    given = str(context.node_config.get("device", ""))
    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def _text(config: ConfigRecord, key: str, default: str) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or len(value) > 200:
        raise SettingError(f"{key} is {value!r:.60}; needed: a text of at most 200 characters")
    return value


def _whole(config: ConfigRecord, key: str, default: int) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
        raise SettingError(f"{key} is {value!r:.60}; needed: a whole number from 0, below 2**62")
    return value


def load_partition(context: Context) -> Data:
    """Return the data of a node that was started from the command line.

    The node's config names them: ``data`` (as `load_data`, ``folder:...`` for a site's own), ``data-root``, and where
    the set is to be divided ``num-partitions`` and ``partition-id``. What it leaves out comes from the run's config,
    which the server's side wrote; that one can name data sets of the toolkit only, and never says where they are.
    """
    node, run = context.node_config, context.run_config
    name = str(node.get("data", ""))
    if not name:
        name = str(run.get("data", "digits"))
        if name not in CATALOGUE:
            known = unknown("data set", name[:100], CATALOGUE)
            raise SettingError(f"{known}; a node's own data are named in the node's config: data = ...")
    root = str(node.get("data-root", "")) or None
    if "num-partitions" not in node:
        return _train(name, root)
    settings = {key: type(default)(node.get(key, run.get(key, default))) for key, default in _PARTITION.items()}
    parts = _divided(name, root, int(node["num-partitions"]), *settings.values())
    return parts[int(node["partition-id"])]


_PARTITION: dict[str, Any] = {"partition-by": "dirichlet", "alpha": 0.5, "partition-seed": 42, "min-partition-size": 10}


@lru_cache(maxsize=1)
def _train(name: str, root: str | None) -> Data:
    from fedcondense.data.loading import load_data

    return load_data(name, root).train


@lru_cache(maxsize=1)
def _divided(name: str, root: str | None, number: int, by: str, alpha: float, seed: int, smallest: int) -> list[Data]:
    from fedcondense.data.partitions import partition

    train = _train(name, root)
    parts = partition(train, number, by, alpha=alpha, seed=seed, min_partition_size=smallest)
    return [train.subset(index) for index in parts]


app = make_client_app(load_partition)
