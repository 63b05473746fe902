from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from fedcondense.flower.strategy import AggregationError
from flwr.app import Context

import fedcondense.flower
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import FedcondenseError, MissingExtraError, OutputError, SettingError
from fedcondense.flower.client import ClientCaps, make_client_app
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.server import ServerSettings, make_server_app
from fedcondense.report.page import write_report
from fedcondense.sets.synthetic import SyntheticSet

APP = Path(__file__).parents[2] / "strategies" / "one-shot"
QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 2}


def client(train: Data, held: Partition) -> Any:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=ClientCaps(max_ipc=2, max_seconds=float("inf")))


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
        assert len(list((output / "clients").iterdir())) == 3
        written = SyntheticSet.load(output / "joined.safetensors")
        assert strategy.joined is not None
        assert SyntheticSet(written.parts).to_bytes() == strategy.joined.to_bytes()
        assert write_report(output).exists()

    def test_a_server_without_data_trains_and_does_not_evaluate(
        self, train: Data, held: Partition, tmp_path: Path
    ) -> None:
        run_in_process(make_server_app(), client(train, held), 3, run_config={**QUICK, "output": str(tmp_path / "run")})
        row = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]["one-shot"]
        assert "accuracy" not in row
        assert (tmp_path / "run" / "weights.safetensors").exists()

    def test_a_failed_round_says_so_in_the_folder(self, train: Data, held: Partition, tmp_path: Path) -> None:
        """`flwr run` exits with 0 in this case."""
        config = {**QUICK, "ipc": 3, "output": str(tmp_path / "run")}
        with pytest.raises(AggregationError):
            run_in_process(make_server_app(), client(train, held), 3, run_config=config)
        result = json.loads((tmp_path / "run" / "result.json").read_text())
        assert "0 usable sets of 3" in result["error"]
        assert [entry["reason"] for entry in result["refused"]] == [
            f"partition {k}: ipc 3 asked for; this node condenses to 1 to 2 images per class" for k in range(3)
        ]

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [({"ipc": 0}, "ipc = 0; needed: 1 or more"), ({"data": "nosuch"}, "no data set is called 'nosuch'")],
    )
    def test_what_fails_before_the_round_is_said_in_the_folder_too(
        self, wrong: dict[str, Any], reason: str, train: Data, held: Partition, tmp_path: Path
    ) -> None:
        config = {**QUICK, **wrong, "output": str(tmp_path / "run")}
        with pytest.raises(FedcondenseError):
            run_in_process(make_server_app(), client(train, held), 3, run_config=config)
        assert reason in json.loads((tmp_path / "run" / "result.json").read_text())["error"]

    def test_a_result_is_never_overwritten(self, train: Data, held: Partition, tmp_path: Path) -> None:
        (tmp_path / "result.json").write_text("{}")
        with pytest.raises(OutputError, match="holds a result"):
            run_in_process(make_server_app(), client(train, held), 3, run_config={**QUICK, "output": str(tmp_path)})


class TestServerSettings:
    def test_all_that_is_wrong_is_said_at_once(self) -> None:
        config = {"ipc": 0, "timeout": "soon", "fraction-train": 2.0, "output": "here", "min-nodes": 3, "data": True}
        with pytest.raises(SettingError) as refused:
            ServerSettings.read(config)
        for needed in (
            "ipc = 0; needed: 1 or more",
            "timeout = 'soon'; needed: float",
            "fraction-train = 2; needed: above 0",
            "output = 'here'; needed: an absolute path",
            "no setting is called 'min-nodes'; did you mean",
            "data = True; needed: str",
        ):
            assert needed in str(refused.value)

    def test_an_int_is_taken_for_a_float(self) -> None:
        assert ServerSettings.read({"timeout": 150}).timeout == 150.0


class TestFlowerApp:
    def test_its_config_is_the_servers_settings(self) -> None:
        """Flower refuses a --run-config key that the app does not list."""
        described = tomllib.loads((APP / "pyproject.toml").read_text())
        config = described["tool"]["flwr"]["app"]["config"]
        settings = ServerSettings.read(config)
        assert set(config) == {name.replace("_", "-") for name in vars(settings)}
        assert described["project"]["dependencies"] == []

    @pytest.mark.parametrize("component", ["serverapp", "clientapp"])
    def test_flower_finds_the_apps_in_the_source_text(self, component: str) -> None:
        described = tomllib.loads((APP / "pyproject.toml").read_text())
        module, _, name = described["tool"]["flwr"]["app"]["components"][component].partition(":")
        source = Path(str(importlib.import_module(module).__file__)).read_text()
        assert f"\n{name} = make_" in source


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
