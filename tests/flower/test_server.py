from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp

import fedcondense.flower
from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import FedcondenseError, MissingExtraError, OutputError, SettingError
from fedcondense.flower.apart import is_apart
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.server import ServerSettings, make_server_app, read_settings
from fedcondense.flower.settings import keys_of, number
from fedcondense.flower.strategies import STRATEGIES, Entry, ServerSide
from fedcondense.networks import build
from fedcondense.networks.saved import load_network
from fedcondense.report.page import write_report
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

APPS = Path(__file__).parents[2] / "strategies"
QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 2, "network": "convnet1-w16"}


def client(train: Data, held: Partition) -> Any:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    caps = Caps(max_ipc=2, max_seconds=float("inf"), min_records=1)
    return make_client_app(load, caps=caps, tasks=[Step])


@dataclass(frozen=True)
class Step(Task[Sums]):
    """A task that fails in a round of its choice."""

    round: int = number(1, 1)
    fails_in: int = number(0, 0)

    name: ClassVar[str] = "step"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        if self.round == self.fails_in:
            raise SettingError("not today")
        return Job(Cost(), lambda: Sums({"n": torch.tensor([1])}))


class Stepping(Rounds):
    """Each round leaves an untrained network of another seed."""

    def __init__(self, side: ServerSide) -> None:
        super().__init__(side.limits, None, **side.asked)
        self.side = side
        self.task: Step = side.settings

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        return replace(self.task, round=server_round)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        assert self.side.spec is not None
        network = build("convnet2-w32", self.side.spec.shape, len(self.side.spec.classes), server_round)
        return state.but(weights=Weights.of(network), numbers={**state.numbers, "answers": len(answers)})


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch) -> str:
    entry = Entry(Stepping, "stepping", "nothing", "nobody sees anything", Step(), (Step,), rounds=3, starts=True)
    monkeypatch.setitem(STRATEGIES, "stepping", entry)
    return "stepping"


