"""Hostile servers against a node, and hostile nodes and floods against a server, over Flower's real serialisation."""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

import fedcondense as fc
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, run_in_process, task_identity
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.strategies.one_shot import OneShot
from fedcondense.flower.wire import ANSWERS, WIRE, About, pack_answer, pack_question, read_answer
from fedcondense.networks import build
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from trust.coded import any_mutant
from trust.mutants import HOSTILE
from trust.rows import Row, Tally, limit_memory

__all__ = ["check_floods", "check_nodes", "check_servers"]

_CAPS = Caps(max_ipc=2, max_steps=4, max_seconds=math.inf, max_bytes=20_000, networks="convnet1-w16", min_records=10)
_MEMORY = 2 << 30
_FLOWERS = ("train", "evaluate")  # messages of Flower's own


def _few() -> fc.Data:
    train = fc.load_data("digits").train
    return train.subset(torch.cat([(train.labels == c).nonzero().squeeze(1)[:30] for c in range(10)]))


def _questions(classes: tuple[str, ...]) -> dict[str, RecordDict]:
    """Return a sound question per task, small enough to be answered at once."""
    weights = Weights.of(build("convnet1-w16", (1, 8, 8), len(classes), 0))
    network: dict[str, Any] = {"weights": weights, "classes": classes, "network": "convnet1-w16"}
    small: dict[str, Mapping[str, Any]] = {
        "condense": {"ipc": 1, "objective": "dm", "steps": 1, "network": "convnet1-w16"},
        "match_near": {"ipc": 1, "steps": 1, "networks": 1, **network},
        "evaluate_weights": {"alone": 1, **network},
    }
    found = {}
    for name, kind in TASKS.items():
        known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        given = small.get(name, {"classes": classes} if "classes" in known else {})
        found[f"query.{name}"] = pack_question(kind(**given), 1)
    config: dict[str, Any] = {"lr": 0.1, "classes": list(classes), "network": "convnet1-w16", "server-round": 1}
    for flowers in _FLOWERS:
        arrays = ArrayRecord(dict(weights.tensors))
        found[flowers] = RecordDict({"arrays": arrays, "config": ConfigRecord(dict(config))})
    return found


