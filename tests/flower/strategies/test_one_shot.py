from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from torch import Tensor, nn
from torch.nn import functional as F

from fedcondense.condensing import condense
from fedcondense.contract import Recipe
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Known, Site, State, Verdict
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.strategies.one_shot import Condense, OneShot, cost_of, train_network
from fedcondense.flower.wire import WIRE, About, pack_answer, pack_question, read_answer
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import FirstMoment
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import stream
from fedcondense.sets.codecs import CODECS
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Pool
from fedcondense.training.fit import Fit

QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 3}
OPEN = Caps(max_seconds=float("inf"), min_records=1)

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]
Answers = Callable[[int, Message], Message]


def pack(synthetic: SyntheticSet, site: int, num_examples: int = 1) -> RecordDict:
    return pack_answer(synthetic, About(WIRE), (f"client-{site}", site), num_examples, 1.0)


def names(strategy: OneShot) -> list[str]:
    return [answer.site.name for answer in strategy.answers]


def set_of(message: Message) -> SyntheticSet:
    assert not message.has_error(), message.error.reason
    found = read_answer(message.content, SyntheticSet, ReplyLimits().limits).payload
    assert isinstance(found, SyntheticSet)
    return found


@dataclass(frozen=True)
class CosineMeans(FirstMoment):
    """A method that the toolkit lacks: class means by the angle between them."""

    layer: str = "embedding"
    per_class: int | None = 64
    recipe: ClassVar[Recipe] = Recipe(steps=40, lr=0.02, source=partial(Pool, size=8))

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(real, synthetic)


