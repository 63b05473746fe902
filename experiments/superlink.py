"""Flower's SuperLink alone under many nodes: what its state takes per node and message, and where it fails.

    python experiments/superlink.py              # results/superlink.json, resumes; a process per size
    python experiments/superlink.py --table

The state of a SuperLink (`LinkState`), in memory (the default) and in SQLite (``--database FILE``), without a network:
nodes are registered and heard, each is sent a question and answers, and a server polls for all replies at once, as
`Grid.pull_messages` does. What a network adds is a request per node and heartbeat, and one per object of a message
(`HttpGrid`, `pull_objects`). "poll" is one request with the ids of all questions while nobody has answered.
"""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import RESULTS, read, run_cells
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager

from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.serialised import message_parts

PATH = RESULTS / "superlink.json"
SIZES = (1_000, 10_000)
STATES = ("memory", "sqlite")
IDLE = (("memory", 1_000), ("memory", 10_000), ("memory", 100_000), ("sqlite", 1_000), ("sqlite", 10_000))
FAILS = 250_001  # ids in one poll: a variable of the query each, of which SQLite takes 250,000 as Python ships it


def memory() -> int:
    """Return the bytes that are resident (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def measure(kind: str, count: int) -> dict[str, Any]:
    """Return seconds of each step for so many nodes, and bytes."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    took: dict[str, Any] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, wall = time.process_time(), time.monotonic()
        found = work()
        took[name] = round(time.process_time() - began, 3)
        took[f"{name}, wall"] = round(time.monotonic() - wall, 3)
        return found

    with tempfile.TemporaryDirectory() as folder, task_identity():
        place = FLWR_IN_MEMORY_DB_NAME if kind == "memory" else str(Path(folder) / "state.db")
        state = LinkStateFactory(place, NoOpFederationManager(), ObjectStoreFactory()).state()
        resident = memory()

        def register() -> list[int]:
            keys = (secrets.token_bytes(32) for _ in range(count))
            nodes = [state.create_node(NOOP_FLWR_AID, "noop", key, 30.0) for key in keys]
            for node in nodes:
                state.activate_node(node, 30.0)
            return nodes

        nodes = timed("register", register)
        run = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
        timed("heartbeats", lambda: [state.acknowledge_node_heartbeat(node, 1e6) for node in nodes])
        timed("get_nodes", lambda: state.get_nodes(run))
        took["bytes per node"] = round((memory() - resident) / count)
        question = RecordDict({"config": ConfigRecord({"ipc": 10, "steps": 200})})

        def push() -> list[str]:
            found = []
            for node in nodes:
                message = Message(question, dst_node_id=node, message_type="query.condense")
                message.metadata.__dict__.update(_run_id=run, _message_id=message.object_id, _src_node_id=1)
                stored = state.store_message_ins(message)
                assert stored, message
                found.append(stored)
            return found

        asked = set(timed("push", push))
        timed("poll", lambda: state.get_message_res(set(asked), run))
        took["bytes of a poll"] = PullAppMessagesRequest(message_ids=asked).ByteSize()

        def answer() -> None:
            for node in nodes:
                (message,) = state.get_message_ins(node, 1)
                reply = Message(RecordDict({"answer": ConfigRecord({"file": b"x" * 100})}), reply_to=message)
                reply.metadata.__dict__.update(_src_node_id=node, _message_id=reply.object_id)
                took["objects per reply"] = len(message_parts(reply)[1])
                assert state.store_message_res(reply)

        timed("answers", answer)
        found = timed("pull", lambda: state.get_message_res(set(asked), run))
        assert len(found) == count, len(found)
        took["bytes per node, all"] = round((memory() - resident) / count)
    return took


