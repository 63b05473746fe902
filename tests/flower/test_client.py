from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from fedcondense.flower.message import CONDENSE, Expected, Reply, unpack
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor
from torch.nn import functional as F

from fedcondense.condensing import condense
from fedcondense.contract import Recipe
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import DataError, SettingError
from fedcondense.flower.client import ClientCaps, load_partition, make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import FirstMoment
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import stream
from fedcondense.sources import Pool

QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 3}
NO_ESTIMATE = ClientCaps(max_seconds=float("inf"))


def ask(
    data: Data,
    config: Mapping[str, Any],
    *,
    caps: ClientCaps = NO_ESTIMATE,
    node: Mapping[str, Any] | None = None,
    **options: Any,
) -> Message:
    """Ask one client with these data, and return its reply as it arrives."""
    client = make_client_app(lambda context: data, caps=caps, **options)
    with task_identity():
        grid = InProcessGrid(client, 1, node_config=node)
        content = RecordDict({"config": ConfigRecord(dict(config))})
        return next(iter(grid.send_and_receive([Message(content, 100, CONDENSE)])))


def reply_of(message: Message, data: Data) -> Reply:
    assert not message.has_error(), message.error.reason
    return unpack(message.content, Expected.of(data.spec))


def reason_of(message: Message) -> str:
    assert message.has_error()
    return message.error.reason or ""


@dataclass(frozen=True)
class CosineMeans(FirstMoment):
    """A method that the toolkit lacks: class means by the angle between them."""

    layer: str = "embedding"
    per_class: int | None = 64
    recipe: ClassVar[Recipe] = Recipe(steps=40, lr=0.02, source=partial(Pool, size=8))

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(real, synthetic)


