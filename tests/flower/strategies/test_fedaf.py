from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedcondense.condensing import condense
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Weights
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.strategies.fedaf import Aligned, Collaborative, FedAF, MatchAligned, class_logits
from fedcondense.flower.strategies.iterative import FedDM
from fedcondense.flower.wire import pack_question
from fedcondense.networks import build
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import ClassSums
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
TINY = MatchAligned(ipc=1, networks=2, steps=2, network=NETWORK)


@pytest.fixture(scope="module")
def aligned(train: Data) -> Aligned:
    made = condense(train, 1, "dm", "pixels", network=NETWORK, steps=1)
    return Aligned(made.parts, logits=torch.randn(10, 10, generator=torch.Generator().manual_seed(0)).half())


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=Caps.none(), is_counted=False)


class TestAligned:
    def test_it_comes_back_as_it_was(self, aligned: Aligned) -> None:
        again = Aligned.from_bytes(aligned.to_bytes())
        assert again.logits is not None
        assert aligned.logits is not None
        assert torch.equal(again.logits, aligned.logits)
        assert SyntheticSet(again.parts).to_bytes() == SyntheticSet(aligned.parts).to_bytes()
        assert Aligned.from_bytes(Aligned(aligned.parts).to_bytes()).logits is None

    def test_it_costs_two_bytes_a_number_more_than_the_set(self, aligned: Aligned) -> None:
        assert aligned.nbytes == SyntheticSet(aligned.parts).nbytes + 2 * 10 * 10 + 4

    @pytest.mark.parametrize(
        ("change", "needed"),
        [
            (lambda blob: blob[:-4] + (1 << 31).to_bytes(4, "little"), "2147483648 numbers in"),
            (lambda blob: blob[:-4] + (99).to_bytes(4, "little"), "set|bytes|header|damaged"),
            (lambda blob: blob[:-6] + b"\x00\x7c" + blob[-4:], "100 logits (of|for) 10 classes"),  # infinity
            (lambda blob: blob[:-6] + b"\x00\x7e" + blob[-4:], "100 logits (of|for) 10 classes"),  # nan
            (lambda blob: blob[:-4] + (7).to_bytes(4, "little"), "set|bytes|header|damaged"),
            (lambda blob: b"", "set|bytes|header|damaged"),
            (lambda blob: blob[:3], "set|bytes|header|damaged"),
        ],
    )
    def test_anything_else_is_refused(self, change: Callable[[bytes], bytes], needed: str, aligned: Aligned) -> None:
        with pytest.raises(UntrustedSetError, match=needed):
            Aligned.from_bytes(change(aligned.to_bytes()))

    def test_a_limit_holds_for_the_whole(self, aligned: Aligned) -> None:
        blob = aligned.to_bytes()
        with pytest.raises(UntrustedSetError, match=f"allowed: {len(blob) - 1}"):
            Aligned.from_bytes(blob, Limits(nbytes=len(blob) - 1))


class TestCollaborative:
    def step(self, seed: int = 0) -> tuple[ClassSums, Tensor, Tensor]:
        """Return sums of two classes of three, and rows of 4 features and 3 logits."""
        generator = torch.Generator().manual_seed(seed)
        sums = ClassSums(
            torch.randn(3, 7, generator=generator) * torch.tensor([[1], [1], [0]]), torch.tensor([2.0, 3, 0])
        )
        return sums, torch.randn(4, 7, generator=generator), torch.eye(3)[[0, 0, 1, 1]]

    def test_without_strength_it_is_distribution_matching_on_the_embedding(self) -> None:
        sums, rows, targets = self.step()
        found = Collaborative(logits=torch.randn(3, 3), strength=0.0).compare(sums, rows, targets)
        of_embedding = ClassSums(sums.sums[:, :4], sums.counts)
        torch.testing.assert_close(found, DistributionMatching().compare(of_embedding, rows[:, :4], targets))

    def test_it_is_least_where_logits_are_those_of_all_and_grows_with_their_distance(self) -> None:
        """Of two points it is proportional to the distance."""
        sums, rows, targets = self.step()
        means = torch.stack([rows[:2, 4:].mean(0), rows[2:, 4:].mean(0), torch.zeros(3)])
        plain = Collaborative(logits=means, strength=0.0).compare(sums, rows, targets)
        away = [
            float(Collaborative(logits=means + torch.tensor([size, 0, 0]), strength=2.0).compare(sums, rows, targets))
            for size in (0.0, 1.0, 3.0)
        ]
        assert away[0] == pytest.approx(float(plain), abs=1e-5)
        assert away[2] - away[0] == pytest.approx(3 * (away[1] - away[0]), rel=1e-4)

    def test_a_class_that_nobody_has_sent_adds_nothing(self) -> None:
        sums, rows, targets = self.step()
        unknown = torch.full((3, 3), float("nan"))
        found = Collaborative(logits=unknown, strength=5.0).compare(sums, rows, targets)
        assert float(found) == pytest.approx(float(Collaborative(logits=unknown, strength=0.0).compare(*self.step())))


