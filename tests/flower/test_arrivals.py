"""A server that is killed in mid-round: what had arrived is kept, and a resumed run asks the others alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import OutputError, ResumeError, SettingError
from fedcondense.flower.arrivals import KeepingGrid
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.server import make_server_app, read_settings
from fedcondense.sets.synthetic import SyntheticSet

QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 2, "network": "convnet1-w16"}
QUICK["fraction-evaluate"] = 0.0  # what is counted here are questions for sets


class Killed(BaseException):
    """What no code of ours expects."""


class Slowly(InProcessGrid):
    """Nodes that answer one at a time, when they are looked for; the server dies when it looks once too often.

    Args:
        lives: How many replies it hands out before.
    """

    def __init__(self, client: ClientApp, lives: int) -> None:
        super().__init__(client, 3)
        self.lives, self.asked = lives, list[int]()
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            identifier = f"question-{len(self.asked)}"
            message.metadata.__dict__["_message_id"] = identifier
            self.asked.append(message.metadata.dst_node_id)
            self._waiting[identifier] = message
            yield identifier

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for identifier in [one for one in sorted(message_ids) if one in self._waiting][:1]:
            if not self.lives:
                raise Killed
            self.lives -= 1
            message = self._waiting.pop(identifier)
            (sent,) = super().push_messages([message])
            (reply,) = super().pull_messages([sent])
            message.metadata.__dict__["_message_id"] = identifier
            reply.metadata.__dict__["_reply_to_message_id"] = identifier
            yield reply


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=Caps(max_ipc=2, max_seconds=float("inf"), min_records=1))


def serve(client: ClientApp, output: Path, lives: int = 99, **config: Any) -> Slowly:
    """Run the server app; return the grid, dead or alive."""
    asked = {**QUICK, "output": str(output), **config}
    with task_identity():
        grid = Slowly(client, lives)
        with suppress(Killed):
            make_server_app()(grid, Context(1, 0, {}, RecordDict(), asked))
    return grid


def left(output: Path) -> tuple[bytes, bytes]:
    """Return what a run ends with: the union without its seconds, and the network."""
    joined = SyntheticSet.load(output / "joined.safetensors").with_record(seconds=0.0)
    return joined.to_bytes(), (output / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(client: ClientApp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert serve(client, output).asked == [100, 101, 102]
    return output


def test_the_log_says_whose_replies_flower_s_own_strategies_wait_for(
    client: ClientApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda _: clock.append(clock.pop() + 1))
    caplog.set_level("INFO", "flwr")
    gone = Error(5, "Error: Node Unavailable")
    with task_identity():
        inner = InProcessGrid(client, 4)
        questions = [Message(RecordDict(), node, "query.none") for node in inner.get_node_ids()]
        grid = KeepingGrid(inner, tmp_path)

        def pull(ids: Iterable[str]) -> Iterable[Message]:
            replies = [inner._replies.pop(one) for one in ids if one in inner._replies]
            by_node = {reply.metadata.src_node_id: reply for reply in replies if reply.metadata.src_node_id != 103}
            if by_node:
                by_node[102] = Message(gone, reply_to=questions[2])
            return list(by_node.values())

        monkeypatch.setattr(inner, "pull_messages", pull)
        list(grid.send_and_receive(questions, timeout=15.0))
    assert "10 s: 0 answered, 2 refused, 1 gone; missing: client-3; they have 5 s (timeout)" in caplog.text


@pytest.mark.parametrize("lives", [0, 1, 2])
def test_a_resumed_run_asks_those_that_are_missing_and_ends_equal(
    lives: int, client: ClientApp, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    serve(client, output, lives)
    assert len(list((output / "arrived").glob("*.reply"))) == lives
    assert "resume = true" in json.loads((output / "result.json").read_text())["error"]
    if lives:
        with pytest.raises(OutputError, match=r"holds a result; .*go on with it \(resume = true\)"):
            serve(client, output)
    resumed = serve(client, output, resume=True)
    assert len(resumed.asked) == 3 - lives
    assert left(output) == left(whole)
    result = json.loads((output / "result.json").read_text())
    assert "error" not in result
    assert result["sites"] == ["client-0", "client-1", "client-2"]
    assert not list((output / "arrived").iterdir())
    with pytest.raises(ResumeError, match="holds a finished run"):
        serve(client, output, resume=True)


@pytest.mark.parametrize("change", [{"ipc": 2}, {"seed": 1}, {"network": "convnet1-w32"}, {"steps": 3}])
def test_another_run_is_refused_and_what_is_there_stays(
    change: dict[str, Any], client: ClientApp, tmp_path: Path
) -> None:
    serve(client, tmp_path, 1)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(ResumeError, match=rf"is of another run: .*{next(iter(change))} \("):
        serve(client, tmp_path, resume=True, **change)
    assert (tmp_path / "result.json").read_bytes() == before
    assert serve(client, tmp_path, resume=True, timeout=99).asked == [101, 102]


def test_a_damaged_reply_is_asked_for_again(client: ClientApp, tmp_path: Path, whole: Path) -> None:
    serve(client, tmp_path, 2)
    damaged = next((tmp_path / "arrived").glob("*.reply"))
    blob = bytearray(damaged.read_bytes())
    blob[len(blob) // 2] ^= 1
    damaged.write_bytes(bytes(blob))
    assert len(serve(client, tmp_path, resume=True).asked) == 2
    assert left(tmp_path) == left(whole)


def test_sites_that_failed_or_were_refused_are_asked_again(client: ClientApp, tmp_path: Path) -> None:
    with pytest.raises(AggregationError):
        serve(client, tmp_path, ipc=3)
    assert not list((tmp_path / "arrived").glob("*"))
    with pytest.raises(AggregationError):
        assert len(serve(client, tmp_path, ipc=3, resume=True).asked) == 3


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(SettingError, match="resume = true; needed: output"):
        read_settings({"resume": True})


def test_a_second_server_on_the_folder_is_refused(client: ClientApp, tmp_path: Path) -> None:
    from fedcondense.files import hold

    with hold(tmp_path, is_folder=True), pytest.raises(OutputError, match="is being written by another run"):
        serve(client, tmp_path)


class TestGrid:
    def test_it_hands_out_what_the_grid_below_does(self, client: ClientApp, tmp_path: Path) -> None:
        with task_identity():
            inner = InProcessGrid(client, 2)
            grid = KeepingGrid(inner, tmp_path)
            assert list(grid.get_node_ids()) == [100, 101]
            asked = [Message(RecordDict(), dst_node_id=node, message_type="query.no_such") for node in (101, 100)]
            replies = list(grid.send_and_receive(asked))
        assert [reply.metadata.src_node_id for reply in replies] == [100, 101]
        assert all(reply.has_error() for reply in replies)
        assert not list(tmp_path.iterdir())  # a site that failed is asked again

    @given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_every_bit_of_what_a_folder_says_counts(self, place: int, bit: int, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        folder.write_result({"rows": {"one-shot": {"accuracy": 17.25}}})
        blob = bytearray(folder.result.read_bytes())
        blob[place % len(blob)] ^= 1 << bit
        folder.result.write_bytes(bytes(blob))
        try:
            record = folder.read_result()
        except ResumeError:
            return
        assert record["rows"] == {"one-shot": {"accuracy": 17.25}}  # the name of the checksum itself was hit
        assert b'"checksum"' not in bytes(blob)
