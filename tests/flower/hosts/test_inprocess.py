from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedcondense.flower.hosts.inprocess import InProcessGrid, run_in_process, task_identity


def echo_client() -> ClientApp:
    """A client that sends its partition back, and counts in its state how often it was asked; client 2 fails."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 2:
            raise ZeroDivisionError("as told")
        asked = context.state.metric_records.get("asked", MetricRecord({"times": 0}))
        times = asked["times"]
        assert isinstance(times, int)
        context.state["asked"] = MetricRecord({"times": times + 1})
        identifier = context.node_config["partition-id"]
        assert isinstance(identifier, int)
        metrics = MetricRecord({"partition-id": identifier, "times": times + 1})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    return app


class TestInProcessGrid:
    def test_replies_come_by_node_and_a_failure_becomes_an_error_reply(self) -> None:
        with task_identity():
            grid = InProcessGrid(echo_client(), 4)
            content = RecordDict({"arrays": ArrayRecord({"a": Array(np.arange(3))})})
            nodes = [103, 100, 102, 101]
            replies = list(grid.send_and_receive(Message(content, node, "train") for node in nodes))
        assert [reply.metadata.src_node_id for reply in replies] == [100, 101, 102, 103]
        failed = [reply for reply in replies if reply.has_error()]
        assert [reply.error.reason for reply in failed] == ["ZeroDivisionError: as told"]
        good = [reply.content.metric_records["metrics"]["partition-id"] for reply in replies if not reply.has_error()]
        assert good == [0, 1, 3]

    def test_bytes_are_those_of_the_serialised_messages(self) -> None:
        """An array of n bytes is n + 128 as npy; all else of a message is the same for both, up to a digit."""
        traffic = []
        for size in (1000, 301_000):
            with task_identity():
                grid = InProcessGrid(echo_client(), 1)
                content = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(size, np.uint8))})})
                grid.push_messages([Message(content, 100, "train")])
            traffic.append(grid.traffic[100])
        assert traffic[1].down - traffic[0].down == pytest.approx(300_000, abs=16)
        assert traffic[1].up - traffic[0].up == pytest.approx(300_000, abs=16)
        assert 1128 < traffic[0].down < 2500

    def test_the_state_of_a_node_persists(self) -> None:
        with task_identity():
            grid = InProcessGrid(echo_client(), 1)
            content = RecordDict({"arrays": ArrayRecord({"a": Array(np.arange(3))})})
            times = [
                next(iter(grid.send_and_receive([Message(content, 100, "train")]))).content.metric_records["metrics"]
                for _ in range(3)
            ]
        assert [record["times"] for record in times] == [1, 2, 3]

    def test_what_a_message_holds_is_a_copy(self) -> None:
        array = np.arange(3)
        with task_identity():
            grid = InProcessGrid(echo_client(), 1)
            content = RecordDict({"arrays": ArrayRecord({"a": Array(array)})})
            reply = next(iter(grid.send_and_receive([Message(content, 100, "train")])))
        array[0] = 9
        assert reply.content.array_records["arrays"]["a"].numpy().tolist() == [0, 1, 2]


def test_a_run_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)  # a simulation in this process leaves them set
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert sorted(grid.get_node_ids()) == [100, 101]
        assert context.run_config == {"a": 1}

    run_in_process(server, echo_client(), 2, run_config={"a": 1})
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 1, "train")
