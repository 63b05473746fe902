"""Methods that the library lacks, about twenty lines each: what the contract of tasks and rounds must carry."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context
from torch import Tensor
from torch.nn import functional as F

from fedcondense.condensing import Own, prepare
from fedcondense.contract import Holder
from fedcondense.data.images import Data, Spec
from fedcondense.data.partitions import Partition, partition
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Known, Node, Question, Site, State, Task, Verdict
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Metrics, Sums, Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.features import labelled_by
from fedcondense.flower.strategies.one_shot import Condense, OneShot, condensing, train_network
from fedcondense.networks import build
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit, accuracy

NETWORK = "convnet1-w16"


def run(strategy: Rounds, train: Data, held: Partition, cache: Path, rounds: int | None = None) -> InProcessGrid:
    """Run a strategy with three nodes that keep what they keep in a folder."""

    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    tasks: list[type[Question]] = [Publish, Masked, Anchored, AnchoredOn, Add, Judge]
    client = make_client_app(load, tasks=tasks, caps=Caps.none(), cache=cache, is_counted=False)
    with task_identity():
        grid = InProcessGrid(client, 3)
        strategy.start(grid, num_rounds=rounds)
    return grid


# 1. A secure sum in stages (Bonawitz et al., CCS 2017, without dropouts): the server sees the sum alone.

PRIME = 2**61 - 1  # a toy group, whose elements fit into 64 bits


def mask(shared: int, size: int) -> Tensor:
    """Return what two nodes who share a secret add and subtract; sums of int64 wrap."""
    generator = torch.Generator().manual_seed(shared)
    return torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator)


@dataclass(frozen=True)
class Publish(Task[Sums]):
    """Draw a secret, keep it, and send the public key of it."""

    session: int = 0

    name: ClassVar[str] = "publish"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        def run() -> Sums:
            assert node.kept is not None
            secret = secrets.randbelow(PRIME - 2) + 1
            node.kept.put(f"secret-{self.session}", str(secret).encode())
            return Sums({"public": torch.tensor([pow(3, secret, PRIME)])})

        return Job(Cost(nbytes=200), run)


@dataclass(frozen=True)
class Masked(Task[Sums]):
    """Send class counts under masks that cancel between each pair of nodes."""

    session: int = 0
    place: int = number(0, 0)  # of this node among the keys
    keys: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    name: ClassVar[str] = "masked"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        kept = None if node.kept is None else node.kept.get(f"secret-{self.session}")
        if kept is None:
            raise SettingError("the secret of this session is gone; begin again")
        secret, vector = int(kept), labelled_by(holder, self.classes, node).counts.clone()

        def run() -> Sums:
            total = vector
            for place, key in enumerate(self.keys):
                if place != self.place:
                    pair = mask(pow(key, secret, PRIME), len(vector))
                    total = total + pair if place > self.place else total - pair
            return Sums({"counts": total})

        return Job(Cost(nbytes=300), run)


class SecureSum(Rounds):
    """Keys first, then masked vectors."""

    stages = ("keys", "masked")

    def __init__(self, classes: tuple[str, ...], **asked: Any) -> None:
        super().__init__(**asked)
        self.classes = classes
        self.masked: list[Tensor] = []

    def ask(
        self, server_round: int, stage: str, state: State, sites: Sequence[Site]
    ) -> Question | Mapping[Site, Question]:
        if stage == "keys":
            return Publish(server_round)
        # By node: a site's name may change between a question and its answer, and takes part in `==`.
        nodes = sorted(int(name) for name in state.tensors)
        keys = tuple(int(state.tensors[str(node)]) for node in nodes)
        return {
            site: Masked(server_round, nodes.index(site.node), keys, self.classes)
            for site in sites
            if site.node in nodes
        }

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        if stage == "keys":
            return state.but(tensors={str(a.site.node): a.payload.tensors["public"] for a in answers})
        assert len(answers) == len(state.tensors)  # the masks of who is gone would stay in
        self.masked = [answer.payload.tensors["counts"] for answer in answers]
        first, *others = (answer.payload for answer in answers)
        return state.but(tensors={"counts": sum(others, first).tensors["counts"]})


def test_a_secure_sum_is_the_plain_sum_and_no_vector_shows(train: Data, held: Partition, tmp_path: Path) -> None:
    strategy = SecureSum(train.spec.classes)
    run(strategy, train, held, tmp_path)
    plain = [train.subset(index).counts for index in held]
    assert torch.equal(strategy.state.tensors["counts"], torch.stack(plain).sum(0))
    assert strategy.state.tensors["counts"].dtype == torch.int64
    for vector in strategy.masked:
        assert not any(torch.equal(vector, own) for own in plain)
        assert int(vector.double().abs().min()) > 10**6
    assert len({name for name in (path.name for path in tmp_path.iterdir()) if "secret-1" in name}) == 3


# 2. FedAvg towards a union of synthetic sets; weights go up in 8 bits, and what was rounded away goes with the next.


@dataclass(frozen=True)
class Anchored(Task[Sums]):
    """Train from the global network on records and on the union that this node keeps; send the change in 8 bits."""

    weights: Weights = Weights({})
    classes: tuple[str, ...] = ()
    lr: float = number(0.05, 0)
    steps: int = number(5, 1)

    name: ClassVar[str] = "anchored"
    payload: ClassVar[type[Sums]] = Sums

    def union(self, node: Node) -> SyntheticSet:
        blob = None if node.kept is None else node.kept.get("union")
        if blob is None:
            raise SettingError("this node keeps no union; send it again")
        return SyntheticSet.from_bytes(blob)

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        data, union = labelled_by(holder, self.classes, node), self.union(node)

        def run() -> Sums:
            assert node.kept is not None
            network = self.weights.load_into(build(NETWORK, data.spec.shape, len(self.classes), 0))
            train_on_both(network, data, union, self.lr, self.steps)
            blob = node.kept.get("error")
            error = Weights({}) if blob is None else Weights.from_bytes(blob)
            sent, left = {}, {}
            for name, value in network.state_dict().items():
                change = value - self.weights.tensors[name] + error.tensors.get(name, torch.zeros_like(value))
                scale = change.abs().max().clamp_min(1e-12) / 127
                sent[name] = (change / scale).round().to(torch.int8)
                sent[f"{name} scale"] = scale.reshape(1)
                left[name] = change - sent[name] * scale
            node.kept.put("error", Weights(left).to_bytes())
            return Sums(sent)

        return Job(Cost(steps=self.steps, nbytes=sum(t.numel() + 200 for t in self.weights.tensors.values())), run)


@dataclass(frozen=True, kw_only=True)
class AnchoredOn(Anchored):
    """The same, with the union: a task of its own, since no field that carries a set can be left empty."""

    anchor: SyntheticSet

    name: ClassVar[str] = "anchored_on"

    def union(self, node: Node) -> SyntheticSet:
        assert node.kept is not None
        node.kept.put("union", self.anchor.to_bytes())
        return self.anchor


def train_on_both(network: Any, data: Data, union: SyntheticSet, lr: float, steps: int) -> None:
    """Take SGD steps on the cross-entropy of the records and of the union."""
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    images, targets = union.pixels()
    anchors = data.spec.normalise(images)
    for step in range(steps):
        batch = data.batch(torch.arange(step * 32, step * 32 + 32) % len(data))
        loss = F.cross_entropy(network(batch.images), batch.targets) + F.cross_entropy(network(anchors), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class AnchoredAveraging(Rounds):
    """Average the changes; who has not answered with the union yet is sent it."""

    rounds = 2

    def __init__(self, spec: Spec, union: SyntheticSet, **asked: Any) -> None:
        super().__init__(ReplyLimits.of(spec), **asked)
        self.spec, self.union, self.asked_for = spec, union, list[str]()

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Mapping[Site, Question]:
        task = Anchored(self.weights(state), self.spec.classes)
        first = AnchoredOn(task.weights, task.classes, anchor=self.union)
        asked: dict[Site, Question] = {site: task if f"has {site.key}" in state.numbers else first for site in sites}
        self.asked_for += [question.name for question in asked.values()]
        return asked

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Sums]]) -> State:
        before, total = self.weights(state).tensors, sum(answer.num_examples for answer in answers)
        moved = dict(before)
        for answer in answers:
            sent = answer.payload.tensors
            for name in before:
                moved[name] = moved[name] + answer.num_examples / total * sent[name] * sent[f"{name} scale"]
        has = {f"has {answer.site.key}": 1 for answer in answers}
        return state.but(weights=Weights(moved), numbers={**state.numbers, **has})

    def weights(self, state: State) -> Weights:
        return state.weights or Weights.of(build(NETWORK, self.spec.shape, len(self.spec.classes), 0))


def test_nodes_keep_a_union_and_what_eight_bits_left_over(
    train: Data, test: Data, held: Partition, tmp_path: Path
) -> None:
    strategy = AnchoredAveraging(train.spec, select(train, 2, "random", seed=0))
    grid = run(strategy, train, held, tmp_path)
    assert strategy.asked_for == ["anchored_on"] * 3 + ["anchored"] * 3
    assert strategy.state.weights is not None
    weights = strategy.state.weights.tensors
    whole = sum(value.nbytes for value in weights.values())
    assert sum(traffic.up for traffic in grid.traffic.values()) / 6 < whole / 4 + 5000  # for each site and round
    kept = {path.name.split(".")[1] for path in tmp_path.glob("[0-2].*.kept")}
    assert kept == {"union", "error"}


def test_a_node_that_lost_its_union_says_so(ask: Any, reason_of: Any, train: Data, tmp_path: Path) -> None:
    from fedcondense.flower.wire import pack_question

    weights = Weights.of(build(NETWORK, train.spec.shape, 10, 0))
    content = pack_question(Anchored(weights, train.spec.classes), 2)
    reply = ask(train, content, task="anchored", tasks=[Anchored], caps=Caps.none(), cache=tmp_path)
    assert "this node keeps no union; send it again" in reason_of(reply)


# 3. A union that grows: it goes down, and each site answers with images of what a network trained on it gets wrong.


@dataclass(frozen=True, kw_only=True)
class Add(Task[SyntheticSet]):
    """Condense the records that a network trained on the union gets wrong."""

    union: SyntheticSet
    ipc: int = number(1, 1)
    seed: int = number(0, 0)

    name: ClassVar[str] = "add"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        node.caps.check_ipc(self.ipc)
        data = labelled_by(holder, self.union.classes, node)
        network = train_network(self.union, NETWORK, Fit(steps=10), self.seed).cpu()
        batch = data.batch(torch.arange(len(data)))
        wrong = network(batch.images).argmax(1) != data.labels
        loop = prepare(
            Own(data.subset(wrong)),
            self.ipc,
            "dm",
            "pixels",
            network=NETWORK,
            steps=1,
            seed=node.seed(self.seed),
            limit=0.5,
        )
        return condensing(loop, node)


class Growing(Rounds):
    """Ask for the first images by `Condense`, and then for more, each round beside all that there are."""

    rounds = 3

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        if state.joined is None:
            return Condense(1, "dm", steps=1, network=NETWORK)
        return Add(union=state.joined, seed=server_round)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        new = {f"{answer.site.name}.{server_round}": answer.payload for answer in answers}
        return state.but(sets={**state.sets, **new})


def test_a_union_goes_down_and_grows(train: Data, held: Partition, tmp_path: Path) -> None:
    strategy, sizes = Growing(ReplyLimits.of(train.spec)), list[int]()
    down = list[float]()

    def keep(strategy: Rounds) -> None:
        assert strategy.state.joined is not None
        sizes.append(len(strategy.state.joined))
        down.append(strategy.spent["bytes-down"])

    strategy.keep = keep
    run(strategy, train, held, tmp_path)
    assert sizes[0] < sizes[1] < sizes[2]
    assert down[1] - down[0] > 64 * sizes[0]  # a byte for each pixel
    assert down[2] - down[1] > 64 * sizes[1]
    assert list(strategy.state.sets) == [f"client-{k}.{number}" for number in (1, 2, 3) for k in range(3)]


# 4. Nodes that evaluate: a second stage, whose payload is numbers.


@dataclass(frozen=True)
class Judge(Task[Metrics]):
    """Count how many of a node's records a network gets right."""

    weights: Weights = Weights({})
    classes: tuple[str, ...] = ()

    name: ClassVar[str] = "judge"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        data = labelled_by(holder, self.classes, node)
        network = self.weights.load_into(build(NETWORK, data.spec.shape, len(self.classes), 0)).to(data.device)

        def run() -> Metrics:
            right = accuracy(network, data)[0] / 100 * len(data)
            return Metrics({"right": round(right), "seen": len(data)})

        return Job(Cost(nbytes=100), run)


