"""What holds for each task by name: a new line in `TASKS` is a new row here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Question
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import Mailbox, ReplyLimits, Sent
from fedcondense.flower.serialised import over_the_wire
from fedcondense.flower.settings import keys_of
from fedcondense.flower.sites import unnamed
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.wire import CARRIED, carried_by, own_version, pack_question, read_answer, read_question
from fedcondense.networks import build
from fedcondense.parametrizations import Pixels
from fedcondense.randomness import stream
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import Part, Record, SyntheticSet

Ask = Callable[..., Message]
NETWORK = "convnet1-w16"


@pytest.fixture(scope="module")
def few(train: Data) -> Data:
    return train.subset(train.per_class(12, stream(0)))


def usual(kind: type[Question], data: Data) -> Question:
    """Return a small question of a kind."""
    classes = data.spec.classes
    network = build(NETWORK, data.spec.shape, len(classes), 0)
    plain = Weights.of(network)
    is_packed = get_type_hints(kind).get("weights") is Packed
    weights = Packed.of(plain.tensors, network) if is_packed else plain
    values = {"ipc": 1, "steps": 2, "networks": 2, "network": NETWORK, "classes": classes, "weights": weights}
    values |= {"objective": "dm", "seed": 300, "trained": 0, "dims": 20}
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    made: Question = kind(**{name: value for name, value in values.items() if name in known})
    return made


def other(value: Any, hint: Any) -> Any:
    """Return a value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 + 0.125  # within any bounds
    if isinstance(value, tuple):
        return (*value, "more" if get_args(hint)[0] is str else 0.5)
    if isinstance(value, Weights):
        return Weights({name: tensor + 1 for name, tensor in value.tensors.items()})
    if isinstance(value, Packed):
        return Packed(value.blob + b"x")
    if value is None:
        return (
            Weights({"a": torch.ones(2)}) if Weights in get_args(hint) else SyntheticSet.from_bytes(_set().to_bytes())
        )
    return f"{value}x"


def node_for(name: str) -> dict[str, Any]:
    """Return what a node's config says so that it can answer a task."""
    return {"keep-apart": 0.25} if TASKS[name].evaluates else {}


