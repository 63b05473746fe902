"""A server of one version and a node of another, both installed: what a mixed federation says and does.

    python experiments/versions.py f7b1988 72f47c3   # each against this checkout's last commit; results/versions.json
    python experiments/versions.py --table

Both commits are checked out and installed by ``pip install --no-deps --target``, each into a folder of its own. A
server process runs a strategy; each of its messages goes, as Flower serialises it, through a pipe to a node process
that has the other version, and the reply comes back the same way. What is kept is what the server ends with: an answer,
or the one line that says why there is none. In "a later wire" the asking side counts its wire one higher than it is.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from cells import RESULTS, read

CLIENT_RAISED = 2  # Flower's code of an app that raised
HERE = Path(__file__).resolve()
RESULT = RESULTS / "versions.json"
CASES: dict[str, tuple[str, dict[str, Any]]] = {  # strategy, fields of its settings
    "one-shot": ("one-shot", {"ipc": 1, "steps": 2, "objective": "dm", "network": "convnet1-w16"}),
    "one-shot in two bits": (
        "one-shot",
        {"ipc": 1, "steps": 2, "objective": "dm", "network": "convnet1-w16", "codec": "bits-2"},
    ),
    "random real images": ("random-real", {"ipc": 1}),
    "iterative": ("iterative", {"ipc": 1, "steps": 2, "network": "convnet1-w16"}),
    "ridge": ("ridge", {"dims": 64}),
    "ridge, 8 bits": ("ridge-8bit", {"dims": 64}),
    "feature statistics": ("feature-statistics", {}),
    "anchored": ("anchored", {"ipc": 1, "steps": 2, "network": "convnet1-w16"}),
    "anchored, averaged": ("anchored", {"ipc": 1, "steps": 2, "network": "convnet1-w16", "head": "averaged"}),
    "FedAvg": ("fedavg", {}),
    "FedAvg, 8 bits": ("fedavg-8bit", {}),
}
ROUNDS = {"anchored": 3, "anchored, averaged": 3}  # sets, weights, sums or weights; of all others one
LATER = {"a later wire, one-shot": "one-shot", "a later wire, FedAvg": "FedAvg"}
PAIRS = (  # who asks, who answers, what
    ("newer", "older", (*CASES, *LATER)),
    ("older", "newer", (*CASES, *LATER)),
    ("newer", "newer", tuple(LATER)),
)


def put(stream: IO[bytes], root: str, parts: dict[str, bytes]) -> None:
    """Write a message's pieces as one line."""
    pieces = {name: base64.b64encode(blob).decode() for name, blob in parts.items()}
    stream.write(json.dumps([root, pieces]).encode() + b"\n")
    stream.flush()


def take(stream: IO[bytes]) -> tuple[str, dict[str, bytes]]:
    """Read what `put` wrote."""
    root, pieces = json.loads(stream.readline())
    return root, {name: base64.b64decode(text) for name, text in pieces.items()}


def node() -> None:
    """Answer the messages on standard input, by whatever version is installed, with the digits."""
    from flwr.app import Context, Error, Message, RecordDict

    from fedcondense.data.loading import load_data
    from fedcondense.flower.client import make_client_app
    from fedcondense.flower.hosts.inprocess import task_identity
    from fedcondense.flower.serialised import message_of, message_parts

    train, out = load_data("digits").train, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed is no reply
    client = make_client_app(lambda context: train, is_counted=False)
    allowed: dict[str, bool | float | int | str] = {"partition-id": 0, "allow-weights": True, "allow-real": True}
    context = Context(1, 100, allowed, RecordDict(), {})
    with task_identity():
        while True:
            try:
                root, parts = take(sys.stdin.buffer)
            except ValueError:  # the end
                return
            message = message_of(root, parts)
            try:
                reply = client(message, context)
            except Exception as raised:  # as Flower's own runtime does
                reply = Message(Error(CLIENT_RAISED, f"{type(raised).__name__}: {raised}"), reply_to=message)
            put(out, *message_parts(reply))