class TestServerApp:
    def test_it_leaves_the_result_where_the_run_config_says(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        output, seen = tmp_path / "run", []
        server = make_server_app(test=test, sink=lambda strategy, result: seen.append((strategy, result)))
        run_in_process(server, client(train, held), 3, run_config={**QUICK, "output": str(output)})
        result = json.loads((output / "result.json").read_text())
        strategy, returned = seen[0]
        assert result["rows"]["one-shot"]["accuracy"] == returned.evaluate_metrics_serverapp[1]["accuracy"]
        assert result["rows"]["one-shot"]["clients"] == 3
        assert sorted(path.name for path in (output / "clients").iterdir()) == [
            f"client-{k}.safetensors" for k in range(3)
        ]
        assert result["sites"] == ["client-0", "client-1", "client-2"]
        written = SyntheticSet.load(output / "joined.safetensors")
        assert strategy.joined is not None
        assert SyntheticSet(written.parts).to_bytes() == strategy.joined.to_bytes()
        assert write_report(output).exists()

    def test_a_server_without_data_trains_and_does_not_evaluate(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        run_in_process(make_server_app(), client(train, held), 3, run_config={**QUICK, "output": str(tmp_path / "run")})
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        row = result["rows"]["one-shot"]
        assert "accuracy" not in row
        network = load_network(tmp_path / "run")
        assert list(network.classes) == result["classes"]
        assert right(network, test) > 15  # of 100: by chance 10

    def test_without_data_it_says_how_good_the_network_is_at_the_sites(
        self, train: Data, held: Partition, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"keep-apart": 0.2, "allow-evaluate": True}
        config = {**QUICK, "output": str(tmp_path / "run")}
        seen: list[Any] = []
        app = make_server_app(sink=lambda strategy, result: seen.append((strategy, result)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fit, "steps", 10)  # of sites that train alone
            run_in_process(app, client(train, held), 3, run_config=config, node_config=given)
        folder, (strategy, result) = RunFolder(tmp_path / "run"), seen[0]
        found = folder.read_result()["sites_evaluated"]
        network = load_network(folder.path)
        assert [site["site"] for site in found["sites"]] == ["client-0", "client-1", "client-2"]
        for site, index in zip(found["sites"], held, strict=True):
            records = train.subset(index)
            apart = records.subset(is_apart(records, 0.2))
            assert site["records"] == len(apart) > 0
            assert site["accuracy"] == pytest.approx(right(network, apart), abs=1e-3)
            assert 0 <= site["local_only"] <= 100
        assert found["accuracy"] == pytest.approx(result.evaluate_metrics_clientapp[1]["accuracy"], abs=1e-3)
        assert folder.read_result()["rounds"][0]["sites_accuracy"] == found["accuracy"]
        assert found == strategy.evaluated[1].to_dict(1) | {"sites": found["sites"]}
        page = write_report(folder.path).read_text()
        assert f"After round 1 the network is right for {found['accuracy']:.1f} %" in page

    def test_with_data_nobody_is_asked_unless_the_run_says_so(
        self, stepping: str, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        assert read_settings({})[0].asked["fraction_evaluate"] == 0.0
        assert read_settings({"fraction-evaluate": 0.5, "min-evaluate-nodes": 3})[0].asked["min_evaluate_nodes"] == 3
        for name, asked in (("no", {}), ("yes", {"fraction-evaluate": 1.0})):
            config = {"strategy": stepping, "num-rounds": 1, **asked, "output": str(tmp_path / name)}
            run_in_process(make_server_app(test=test), client(train, held), 3, run_config=config)
            found = RunFolder(tmp_path / name).read_result()["sites_evaluated"]
            assert (found == {}) == (name == "no")
        assert [entry["client"] for entry in found["refused"]] == ["client-0", "client-1", "client-2"]

    def test_flowers_own_strategies_evaluate_too(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        given: dict[str, Any] = {"keep-apart": 0.2, "allow-weights": True}
        config = {"strategy": "fedavg-8bit", "network": "convnet1-w16", "num-rounds": 2, "fraction-evaluate": 1.0}
        config |= {"output": str(tmp_path / "run"), "min-available-nodes": 3}
        seen: list[Any] = []
        app = make_server_app(test=test, sink=lambda strategy, result: seen.append(result))
        run_in_process(app, client(train, held), 3, run_config=config, node_config=given)
        folder = RunFolder(tmp_path / "run")
        found, network = folder.read_result()["sites_evaluated"], load_network(folder.path)
        assert (found["round"], len(found["sites"])) == (2, 3)
        assert sorted(seen[0].evaluate_metrics_clientapp) == [1, 2]
        assert set(seen[0].evaluate_metrics_clientapp[2]) == {"accuracy", "macro-accuracy", "loss"}
        for site, index in zip(found["sites"], held, strict=True):
            records = train.subset(index)
            apart = records.subset(is_apart(records, 0.2))
            rounded = 100 / len(apart)  # weights that travelled at 8 bits may turn one record
            assert site["accuracy"] == pytest.approx(right(network, apart), abs=1.01 * rounded)

    def test_a_failed_round_says_so_in_the_folder(self, train: Data, held: Partition, tmp_path: Path) -> None:
        """`flwr run` exits with 0 in this case."""
        config = {**QUICK, "ipc": 3, "output": str(tmp_path / "run")}
        with pytest.raises(AggregationError):
            run_in_process(make_server_app(), client(train, held), 3, run_config=config)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert "0 usable answers of 3" in result["error"]
        assert [entry["client"] for entry in result["refused"]] == ["client-0", "client-1", "client-2"]
        assert [entry["reason"] for entry in result["refused"]] == [
            f"partition {k}: ipc 3 asked for; this node condenses to 1 to 2 images per class" for k in range(3)
        ]

    @pytest.mark.parametrize("fails_in", [1, 2, 3])
    def test_a_failure_in_a_round_leaves_what_the_rounds_before_it_left(
        self, fails_in: int, stepping: str, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        config = {"strategy": stepping, "fails-in": fails_in, "output": str(tmp_path / "run")}
        with pytest.raises(AggregationError, match=f"round {fails_in}: "):
            run_in_process(make_server_app(test=test), client(train, held), 3, run_config=config)
        folder = RunFolder(tmp_path / "run")
        result, state = folder.read_result(), folder.read_state()
        assert f"round {fails_in}: 0 usable answers of 3" in result["error"]
        assert [entry["round"] for entry in result["rounds"]] == list(range(1, fails_in))
        assert len(result["refused"]) == 3
        assert state.round == fails_in - 1
        if fails_in == 1:
            assert result["rows"] == {}
            return
        row = result["rows"][stepping]
        assert row["seen_rounds"] == fails_in - 1
        assert row["accuracy"] == pytest.approx(result["rounds"][-1]["accuracy"], abs=1e-3)
        assert row["about"] == STRATEGIES[stepping].about(3)
        network = build("convnet2-w32", test.spec.shape, 10, fails_in - 1)
        assert state.weights is not None
        for name, value in network.state_dict().items():
            torch.testing.assert_close(state.weights.tensors[name], value, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"ipc": 0}, "ipc = 0; needed: a whole number from 1"),
            ({"data": "nosuch"}, "no data set is called 'nosuch'"),
            ({"strategy": "one-shott"}, "no strategy is called 'one-shott'; did you mean 'one-shot'?"),
            ({"strategy": 3}, "no strategy is called '3'"),
            ({"num-rounds": 2}, "num_rounds 2; needed: 1 or more, at most 1 for OneShot"),
            ({"strategy": "fedavg"}, "no setting is called 'ipc'"),
        ],
    )
    def test_what_fails_before_the_round_is_said_in_the_folder_too(
        self, wrong: dict[str, Any], reason: str, train: Data, held: Partition, tmp_path: Path
    ) -> None:
        config = {**QUICK, **wrong, "output": str(tmp_path / "run")}
        with pytest.raises(FedcondenseError):
            run_in_process(make_server_app(), client(train, held), 3, run_config=config)
        assert reason in json.loads((tmp_path / "run" / "result.json").read_text())["error"]

    @pytest.mark.parametrize("strategy", ["fedavg", "iterative"])
    def test_strategies_that_start_from_weights_need_a_server_that_knows_the_data(
        self, strategy: str, train: Data, held: Partition, tmp_path: Path
    ) -> None:
        config = {"strategy": strategy, "output": str(tmp_path / "run")}
        with pytest.raises(SettingError, match=r"needs a server that knows the data.*data = "):
            run_in_process(make_server_app(), client(train, held), 3, run_config=config)

    def test_a_result_is_never_overwritten(self, train: Data, held: Partition, tmp_path: Path) -> None:
        (tmp_path / "result.json").write_text("{}")
        with pytest.raises(OutputError, match="holds a result"):
            run_in_process(make_server_app(), client(train, held), 3, run_config={**QUICK, "output": str(tmp_path)})

    def test_the_runs_config_goes_before_the_apps(self, train: Data, held: Partition, tmp_path: Path) -> None:
        server = make_server_app({**QUICK, "ipc": 2, "seed": 3})
        run_in_process(server, client(train, held), 3, run_config={"ipc": 1, "output": str(tmp_path / "run")})
        settings = json.loads((tmp_path / "run" / "result.json").read_text())["settings"]
        assert (settings["ipc"], settings["seed"], settings["objective"]) == (1, 3, "dm")


def right(network: Any, test: Data) -> float:
    """Return percent right by the names of the network's classes and of the test data's."""
    predicted: list[str] = [network.classes[k] for k in network.predict(test.images).tolist()]
    wanted = [test.spec.classes[k] for k in test.labels.tolist()]
    same: list[bool] = [one == other for one, other in zip(predicted, wanted, strict=True)]
    return 100.0 * sum(same) / len(same)


def skewed(train: Data) -> tuple[ClientApp, list[str]]:
    """Return two sites that hold some digits each, and all names in the order in which the sites name them."""
    groups = [[9, 7, 8], [0, 3, 1, 2]]
    parts = []
    for group in groups:
        index = torch.cat([torch.where(train.labels == digit)[0] for digit in group])
        labels = torch.cat([torch.full_like(torch.where(train.labels == digit)[0], k) for k, digit in enumerate(group)])
        parts.append(Data(train.images[index], labels, replace(train.spec, classes=tuple(map(str, group)))))

    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, caps=Caps.none(), is_counted=False), [str(d) for group in groups for d in group]


class TestClassOrder:
    """Sites name classes in another order than the test data: outputs, `classes` and `per_class` must agree."""

    def test_a_server_that_knows_the_data_keeps_their_order(self, train: Data, test: Data, tmp_path: Path) -> None:
        app, joined = skewed(train)
        server = make_server_app(test=test)
        run_in_process(server, app, 2, run_config={**QUICK, "steps": 20, "ipc": 4, "output": str(tmp_path / "run")})
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        network = load_network(tmp_path / "run")
        assert result["classes"] == list(network.classes) == list(test.spec.classes)
        assert list(SyntheticSet.load(tmp_path / "run" / "joined.safetensors").classes) == joined
        row = result["rows"]["one-shot"]
        absent = [name for name, value in zip(result["classes"], row["per_class"], strict=True) if not value]
        assert {"4", "5", "6"} <= set(absent)
        assert row["per_class"][int("0")] > 50
        evaluation = SyntheticSet.load(tmp_path / "run" / "joined.safetensors").evaluation
        assert evaluation is not None
        assert row["accuracy"] == pytest.approx(sum(evaluation["accuracies"]) / 3, abs=1e-3)
        assert right(network, test) == pytest.approx(
            evaluation["accuracies"][0], abs=1e-3
        )  # the one that is handed out

    def test_fedavg_and_what_it_measures_agree_to_the_digit(self, train: Data, test: Data, tmp_path: Path) -> None:
        app, _ = skewed(train)
        config = {"strategy": "fedavg", "num-rounds": 3, "lr": 0.1, "output": str(tmp_path / "run")}
        run_in_process(make_server_app(test=test), app, 2, run_config=config)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        network = load_network(tmp_path / "run")
        assert list(network.classes) == result["classes"]
        row = result["rows"]["fedavg"]
        assert right(network, test) == pytest.approx(row["accuracy"], abs=1e-3)
        for name, value in zip(result["classes"], row["per_class"], strict=True):
            of_class = test.subset(torch.where(test.labels == test.spec.classes.index(name))[0])
            assert right(network, of_class) == pytest.approx(value, abs=1e-3), name

    def test_a_server_without_data_takes_the_order_of_the_union(self, train: Data, test: Data, tmp_path: Path) -> None:
        app, joined = skewed(train)
        config = {**QUICK, "steps": 20, "ipc": 4, "output": str(tmp_path / "run")}
        run_in_process(make_server_app(), app, 2, run_config=config)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        network = load_network(tmp_path / "run")
        assert result["classes"] == list(network.classes) == joined
        held = test.subset(torch.where((test.labels < 4) | (test.labels > 6))[0])
        assert right(network, held) > 60

    def test_networks_of_batch_norm_come_out_of_an_average_whole(self, train: Data, test: Data, tmp_path: Path) -> None:
        app, _ = skewed(train)
        config = {"strategy": "fedavg", "num-rounds": 2, "network": "convnet1-w16-batch", "output": str(tmp_path / "r")}
        run_in_process(make_server_app(test=test), app, 2, run_config=config)
        row = json.loads((tmp_path / "r" / "result.json").read_text())["rows"]["fedavg"]
        assert right(load_network(tmp_path / "r"), test) == pytest.approx(row["accuracy"], abs=1e-3)


class TestSettings:
    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        config = {"ipc": 0, "timeout": "soon", "fraction-train": 2.0, "output": "here", "min-nodes": 3, "data": True}
        with pytest.raises(SettingError) as refused:
            read_settings(config)
        for needed in (
            "ipc = 0; needed: a whole number from 1",
            "timeout = 'soon'; needed: a number from 0.001",
            "fraction-train = 2.0; needed: a number from 0 to 1",
            "output = 'here'; needed: an absolute path",
            "no setting is called 'min-nodes'; did you mean",
            "data = True; needed: a printable text",
        ):
            assert needed in str(refused.value)

    def test_nobody_can_be_asked_to_be_asked(self) -> None:
        with pytest.raises(SettingError, match="fraction-train = 0; needed: above 0, up to 1"):
            read_settings({"fraction-train": 0.0})

    def test_an_int_is_taken_for_a_float(self) -> None:
        assert read_settings({"timeout": 150})[0].timeout == 150.0

    @pytest.mark.parametrize("name", STRATEGIES)
    def test_every_strategy_takes_its_own_keys_and_no_others(self, name: str) -> None:
        own = STRATEGIES[name].settings
        assert read_settings({"strategy": name})[1] == own
        foreign = {"ipc", "lr", "dims"} - set(keys_of(type(own)))
        for key in foreign:
            with pytest.raises(SettingError, match=f"no setting is called '{key}'"):
                read_settings({"strategy": name, key: 1})

    def test_a_negative_grace_waits_until_the_timeout(self) -> None:
        assert read_settings({})[0].asked.get("grace", 0) is None
        assert read_settings({"grace": 3})[0].asked.get("grace") == 3.0


FLOWER_APPS = sorted(path.parent.name for path in APPS.glob("*/pyproject.toml"))


@pytest.mark.parametrize("app", FLOWER_APPS)
class TestFlowerApps:
    def described(self, app: str) -> dict[str, Any]:
        return tomllib.loads((APPS / app / "pyproject.toml").read_text())

    def test_its_config_is_all_that_the_server_takes(self, app: str) -> None:
        """Flower refuses a --run-config key that the app does not list."""
        described = self.described(app)
        config = described["tool"]["flwr"]["app"]["config"]
        _, own, _ = read_settings(config)
        carried = {"weights", "logits", "classes", "round", "codecs", "in-union"}  # the strategy's to set
        assert set(config) == {*keys_of(ServerSettings), *keys_of(type(own))} - carried
        assert described["project"]["dependencies"] == []

    @pytest.mark.parametrize("component", ["serverapp", "clientapp"])
    def test_flower_finds_the_apps_in_the_source_text(self, app: str, component: str) -> None:
        named = self.described(app)["tool"]["flwr"]["app"]["components"][component]
        module, _, name = named.partition(":")
        source = Path(str(importlib.import_module(module).__file__)).read_text()
        assert f"\n{name} = " in source


def test_there_are_apps() -> None:
    assert "one-shot" in FLOWER_APPS


class TestImports:
    def test_every_public_name_is_there(self) -> None:
        for name in fedcondense.flower.__all__:
            assert getattr(fedcondense.flower, name) is not None
        with pytest.raises(AttributeError, match="nothing"):
            _ = fedcondense.flower.nothing

    def test_the_core_imports_without_flwr_and_the_room_names_the_pip_command(self) -> None:
        program = (
            "import sys; sys.modules['flwr'] = None\n"
            "import fedcondense, fedcondense.flower\n"
            "from fedcondense.errors import MissingExtraError\n"
            "try:\n"
            "    fedcondense.flower.federate\n"
            "except MissingExtraError as error:\n"
            "    assert str(error) == \"flwr is not installed; run: pip install 'fedcondense[flower]'\", error\n"
            "else:\n"
            "    raise SystemExit('no error')\n"
        )
        subprocess.run([sys.executable, "-c", program], check=True)
        assert issubclass(MissingExtraError, ImportError)