class TestAnswers:
    def test_it_sends_what_condense_makes_of_its_partition(self, train: Data) -> None:
        reply = reply_of(ask(train, QUICK), train)
        record = reply.synthetic.record
        own = condense(train, 1, "dm", seed=record.seed, steps=3, start="gaussian", limit=0.5)
        torch.testing.assert_close(reply.synthetic.pixels().images, own.pixels().images, rtol=0, atol=0)
        assert record.start == "gaussian"
        assert reply.num_examples == len(train) == sum(record.counts)

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_every_parametrization_by_name(self, name: str, train: Data) -> None:
        reply = reply_of(ask(train, {**QUICK, "ipc": 2, "parametrization": name}), train)
        (part,) = reply.synthetic.parts
        assert part.parametrization == PARAMETRIZATIONS[name]()
        assert len(reply.synthetic) == 10 * part.parametrization.start_count(2)
        assert sum(code.nbytes for code in part.codes.values()) <= 10 * 2 * 64

    def test_clients_that_hold_the_same_send_different_images(self, train: Data) -> None:
        first, second = (reply_of(ask(train, QUICK, node={"partition-id": k}), train) for k in (0, 1))
        assert first.synthetic.record.seed != second.synthetic.record.seed
        assert not torch.equal(first.synthetic.pixels().images, second.synthetic.pixels().images)

    def test_a_class_gives_at_most_half_of_its_records(self, train: Data) -> None:
        few = train.subset(torch.cat([torch.where(train.labels == c)[0][: 2 * c] for c in range(10)]))
        counts = reply_of(ask(few, {**QUICK, "ipc": 5}), train).synthetic.counts()
        assert counts.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]

    def test_an_objective_that_a_user_added_works_by_name(
        self, train: Data, held: Partition, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(OBJECTIVES, "cosine-means", CosineMeans())
        data = train.subset(held[0])
        by_name = condense(data, 1, "cosine-means", seed=1)
        start = condense(data, 1, "cosine-means", seed=1, steps=0)
        assert by_name.record.method == repr(CosineMeans())
        assert not torch.equal(by_name.pixels().images, start.pixels().images)
        reply = reply_of(ask(data, {"ipc": 1, "objective": "cosine-means"}), train)
        assert reply.synthetic.record.method == repr(CosineMeans())

    def test_selections_travel_where_the_node_allows_real_records(self, train: Data) -> None:
        config = {"ipc": 2, "method": "random"}
        reply = reply_of(ask(train, config, node={"allow-real": True}), train)
        real = {bytes(image.flatten().tolist()) for image in train.images}
        sent = reply.synthetic.parts[0].codes["images"]
        assert {bytes(image.flatten().tolist()) for image in sent} <= real


class TestRefusals:
    def test_classes_of_too_few_records_are_left_out(self, train: Data) -> None:
        few = int(train.counts.argmin())
        least = int(train.counts.min()) + 1
        reply = reply_of(ask(train, QUICK, caps=replace(NO_ESTIMATE, min_records=least)), train)
        counts = torch.tensor(reply.synthetic.record.counts)
        assert counts[few] == 0
        assert ((counts > 0) == (train.counts >= least)).all()
        assert "no class has 1000000 records" in reason_of(ask(train, QUICK, node={"min-records": 1_000_000}))

    def test_a_kept_answer_is_held_to_the_caps_of_today(self, train: Data, tmp_path: Path) -> None:
        reply_of(ask(train, QUICK, cache=tmp_path), train)
        small = replace(NO_ESTIMATE, max_bytes=10)
        assert "this node sends at most 10" in reason_of(ask(train, QUICK, caps=small, cache=tmp_path))

    @pytest.mark.parametrize(
        ("config", "needed"),
        [
            ({"ipc": 51}, "ipc 51 asked for; this node condenses to 1 to 50"),
            ({"ipc": 0}, "ipc 0 asked for"),
            ({"ipc": 1, "steps": 5001}, "5001 steps asked for; this node allows 5000"),
            ({"start": "real"}, "publishes real records"),
            ({"method": "random"}, "publishes real records"),
            ({"method": "half-resolution"}, "publishes real records"),
            ({"objective": "dm-rigde"}, "no objective is called 'dm-rigde'; did you mean 'dm-ridge'?"),
            ({"objective": "os.system"}, "no objective is called"),
            ({"parametrization": "pixel"}, "did you mean 'pixels'?"),
            ({"network": "convnet9"}, "no network is called"),
            ({"start": "reel"}, "no start is called"),
            ({"start": ""}, "no start is called"),
            ({"ipc": "10"}, "ipc is '10'; needed: a whole number"),
            ({"ipc": True}, "ipc is True; needed: a whole number"),
            ({"steps": -1}, "steps is -1; needed: a whole number from 0"),
            ({"objective": 3}, "objective is 3; needed: a text"),
            ({"epochs": 3}, "no setting is called 'epochs'"),
        ],
    )
    def test_a_request_beyond_the_caps_or_unknown_is_answered_with_the_reason(
        self, config: dict[str, Any], needed: str, train: Data
    ) -> None:
        reason = reason_of(ask(train, {"steps": 2, **config}))
        assert needed in reason
        assert reason.startswith("partition 0: ")

    def test_a_client_without_data_says_so(self, train: Data) -> None:
        empty = train.subset(torch.empty(0, dtype=torch.int64))
        assert reason_of(ask(empty, QUICK)) == "partition 0: has no data"

    def test_seconds_are_refused_by_the_estimate_before_work(self, train: Data) -> None:
        reason = reason_of(ask(train, {**QUICK, "steps": 4000}, caps=ClientCaps(max_seconds=0.5)))
        assert "seconds would be needed" in reason

    def test_a_class_with_few_records_is_told_once(self, train: Data, caplog: pytest.LogCaptureFixture) -> None:
        few = train.subset(train.per_class(4, stream(0)))
        reply_of(ask(few, {**QUICK, "ipc": 3}, caps=ClientCaps(max_seconds=1e6)), few)
        assert caplog.text.count("ipc 3 is more than 0.5 of the records") == 1

    def test_bytes_are_refused(self, train: Data) -> None:
        reason = reason_of(ask(train, QUICK, caps=ClientCaps(max_bytes=500, max_seconds=float("inf"))))
        assert "this node sends at most 500" in reason

    def test_the_node_decides_and_the_server_cannot(self, train: Data) -> None:
        assert "to 1 to 2 images" in reason_of(ask(train, {"ipc": 3}, node={"max-ipc": 2}))
        assert "no setting is called 'max-ipc'" in reason_of(ask(train, {"max-ipc": 99}))
        assert "allow-real = 'yes'" in reason_of(ask(train, QUICK, node={"allow-real": "yes"}))

    def test_the_text_of_an_unexpected_error_stays_on_the_node(self, caplog: pytest.LogCaptureFixture) -> None:
        def secret(context: Context) -> Data:
            raise DataError("/home/alice/patients.csv: Bob has no label")

        with task_identity():
            grid = InProcessGrid(make_client_app(secret), 1)
            content = RecordDict({"config": ConfigRecord(dict(QUICK))})
            message = next(iter(grid.send_and_receive([Message(content, 100, CONDENSE)])))
        assert reason_of(message) == "partition 0: failed with DataError; the node's log says more"
        assert "Bob" in caplog.text


class TestCache:
    def test_the_same_question_is_answered_from_the_cache_and_another_is_not(self, train: Data, tmp_path: Path) -> None:
        asked: list[int] = []

        def count(partition: int, at: Any) -> None:
            asked.append(partition)

        first = reply_of(ask(train, QUICK, cache=tmp_path, progress=count), train)
        steps = len(asked)
        again = reply_of(ask(train, QUICK, cache=tmp_path, progress=count), train)
        assert first.synthetic.to_bytes() == again.synthetic.to_bytes()
        assert len(asked) == steps > 0
        other = reply_of(ask(train, {**QUICK, "seed": 1}, cache=tmp_path, progress=count), train)
        assert other.synthetic.to_bytes() != first.synthetic.to_bytes()
        assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


class TestLoadPartition:
    @staticmethod
    def context(node: dict[str, Any], run: dict[str, Any] | None = None) -> Context:
        return Context(1, 1, node, RecordDict(), run or {})

    def test_nodes_divide_a_named_set(self, train: Data) -> None:
        run = {"data": "digits", "alpha": 0.5, "partition-seed": 1}
        parts = [load_partition(self.context({"partition-id": k, "num-partitions": 3}, run)) for k in range(3)]
        assert sum(map(len, parts)) == len(train)

    def test_a_site_with_its_own_data_keeps_all_of_them(self, train: Data) -> None:
        assert len(load_partition(self.context({"data": "digits", "partition-id": 5}))) == len(train)

    def test_a_run_cannot_name_a_path(self) -> None:
        for name in ("folder:/home", "npz:/home/a.npz", "patients", "../patients"):
            with pytest.raises(SettingError, match="node's config"):
                load_partition(self.context({}, {"data": name}))

    def test_a_run_cannot_say_where_data_are(self, train: Data, tmp_path: Path) -> None:
        images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
        np.savez(tmp_path / "digits.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        run = {"data": "digits", "data-root": str(tmp_path)}
        assert len(load_partition(self.context({}, run))) == len(train)
        assert len(load_partition(self.context({"data-root": str(tmp_path)}, run))) == 4