class Judged(OneShot):
    """One-shot, whose network all sites then judge on their own records."""

    stages = ("answer", "judge")

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        if stage == "answer":
            return super().ask(server_round, stage, state, sites)
        assert state.weights is not None
        assert state.joined is not None
        return Judge(state.weights, state.joined.classes)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        if stage == "answer":
            return super().combine(server_round, stage, state, answers)
        totals = {key: sum(answer.payload.numbers[key] for answer in answers) for key in ("right", "seen")}
        return state.but(numbers={**state.numbers, **totals})


def test_what_nodes_count_is_what_a_server_with_all_records_counts(
    train: Data, held: Partition, tmp_path: Path
) -> None:
    def fit(joined: SyntheticSet) -> Any:
        return train_network(joined, NETWORK, Fit(steps=10))

    strategy = Judged(fit, ReplyLimits.of(train.spec), task=Condense(2, "dm", steps=1, network=NETWORK))
    run(strategy, train, held, tmp_path)
    joined, weights = strategy.joined, strategy.state.weights
    assert joined is not None
    assert weights is not None
    places = torch.tensor([joined.classes.index(name) for name in train.spec.classes])
    all_records = Data(train.images, places[train.labels], replace(train.spec, classes=joined.classes))
    percent = accuracy(weights.load_into(build(NETWORK, train.spec.shape, 10, 0)), all_records)[0]
    assert strategy.state.numbers["seen"] == len(train)
    assert 100 * float(strategy.state.numbers["right"]) / len(train) == pytest.approx(percent, abs=1e-3)
    assert [answer.num_examples for answer in strategy.answers] == [len(index) for index in held]


