from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context
from torch import Tensor

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Node, Site
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.running import accuracy_of_scores
from fedcondense.flower.strategies.factors import products_of
from fedcondense.flower.strategies.features import labelled_by, random_features
from fedcondense.flower.strategies.ridge import Products, Ridge, ridge_dims
from fedcondense.flower.wire import pack_question

NETWORK = "convnet2-w32"
NODE = Node("client-0", Caps.none())
ALL_DIMS = Products()


def solved(train: Data, parts: Sequence[Tensor], task: Products = ALL_DIMS, strength: float = 1e-4) -> Ridge:
    """Run ridge over these parts of some data."""

    def load(context: Context) -> Data:
        return train.subset(parts[int(context.node_config["partition-id"])])

    client = make_client_app(load, caps=Caps.none(), is_counted=False)
    asked: dict[str, Any] = {"min_train_nodes": len(parts), "min_available_nodes": len(parts)}
    strategy = Ridge(task, strength, ReplyLimits.none(train.spec), **asked)
    with task_identity():
        strategy.start(InProcessGrid(client, len(parts)))
    return strategy


def accuracy(strategy: Ridge, test: Data) -> float:
    return accuracy_of_scores(strategy.classify(test), test)[0]


def test_it_does_not_depend_on_the_partition(train: Data, test: Data, held: Partition) -> None:
    """Sums over all clients are sums over all data: one client gives the same classifier."""
    skewed, together = solved(train, held), solved(train, [torch.arange(len(train))])
    assert accuracy(skewed, test) == pytest.approx(accuracy(together, test), abs=0.3)
    assert accuracy(skewed, test) > 90


def test_it_is_least_squares(train: Data) -> None:
    """On seven features, the closed form must be what `torch.linalg.lstsq` on the stacked rows is."""
    strategy = solved(train, [torch.arange(len(train))], Products(dims=7), strength=0.0)
    features = random_features(train, NETWORK, 0, 7)
    rows = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    targets = torch.nn.functional.one_hot(train.labels, 10).double()
    weights = torch.linalg.lstsq(rows, targets).solution
    torch.testing.assert_close(strategy.state.tensors["classifier"].double(), weights, rtol=2e-2, atol=2e-3)


def test_sums_are_those_of_a_loop_over_records(train: Data) -> None:
    few = train.subset(torch.arange(30))
    sums = Products(few.spec.classes, NETWORK, seed=1, dims=5).prepare(Own(few), NODE).run().tensors
    features = torch.cat([random_features(few, NETWORK, 1, 5), torch.ones(30, 1)], 1)
    gram, products = torch.zeros(6, 6), torch.zeros(6, 10)
    for row, label in zip(features, few.labels.tolist(), strict=True):
        gram += row[:, None] * row[None]
        products[:, label] += row
    torch.testing.assert_close(sums["gram"], gram[*torch.triu_indices(6, 6)], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sums["products"], products, rtol=1e-4, atol=1e-4)


def test_the_cost_is_that_of_the_sums(train: Data) -> None:
    job = Products(train.spec.classes, NETWORK, dims=50).prepare(Own(train), NODE)
    assert job.cost.nbytes == sum(value.nbytes for value in job.run().tensors.values())
    assert job.cost.networks == (NETWORK,)


def test_they_are_sums_of_full_precision_under_a_callers_autocast(train: Data) -> None:
    task = Products(train.spec.classes, NETWORK, dims=20)
    plain = task.prepare(Own(train), NODE).run().tensors
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = task.prepare(Own(train), NODE).run().tensors
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value, rtol=0, atol=0)


def test_who_has_no_data_is_left_out(train: Data, test: Data, held: Partition) -> None:
    strategy = solved(train, [*held, held[0][:0]])
    assert [refusal.reason for refusal in strategy.refused] == ["partition 3: has no data"]
    assert accuracy(strategy, test) > 80


