from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from fedcondense.errors import ResumeError, SettingError
from fedcondense.flower import Condense
from fedcondense.flower.client import app
from fedcondense.flower.holding import Holding, sha256_of
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.preview import look_at, read_config, waiting_at
from fedcondense.flower.strategies.continuing import Continue
from fedcondense.flower.wire import pack_question

ABOUT: dict[str, Any] = {
    "site": "north",
    "task": "condense",
    "round": 1,
    "version": "0.1.0",
    "records": 3,
    "counts": {"oak": 3},
    "seen": "the server",
}


class TestHolding:
    def test_an_answer_waits_until_its_own_hash_is_agreed(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path / "held")
        held = holding.hold(b"images", **ABOUT)
        assert held.sha256 == sha256_of(b"images")
        with pytest.raises(SettingError, match="waits for this site's people"):
            holding.wait(held, 0.0)
        holding.decide(holding.hold(b"others", **ABOUT), "send")
        with pytest.raises(SettingError, match="waits for this site's people"):
            holding.wait(held, 0.0)
        holding.decide(held, "send")
        holding.wait(holding.hold(b"images", **ABOUT), 0.0)

    def test_somebody_may_decide_while_it_waits(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path)
        held = holding.hold(b"images", **ABOUT)

        def later() -> None:
            time.sleep(0.2)
            holding.decide(held, "send")

        thread = threading.Thread(target=later)
        thread.start()
        holding.wait(held, 60.0)
        thread.join()

    def test_what_was_decided_stays(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path)
        held = holding.decide(holding.hold(b"images", **ABOUT), "withhold")
        with pytest.raises(SettingError, match="keep it"):
            holding.wait(held, 60.0)
        assert holding.decide(held, "withhold") == held
        sent = holding.decide(held, "send")  # it is still here
        with pytest.raises(SettingError, match="decided before: send; what left cannot be recalled"):
            holding.decide(sent, "withhold")
        holding.forget(sent)
        with pytest.raises(ResumeError, match="has left, and its bytes are not kept"):
            holding.payload(sent)

    def test_only_what_waits_is_found_by_how_it_begins(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path)
        held = holding.hold(b"images", **ABOUT)
        assert holding.find(held.sha256[:8].upper()) == held
        for start in ("", "0123", "zz"):
            with pytest.raises(SettingError, match=f"no answer here starts with .*waiting: {held.sha256[:12]}"):
                holding.find(start)

    def test_bytes_that_changed_are_not_agreed_to(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path)
        held = holding.hold(b"images", **ABOUT)
        (tmp_path / f"{held.sha256}.payload").write_bytes(b"records")
        with pytest.raises(ResumeError, match="damaged or gone"):
            holding.decide(held, "send")
        (tmp_path / f"{held.sha256}.json").write_text('{"decision": "send"}')
        with pytest.raises(ResumeError, match="cannot be read"):
            holding.all()

    def test_the_command_that_it_names_takes_the_nodes_config_from_beside_the_answers(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "flwr")
        config = {"name": "ort", "data": "folder:/a ä", "ledger": str(tmp_path / "n"), "send": "ask", "threads": 2}
        holding, _ = waiting_at(config)
        held = holding.hold(b"images", **ABOUT)
        path = holding.note(config)
        with pytest.raises(SettingError):
            holding.wait(held, 0.0, f"fedcondense review {path} {held.sha256[:8]}")
        assert f"look at it by `fedcondense review {path} {held.sha256[:8]}`" in caplog.text
        assert read_config(str(path)) == config
        assert waiting_at(read_config(str(path))).answers == [held]

    def test_nobody_else_reads_it(self, tmp_path: Path) -> None:
        holding = Holding(tmp_path / "held")
        holding.hold(b"images", **ABOUT)
        holding.note({"data": "folder:x"})
        assert (tmp_path / "held").stat().st_mode & 0o77 == 0
        assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / "held").iterdir())


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Return a config of a node whose answers wait no second."""
    return {"name": "north", "data": "digits", "ledger": str(tmp_path / "ledger"), "send": "ask", "review-seconds": 0.0}


def asked(node: dict[str, Any], task: Any) -> Message:
    with task_identity():
        grid = InProcessGrid(app, ["north"], node_config=node)
        content = pack_question(task, 1)
        (reply,) = grid.send_and_receive([Message(content, dst_node_id=100, message_type=f"query.{task.name}")])
    return reply


class TestNode:
    def test_nothing_leaves_before_its_people_agree(self, node: dict[str, Any]) -> None:
        """The same question later gets the same answer, which its people have seen; another one waits anew."""
        task = Condense(ipc=1, steps=2, network="convnet1-w16")
        refused = asked(node, task)
        assert refused.has_error()
        assert "waits for this site's people" in str(refused.error.reason)
        holding, (held,) = waiting_at(node)
        payload, beside = look_at(node, holding, held)
        assert held.nbytes == len(payload.to_bytes())
        assert set(beside) == set(held.counts)
        assert held.seen == "the server"
        holding.decide(held, "send")
        answered = asked(node, task)
        assert not answered.has_error()
        assert asked(node, Condense(ipc=1, steps=2, network="convnet1-w16", seed=5)).has_error()
        assert sorted(one.decision for one in waiting_at(node).answers) == ["", "send"]

    def test_weights_cannot_be_looked_at(self, node: dict[str, Any]) -> None:
        said = {"allow-evaluate": False}
        for kind in ("train", "evaluate"):
            with task_identity():
                grid = InProcessGrid(app, ["north"], node_config={**node, **said, "allow-weights": True})
                message = Message(pack_question(Condense(), 1), dst_node_id=100, message_type=kind)
                (reply,) = grid.send_and_receive([message])
            assert "send = ask" in str(reply.error.reason)
        assert "send = ask" in str(asked({**node, "allow-weights": True}, Continue()).error.reason)

    def test_a_node_that_holds_nothing_says_so(self, node: dict[str, Any]) -> None:
        with pytest.raises(SettingError, match='send = "ask"'):
            waiting_at({**node, "send": "always"})
        with pytest.raises(SettingError, match=r"needed: always, or ask"):
            waiting_at({**node, "send": "never"})
