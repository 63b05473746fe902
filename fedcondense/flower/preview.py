"""A node's config looked at where it stands: what a server may ask, and what an answer would be; nothing is sent."""

from __future__ import annotations

import math
import re
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.condensing import Own
from fedcondense.data import Data
from fedcondense.errors import SettingError, look_up
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Node
from fedcondense.flower.holding import HeldAnswer, Holding
from fedcondense.flower.ledger import Charge, Ledger
from fedcondense.flower.node import check_carried
from fedcondense.flower.node_config import Desk, Placed, held_path, ledger_path, log_path, place_of
from fedcondense.flower.node_log import LogLine, NodeLog
from fedcondense.flower.payloads import Payload
from fedcondense.flower.settings import read
from fedcondense.flower.site_data import load_partition
from fedcondense.flower.strategies import TASKS

__all__ = [
    "Beside",
    "Checked",
    "Planned",
    "Preview",
    "Waiting",
    "beside_records",
    "check_node",
    "look_at",
    "plan_answer",
    "preview",
    "read_config",
    "read_log",
    "waiting_at",
]

_SILENT = ("cache", "ledger", "log")  # keys that would leave traces
_PAIR = re.compile(r"""([^\s=]+)\s*=\s*('[^']*'|"[^"]*"|\S+)""")  # as Flower takes them: quotes keep spaces


class Checked(NamedTuple):
    """What a node's config comes to."""

    placed: Placed
    name: str
    classes: dict[str, int]  # records per class
    left_out: dict[str, int]  # those of fewer records than the node asks for
    apart: int  # records that are kept apart, to evaluate networks on
    spent: Charge | None  # over its life; None: nothing was counted yet
    broken: tuple[str, ...] = ()  # image files that are left out, since they cannot be read


class Planned(NamedTuple):
    """What an answer would take and leave out, before it is worked out."""

    name: str
    cost: Cost
    records: int  # that it would be made from
    left_out: dict[str, int]  # classes of fewer records than the node asks for
    least: int  # records that an image stands for at least
    shares: str  # who may have sets: ``server`` or ``sites``
    size: str  # of an image, as the config has it; a run may say another where the config says none
    leaves: str  # what the answer would be made of


class Preview(NamedTuple):
    """What an answer would be."""

    cost: Cost
    payload: Payload
    nearest: dict[str, float]  # by class: the rmse of the closest pair of an image and a record; empty for sums


def read_config(text: str) -> dict[str, Any]:
    """Read a node's config: a TOML file, or what follows ``--node-config`` of ``flower-supernode``.

    Raises:
        SettingError: It is neither.
    """
    path = Path(text)
    if "=" not in text and not path.exists():
        raise SettingError(f"{text!r:.100}: no such file; give a TOML file, or 'data=\"folder:DIR\" max-ipc=10'")
    try:
        if path.is_file():
            return tomllib.loads(path.read_text(encoding="utf-8"))
        if _PAIR.sub("", text).strip():
            raise ValueError("some of it is no key=value")
        return tomllib.loads("\n".join(f"{key} = {value}" for key, value in _PAIR.findall(text)))
    except (OSError, ValueError) as broken:
        raise SettingError(
            f"{text!r:.100} is no node's config ({broken}); give a TOML file, or 'data=\"folder:DIR\" max-ipc=10'"
        ) from None


@in_own_state
def check_node(config: Mapping[str, Any]) -> Checked:
    """Read a config and the data that it names, as the node would at its first message; nothing is kept.

    Raises:
        SettingError: A key or value that cannot work.
    """
    context = _context(config)
    placed = place_of(context, Desk(is_stock=True))
    data = load_partition(_context({key: value for key, value in config.items() if key != "cache"}))  # keeps nothing
    counts = dict(zip(data.spec.classes, data.counts.tolist(), strict=True))
    few = {name: n for name, n in counts.items() if 0 < n < placed.caps.min_records}
    path = ledger_path(placed, Desk())
    for what, place in (("ledger", path), ("log", log_path(placed, Desk())), ("cache", placed.config.cache or None)):
        if place is not None:
            _check_writable(what, Path(place))
    spent = Ledger.open(path, placed.allowance).spent() if path is not None and path.exists() else None
    return Checked(placed, placed.name(context), counts, few, len(placed.apart(data)), spent, data.broken)