def idle(kind: str, count: int) -> dict[str, Any]:
    """Return the CPU milliseconds of a node's pull with no question for it, while so many others have one each."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, task_identity():
        place = FLWR_IN_MEMORY_DB_NAME if kind == "memory" else str(Path(folder) / "state.db")
        state = LinkStateFactory(place, NoOpFederationManager(), ObjectStoreFactory()).state()
        nodes = [state.create_node(NOOP_FLWR_AID, "noop", secrets.token_bytes(32), 1e6) for _ in range(count + 1)]
        for node in nodes:
            state.activate_node(node, 1e6)
        run = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
        question = RecordDict({"config": ConfigRecord({"ipc": 10, "steps": 200})})
        for node in nodes[1:]:
            message = Message(question, dst_node_id=node, message_type="query.condense")
            message.metadata.__dict__.update(_run_id=run, _message_id=message.object_id, _src_node_id=1)
            assert state.store_message_ins(message)
        took = []
        for _ in range(5):
            began = time.process_time()
            assert not state.get_message_ins(nodes[0], 1)
            took.append(time.process_time() - began)
    return {"ms": round(1000 * min(took), 3)}


def fails(kind: str) -> dict[str, Any]:
    """Poll for more replies than one query of SQLite takes, and return what comes of it."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, task_identity():
        place = FLWR_IN_MEMORY_DB_NAME if kind == "memory" else str(Path(folder) / "state.db")
        state = LinkStateFactory(place, NoOpFederationManager(), ObjectStoreFactory()).state()
        run = state.create_run("", "", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, "flwr-serverapp")
        took: dict[str, Any] = {}
        for count in (10_000, FAILS - 1, FAILS):
            began = time.monotonic()
            try:
                said = f"{len(state.get_message_res({secrets.token_hex(32) for _ in range(count)}, run))} replies"
            except Exception as error:
                said = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            took[f"{count:,} ids"] = f"{said}, {time.monotonic() - began:.1f} s"
    return took


def apart(*words: str) -> Callable[[], dict[str, Any]]:
    """Run in a process of its own."""

    def compute() -> dict[str, Any]:
        ended = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        lines = ended.stdout.splitlines()
        return dict(json.loads(lines[-1])) if ended.returncode == 0 and lines else {"said": ended.stderr[-300:]}

    return compute


def table() -> str:
    """Return what is kept."""
    kept = read(PATH)
    steps = ("register", "heartbeats", "get_nodes", "push", "poll", "answers", "pull")
    others = ("bytes per node", "bytes per node, all", "bytes of a poll", "objects per reply")
    lines = ["| state | nodes | " + " | ".join((*steps, *others)) + " |", "|---" * (2 + len(steps) + len(others)) + "|"]
    for kind in STATES:
        for count in SIZES:
            found = kept.get(f"{kind} | {count:06}")
            if found is None:
                continue
            cells = [f"{found[step]:.2f}" if step in found else "" for step in steps]
            cells += [f"{found[other]:,}" if other in found else "" for other in others]
            lines.append(f"| {kind} | {count:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pulls() -> str:
    """Return what a node's pull takes that brings nothing."""
    kept = read(PATH)
    lines = ["| state | questions that wait | CPU ms per pull | pulls per second on one core |", "|---|---|---|---|"]
    for kind, count in IDLE:
        if (found := kept.get(f"{kind} | idle | {count:06}")) is not None and "ms" in found:
            lines.append(f"| {kind} | {count:,} | {found['ms']:.2f} | {1000 / found['ms']:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=STATES)
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--idle", action="store_true", help="pulls that bring nothing")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(), pulls(), sep="\n\n")
    elif arguments.kind:
        work = idle if arguments.idle else measure
        print(json.dumps(work(arguments.kind, arguments.nodes) if arguments.nodes else fails(arguments.kind)))
    else:
        cells = {f"{k} | {n:06}": apart(k, "--nodes", str(n)) for k in STATES for n in SIZES}
        cells |= {f"{k} | idle | {n:06}": apart(k, "--nodes", str(n), "--idle") for k, n in IDLE}
        run_cells(PATH, cells | {f"{kind} | a poll too large": apart(kind) for kind in STATES})


if __name__ == "__main__":
    main()
