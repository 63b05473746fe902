from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Node
from fedcondense.flower.eight_bits import pack_weights, unpack_weights
from fedcondense.flower.kept import Kept
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.averaging import (
    AVERAGING,
    LocalTraining,
    local_round,
    train_locally,
    training_config,
)
from fedcondense.flower.strategies.fedexp import FedExP
from fedcondense.networks import build
from fedcondense.randomness import stream

NETWORK = "convnet1-w16"
FAST = LocalTraining(lr=0.1)
NODE = Node("client-3", Caps.none(), place=3)


def question(train: Data, network: str = NETWORK, **config: Any) -> RecordDict:
    """Return the message of Flower's strategies; a value of None leaves a key out."""
    side = ServerSide(FAST, lambda joined: torch.nn.Identity(), {}, spec=train.spec, network=network)
    values: dict[str, Any] = {**training_config(FAST, side), "server-round": 1}
    values |= {key.replace("_", "-"): value for key, value in config.items()}
    given = {key: value for key, value in values.items() if value is not None}
    arrays = ArrayRecord(dict(build(network, train.spec.shape, 10, 0).state_dict()))
    return RecordDict({"arrays": arrays, "config": ConfigRecord(given)})


@pytest.fixture(scope="module")
def few(train: Data) -> Data:
    return train.subset(train.per_class(8, stream(0)))