class TestCondense:
    def test_it_sends_what_condense_makes_of_the_records(self, ask: Ask, train: Data) -> None:
        synthetic = set_of(ask(train, QUICK))
        record = synthetic.record
        own = condense(train, 1, "dm", seed=record.seed, steps=3, start="gaussian", limit=0.5)
        torch.testing.assert_close(synthetic.pixels().images, own.pixels().images, rtol=0, atol=0)
        assert record.start == "gaussian"
        assert sum(record.counts) == len(train)

    @pytest.mark.parametrize("name", PARAMETRIZATIONS)
    def test_every_parametrization_by_name(self, name: str, ask: Ask, train: Data) -> None:
        synthetic = set_of(ask(train, {**QUICK, "ipc": 2, "parametrization": name}))
        (part,) = synthetic.parts
        assert part.parametrization == PARAMETRIZATIONS[name]()
        assert len(synthetic) == 10 * part.parametrization.start_count(2)
        assert sum(code.nbytes for code in part.codes.values()) <= 10 * 2 * 64

    def test_clients_that_hold_the_same_send_different_images(self, ask: Ask, train: Data) -> None:
        first, second = (set_of(ask(train, QUICK, node={"partition-id": k})) for k in (0, 1))
        assert first.record.seed != second.record.seed
        assert not torch.equal(first.pixels().images, second.pixels().images)

    def test_a_class_gives_at_most_half_of_its_records(self, ask: Ask, train: Data) -> None:
        few = train.subset(torch.cat([torch.where(train.labels == c)[0][: 2 * c] for c in range(10)]))
        counts = set_of(ask(few, {**QUICK, "ipc": 5})).counts()
        assert counts.tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]

    def test_images_travel_in_the_codec_that_is_asked_for(self, ask: Ask, train: Data) -> None:
        """What arrives is what the same run gives in that codec, and its bytes are not encoded again."""
        coded = {**QUICK, "codec": "bits-2", "codecs": list(CODECS)}
        raw, packed = (set_of(ask(train, question)) for question in (QUICK, coded))
        assert [part.codec for part in packed.parts] == ["bits-2"]
        again = raw.recode("bits-2").pixels().images
        torch.testing.assert_close(packed.pixels().images, again, rtol=0, atol=0)
        assert packed.parts[0].code_bytes < raw.parts[0].code_bytes / 3

    @pytest.mark.parametrize("codec", ["bits-1", "jpeg-10"])
    def test_at_any_codec_a_class_gives_at_most_half_of_its_records(self, codec: str, ask: Ask, train: Data) -> None:
        few = train.subset(torch.cat([torch.where(train.labels == c)[0][: 2 * c] for c in range(10)]))
        sent = set_of(ask(few, {**QUICK, "ipc": 5, "codec": codec, "codecs": list(CODECS)}))
        assert sent.counts().tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]

    @pytest.mark.parametrize(
        ("config", "needed"),
        [
            ({"codec": "bits-2"}, "codec 'bits-2' is asked for by a server that reads raw; needed"),
            ({"codec": "webp-20", "codecs": ["bits", "jpeg"]}, "a server that reads raw, bits, jpeg; needed"),
            ({"codec": "zip-9", "codecs": ["zip"]}, "no codec is called 'zip-9'"),
            ({"codec": "bits-9", "codecs": ["bits"]}, "bits a value; needed: from 1 to 6"),
        ],
    )
    def test_a_codec_that_the_server_does_not_read_is_refused(
        self, config: dict[str, Any], needed: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        assert needed in reason_of(ask(train, {**QUICK, **config}))

    def test_an_objective_that_a_user_added_works_by_name(
        self, ask: Ask, train: Data, held: Partition, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(OBJECTIVES, "cosine-means", CosineMeans())
        data = train.subset(held[0])
        by_name = condense(data, 1, "cosine-means", seed=1)
        start = condense(data, 1, "cosine-means", seed=1, steps=0)
        assert by_name.record.method == repr(CosineMeans())
        assert not torch.equal(by_name.pixels().images, start.pixels().images)
        synthetic = set_of(ask(data, {"ipc": 1, "objective": "cosine-means"}))
        assert synthetic.record.method == repr(CosineMeans())

    @pytest.mark.parametrize(
        ("config", "needed"),
        [
            ({"ipc": 51}, "ipc 51 asked for; this node condenses to 1 to 50"),
            ({"ipc": 0}, "ipc = 0; needed: a whole number from 1"),
            ({"ipc": 1, "steps": 5001}, "5001 steps asked for; this node allows 5000"),
            ({"start": "real"}, "publishes real records"),
            ({"objective": "dm-rigde"}, "no objective is called 'dm-rigde'; did you mean 'dm-ridge'?"),
            ({"objective": "os.system"}, "no objective is called"),
            ({"parametrization": "pixel"}, "did you mean 'pixels'?"),
            ({"network": "convnet9"}, "no network is called"),
            ({"start": "reel"}, "no start is called"),
            ({"start": ""}, "no start is called"),
            ({"start": "", "objective": "dc"}, "no start is called"),  # whose recipe starts from real records
            ({"ipc": "10"}, "ipc = '10'; needed: a whole number"),
            ({"ipc": True}, "ipc = True; needed: a whole number"),
            ({"steps": -1}, "steps = -1; needed: a whole number from 0"),
            ({"objective": 3}, "objective = 3; needed: a printable text"),
            ({"epochs": 3}, "no setting is called 'epochs'"),
            ({"method": "random"}, "no setting is called 'method'"),
            ({"max-ipc": 99}, "no setting is called 'max-ipc'"),
        ],
    )
    def test_a_question_beyond_the_caps_or_unknown_is_answered_with_the_reason(
        self, config: dict[str, Any], needed: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        reason = reason_of(ask(train, {"steps": 2, **config}))
        assert needed in reason
        assert reason.startswith("partition 0: ")

    def test_the_node_decides_and_the_server_cannot(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        assert "to 1 to 2 images" in reason_of(ask(train, {"ipc": 3}, node={"max-ipc": 2}))
        assert "allow-real = 'yes'" in reason_of(ask(train, QUICK, node={"allow-real": "yes"}))
        assert "networks mlp; this node allows lenet" in reason_of(
            ask(train, {**QUICK, "network": "mlp"}, node={"networks": "lenet"})
        )

    def test_a_real_start_is_taken_where_the_node_allows_real_records(self, ask: Ask, train: Data) -> None:
        started = set_of(ask(train, {**QUICK, "start": "real"}, node={"allow-real": True}))
        assert started.record.start == "real"

    def test_seconds_are_refused_by_the_estimate_before_work(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        reason = reason_of(ask(train, {**QUICK, "steps": 4000}, caps=replace(OPEN, max_seconds=0.5)))
        assert "seconds would be needed" in reason

    def test_a_class_with_few_records_is_told_once(
        self, ask: Ask, train: Data, caplog: pytest.LogCaptureFixture
    ) -> None:
        few = train.subset(train.per_class(4, stream(0)))
        caplog.set_level(logging.INFO)
        set_of(ask(few, {**QUICK, "ipc": 3}, caps=replace(OPEN, max_seconds=1e6)))
        assert caplog.text.count("ipc 3 is more than 0.5 of the records") == 1

    def test_bytes_are_refused(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        assert "this node allows 500" in reason_of(ask(train, QUICK, caps=replace(OPEN, max_bytes=500)))

    @pytest.mark.parametrize("parametrization", ["pixels", "multi-formation"])
    def test_the_cost_is_that_of_the_set_that_is_sent(self, train: Data, parametrization: str) -> None:
        from fedcondense.condensing import Own
        from fedcondense.flower.contract import Node

        job = Condense(2, "dm", parametrization, steps=1).prepare(Own(train), Node("a", OPEN))
        made = cost_of(job.run(), steps=1)
        assert job.cost.images == made.images == {str(k): 2 for k in range(10)}
        assert job.cost.decoded == made.decoded
        assert job.cost.pixels == made.pixels == 4 * 64 * sum(made.decoded.values())
        assert (job.cost.steps, job.cost.networks) == (1, ("convnet2-w32",))
        assert job.cost.nbytes == pytest.approx(made.nbytes, rel=0.1)


def client_that(answers: Answers) -> ClientApp:
    app = ClientApp()

    @app.query("condense")
    def answer(message: Message, context: Context) -> Message:
        return answers(int(context.node_config["partition-id"]), message)

    return app


class LateGrid(InProcessGrid):
    """Keeps the replies of some nodes back for good, and gives the others one pull after another."""

    silent: tuple[int, ...] = ()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = [i for i in message_ids if i in self._replies]
        ready = [i for i in wanted if self._replies[i].metadata.src_node_id not in self.silent]
        replies: Iterable[Message] = super().pull_messages(ready[:1])
        return replies


@pytest.fixture(scope="module")
def sets(train: Data, held: Partition) -> list[SyntheticSet]:
    return [select(train.subset(index), 1, "random", seed=0) for index in held]


@pytest.fixture
def honest(sets: list[SyntheticSet], train: Data, held: Partition) -> Answers:
    more = [select(train.subset(index), 1, "random", seed=1) for index in held]  # no two sites send the same

    def answer(k: int, message: Message) -> Message:
        return Message(pack([*sets, *more][k % 6], k, 10 * (k + 1)), reply_to=message)

    return answer


def trained(joined: SyntheticSet) -> nn.Module:
    return train_network(joined, recipe=Fit(steps=2))


def run(
    strategy: OneShot, client: ClientApp, nodes: int, grid: type[InProcessGrid] = InProcessGrid, **start: Any
) -> Result:
    with task_identity():
        return strategy.start(grid(client, nodes), **start)


class TestOneShot:
    def test_it_says_what_it_reads_where_it_asks_for_a_codec(self) -> None:
        """Nodes of before know no codecs, and are asked as before."""
        raw, coded = (
            OneShot(task=task).ask(1, "answer", State(), ()) for task in (Condense(), Condense(codec="bits-2"))
        )
        assert not {"codec", "codecs", "budget"} & set(pack_question(raw, 1).config_records["config"])
        config = pack_question(coded, 1).config_records["config"]
        assert (config["codec"], config["codecs"]) == ("bits-2", list(CODECS))

    def test_coded_sets_are_joined_and_kept_as_they_came(self, sets: list[SyntheticSet]) -> None:
        packed = [one.recode(codec) for one, codec in zip(sets, ("bits-2", "webp-20", "raw"), strict=True)]
        strategy = OneShot(trained, min_available_nodes=3)
        run(strategy, client_that(lambda k, message: Message(pack(packed[k], k), reply_to=message)), 3)
        assert strategy.joined is not None
        assert [part.codec for part in strategy.joined.parts] == ["bits-2", "webp-20", "raw"]
        assert {name: one.to_bytes() for name, one in strategy.state.sets.items()} == {
            f"client-{k}": one.to_bytes() for k, one in enumerate(packed)
        }

    def test_it_returns_the_trained_weights_and_keeps_the_joined_set(
        self, honest: Answers, sets: list[SyntheticSet], train: Data
    ) -> None:
        strategy = OneShot(trained, ReplyLimits.of(train.spec))
        rounds: list[int] = []

        def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            rounds.append(server_round)
            return MetricRecord({"arrays": len(arrays)})

        result = run(strategy, client_that(honest), 3, evaluate_fn=evaluated)
        assert strategy.joined is not None
        assert strategy.joined.to_bytes() == SyntheticSet.join(sets).to_bytes()
        for name, weight in trained(strategy.joined).state_dict().items():
            torch.testing.assert_close(result.arrays.to_torch_state_dict()[name], weight, rtol=0, atol=0)
        assert rounds == [1]
        metrics = result.train_metrics_clientapp[1]
        assert metrics["clients"] == 3
        assert metrics["num-examples"] == 60
        assert metrics["bytes-up"] == sum(answer.nbytes for answer in strategy.answers)
        overheads = [answer.nbytes - answer.payload.nbytes for answer in strategy.answers]
        assert all(0 < more < 3000 for more in overheads)

    def test_joining_does_not_depend_on_the_order_of_arrival(self, honest: Answers, sets: list[SyntheticSet]) -> None:
        class Backwards(InProcessGrid):
            def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
                return list(super().pull_messages(message_ids))[::-1]

        strategy = OneShot(trained)
        run(strategy, client_that(honest), 3, Backwards)
        assert names(strategy) == ["client-0", "client-1", "client-2"]
        assert strategy.joined is not None
        assert strategy.joined.to_bytes() == SyntheticSet.join(sets).to_bytes()

    def test_errors_are_named_and_the_round_goes_on(
        self, honest: Answers, sets: list[SyntheticSet], caplog: pytest.LogCaptureFixture
    ) -> None:
        def mixed(k: int, message: Message) -> Message:
            if k == 1:
                return Message(Error(2, "\x1b[31m<b>has no data</b>"), reply_to=message)
            return honest(k, message)

        logging.getLogger("flwr").propagate = True
        strategy = OneShot(trained)
        with caplog.at_level(logging.WARNING, "flwr"):
            run(strategy, client_that(mixed), 4)
        assert names(strategy) == ["client-0", "client-2", "client-3"]
        assert [(r.site.name, r.reason) for r in strategy.refused] == [("client-1", "(b)has no data(/b)")]
        assert "client-1 is left out: (b)has no data(/b)" in caplog.text

    def test_a_set_of_another_shape_than_most_is_refused(self, honest: Answers, sets: list[SyntheticSet]) -> None:
        """It comes first: the first must not decide for the others."""
        part = sets[0].parts[0]
        codes = {"images": part.codes["images"].repeat(1, 3, 1, 1)}
        record = replace(part.record, shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
        colour = SyntheticSet([replace(part, codes=codes, record=record)])

        def answers(k: int, message: Message) -> Message:
            if k == 0:
                return Message(pack(colour, 0, 1), reply_to=message)
            return honest(k, message)

        strategy = OneShot(trained)
        run(strategy, client_that(answers), 3)
        assert names(strategy) == ["client-1", "client-2"]
        assert "as of most" in strategy.refused[0].reason

    def test_silence_is_a_refusal_after_the_grace_period(self, honest: Answers) -> None:
        class Grid(LateGrid):
            silent = (101,)

        strategy = OneShot(trained, min_replies=2, grace=0.1)
        run(strategy, client_that(honest), 3, Grid, timeout=60.0)
        assert names(strategy) == ["client-0", "client-2"]
        assert strategy.refused[0] == (Site("client-1", "101", 101), "no reply within the deadline")

    def test_a_broken_reply_does_not_start_the_grace_period(self, honest: Answers) -> None:
        """It comes alone and first; the usable ones come after the grace period would have ended."""

        class Grid(LateGrid):
            begun = 0.0

            def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
                type(self).begun = self.begun or time.monotonic()
                if time.monotonic() - self.begun < 0.5:
                    message_ids = [i for i in message_ids if self._replies[i].metadata.src_node_id == 100]
                return InProcessGrid.pull_messages(self, message_ids)

        def answers(k: int, message: Message) -> Message:
            if k == 0:
                return Message(RecordDict({"junk": ConfigRecord()}), reply_to=message)
            return honest(k, message)

        strategy = OneShot(trained, min_replies=1, grace=0.05)
        run(strategy, client_that(answers), 3, Grid, timeout=60.0)
        assert names(strategy) == ["client-1", "client-2"]
        assert strategy.refused[0].site.node == 100

    def test_weights_that_are_not_finite_are_an_error(self, honest: Answers) -> None:
        def broken(joined: SyntheticSet) -> nn.Module:
            network = trained(joined)
            next(iter(network.parameters())).data.fill_(float("nan"))
            return network

        with pytest.raises(AggregationError, match="weights that are not finite"):
            run(OneShot(broken), client_that(honest), 3)

    def test_no_usable_set_is_an_error_that_says_why(self) -> None:
        def none(k: int, message: Message) -> Message:
            return Message(Error(2, f"partition {k}: has no data"), reply_to=message)

        strategy = OneShot(trained)
        with pytest.raises(
            AggregationError, match=r"0 usable answers of 3, 1 needed; client-0: partition 0: has no data"
        ):
            run(strategy, client_that(none), 3)
        assert len(strategy.refused) == 3

    def test_fewer_sets_than_needed_is_an_error(self, honest: Answers) -> None:
        class Grid(LateGrid):
            silent = (101,)

        with pytest.raises(AggregationError, match="2 usable answers of 3, 3 needed; client-1: no reply"):
            run(OneShot(trained, min_replies=3), client_that(honest), 3, Grid, timeout=1.0)

    def test_too_few_nodes_end_the_wait_at_its_deadline(self, honest: Answers) -> None:
        with pytest.raises(TimeoutError, match=r"1 of 2 nodes connected within 0 s; start the others"):
            run(OneShot(trained, wait=0.0), client_that(honest), 1)

    def test_classes_that_nobody_sent_are_named(
        self, train: Data, held: Partition, caplog: pytest.LogCaptureFixture
    ) -> None:
        few = select(train.subset(torch.where(train.labels < 8)[0]), 1, "random")

        def answers(k: int, message: Message) -> Message:
            return Message(pack(few, k, 1), reply_to=message)

        strategy = OneShot(trained, ReplyLimits.of(train.spec))
        with caplog.at_level(logging.WARNING, "flwr"):
            run(strategy, client_that(answers), 2)
        assert strategy.missing == ("8", "9")
        assert "no set holds images of 2 classes: '8', '9'" in caplog.text

    def test_a_fraction_of_the_nodes_is_drawn_by_the_seed(self, honest: Answers) -> None:
        asked = []
        for seed in (0, 0, 1, 2, 3):
            strategy = OneShot(trained, fraction_train=0.4, min_train_nodes=1, seed=seed)
            run(strategy, client_that(honest), 5)
            asked.append(tuple(names(strategy)))
        assert {len(partitions) for partitions in asked} == {2}
        assert asked[0] == asked[1]
        assert len(set(asked)) > 1

    def test_more_than_one_round_is_refused(self, honest: Answers) -> None:
        with pytest.raises(SettingError, match="num_rounds 2; needed: 1 or more, at most 1 for OneShot"):
            run(OneShot(trained), client_that(honest), 3, num_rounds=2)

    def test_classes_that_only_some_clients_know_are_united(self, sets: list[SyntheticSet]) -> None:
        classes = [("a", "b"), ("b", "c")]

        def answers(k: int, message: Message) -> Message:
            two = sets[0].parts[0]
            record = replace(two.record, classes=classes[k], counts=(5, 5))
            codes = {"images": two.codes["images"][:2]}
            part = replace(two, codes=codes, targets=torch.tensor([0, 1], dtype=torch.uint8), record=record)
            return Message(pack(SyntheticSet([part]), k, 2), reply_to=message)

        strategy = OneShot(trained)
        result = run(strategy, client_that(answers), 2)
        assert strategy.joined is not None
        assert strategy.joined.classes == ("a", "b", "c")
        assert strategy.joined.counts().tolist() == [1, 2, 1]
        assert result.arrays.to_torch_state_dict()["classifier.weight"].shape[0] == 3

        few = OneShot(trained, ReplyLimits(together=replace(ReplyLimits().together, classes=2)))
        run(few, client_that(answers), 2)
        assert len(names(few)) == 1
        assert few.refused[0].reason.startswith("all sets together: 3 class names; allowed: 2")

    def test_a_screen_judges_per_site_and_class_before_sets_are_joined(
        self, honest: Answers, sets: list[SyntheticSet], train: Data
    ) -> None:
        seen: list[Known] = []

        def screen(answers: Any, known: Known) -> dict[tuple[Site, str], Verdict]:
            seen.append(known)
            first, second, _ = (answer.site for answer in answers)
            half = {(first, name): Verdict(0.0, "odd") for name in sets[0].classes}
            return {**half, (second, "3"): Verdict(0.0, "blurred")}

        strategy = OneShot(trained, ReplyLimits.of(train.spec), screen=screen, seed=5)
        run(strategy, client_that(honest), 3)
        assert names(strategy) == ["client-1", "client-2"]
        assert [(r.site.name, r.reason) for r in strategy.refused] == [("client-0", "odd")]
        assert strategy.joined is not None
        have = dict(zip(strategy.joined.classes, strategy.joined.counts().tolist(), strict=True))
        each = [dict(zip(one.classes, one.counts().tolist(), strict=True)) for one in sets[1:]]
        assert have == {name: each[0][name] * (name != "3") + each[1][name] for name in have}
        assert [(known.round, known.seed) for known in seen] == [(1, 5)]
        assert strategy.verdicts[Site("client-1", "101", 101), "3"] == Verdict(0.0, "blurred")

    def test_fields_of_the_task_may_come_with_the_start(self, honest: Answers) -> None:
        asked: list[dict[str, Any]] = []

        def noting(k: int, message: Message) -> Message:
            asked.append(dict(message.content.config_records["config"]))
            return honest(k, message)

        run(OneShot(trained, task=Condense(ipc=3)), client_that(noting), 2, train_config=ConfigRecord({"steps": 7}))
        assert [(config["ipc"], config["steps"]) for config in asked] == [(3, 7)] * 2
        with pytest.raises(SettingError, match="train_config: ipc = 0; needed"):
            run(OneShot(trained), client_that(honest), 2, train_config=ConfigRecord({"ipc": 0}))
