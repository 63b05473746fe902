from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Message
from torch.nn import functional as F

from fedcondense.condensing import Own
from fedcondense.contract import Holder
from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower import evaluating
from fedcondense.flower.apart import is_apart
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.evaluating import Evaluate, check_sums, numbers_of, train_alone
from fedcondense.flower.kept import Kept
from fedcondense.flower.payloads import Metrics, Sums, Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import Fit

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]
NETWORK = "convnet1-w16"
APART = {"keep-apart": 0.25}


@pytest.fixture(scope="module")
def few(train: Data) -> Data:
    return train.subset(train.per_class(20, stream(0)))


@pytest.fixture(scope="module")
def model(few: Data) -> torch.nn.Module:
    """A network that is right now and then."""
    return train_alone(few, NETWORK, Fit(steps=30))


@pytest.fixture
def question(few: Data, model: torch.nn.Module) -> Evaluate:
    return Evaluate(Weights.of(model), few.spec.classes, NETWORK)


def said(reply: Message) -> Sums:
    assert not reply.has_error(), reply.error.reason
    payload = read_answer(reply.content, Sums, ReplyLimits().limits).payload
    assert isinstance(payload, Sums)
    return payload


def node_of(data: Data, share: float = 0.25, **fields: Any) -> tuple[Own, Node]:
    apart = is_apart(data, share)
    return Own(data.subset(~apart)), Node("client-0", Caps.none(), apart=data.subset(apart), **fields)


@dataclass(frozen=True)
class Spy(Task[Metrics]):
    """Remembers what records it was shown."""

    name: ClassVar[str] = "spy"
    payload: ClassVar[type[Metrics]] = Metrics
    seen: ClassVar[list[Data]] = []
    told: ClassVar[list[Node]] = []

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        assert holder.data is not None
        Spy.seen.append(holder.data)
        Spy.told.append(node)
        return Job(Cost(), lambda: Metrics({"n": len(Spy.seen[-1])}))


def rows_of(data: Data) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


class TestKeptApart:
    def test_no_question_but_an_evaluation_sees_what_is_kept_apart(self, ask: Ask, few: Data) -> None:
        Spy.seen.clear()
        Spy.told.clear()
        assert not ask(few, {}, task="spy", tasks=[Spy], node=APART).has_error()
        apart = few.subset(is_apart(few, 0.25))
        assert len(apart) == 50
        assert not rows_of(Spy.seen[0]) & rows_of(apart)
        assert len(Spy.seen[0]) == len(few) - 50
        assert Spy.told[0].apart is None

    def test_condensing_is_the_same_with_other_records_kept_apart(self, ask: Ask, few: Data) -> None:
        """If a single one of them were looked at, the images would differ."""
        apart = is_apart(few, 0.25)
        kept = few.subset(~apart)
        asked = pack_question(Condense(1, "dm", steps=2, network=NETWORK), 1)
        with_them, without = (ask(data, asked, node=node) for data, node in ((few, APART), (kept, {})))
        read = [read_answer(one.content, Condense.payload, ReplyLimits().limits) for one in (with_them, without)]
        images = [one.payload.pixels().images for one in read]
        torch.testing.assert_close(*images, rtol=0, atol=0)
        assert [one.num_examples for one in read] == [150, 150]

    def test_a_node_that_keeps_nothing_apart_says_what_to_set(
        self, ask: Ask, few: Data, question: Evaluate, reason_of: ReasonOf
    ) -> None:
        reason = reason_of(ask(few, pack_question(question, 1), task=question.name, caps=Caps.none()))
        assert "client-0 keeps no records apart to evaluate on; let its config say keep-apart = 0.1" in reason