@pytest.mark.parametrize("nbytes", [200, 1000, 37_500])
@pytest.mark.parametrize(("precision", "each", "row"), [("float32", 4, 0), ("float16", 2, 4), ("int8", 1, 4)])
def test_the_dimensions_fill_the_bytes(nbytes: int, precision: str, each: int, row: int) -> None:
    def size(dims: int) -> int:
        return each * ((dims + 1) * (dims + 2) // 2 + (dims + 1) * 10) + row * (dims + 1)

    dims = ridge_dims(nbytes, 10, precision)
    assert size(dims) <= nbytes < size(dims + 1)


def test_sums_of_other_shapes_are_left_out_and_the_round_goes_on(train: Data, test: Data, held: Partition) -> None:
    """One site that runs another network, or lies, must not end everybody's round."""

    class Odd(Products):
        def prepare(self, holder: Any, node: Node) -> Job[Sums]:
            dims = 5 if node.place == 1 else self.dims
            return Products(self.classes, self.network, self.seed, dims).prepare(holder, node)

    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    client = make_client_app(load, tasks=[Odd], caps=Caps.none(), is_counted=False)
    strategy = Ridge(limits=ReplyLimits.none(train.spec))
    with task_identity():
        strategy.start(InProcessGrid(client, 3))
    assert [answer.site.name for answer in strategy.answers] == ["client-0", "client-2"]
    assert "'gram' is (21,) torch.float32; this network has (8385,)" in strategy.refused[0].reason
    assert accuracy(strategy, test) > 80


@pytest.mark.parametrize(
    "sums",
    [
        {},
        {"gram": torch.zeros(8385)},
        {"gram": torch.zeros(8385), "products": torch.zeros(129, 10), "more": torch.zeros(1)},
        {"gram": torch.zeros(8385), "products": torch.zeros(129, 9)},
        {"gram": torch.zeros(8385).double(), "products": torch.zeros(129, 10)},
        {"gram": torch.zeros(8384), "products": torch.zeros(129, 10)},
        {"gram": -torch.ones(8385), "products": torch.zeros(129, 10)},  # what would end the round, not the answer
    ],
)
def test_hostile_sums_are_refused(sums: dict[str, Tensor], train: Data) -> None:
    for limits in (ReplyLimits.of(train.spec), ReplyLimits(classes=train.spec.classes)):
        with pytest.raises(UntrustedSetError):
            Ridge(limits=limits).examine("answer", Answer(Site("a"), Sums(sums)))
    sound = Sums({"gram": torch.zeros(8385), "products": torch.zeros(129, 10)})
    Ridge(limits=ReplyLimits.of(train.spec)).examine("answer", Answer(Site("a"), sound))


ROUNDED = ("float16", "int8", "int8-deflated")


class TestFactor:
    """What a site sends where fewer bits than 32 are asked for."""

    def factor(self, few: Data, precision: str, dims: int = 5) -> Sums:
        return Products(few.spec.classes, NETWORK, 1, dims, precision).prepare(Own(few), NODE).run()

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("records", [100, 4, 1])
    def test_it_holds_the_products_of_records_with_an_error_of_its_rounding(
        self, train: Data, precision: str, records: int
    ) -> None:
        """(R + E)'(R + E) differs from R'R by 2 |R||E| + |E|^2 at most, where a row of E is half a step per number."""
        few = train.subset(torch.arange(records))
        sent = self.factor(few, precision)
        rows = min(records, 6)
        assert len(sent.tensors["scales"]) == rows
        if precision != "int8-deflated":
            assert len(sent.tensors["rows"]) == rows * 16 - rows * (rows - 1) // 2
        features = torch.cat([random_features(few, NETWORK, 1, 5), torch.ones(records, 1)], 1).double()
        targets = torch.nn.functional.one_hot(few.labels, 10).double()
        read_gram, read_products = products_of(sent, 6, 10, precision)
        half = (2.0**-12 if precision == "float16" else 0.5) * float(sent.tensors["scales"].max())
        error = half * rows**0.5  # of a column of R
        norms = features.square().sum(0).sqrt() + error
        gram, products = features.T @ features, features.T @ targets
        assert float((read_gram - gram).abs().max()) <= 1.01 * (2 * error * float(norms.max())) + 1e-3
        most = targets.square().sum(0).sqrt().max() + error
        assert float((read_products - products).abs().max()) <= 1.01 * error * float(norms.max() + most) + 1e-3

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("records", [200, 30])
    def test_the_cost_is_that_of_the_factor(self, train: Data, precision: str, records: int) -> None:
        task = Products(train.spec.classes, NETWORK, dims=50, precision=precision)
        job = task.prepare(Own(train.subset(torch.arange(records))), NODE)
        sent = sum(value.nbytes for value in job.run().tensors.values())
        assert sent == job.cost.nbytes if precision != "int8-deflated" else sent <= job.cost.nbytes

    def test_deflated_numbers_are_the_same(self, train: Data) -> None:
        few = train.subset(torch.arange(60))
        plain, deflated = (products_of(self.factor(few, form), 6, 10, form) for form in ROUNDED[1:])
        assert all(torch.equal(one, other) for one, other in zip(plain, deflated, strict=True))

    @pytest.mark.parametrize(
        "blob",
        [
            b"",
            b"no stream",
            zlib.compress(bytes(9674)),
            zlib.compress(bytes(9676)),
            zlib.compress(bytes(1 << 28)),  # a bomb
            zlib.compress(bytes(9675))[:-3],
            zlib.compress(bytes(9675)) + b"more",
        ],
    )
    def test_hostile_streams_are_refused(self, train: Data, blob: bytes) -> None:
        rows = torch.tensor(list(blob), dtype=torch.uint8)
        given = Answer(Site("a"), Sums({"rows": rows, "scales": torch.zeros(129)}))
        for limits in (ReplyLimits.of(train.spec), ReplyLimits(classes=train.spec.classes)):
            strategy = Ridge(Products(precision="int8-deflated"), limits=limits)
            with pytest.raises(UntrustedSetError):
                strategy.examine("answer", given)

    def test_accuracy_holds(self, train: Data, test: Data, held: Partition) -> None:
        whole = accuracy(solved(train, held), test)
        for precision, most in (("float16", 0.4), ("int8", 1.0)):
            assert accuracy(solved(train, held, Products(precision=precision)), test) > whole - most

    @pytest.mark.parametrize(
        "changes",
        [
            {"scales": None},
            {"rows": None},
            {"more": torch.zeros(1)},
            {"scales": torch.zeros(0)},
            {"scales": torch.zeros(130)},
            {"scales": torch.zeros(129, 1)},
            {"scales": torch.zeros(129).double()},
            {"scales": -torch.ones(129)},
            {"scales": torch.full((129,), 1e30)},
            {"rows": torch.zeros(3, dtype=torch.int8)},
            {"rows": torch.zeros(9675)},
        ],
    )
    def test_hostile_factors_are_refused(self, train: Data, changes: dict[str, Tensor | None]) -> None:
        sound: dict[str, Tensor | None] = {"rows": torch.zeros(9675, dtype=torch.int8), "scales": torch.zeros(129)}
        strategy = Ridge(Products(precision="int8"), limits=ReplyLimits.of(train.spec))
        strategy.examine("answer", Answer(Site("a"), Sums({k: v for k, v in sound.items() if v is not None})))
        given = {name: value for name, value in {**sound, **changes}.items() if value is not None}
        with pytest.raises(UntrustedSetError):
            strategy.examine("answer", Answer(Site("a"), Sums(given)))

    def test_numbers_beyond_their_scale_are_refused(self, train: Data) -> None:
        strategy = Ridge(Products(precision="float16"), limits=ReplyLimits.of(train.spec))
        rows = torch.full((9675,), 1.5, dtype=torch.float16)
        with pytest.raises(UntrustedSetError, match="numbers of a factor; needed: from -1 to 1"):
            strategy.examine("answer", Answer(Site("a"), Sums({"rows": rows, "scales": torch.zeros(129)})))

    def test_another_precision_is_refused_by_name(self, train: Data) -> None:
        with pytest.raises(SettingError, match="no precision is called 'int4'"):
            Products(train.spec.classes, precision="int4").prepare(Own(train), NODE)

    def test_a_question_for_sums_is_the_one_that_older_nodes_know(self) -> None:
        assert "precision" not in pack_question(Products(), 1).config_records["config"]
        assert pack_question(Products(precision="int8"), 1).config_records["config"]["precision"] == "int8"


class TestLabels:
    def test_they_index_the_classes_that_the_question_names(self, train: Data) -> None:
        few = train.subset(torch.arange(20))
        turned = labelled_by(Own(few), few.spec.classes[::-1], NODE)
        assert turned.spec.classes == few.spec.classes[::-1]
        names = [few.spec.classes[k] for k in few.labels.tolist()]
        assert [turned.spec.classes[k] for k in turned.labels.tolist()] == names

    def test_sites_that_name_classes_in_another_order_give_one_classifier(self, train: Data, test: Data) -> None:
        half = len(train) // 2
        one, other = train.subset(torch.arange(half)), train.subset(torch.arange(half, len(train)))
        turned = Data(other.images, 9 - other.labels, replace(other.spec, classes=other.spec.classes[::-1]))
        parts = [one, turned]

        def load(context: Context) -> Data:
            return parts[int(context.node_config["partition-id"])]

        strategy = Ridge(limits=ReplyLimits.none(train.spec))
        with task_identity():
            strategy.start(InProcessGrid(make_client_app(load, caps=Caps.none(), is_counted=False), 2))
        whole = solved(train, [torch.arange(half), torch.arange(half, len(train))])
        torch.testing.assert_close(strategy.state.tensors["classifier"], whole.state.tensors["classifier"])

    def test_a_class_that_the_question_lacks_is_refused_by_name(self, train: Data) -> None:
        with pytest.raises(SettingError, match="client-0 has classes that the question does not name: '8', '9'"):
            labelled_by(Own(train), train.spec.classes[:8], NODE)
        with pytest.raises(SettingError, match="names no classes"):
            labelled_by(Own(train), (), NODE)