def _check_writable(what: str, path: Path) -> None:
    """Refuse a place that the node could not write to: it would answer nothing."""
    folder = next(one for one in (path, *path.absolute().parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.is_file():
            with path.open("ab"):
                pass
    except OSError as error:
        why = f"{what} {path}: {error.strerror}"
        raise SettingError(f"{why}; the node answers nothing without it, so name another place") from None


def read_log(config: Mapping[str, Any]) -> tuple[Path, list[LogLine], int]:
    """Return a node's log: its file, its lines, and how many pieces of lines processes left that died.

    Raises:
        SettingError: The node keeps none.
        ResumeError: It is damaged.
    """
    path = log_path(place_of(_context(config), Desk(is_stock=True)), Desk())
    if path is None:
        raise SettingError("this node keeps no log: its data are public; name a file to keep one, log = ...")
    return path, *NodeLog(path).lines()


@in_own_state
def preview(
    config: Mapping[str, Any], task: str, fields: Mapping[str, Any], progress: Callable[[Any], None] | None = None
) -> Preview:
    """Prepare and run a task as the node would, within its caps; nothing is sent, kept or charged.

    Args:
        config: The node's.
        task: A name in `TASKS`.
        fields: Of the task, in kebab-case.
        progress: Called with how far condensing is.

    Raises:
        SettingError: The node would refuse; the message is the one that a server would get.
    """
    context = _context({key: value for key, value in config.items() if key not in _SILENT})
    placed = place_of(context, Desk(is_stock=True))
    kind = look_up("task", task, TASKS)
    check_carried(kind, placed.caps)
    asked = read(kind, fields, f"task {task}")
    loaded = load_partition(context)
    data, apart = placed.enough(loaded), placed.apart(loaded) if kind.evaluates else None
    node = Node(placed.name(context), placed.caps, place=placed.place(context), progress=progress, apart=apart)
    job = asked.prepare(Own(data), node)
    placed.caps.check(job.cost)
    payload = job.run()
    return Preview(job.cost, payload, _nearest(payload, data))


class Beside(NamedTuple):
    """A class's images, and the record of it that each is closest to."""

    images: Tensor  # (M, C, H, W) in [0, 1]
    records: Tensor  # (M, C, H, W) in [0, 1]
    distances: Tensor  # (M,), root mean squared difference


def beside_records(payload: Any, data: Data) -> dict[str, Beside]:
    """Return a set's images of each class beside the closest records; of a payload that is no set nothing.

    It computes a distance for each image and record of a class.
    """
    if not hasattr(payload, "pixels"):
        return {}
    images, targets = payload.pixels()
    found = {}
    for name in payload.classes:
        mine = images[targets.argmax(1) == payload.classes.index(name)].cpu()
        records = data.images[data.labels == data.spec.classes.index(name)].float().div(255).cpu()
        if not (len(mine) and len(records)):
            continue
        # By differences: products of images lose the digits that tell a copy from what is close to one.
        by_difference = "donot_use_mm_for_euclid_dist"
        distances, closest = torch.cdist(mine.flatten(1), records.flatten(1), compute_mode=by_difference).min(1)
        found[name] = Beside(mine, records[closest], distances / math.sqrt(mine[0].numel()))
    return found


@in_own_state
def plan_answer(config: Mapping[str, Any], task: str, fields: Mapping[str, Any]) -> Planned:
    """Prepare a task as the node would and look at its cost; nothing is worked out, sent, kept or charged.

    Raises:
        SettingError: The node would refuse.
    """
    context = _context({key: value for key, value in config.items() if key not in _SILENT})
    placed = place_of(context, Desk(is_stock=True))
    kind = look_up("task", task, TASKS)
    check_carried(kind, placed.caps)
    loaded = load_partition(context)
    data, least = placed.enough(loaded), placed.caps.min_records
    counts = zip(loaded.spec.classes, loaded.counts.tolist(), strict=True)
    apart = placed.apart(loaded) if kind.evaluates else None
    node = Node(placed.name(context), placed.caps, place=placed.place(context), apart=apart)
    cost = read(kind, fields, f"task {task}").prepare(Own(data), node).cost
    placed.caps.check(cost)
    few = {name: n for name, n in counts if 0 < n < least}
    size = "x".join(map(str, data.spec.shape[1:]))
    return Planned(node.name, cost, len(data), few, least, placed.config.share_with, size, kind.leaves)


def _nearest(payload: Any, data: Data) -> dict[str, float]:
    """Return by class how close the closest image and record are."""
    return {name: round(float(one.distances.min()), 4) for name, one in beside_records(payload, data).items()}


class Waiting(NamedTuple):
    """What a node holds until its people decide."""

    holding: Holding
    answers: list[HeldAnswer]


def waiting_at(config: Mapping[str, Any]) -> Waiting:
    """Return the answers that a node of this config holds, decided or not.

    Raises:
        SettingError: Its answers leave at once.
    """
    path = held_path(place_of(_context(config), Desk(is_stock=True)), Desk())
    if path is None:
        raise SettingError('this node holds nothing back; let it, by send = "ask" in its config')
    holding = Holding(path)
    return Waiting(holding, holding.all())


@in_own_state
def look_at(config: Mapping[str, Any], holding: Holding, held: HeldAnswer) -> tuple[Payload, dict[str, Beside]]:
    """Return a held answer, and its images beside the closest records.

    Raises:
        SettingError: A task that is not known here.
        ResumeError: The answer is damaged.
    """
    payload = look_up("task", held.task, TASKS).payload.from_bytes(holding.payload(held))
    _, height, width = getattr(payload, "shape", (0, 0, 0))
    asked = height if height == width else 0  # where the run said the size, and the config says none
    context = _context({**config, "size": config.get("size") or asked})
    return payload, beside_records(payload, place_of(context, Desk(is_stock=True)).enough(load_partition(context)))


def _context(config: Mapping[str, Any]) -> Context:
    return Context(1, 0, dict(config), RecordDict(), {})