class TestLocalRound:
    @pytest.mark.parametrize("network", [NETWORK, f"{NETWORK}-batch"])
    def test_it_is_local_training_from_the_weights_that_came(self, few: Data, network: str) -> None:
        answer = local_round(question(few, network), Own(few), NODE)
        model = build(network, few.spec.shape, 10, 0)
        loss = train_locally(model, few, FAST, stream(0, "fedavg", 3, 1))
        sent = answer.array_records["arrays"].to_torch_state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(sent[name], value, rtol=0, atol=0)
            assert sent[name].dtype == value.dtype
        assert dict(answer.metric_records["metrics"]) == {"num-examples": 80, "loss": loss}

    def test_rounds_and_nodes_draw_other_batches_and_a_run_that_goes_on_draws_as_one_that_did_not_stop(
        self, few: Data
    ) -> None:
        def trained(node: Node = NODE, **config: Any) -> float:
            return float(local_round(question(few, **config), Own(few), node).metric_records["metrics"]["loss"])  # type: ignore[arg-type]

        first = trained()
        assert trained(server_round=2) != first
        assert trained(NODE._replace(place=4)) != first
        assert trained(server_round=2) == trained(server_round=1, rounds_before=1)

    @pytest.mark.parametrize(
        ("config", "needed"),
        [
            ({"lr": "fast"}, "lr = 'fast'; needed: a number from 0"),
            ({"lr": -0.1}, "lr = -0.1"),
            ({"epochs": 0}, "epochs = 0; needed: a whole number from 1"),
            ({"batch": 2.5}, "batch = 2.5"),
            ({"momentum": 1.5}, "momentum = 1.5; needed: a number from 0 to 1"),
            ({"proximal_mu": float("nan")}, "proximal-mu = nan"),
            ({"epoch": 3}, "no setting is called 'epoch'; did you mean 'epochs'?"),
            ({"classes": None}, "names no classes"),
            ({"classes": ["0", "1"]}, "client-3 has classes that the question does not name: '2', '3'"),
            ({"network": "convnet9"}, "no network is called 'convnet9'"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, few: Data, config: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            local_round(question(few, **config), Own(few), NODE)

    def test_labels_follow_the_classes_that_the_question_names(self, few: Data) -> None:
        """Turned names on turned outputs train the same network, with its outputs turned."""
        names = few.spec.classes[::-1]
        turned = question(few, classes=list(names))
        model = build(NETWORK, few.spec.shape, 10, 0)
        state = {k: v.flip(0) if k.startswith("classifier") else v for k, v in model.state_dict().items()}
        turned["arrays"] = ArrayRecord(state)
        one = local_round(question(few), Own(few), NODE).array_records["arrays"].to_torch_state_dict()
        other = local_round(turned, Own(few), NODE).array_records["arrays"].to_torch_state_dict()
        for name, value in one.items():
            same = other[name].flip(0) if name.startswith("classifier") else other[name]
            torch.testing.assert_close(same, value)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (np.zeros(9, np.float32), r"is \(9,\) torch.float32; this network has \(10,\)"),
            (np.full(10, np.nan, np.float32), "not finite"),
            (np.zeros(10), "dtype float64"),
            (None, "other names"),
        ],
    )
    def test_weights_of_another_network_are_refused(self, few: Data, change: Any, reason: str) -> None:
        content = question(few)
        arrays = dict(content.array_records["arrays"])
        if change is None:
            del arrays["classifier.bias"]
        else:
            arrays["classifier.bias"] = Array(change)
        content["arrays"] = ArrayRecord(arrays)
        with pytest.raises(UntrustedSetError, match=reason):
            local_round(content, Own(few), NODE)

    def test_a_node_refuses_weights_and_networks_unless_it_allows_them(self, few: Data) -> None:
        with pytest.raises(SettingError, match="this node's config has no allow-weights = true"):
            local_round(question(few), Own(few), Node("a", Caps()))
        with pytest.raises(SettingError, match=f"networks {NETWORK}; this node allows mlp"):
            local_round(question(few), Own(few), Node("a", Caps(networks="mlp", allow_weights=True)))

    def test_a_round_that_takes_longer_than_the_node_allows_is_refused(self, few: Data) -> None:
        with pytest.raises(SettingError, match="not done in time; this node allows inf seconds"):
            local_round(question(few), Own(few), NODE._replace(until=0.0))


class TestEightBits:
    """Weights come at eight bits, and so goes what training changed."""

    def question(self, train: Data, number: int = 1, **config: Any) -> RecordDict:
        content, model = (
            question(train, **{"bits": 8, "server-round": number, **config}),
            build(NETWORK, (1, 8, 8), 10, 0),
        )
        content["arrays"] = pack_weights(model.state_dict(), model)
        return content

    def test_the_change_is_that_of_training_from_what_came(self, few: Data) -> None:
        answer = local_round(self.question(few), Own(few), NODE)
        start, model = (build(NETWORK, few.spec.shape, 10, 0) for _ in range(2))
        unpack_weights(pack_weights(start.state_dict(), start), start).load_into(model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_locally(model, few, FAST, stream(0, "fedavg", 3, 1))
        sent = unpack_weights(answer.array_records["arrays"], model).tensors
        for name, value in model.state_dict().items():
            change = value - before[name]
            half = float(change.abs().max()) / 254
            torch.testing.assert_close(sent[name], change, rtol=0, atol=half * 1.001)

    def test_what_rounding_took_is_added_to_the_next_change(self, few: Data) -> None:
        """A node that keeps sends in two rounds what it changed but for one error; the seed makes both rounds known."""
        kept, model = Kept(None, 1 << 20), build(NETWORK, few.spec.shape, 10, 0)
        with_memory, without = NODE._replace(kept=kept), NODE
        first, again, second, alone = (
            unpack_weights(local_round(self.question(few, k), Own(few), node).array_records["arrays"], model).tensors
            for node, k in ((with_memory, 1), (with_memory, 1), (with_memory, 2), (without, 2))
        )
        came = unpack_weights(pack_weights(model.state_dict(), model), model)
        trained = came.load_into(build(NETWORK, few.spec.shape, 10, 0))
        train_locally(trained, few, FAST, stream(0, "fedavg", 3, 1))
        for name, value in trained.state_dict().items():
            torch.testing.assert_close(first[name], again[name], rtol=0, atol=0)
            error = value - came.tensors[name] - first[name]
            step = float(alone[name].abs().max()) / 127
            torch.testing.assert_close(second[name], alone[name] + error, rtol=0, atol=1.2 * step)
        assert any(not torch.equal(second[name], alone[name]) for name in second)

    def test_other_numbers_of_bits_and_weights_as_they_are_are_refused(self, few: Data) -> None:
        with pytest.raises(SettingError, match="bits = 4 in the question; needed: 0, or 8"):
            local_round(self.question(few, bits=4), Own(few), NODE)
        with pytest.raises(UntrustedSetError, match="are one Array 'file'"):
            local_round(question(few, bits=8), Own(few), NODE)
        with pytest.raises(SettingError, match="allow-weights"):
            local_round(self.question(few), Own(few), Node("a", Caps()))


class TestTrainLocally:
    def test_one_epoch_in_one_batch_is_a_step_of_gradient_descent(self, few: Data) -> None:
        training = LocalTraining(lr=0.5, batch=1000, momentum=0.0)
        model, other = (build(NETWORK, few.spec.shape, 10, 0) for _ in range(2))
        loss = train_locally(model, few, training, stream(0))
        batch = few.batch(torch.arange(len(few)))
        mine = torch.nn.functional.cross_entropy(other(batch.images), few.labels)
        mine.backward()
        assert loss == pytest.approx(mine.item(), rel=1e-5)
        for trained, start in zip(model.parameters(), other.parameters(), strict=True):
            assert start.grad is not None
            torch.testing.assert_close(trained, start - 0.5 * start.grad, rtol=1e-4, atol=1e-5)

    def test_the_proximal_term_pulls_back_to_the_start(self, few: Data) -> None:
        """Its gradient is mu times the way from the start: one step moves as before, the second is pulled."""
        moved = []
        for mu in (0.0, 1.0, 5.0):
            model = build(NETWORK, few.spec.shape, 10, 0)
            start = [value.detach().clone() for value in model.parameters()]
            train_locally(model, few, LocalTraining(lr=0.05, epochs=3, momentum=0.0), stream(0), mu)
            steps = [(a - b).square().sum() for a, b in zip(model.parameters(), start, strict=True)]
            moved.append(float(torch.stack(steps).sum().detach()))
        assert moved[0] > moved[1] > moved[2]

    def test_a_step_size_that_is_too_large_says_so(self, few: Data) -> None:
        with pytest.raises(SettingError, match=r"local training diverged at lr 1e\+09; try a third of it"):
            train_locally(build(NETWORK, few.spec.shape, 10, 0), few, LocalTraining(lr=1e9, epochs=3), stream(0))


@pytest.mark.parametrize("name", AVERAGING)
def test_every_strategy_of_flowers_is_taken_as_it_is(name: str) -> None:
    entry = STRATEGIES[name]
    side = ServerSide(
        entry.settings, lambda joined: torch.nn.Identity(), {"min_available_nodes": 7, "fraction_train": 0.5}
    )
    strategy: Any = entry.make(side)
    assert type(strategy) is FedExP or type(strategy).__module__.startswith("flwr.serverapp.strategy")
    assert (strategy.min_available_nodes, strategy.fraction_train, strategy.fraction_evaluate) == (7, 0.5, 0.0)
    assert (entry.handlers, entry.starts) == (("train",), True)
