from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.flower.caps import Caps
from fedcondense.flower.checked_grid import CheckedGrid, averageable
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.optimizer_state import held as held_by
from fedcondense.flower.optimizer_state import hold
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.averaging import LocalTraining, training_config
from fedcondense.flower.strategies.dynafed import Distilling, DynaFed, distilled
from fedcondense.networks import build
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
TINY = Distilling(lr=0.05, after=2, ipc=1, steps=3, window=2, span=1, tuning=5)


def run(strategy: FedAvg, train: Data, held: Partition, rounds: int) -> list[dict[str, Tensor]]:
    """Run rounds over three nodes; return the weights after each."""
    model = build(NETWORK, train.spec.shape, 10, 0)
    side = ServerSide(TINY, lambda _: model, {}, spec=train.spec, network=NETWORK)
    app, found = ServerApp(), list[dict[str, Tensor]]()

    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    def after(number: int, arrays: Any) -> MetricRecord | None:
        if number:
            found.append(dict(arrays.to_torch_state_dict()))
        return None

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        checked = CheckedGrid(grid, model)
        config = training_config(TINY, side)
        strategy.start(checked, averageable(model.state_dict()), rounds, train_config=config, evaluate_fn=after)

    run_in_process(app, make_client_app(load, caps=Caps.none(), is_counted=False), 3)
    return found


def dynafed(train: Data, task: Distilling = TINY) -> DynaFed:
    return DynaFed(train.spec, NETWORK, task, Fit(), 0)


@pytest.fixture(scope="module")
def both(train: Data, held: Partition) -> tuple[DynaFed, list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Return a strategy that has run, its weights after each round, and FedAvg's."""
    strategy = dynafed(train)
    return strategy, run(strategy, train, held, 3), run(FedAvg(fraction_evaluate=0.0), train, held, 3)


class TestDynaFed:
    def test_until_it_distils_it_is_fedavg_and_then_it_is_not(self, both: Any) -> None:
        _, mine, theirs = both
        assert all(torch.equal(mine[0][name], value) for name, value in theirs[0].items())
        assert not all(torch.equal(mine[1][name], value) for name, value in theirs[1].items())

    def test_it_keeps_the_start_and_as_many_averages_as_it_distils(self, both: Any, train: Data) -> None:
        strategy, _, theirs = both
        start = build(NETWORK, train.spec.shape, 10, 0)
        assert len(strategy.trajectory) == 3
        vector = nn.utils.parameters_to_vector(start.parameters()).detach()
        torch.testing.assert_close(strategy.trajectory[0], vector)
        start.load_state_dict(theirs[0])
        vector = nn.utils.parameters_to_vector(start.parameters()).detach()
        torch.testing.assert_close(strategy.trajectory[1], vector)

    def test_the_set_holds_soft_labels_and_no_records(self, both: Any, train: Data) -> None:
        made = SyntheticSet.from_bytes(both[0].made)
        (part,) = made.parts
        assert (len(made), part.targets.dtype, made.record.counts, made.record.start) == (
            10,
            torch.float16,
            (),
            "noise",
        )

    def test_what_it_keeps_survives_its_process(self, both: Any, train: Data) -> None:
        strategy, fresh = both[0], dynafed(train)
        hold(fresh, held_by(strategy))
        assert fresh.made == strategy.made
        assert all(torch.equal(a, b) for a, b in zip(fresh.trajectory, strategy.trajectory, strict=True))

    def test_without_tuning_it_is_fedavg_to_the_end(self, train: Data, held: Partition, both: Any) -> None:
        mine = run(dynafed(train, replace(TINY, tuning=0)), train, held, 3)
        assert all(torch.equal(mine[2][name], value) for name, value in both[2][2].items())


def test_sites_are_told_what_they_are_told_under_fedavg(train: Data) -> None:
    """What the server distils is no business of theirs: a node of any release answers."""
    side = ServerSide(TINY, lambda _: nn.Identity(), {}, spec=train.spec, network=NETWORK)
    plain = LocalTraining(TINY.lr, TINY.epochs, TINY.batch, TINY.momentum)
    assert training_config(TINY, side) == training_config(plain, side)


def test_images_move_towards_what_the_averages_do(train: Data) -> None:
    """Training on the set goes along the given direction, more than on the noise that it began as."""
    networks = [build(NETWORK, train.spec.shape, 10, 0)]
    batch = train.batch(torch.arange(300))
    moving = build(NETWORK, train.spec.shape, 10, 0)
    optimizer = torch.optim.SGD(moving.parameters(), lr=0.05)
    for _ in range(2):
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(moving(batch.images), batch.targets).backward()
            optimizer.step()
        networks.append(build(NETWORK, train.spec.shape, 10, 0))
        networks[-1].load_state_dict(moving.state_dict())
    passed = [nn.utils.parameters_to_vector(one.parameters()).detach() for one in networks]

    def along(steps: int) -> float:
        made = distilled(passed, train.spec, NETWORK, replace(TINY, ipc=2, steps=steps, window=4), 0)
        images, targets = made.decode()
        network = build(NETWORK, train.spec.shape, 10, 0)
        nn.functional.cross_entropy(network(images), targets).backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        return float(nn.functional.cosine_similarity(-gradient, passed[1] - passed[0], dim=0))

    assert along(30) > along(1) + 0.1


def test_it_runs_by_the_grid_of_other_averaging_strategies(train: Data) -> None:
    side = ServerSide(LocalTraining(0.1), lambda _: nn.Identity(), {}, spec=train.spec, network=NETWORK)
    made = STRATEGIES["dynafed"].make(side)
    assert isinstance(made, DynaFed)
    assert made.task == Distilling(lr=0.1)