# 5. A screen that judges each class by the others' images of it.


def brightness(answers: Sequence[Answer[SyntheticSet]], known: Known) -> dict[tuple[Site, str], Verdict]:
    """Leave out images of a class that are far brighter or darker than those of the same class at other sites."""
    found: dict[str, dict[Site, float]] = {}
    for answer in answers:
        images, targets = answer.payload.pixels()
        for k, name in enumerate(answer.payload.classes):
            mine = images[targets.argmax(1) == k]
            if len(mine):
                found.setdefault(name, {})[answer.site] = float(mine.mean())
    verdicts = {}
    for name, by_site in found.items():
        for site, value in by_site.items():
            others = torch.tensor([v for other, v in by_site.items() if other != site])
            if len(others) < 2:
                verdicts[site, name] = Verdict(1.0, "not enough others")
            elif abs(value - float(others.median())) > 0.2:
                verdicts[site, name] = Verdict(0.0, f"brightness {value:.2f}, of others {float(others.median()):.2f}")
    return verdicts


def test_a_screen_leaves_one_class_of_one_site_out(train: Data, held: Partition, tmp_path: Path) -> None:
    parts = [train.subset(index) for index in partition(train, 3, "iid", seed=0)]
    parts[1].images[parts[1].labels == 4] = 255

    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    task = Condense(1, "dm", steps=1, network=NETWORK)
    strategy = OneShot(lambda joined: torch.nn.Linear(1, 1), ReplyLimits.of(train.spec), task=task, screen=brightness)
    with task_identity():
        strategy.start(InProcessGrid(make_client_app(load, caps=Caps.none(), is_counted=False), 3))
    assert [(site.name, name) for (site, name), v in strategy.verdicts.items() if v.weight < 1] == [("client-1", "4")]
    assert strategy.joined is not None
    counts = dict(zip(strategy.joined.classes, strategy.joined.counts().tolist(), strict=True))
    assert counts == {name: 3 - (name == "4") for name in train.spec.classes}


def test_a_screen_of_sets_is_not_asked_about_numbers(train: Data, held: Partition, tmp_path: Path) -> None:
    """A second stage without sets must not wipe out what it found in the first."""
    asked: list[int] = []

    def screen(answers: Sequence[Answer[SyntheticSet]], known: Known) -> dict[tuple[Site, str], Verdict]:
        asked.append(len(answers))
        return {(answers[0].site, "3"): Verdict(0.0, "odd")}

    def fit(joined: SyntheticSet) -> Any:
        return build(NETWORK, joined.shape, len(joined.classes), 0)

    task = Condense(1, "dm", steps=1, network=NETWORK)
    strategy = Judged(fit, ReplyLimits.of(train.spec), task=task, screen=screen)
    run(strategy, train, held, tmp_path)
    assert asked == [3]
    assert [verdict.why for verdict in strategy.verdicts.values()] == ["odd"]