def _set() -> SyntheticSet:
    record = Record("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.2,), method="dm")
    return SyntheticSet(
        [Part({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, torch.arange(2).byte(), Pixels(), record)]
    )


def travelled(task: Question) -> RecordDict:
    with task_identity():
        message, _ = over_the_wire(Message(pack_question(task, 3), 1, f"query.{task.name}"))
    return message.content


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_it_is_called_by_an_identifier_and_documents_itself(self, name: str) -> None:
        kind = TASKS[name]
        assert (kind.name, name.isidentifier()) == (name, True)
        assert kind.__doc__ is not None
        for item in fields(kind):  # type: ignore[arg-type]
            assert f"{item.name}: " in kind.__doc__, item.name

    def test_it_says_what_leaves(self, name: str) -> None:
        assert len(TASKS[name].leaves) > 20

    def test_fields_are_of_kinds_that_travel(self, name: str) -> None:
        for field, hint in get_type_hints(TASKS[name]).items():
            if get_origin(hint) not in (tuple,) and field in {f.name for f in fields(TASKS[name])}:  # type: ignore[arg-type]
                assert set(get_args(hint) or (hint,)) <= {int, float, str, bool, *CARRIED, type(None)}, field

    def test_every_field_arrives_as_it_was(self, name: str, few: Data) -> None:
        task = usual(TASKS[name], few)
        hints = get_type_hints(TASKS[name])
        for item in fields(task):  # type: ignore[arg-type]
            changed = replace(task, **{item.name: other(getattr(task, item.name), hints[item.name])})  # type: ignore[type-var]
            read = read_question(travelled(changed), TASKS[name], Limits())
            for field in fields(task):  # type: ignore[arg-type]
                mine, theirs = getattr(changed, field.name), getattr(read, field.name)
                same = mine.to_bytes() == theirs.to_bytes() if isinstance(mine, CARRIED) else mine == theirs
                assert same, field.name
                assert type(mine) is type(theirs)

    def test_every_field_of_another_type_is_refused_by_its_key(self, name: str, few: Data) -> None:
        content = travelled(usual(TASKS[name], few))
        hints = get_type_hints(TASKS[name])
        for key, item in keys_of(TASKS[name]).items():
            if item.name in carried_by(TASKS[name]):
                continue
            config = dict(content.config_records["config"])
            wrong: Any = "text" if hints[item.name] in (int, float, bool) or get_origin(hints[item.name]) else 3
            given = RecordDict({**content, "config": ConfigRecord({**config, key: wrong})})
            with pytest.raises(SettingError, match=f"the question: {key} = "):
                read_question(given, TASKS[name], Limits())

    def test_a_node_answers_with_what_it_promises_and_no_more_than_it_says_that_it_costs(
        self, name: str, ask: Ask, few: Data
    ) -> None:
        task = usual(TASKS[name], few)
        reply = ask(few, pack_question(task, 1), task=name, caps=Caps.none(), node=node_for(name))
        assert not reply.has_error(), reply.error.reason
        received = read_answer(reply.content, task.payload, ReplyLimits().limits)
        assert isinstance(received.payload, task.payload)
        records = 10 * 3 if task.evaluates else len(few)
        assert (received.num_examples, received.about.site) == (records, "client-0")

    def test_the_same_question_gives_the_same_answer_and_another_seed_another(
        self, name: str, ask: Ask, few: Data
    ) -> None:
        def answered(seed: int) -> bytes:
            task = replace(usual(TASKS[name], few), seed=seed)  # type: ignore[type-var]
            reply = ask(few, pack_question(task, 1), task=name, caps=Caps.none(), node=node_for(name))
            payload = read_answer(reply.content, task.payload, ReplyLimits().limits).payload
            if hasattr(payload, "pixels"):
                return bytes(payload.pixels().images.numpy().tobytes())  # the record holds seconds
            return bytes(payload.to_bytes())

        assert answered(1) == answered(1)
        assert TASKS[name].evaluates or answered(1) != answered(2)  # nothing is drawn where weights are evaluated

    def test_a_node_without_it_is_named_with_what_both_sides_speak(self, name: str, few: Data) -> None:
        from flwr.clientapp import ClientApp

        with task_identity():
            grid = InProcessGrid(ClientApp(), 1)
            task = usual(TASKS[name], few)
            message = Message(pack_question(task, 1), 100, f"query.{name}")
            mailbox = Mailbox([Sent(message, unnamed(100), task.payload)], ReplyLimits())
            for reply in grid.send_and_receive([message]):
                mailbox.take(reply)
        ((_, reason),) = mailbox.sorted()[1]
        assert name in reason
        assert f"this node does not know the task; install fedcondense {own_version()}" in reason
        assert "\n" not in reason

    def test_no_answer_starts_from_or_holds_records_unless_the_node_allows_it(
        self, name: str, ask: Ask, few: Data
    ) -> None:
        task = usual(TASKS[name], few)
        caps = replace(Caps.none(), allow_real=False)
        reply = ask(few, pack_question(task, 1), task=name, caps=caps, node=node_for(name))
        if reply.has_error():
            assert "has no allow-real = true" in (reply.error.reason or "")
            return
        payload = read_answer(reply.content, task.payload, ReplyLimits().limits).payload
        if hasattr(payload, "pixels"):
            assert payload.record.start != "real"
            distances = torch.cdist(payload.pixels().images.flatten(1), few.images.float().div(255).flatten(1))
            assert float(distances.min()) > 1e-3


def test_every_task_of_a_strategy_is_one_that_nodes_answer() -> None:
    strategies = importlib.import_module("fedcondense.flower.strategies").STRATEGIES
    for entry in strategies.values():
        assert {task.name for task in entry.tasks} <= set(TASKS)
        assert entry.tasks or entry.handlers
    assert make_client_app(lambda context: None) is not None  # type: ignore[arg-type, return-value]