def server(case: str, python_path: str) -> None:
    """Run a case's strategy for a round against a node that is installed at `python_path`; print what it ends with."""
    from flwr.app import Message
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.serverapp import Grid

    from fedcondense.data.loading import load_data
    from fedcondense.flower.asking import Asked
    from fedcondense.flower.hosts.inprocess import task_identity
    from fedcondense.flower.replies import ReplyLimits
    from fedcondense.flower.running import run_strategy
    from fedcondense.flower.serialised import message_of, message_parts
    from fedcondense.flower.strategies import STRATEGIES, ServerSide
    from fedcondense.networks import build

    if case in LATER:
        for name in [name for name in sys.modules if name.startswith("fedcondense.flower")]:
            if hasattr(sys.modules[name], "WIRE"):
                sys.modules[name].WIRE += 1  # type: ignore[attr-defined]
    strategy_name, fields = CASES[LATER.get(case, case)]
    environment = {**os.environ, "PYTHONPATH": python_path}
    command = [sys.executable, str(HERE), "--node"]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    to_node, from_node = child.stdin, child.stdout

    class Pipe(Grid):
        """One node behind a pipe."""

        run: Any = None
        refused = ""

        def get_node_ids(self) -> Iterable[int]:
            return [100]

        def get_nodes(self) -> Iterable[Any]:
            return [NodeInfo(node_id=100, name="site")]

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            self.kept: dict[str, Message] = {}
            for message in messages:
                identifier = str(uuid.uuid4())
                message.metadata.__dict__["_message_id"] = identifier
                put(to_node, *message_parts(message))
                reply = message_of(*take(from_node))
                reply.metadata.__dict__.update(_reply_to_message_id=identifier, _src_node_id=100)
                self.refused = str(reply.error.reason) if reply.has_error() else ""
                self.kept[identifier] = reply
            return list(self.kept)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [self.kept.pop(one) for one in list(message_ids) if one in self.kept]

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            return self.pull_messages(self.push_messages(messages))

        def set_run(self, run: Any) -> None:
            pass

        def create_message(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError

    digits, entry = load_data("digits"), STRATEGIES.get(strategy_name)
    if entry is None:
        print(json.dumps({"said": "this server has no such strategy"}))
        child.stdin.close()
        return
    own = type(entry.settings)
    try:
        settings = own(**{**vars(entry.settings), **fields})
    except TypeError:
        print(json.dumps({"said": "this server has no such setting"}))
        child.stdin.close()
        return
    spec = digits.train.spec
    asked = Asked(min_train_nodes=1, min_available_nodes=1)

    def fit(joined: Any) -> Any:
        return build("convnet1-w16", spec.shape, len(spec.classes), 0)

    side = ServerSide(settings, fit, asked, ReplyLimits.of(spec), spec, "convnet1-w16", test=digits.test)
    grid = Pipe()
    with task_identity():
        try:
            run_strategy(entry, side, entry.make(side), grid, ROUNDS.get(case, 1), 60, None)
            ended: dict[str, str | int] = {"said": "answered"}
        except Exception as error:
            said = str(error).splitlines()
            ended = {"said": f"{type(error).__name__}: {said[0] if said else ''}", "lines": len(said)}
    print(json.dumps({**ended, "node": grid.refused}))
    child.stdin.close()
    child.wait(timeout=60)


def install(commit: str, folder: Path) -> str:
    """Install a commit of this repository and return where."""
    root, tree, target = HERE.parents[1], folder / f"tree-{commit}", folder / commit
    subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=root, check=True)
    try:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(tree)]
        subprocess.run(pip, check=True)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=root, check=True)
    return str(target)


def between(old: str, new: str) -> dict[str, Any]:
    """Run all cases both ways."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        places = {name: install(commit, Path(scratch)) for name, commit in (("older", old), ("newer", new))}
        for asks, answers, cases in PAIRS:
            for case in cases:
                environment = {**os.environ, "PYTHONPATH": places[asks], "OMP_NUM_THREADS": "1"}
                command = [sys.executable, str(HERE), "--server", case, "--at", places[answers]]
                ended = subprocess.run(
                    command, env=environment, cwd=scratch, capture_output=True, text=True, check=False
                )
                lines = ended.stdout.strip().splitlines()
                said = json.loads(lines[-1]) if ended.returncode == 0 and lines else {"said": ended.stderr[-300:]}
                found[f"{asks} server, {answers} node: {case}"] = said
                print(asks, case, said, flush=True)
    return found


def short(said: str) -> str:
    """Return a line without the names of all settings."""
    return said.partition("; all of them")[0]


def table(older: str) -> str:
    """Return what is kept of a commit."""
    kept = read(RESULT)[older]
    lines = ["| asked | " + " | ".join(f"{a} server, {b} node" for a, b, _ in PAIRS) + " |", "|---|---|---|---|"]
    for case in (*CASES, *LATER):
        cells = [kept["cases"].get(f"{a} server, {b} node: {case}", {"said": ""}) for a, b, _ in PAIRS]
        lines.append(f"| {case} | " + " | ".join(short(cell.get("node") or cell["said"]) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", nargs="*", help="commits")
    parser.add_argument("--newer", default="HEAD")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--node", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--at", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        node()
    elif arguments.server:
        server(arguments.server, arguments.at)
    elif arguments.table or not arguments.older:
        print(*map(table, read(RESULT)), sep="\n\n")
    else:
        newer = named(arguments.newer)
        for older in map(named, arguments.older):
            found = read(RESULT) | {older: {"newer": newer, "cases": between(older, newer)}}
            RESULT.write_text(json.dumps(found, indent=1) + "\n")


def named(commit: str) -> str:
    """Return a commit's short name."""
    command = ["git", "rev-parse", "--short", commit]
    return subprocess.run(command, cwd=HERE.parents[1], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