class TestWhatANodeAllows:
    def test_weights_are_refused_unless_evaluating_is_allowed(
        self, ask: Ask, few: Data, question: Evaluate, reason_of: ReasonOf
    ) -> None:
        asked = pack_question(question, 1)
        refused = reason_of(ask(few, asked, task=question.name, node=APART))
        assert "task 'evaluate_weights' carries weights; this node's config has no allow-evaluate = true" in refused
        for key in ("allow-evaluate", "allow-weights"):
            said(ask(few, asked, task=question.name, node={**APART, key: True}))

    def test_allowing_evaluation_allows_no_other_weights(self, ask: Ask, few: Data, reason_of: ReasonOf) -> None:
        asked = TASKS["match_near"](Weights({"a": torch.ones(2)}))  # type: ignore[call-arg]
        reply = ask(few, pack_question(asked, 1), task="match_near", node={**APART, "allow-evaluate": True})
        assert "no allow-weights = true" in reason_of(reply)

    def test_crafted_weights_get_counts_and_nothing_else(self, ask: Ask, few: Data, question: Evaluate) -> None:
        """The loss of a network can spell out a pixel; it leaves with ``allow-weights`` alone."""
        crafted = {name: 1e3 * value for name, value in question.weights.tensors.items()}
        asked = pack_question(replace(question, weights=Weights(crafted)), 1)
        counts = said(ask(few, asked, task=question.name, node={**APART, "allow-evaluate": True}))
        assert {name: value.dtype for name, value in counts.tensors.items()} == dict.fromkeys(
            ("counts", "right", "others"), torch.int32
        )
        assert "loss" in said(ask(few, asked, task=question.name, node={**APART, "allow-weights": True})).tensors

    @pytest.mark.parametrize(
        ("change", "needed"),
        [
            (
                {"weights": Weights({"a": torch.ones(2)})},
                "; images here are 8x8; if the server's are others, let the node's config say",
            ),
            ({"classes": ()}, "the question names no classes"),
            ({"network": "convnet1-w32"}, "weights: "),
            ({"mean": (0.5, 0.5)}, "mean"),
            ({"mean": (1.5,)}, "pixels of mean (1.5,)"),
            ({"alone": 10**7}, "10000000 steps asked for; this node allows 5000"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_what_cannot_be_is_refused_in_a_line(
        self, ask: Ask, few: Data, question: Evaluate, reason_of: ReasonOf, change: dict[str, Any], needed: str
    ) -> None:
        asked = pack_question(replace(question, **change), 1)
        reason = reason_of(ask(few, asked, task=question.name, node={**APART, "allow-evaluate": True}))
        assert needed in reason
        assert "\n" not in reason

    def test_a_question_is_charged(self, few: Data, question: Evaluate) -> None:
        job = question.prepare(*node_of(few))
        assert job.cost.nbytes >= len(job.run().to_bytes())
        assert replace(question, alone=7).prepare(*node_of(few)).cost.steps == 7


class TestCounts:
    def test_they_are_those_of_a_loop_over_records(self, few: Data, model: torch.nn.Module, question: Evaluate) -> None:
        holder, node = node_of(few)
        sums = question.prepare(holder, node).run()
        apart = few.subset(is_apart(few, 0.25))
        right, losses = [0] * 10, []
        model.eval()
        with torch.no_grad():
            for k in range(len(apart)):
                logits = model(apart.batch(torch.tensor([k])).images)
                label = int(apart.labels[k])
                right[label] += int(logits.argmax()) == label
                losses.append(float(F.cross_entropy(logits, apart.labels[k : k + 1])))
        assert sums.tensors["right"].tolist() == right
        assert sums.tensors["counts"].tolist() == [5] * 10
        found = numbers_of(sums)
        assert found["accuracy"] == pytest.approx(100 * sum(right) / 50)
        assert found["macro-accuracy"] == pytest.approx(100 * sum(r / 5 for r in right) / 10)
        assert found["loss"] == pytest.approx(sum(losses) / 50, rel=1e-5)
        assert 0 < found["accuracy"] < 100

    def test_classes_are_matched_by_name_and_one_that_the_network_lacks_counts_as_wrong(
        self, few: Data, model: torch.nn.Module
    ) -> None:
        whole = Evaluate(Weights.of(model), few.spec.classes, NETWORK).prepare(*node_of(few)).run()
        order = list(range(9, -1, -1))
        turned = {n: v[order] if v.shape[:1] == (10,) else v for n, v in Weights.of(model).tensors.items()}
        names = tuple(few.spec.classes[k] for k in order)
        same = Evaluate(Weights(turned), names, NETWORK).prepare(*node_of(few)).run()
        assert same.tensors["right"].tolist() == whole.tensors["right"].tolist()[::-1]

        names = tuple(name if k else "a class of others" for k, name in enumerate(few.spec.classes))
        lacking = Evaluate(Weights.of(model), names, NETWORK).prepare(*node_of(few)).run()
        assert lacking.tensors["others"].tolist() == [5]
        assert lacking.tensors["counts"].tolist() == [0] + [5] * 9
        found, before = numbers_of(lacking), whole.tensors["right"].tolist()
        assert found["num-examples"] == 50
        assert found["accuracy"] == pytest.approx(100 * sum(before[1:]) / 50)
        assert found["macro-accuracy"] == pytest.approx(100 * sum(r / 5 for r in before[1:]) / 10)

    def test_images_are_normalised_as_the_question_says(self, few: Data, question: Evaluate) -> None:
        spec = few.spec
        other = Data(few.images, few.labels, replace(spec, mean=(0.9,), std=(0.1,)))
        as_asked = replace(question, mean=spec.mean, std=spec.std).prepare(*node_of(other)).run()
        assert as_asked.to_bytes() == question.prepare(*node_of(few)).run().to_bytes()
        assert question.prepare(*node_of(other)).run().to_bytes() != as_asked.to_bytes()


class TestAlone:
    def test_it_is_the_network_that_the_site_trains_by_itself_once(
        self, few: Data, question: Evaluate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained = []

        def train(*given: Any) -> torch.nn.Module:
            trained.append(given)
            return train_alone(*given)

        monkeypatch.setattr(evaluating, "train_alone", train)
        kept = Kept(None, 1 << 20)
        holder, node = node_of(few, kept=kept)
        asked = replace(question, alone=20)
        first, second = asked.prepare(holder, node).run(), asked.prepare(holder, node).run()
        assert first.to_bytes() == second.to_bytes()
        assert len(trained) == 1
        apart = few.subset(is_apart(few, 0.25))
        alone = train_alone(few.subset(~is_apart(few, 0.25)), NETWORK, Fit(steps=20), node.seed(0, "alone")).eval()
        with torch.no_grad():
            right = int((alone(apart.batch().images).argmax(1) == apart.labels).sum())
        assert numbers_of(first)["local-only"] == 100 * right / 50

        replace(question, alone=21).prepare(holder, node).run()
        other_records, _ = node_of(few, 0.3)
        asked.prepare(other_records, node).run()
        assert len(trained) == 3

    def test_what_was_kept_and_is_no_number_is_found_out_again(self, few: Data, question: Evaluate) -> None:
        kept = Kept(None, 1 << 20)
        holder, node = node_of(few, kept=kept)
        asked = replace(question, alone=5)
        sound = asked.prepare(holder, node).run().to_bytes()
        (name,) = kept.names()
        for blob in (b"", b"51", b"-3", b"\xff", "²".encode()):
            kept.put(name, blob)
            assert asked.prepare(holder, node).run().to_bytes() == sound

    def test_a_node_that_can_keep_nothing_answers_all_the_same(self, few: Data, question: Evaluate) -> None:
        holder, node = node_of(few, kept=Kept(None, 4))
        assert "alone" in replace(question, alone=2).prepare(holder, node).run().tensors

    def test_records_that_are_not_handed_out_train_nothing(self, few: Data, question: Evaluate) -> None:
        class Closed:
            data = None
            counts = few.counts

        _, node = node_of(few)
        job = replace(question, alone=2).prepare(Closed(), node)  # type: ignore[arg-type]
        with pytest.raises(SettingError, match="does not hand out; alone = 0"):
            job.run()


class TestAnswersOfOthers:
    def sums(self, **changes: Any) -> Sums:
        whole = {"counts": [3, 0], "right": [1, 0], "others": [2], "alone": [4]} | changes
        tensors = {k: torch.tensor(v, dtype=torch.int32) for k, v in whole.items() if isinstance(v, list)}
        return Sums({**tensors, **{k: v for k, v in whole.items() if isinstance(v, torch.Tensor)}})

    def test_a_sound_one_passes(self) -> None:
        check_sums(self.sums(), 2)
        check_sums(self.sums(loss=torch.tensor([0.5])), 2)
        assert numbers_of(self.sums()) == {
            "num-examples": 5,
            "accuracy": 20.0,
            "macro-accuracy": pytest.approx(100 / 6),
            "local-only": 80.0,
        }

    @pytest.mark.parametrize(
        "changes",
        [
            {"counts": None},
            {"counts": [3, 0, 0]},
            {"counts": [0, 0], "right": [0, 0], "others": [], "alone": [0]},
            {"right": [4, 0]},
            {"right": [-1, 0]},
            {"others": [-2]},
            {"alone": [6]},
            {"alone": [1, 1]},
            {"more": [1]},
            {"loss": [1]},
            {"loss": torch.tensor([-1.0])},
            {"loss": torch.tensor(0.5)},
            {"right": torch.tensor([1.0, 0.0])},
            {"others": torch.zeros(2, 2, dtype=torch.int32)},
        ],
        ids=str,
    )
    def test_one_that_cannot_be_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UntrustedSetError, match="an evaluation"):
            check_sums(self.sums(**changes), 2)


def test_a_site_of_one_class_trains_alone(few: Data) -> None:
    one = few.subset(few.labels == 3)
    spec = Spec("one", one.spec.shape, ("three",), one.spec.mean, one.spec.std)
    data = Data(one.images, torch.zeros(len(one), dtype=torch.int64), spec)
    model = train_alone(data, NETWORK, Fit(steps=2))
    assert build(NETWORK, spec.shape, 1, 0).state_dict().keys() == model.state_dict().keys()