class TestFedAF:
    def run(self, strategy: FedDM, client: ClientApp, rounds: int) -> list[Message]:
        asked: list[Message] = []

        class Grid(InProcessGrid):
            def push_messages(self, messages: Any) -> Any:
                messages = list(messages)
                asked.extend(messages)
                return super().push_messages(messages)

        with task_identity():
            strategy.start(Grid(client, 3), num_rounds=rounds)
        return asked

    def test_logits_go_down_from_the_second_round_on(self, train: Data, client: ClientApp) -> None:
        strategy = FedAF(train.spec, TINY, Fit(steps=3))
        asked = self.run(strategy, client, 2)
        assert ["logits" in message.content for message in asked] == [False] * 3 + [True] * 3
        assert set(strategy.state.sets) == {"client-0", "client-1", "client-2"}
        assert not any(isinstance(one, Aligned) for one in strategy.state.sets.values())
        assert load_state(dump_state(strategy.state), "here").round == 2

    def test_they_are_the_mean_over_the_records_of_all_sites(self, train: Data, client: ClientApp) -> None:
        strategy = FedAF(train.spec, TINY, Fit(steps=1))
        self.run(strategy, client, 1)
        untrained = build(NETWORK, train.spec.shape, 10, TINY.seed).eval()
        torch.testing.assert_close(
            strategy.state.tensors["logits"], class_logits(untrained, train).float(), rtol=0, atol=2e-3
        )
        assert bool(strategy.state.tensors["known"].all())

    def test_labels_alone_train_as_feddm_does(self, train: Data, client: ClientApp) -> None:
        strategy = FedAF(train.spec, TINY, Fit(steps=3))
        self.run(strategy, client, 1)
        union, before = strategy.state.joined, Weights.of(build(NETWORK, train.spec.shape, 10, 5))
        assert union is not None
        plain = FedDM(train.spec, TINY, Fit(steps=3)).trained(union, before, 2, strategy.state)
        mixed = strategy.trained(union, before, 2, strategy.state)
        strategy.mixed = 0.0
        alone = strategy.trained(union, before, 2, strategy.state)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(alone.state_dict()[name], value)
        assert not torch.equal(next(mixed.parameters()), next(alone.parameters()))

    def test_logits_of_another_network_are_refused(self, train: Data, aligned: Aligned) -> None:
        strategy = FedAF(train.spec, TINY)
        strategy.examine("answer", Answer(Site("a"), aligned))
        assert aligned.logits is not None
        for logits, given in ((None, "none"), (aligned.logits[:, :9], "9")):
            with pytest.raises(UntrustedSetError, match=f"{given} logits of a class; needed: 10"):
                strategy.examine("answer", Answer(Site("a"), Aligned(aligned.parts, logits=logits)))

    def test_a_question_with_logits_of_another_shape_is_refused(
        self, train: Data, ask: Callable[..., Message], reason_of: Callable[[Message], str]
    ) -> None:
        weights = Weights.of(build(NETWORK, train.spec.shape, 10, 0))
        logits = Weights({"logits": torch.zeros(9, 10).half(), "known": torch.ones(10).bool()})
        task = replace(TINY, weights=weights, classes=train.spec.classes, logits=logits)
        reply = ask(train, pack_question(task, 2), task="match_aligned", caps=Caps.none())
        assert "'logits' is (9, 10)" in reason_of(reply)

    def test_before_any_answer_nothing_is_known(self, train: Data) -> None:
        question = FedAF(train.spec, TINY).ask(1, "answer", State(), [])
        assert isinstance(question, MatchAligned)
        assert question.logits is None