def _crafted(draw: random.Random, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights that a server makes up: not finite, huge, or of another shape, name or dtype."""
    made = {name: value.clone() for name, value in tensors.items()}
    name = draw.choice(sorted(made))
    way = draw.randrange(8)
    if way < 3:
        made[name].view(-1)[0] = (math.nan, math.inf, 3e38)[way]
    elif way == 3:
        made[name] = made[name].double()
    elif way == 4:
        made[name] = made[name].flatten()[:1]
    elif way == 5:
        made[f"{name}.more"] = made[name].clone()
    elif way == 6:
        del made[name]
    else:
        made = {key: value * 1e15 for key, value in made.items()}
    return made


def _spoil(content: RecordDict, draw: random.Random) -> RecordDict:
    """Return a question with one or two places changed."""
    records: dict[str, Any] = dict(content.items())
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(sorted(records)) if records else "config"
        record, way = records.get(name), draw.random()
        if isinstance(record, ConfigRecord) and way < 0.85:
            changed: dict[str, Any] = dict(record.items())
            key = draw.choice([*changed, "more", "max-ipc", "min-records", "allow-real"])
            value = copy.deepcopy(draw.choice(_CONFIG))
            changed[key] = value
            records[name] = ConfigRecord(changed)
        elif isinstance(record, ArrayRecord) and way < 0.85:
            records[name] = _spoiled_arrays(record, draw)
        elif way < 0.95:
            records.pop(name, None)
        else:
            records[draw.choice(("config", "weights", "more", "about"))] = MetricRecord({"a": 1.0})
    return RecordDict(records)


def _may_travel(value: Any) -> bool:
    """Say whether a record of Flower's takes a value at all."""
    if isinstance(value, str):
        return value.isprintable() or value.isascii()
    return isinstance(value, bool | float) or (type(value) is int and -(2**63) <= value < 2**63)


_CONFIG: tuple[Any, ...] = (*filter(_may_travel, HOSTILE), [1, 2], ["a"] * 50, [])


def _spoiled_arrays(record: ArrayRecord, draw: random.Random) -> ArrayRecord:
    """Return arrays with a crafted network, or bytes and claims that are not true."""
    arrays = dict(record.items())
    name = draw.choice(sorted(arrays))
    array, way = arrays[name], draw.randrange(6)
    try:
        whole = {key: torch.from_numpy(value.numpy().copy()) for key, value in arrays.items()}
        tensors = dict(Weights.from_bytes(whole["file"].numpy().tobytes()).tensors) if set(whole) == {"file"} else whole
    except Exception:  # spoiled before: numpy raises whatever it likes at a header that is none
        tensors = {}
    if way <= 1 and tensors:
        made = _crafted(draw, tensors)
        if set(arrays) != {"file"}:
            return ArrayRecord(made)
        return ArrayRecord({"file": Array(np.frombuffer(Weights(made).to_bytes(), np.uint8))})
    data = bytearray(array.data)
    if way == 2:
        data = data[: draw.randrange(len(data))]
    else:
        for _ in range(draw.choice((1, 8))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    stype = "numpy.ndarray" if way < 5 else draw.choice(("pickle", "", "torch.Tensor"))
    arrays[name] = Array(dtype=array.dtype, shape=array.shape, stype=stype, data=bytes(data))
    return ArrayRecord(arrays)


def check_servers(count: int, seed: int) -> Row:
    """Send `count` spoiled questions to a node that allows weights and to one that does not."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    data, draw = _few(), random.Random(f"{seed}/servers")
    questions = _questions(data.spec.classes)
    with task_identity():
        grids = [
            InProcessGrid(
                make_client_app(lambda context: data, caps=caps, is_counted=False), 1, node_config={"keep-apart": 0.2}
            )
            for caps in (_CAPS, _allowing(_CAPS))
        ]
        for content in questions.values():  # what is imported or cached at first is not the questions' doing
            _ask(grids[1], "query.condense", content)
        limit_memory(_MEMORY)
        tally, answered = Tally(), 0
        for k in range(count):
            kind = draw.choice(sorted(questions))
            content = _spoil(questions[kind], draw)
            allows = draw.random() < 0.5
            tally.tried += 1
            began = time.monotonic()
            try:
                reply = _ask(grids[allows], kind, content)
            except Exception as surprise:
                tally.note("crashed", f"{kind} {k}: {type(surprise).__name__}: {surprise}")
                continue
            if reply.has_error():
                tally.slowest = max(tally.slowest, time.monotonic() - began)
                reason = reply.error.reason or ""
                if "failed with" in reason or not reason or "\n" in reason or len(reason) > 400:
                    tally.note("crashed", f"{kind} {k}: {reason}: {dict(content.get('config', {}))}"[:300])
                continue
            answered += 1
            if fault := _answer_fault(reply.content, kind, allows):
                tally.note("wrong", f"{kind} {k}: {fault}")
    return tally.row(notes=(f"{answered} questions were still sound, and answered within the caps",))


def _allowing(caps: Caps) -> Caps:
    return replace(caps, allow_weights=True)


def _ask(grid: InProcessGrid, kind: str, content: RecordDict) -> Message:
    return next(iter(grid.send_and_receive([Message(content, 100, kind)])))


def _answer_fault(content: RecordDict, kind: str, allows: bool) -> str:
    """Return what a node gave away against its config, or nothing."""
    if kind in (*_FLOWERS, "query.match_near", "query.evaluate_weights") and not allows:
        return "weights were answered that the node does not allow"
    if kind in _FLOWERS:
        return ""
    payload = TASKS[kind.removeprefix("query.")].payload
    found = read_answer(content, payload, Limits()).payload
    if (size := len(found.to_bytes())) > _CAPS.max_bytes:
        return f"{size} bytes, above the node's cap"
    if isinstance(found, SyntheticSet):
        stored = max(sum(int((p.labels() == c).sum()) for p in found.parts) for c in range(len(found.classes)))
        if stored > _CAPS.max_ipc or stored > 3:  # of 30 records per class and at least 10 per image
            return f"{stored} images of a class"
        if found.record.steps > _CAPS.max_steps:
            return f"{found.record.steps} steps"
    return ""


class _Raw:
    """A payload of any bytes, as a hostile node sends it."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def to_bytes(self) -> bytes:
        return self.blob

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = Limits()) -> Self:
        return cls(bytes(blob))


Reply = Callable[[random.Random, bytes], RecordDict]


def _about(site: str) -> About:
    return About(WIRE, "trust", "condense", 1, site)


def _replies() -> dict[str, Reply]:
    """Return what hostile nodes send: each a function of its draws and of an honest set."""

    def mutant(draw: random.Random, honest: bytes) -> RecordDict:
        return pack_answer(_Raw(any_mutant(draw)), _about("x"), ("x", 0), 100, 1.0)

    def short(draw: random.Random, honest: bytes) -> RecordDict:
        """Wire 3: a mutant behind a sound packed header, or a packed header that is damaged itself."""
        blob = honest if draw.random() < 0.5 else any_mutant(draw)
        about = replace(_about("x"), answers=ANSWERS)
        said = dict(pack_answer(_Raw(blob), about, ("x", 0), 100, 1.0).config_records["answer"])
        file = said["file"]
        if blob is honest and isinstance(file, bytes):
            bent, at = bytearray(file), draw.randrange(200)
            bent[at] ^= 1 << draw.randrange(8)
            said["file"] = bytes(bent[: draw.choice((len(bent), at))])
        return RecordDict({"answer": ConfigRecord(said)})

    def renamed(draw: random.Random, honest: bytes) -> RecordDict:
        one = SyntheticSet.from_bytes(honest)
        names = tuple(f"class {draw.random()}" for _ in one.classes)
        return pack_answer(one.with_record(classes=names), _about("site0"), ("site0", 0), 100, 1.0)

    def many_names(draw: random.Random, honest: bytes) -> RecordDict:
        one = SyntheticSet.from_bytes(honest)
        names = tuple(f"{draw.random()} {i}" for i in range(9_995))
        parts = [
            replace(p, targets=p.targets.to(torch.int16), record=replace(p.record, classes=names, counts=()))
            for p in one.parts
        ]
        return pack_answer(SyntheticSet(parts), _about("site1"), ("site1", 1), 100, 1.0)

    def another_shape(draw: random.Random, honest: bytes) -> RecordDict:
        data = fc.Data(
            torch.zeros(20, 1, 1, 1, dtype=torch.uint8),
            torch.arange(20) % 10,
            fc.Spec("x", (1, 1, 1), SyntheticSet.from_bytes(honest).classes, (0.5,), (0.25,)),
        )
        return pack_answer(fc.select(data, 1, "random"), _about("a"), ("a", 0), 2**61, 1.0)

    def odd_records(draw: random.Random, honest: bytes) -> RecordDict:
        content = pack_answer(
            _Raw(honest), _about("x\u202e\nname" if draw.random() < 0.5 else "y" * 5_000), ("x", 0), 100, 1.0
        )
        records = dict(content.items())
        records[draw.choice(sorted(records))] = draw.choice(
            (MetricRecord({"a": 1.0}), ConfigRecord({"a": "b"}), ArrayRecord({}))
        )
        return RecordDict(records)

    def empty(draw: random.Random, honest: bytes) -> RecordDict:
        return RecordDict({})

    return {
        "mutant": mutant,
        "short": short,
        "renamed": renamed,
        "many names": many_names,
        "another shape": another_shape,
        "odd records": odd_records,
        "empty": empty,
    }


def _federation(honest: list[bytes], bad: list[RecordDict], order: random.Random) -> OneShot:
    """Run one round of honest and hostile nodes in a drawn order and return the strategy as it ended.

    A server without data goes by the majority; where the hostile are more, it has to know what it expects.
    """
    contents: list[tuple[str, Any]] = [("honest", blob) for blob in honest] + [("bad", content) for content in bad]
    order.shuffle(contents)
    client = ClientApp()

    @client.query("condense")
    def answer(message: Message, context: Any) -> Message:
        place = int(context.node_config["partition-id"])
        kind, content = contents[place]
        if kind == "honest":
            content = pack_answer(_Raw(content), About.of(message.content), (f"site{place}", place), 30, 1.0)
        return Message(content, reply_to=message)

    limits = ReplyLimits.of(fc.load_data("digits").test.spec) if len(bad) >= len(honest) else ReplyLimits()
    fit = lambda joined: torch.nn.Linear(1, 1)  # noqa: E731
    strategy = OneShot(fit, limits, min_available_nodes=len(contents), min_replies=1)
    server = ServerApp()

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy.start(grid, timeout=60)

    run_in_process(server, client, num_nodes=len(contents))
    taken = {answer.site.node for answer in strategy.answers}
    lost = [place for place, (kind, _) in enumerate(contents) if kind == "honest" and 100 + place not in taken]
    strategy.lost = lost  # type: ignore[attr-defined]
    return strategy


def _honest(number: int) -> list[bytes]:
    train = fc.load_data("digits").train
    return [fc.select(train, 1, "random", seed=k).to_bytes() for k in range(number)]


def check_nodes(count: int, seed: int) -> Row:
    """Let one to six hostile nodes answer among seven honest ones, `count` times; no honest one may lose its place."""
    return _against_server(count, seed, lambda draw: draw.randrange(1, 7))


def check_floods(count: int, seed: int) -> Row:
    """Let `count` hostile nodes answer at once among a thirtieth as many honest ones."""
    return _against_server(1, seed, lambda draw: count, honest=max(7, count // 30))


def _against_server(count: int, seed: int, how_many: Callable[[random.Random], int], honest: int = 7) -> Row:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    draw, replies = random.Random(f"{seed}/nodes"), _replies()
    *sound, known = _honest(
        honest + 1
    )  # the hostile know one set, of nobody who answers: the first of two equal ones counts
    _federation(sound, [], draw)
    limit_memory(_MEMORY)
    tally = Tally()
    for k in range(count):
        kinds = [draw.choice(sorted(replies)) for _ in range(how_many(draw))]
        bad = [replies[kind](draw, known) for kind in kinds]
        tally.tried += len(bad)
        began = time.monotonic()
        try:
            strategy = _federation(sound, bad, draw)
        except Exception as surprise:
            tally.note("crashed", f"round {k} of {sorted(set(kinds))}: {type(surprise).__name__}: {surprise}")
            continue
        tally.slowest = max(tally.slowest, (time.monotonic() - began) / (len(bad) + honest))
        if strategy.lost:  # type: ignore[attr-defined]
            reasons = [refusal.reason for refusal in strategy.refused if refusal.site.node - 100 in strategy.lost]  # type: ignore[attr-defined]
            tally.note("wrong", f"round {k}: {sorted(set(kinds))} cost honest nodes their place: {reasons[:2]}")
    return tally.row()
