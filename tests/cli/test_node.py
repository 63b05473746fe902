"""`fedcondense node check | plan | preview | release`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedcondense.flower import Condense
from fedcondense.flower.client import app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.ledger import Allowance, Charge, Ledger
from fedcondense.flower.wire import pack_question


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


class TestCheck:
    def test_it_says_what_the_node_holds_and_allows_in_both_spellings(self, cli: Any, home: Path) -> None:
        file = home / "node.toml"
        file.write_text('data = "digits"\nmax-ipc = 5\nmin-records = 142\n')
        found = [
            json.loads(cli.run("node", "check", config, "--format", "json").stdout)
            for config in (str(file), 'data="digits" max-ipc=5 min-records=142')
        ]
        assert found[0] == found[1]
        assert found[0]["caps"]["max_ipc"] == 5
        assert sum(found[0]["classes"].values()) == 1433
        assert found[0]["left_out"] == {"2": 141, "8": 139}

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ('data="digits" max-ipx=5', "did you mean 'max-ipc'?"),
            ('data="digits" max-seconds=nan', "max-seconds = nan; needed: a number from 0"),
            ('data="digits" min-records=2.7', "min-records = 2.7; needed: a whole number from 1"),
            ('data="digits" partition-id=-1', "partition-id = -1 in this node's config; needed: 0 or more"),
            ("max-ipc", "no such file"),
            ("max-ipc=5 and more", "is no node's config"),
        ],
    )
    def test_what_cannot_work_is_one_line(self, cli: Any, home: Path, config: str, said: str) -> None:
        assert said in cli.refused("node", "check", config)


class TestPreview:
    def test_it_draws_the_reply_and_charges_nothing(self, cli: Any, home: Path) -> None:
        ledger, picture = home / "ledger.jsonl", home / "sent.png"
        config = f'data="digits" ledger="{ledger}" cache="{home / "cache"}"'
        asked = ("--set", "ipc=1", "--set", "steps=2", "--set", "objective=dm")
        ended = cli.run("node", "preview", config, *asked, "--output", picture, "--format", "json")
        found = json.loads(ended.stdout)
        assert set(found["images"].values()) == {1}
        assert len(found["images"]) == len(found["nearest"]) == 10
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert not ledger.exists()
        assert not (home / "cache").exists()

    def test_the_node_refuses_here_as_it_would_a_server(self, cli: Any, home: Path) -> None:
        said = cli.refused("node", "preview", 'data="digits" max-ipc=5', "--set", "ipc=6")
        assert "ipc 6 asked for; this node condenses to 1 to 5 images per class" in said

    def test_real_records_show_a_distance_of_zero(self, cli: Any, home: Path) -> None:
        ended = cli.run(
            "node", "preview", 'data="digits" allow-real=true', "--task", "select", "--set", "ipc=1", "--format", "json"
        )
        assert set(json.loads(ended.stdout)["nearest"].values()) == {0.0}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--task", "condens"), "did you mean 'condense'?"),
            (("--set", "ipc"), "--set ipc; needed: NAME=VALUE"),
            (("--set", "ipc=1.5"), "ipc = 1.5; needed: a whole number from 1"),
            (("--set", "ipx=1"), "did you mean 'ipc'?"),
        ],
    )
    def test_a_wrong_question_is_one_line(self, cli: Any, home: Path, arguments: tuple[str, ...], said: str) -> None:
        assert said in cli.refused("node", "preview", 'data="digits"', *arguments)


class TestLog:
    def test_it_shows_what_was_asked_and_decided(self, cli: Any, home: Path) -> None:
        from fedcondense.flower.node_log import LogLine, NodeLog

        config = f'data="digits" ledger="{home / "ledger.jsonl"}"'
        assert "nothing was asked yet" in cli.run("node", "log", config).stdout
        log = NodeLog(home / "ledger.jsonl.log")
        for k in range(3):
            log.append(LogLine("2026-11-29T12:00:00+00:00", "condense", k + 1, 5, "0.1.0", 2, {"ipc": 10}, "", "kept"))
        found = json.loads(cli.run("node", "log", config, "--last", 2, "--format", "json").stdout)
        assert [line["round"] for line in found["lines"]] == [2, 3]
        assert (found["all"], found["torn"]) == (3, 0)
        assert "condense" in cli.run("node", "log", config).stdout

    def test_a_node_without_one_and_a_damaged_one_are_one_line(self, cli: Any, home: Path) -> None:
        assert "keeps no log" in cli.refused("node", "log", "max-ipc=3")
        (home / "own.log").write_text("not a log")
        assert "own.log" in cli.refused("node", "log", f'data="digits" log="{home / "own.log"}"')


class TestPlan:
    def test_it_says_what_would_leave_and_works_nothing_out(self, cli: Any, home: Path) -> None:
        config = f'data="digits" name="north" min-records=142 ledger="{home / "ledger.jsonl"}"'
        asked = ("--set", "ipc=1", "--set", "steps=2", "--set", "objective=dm")
        found = cli.done("node", "plan", config, *asked)
        assert found["site"] == "north"
        assert found["images"] == dict.fromkeys(set("01345679"), 1)
        assert found["left_out"] == {"2": 141, "8": 139}
        assert found["records"] < 1433 - 141 - 139  # a tenth is kept apart
        assert 0 < found["nbytes"] < 10_000
        assert found["seconds"] > 0
        assert "to the server" in found["leaves"][0]
        assert not (home / "ledger.jsonl").exists()
        said = cli.run("node", "plan", config, *asked)
        assert "differentially private" in said.stdout
        assert "node preview" in said.stderr
        assert "real" not in said.stdout

    def test_it_refuses_as_the_node_would(self, cli: Any, home: Path) -> None:
        assert "this node condenses to 1 to 5" in cli.refused(
            "node", "plan", 'data="digits" max-ipc=5', "--set", "ipc=6"
        )
        assert "needed: NAME=VALUE" in cli.refused("node", "plan", 'data="digits"', "--set", "ipc")

    def test_a_run_s_size_is_planned_for(self, cli: Any, home: Path) -> None:
        told = ("--set", "ipc=1", "--set", "size=16")
        assert "16" in cli.run("node", "plan", 'data="digits"', *told).stdout.split("image size")[1].splitlines()[0]
        next_ = cli.run("node", "plan", 'data="digits"', "--size", 16).stderr
        assert "--task condense --size 16 --output" in next_
        assert "leave one of the two out" in cli.refused("node", "plan", 'data="digits" size=12', *told)


class TestRelease:
    def test_the_sheet_holds_what_left_and_no_more(self, cli: Any, home: Path) -> None:
        node: dict[str, Any] = {"name": "north", "data": "digits", "ledger": str(home / "ledger.jsonl"), "max-ipc": 5}
        for ipc in (1, 6):
            with task_identity():
                grid = InProcessGrid(app, ["north"], node_config=node)
                content = pack_question(Condense(ipc=ipc, steps=1, network="convnet1-w16"), 1)
                grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
        file = home / "node.toml"
        file.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in node.items()))
        found = cli.done("node", "release", file, "--output", home / "sheet.html")
        assert (found["site"], found["answers"], found["refused"]) == ("north", 1, 1)
        (line,) = (one for one in cli.done("node", "log", file)["lines"] if one["decision"] == "answered")
        page = (home / "sheet.html").read_text()
        assert line["sha256"] in page
        assert f"<code>{line['run']}</code></td>" in page  # as `flwr list` has it
        assert f"{line['nbytes']:,}" in page
        assert "to the server alone" in page
        assert "no epsilon and no delta" in page
        assert "<img" not in page

    @pytest.mark.parametrize(
        ("allowed", "said"),
        [
            ("", "no"),
            ("allow-weights=true", "yes"),
            ('allow-weights=true send="ask"', "no: nobody can look at them before they leave (send = ask)"),
            ('allow-evaluate=true send="ask"', "no, but they may come to be tested: right answers per class leave"),
        ],
    )
    def test_it_says_whether_weights_may_be_asked_for(self, cli: Any, home: Path, allowed: str, said: str) -> None:
        cli.done("node", "release", f'data="digits" {allowed}', "--output", home / "sheet.html")
        page = (home / "sheet.html").read_text()
        assert re.search(rf"weights may be asked for</dt><dd>{re.escape(said)}[,<]", page)

    def test_what_noise_was_spent_is_said_by_the_ledger(self, cli: Any, home: Path) -> None:
        ledger = Ledger.open(home / "ledger.jsonl", Allowance())
        ledger.charge("a private task", Charge(nbytes=10, epsilon=0.5))
        config = f'name="north" data="digits" ledger="{home / "ledger.jsonl"}"'
        cli.done("node", "release", config, "--output", home / "sheet.html")
        page = (home / "sheet.html").read_text()
        assert "epsilon 0.5 in all" in page
        assert "no epsilon and no delta" not in page

    def test_public_data_have_no_sheet_and_other_endings_are_refused(self, cli: Any, home: Path) -> None:
        assert "keeps no log" in cli.refused("node", "release", "max-ipc=5", "--output", home / "sheet.html")
        assert "by its name" in cli.refused("node", "release", "max-ipc=5", "--output", home / "sheet.png")
