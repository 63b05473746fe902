"""Kills at drawn moments and at each system call of a save: what was whole stays whole, and a resumed run ends equal.

A process imports everything once and forks a child per run. The child counts what it does: calls to the operating
system that change files, and steps of condensing. It kills itself at the marker that it was given, a number of that
count, so no kill depends on the clock. Then another child goes on, and its files are compared.
"""

from __future__ import annotations

import builtins
import contextlib
import fcntl
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trust.rows import Row, Tally

__all__ = ["SUBJECTS", "Subject", "check", "forked", "import_all", "scratch"]

_OPTIONS = {"first": (), "again": ("--resume",), "over": ("--overwrite",)}
_CALLS = (
    "open",
    "write",
    "fsync",
    "replace",
    "rename",
    "link",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "chmod",
    "fchmod",
)


class Subject(NamedTuple):
    """What is killed: a run in a folder, the same run again, and what it leaves, without what differs by the clock."""

    run: Callable[[Path, str], None]  # in a folder: "first", "again" after a kill, or "over" what is there
    found: Callable[[Path], Any]


def _command(*arguments: str) -> None:
    """Run the command line in this process; anything but success ends the child with its code."""
    from fedcondense.cli import main

    sys.argv = ["fedcondense", *arguments]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise


def _condense(folder: Path, way: str) -> None:
    _command(
        *("condense", "digits", "--ipc", "1", "--objective", "dm", "--network", "convnet1-w16", "--steps", "6"),
        *("--no-evaluate", "--checkpoint-every", "0", "--threads", "1", "--output", str(folder / "set.safetensors")),
        *_OPTIONS[way],
    )


def _federate(folder: Path, way: str) -> None:
    _command(
        *("federate", "digits", "--clients", "3", "--ipc", "1", "--objective", "dm", "--network", "convnet1-w16"),
        *("--steps", "3", "--rows", "one-shot,fedavg-1", "--seeds", "1", "--threads", "1"),
        *("--output", str(folder / "run"), *_OPTIONS[way]),
    )


def _sweep(folder: Path, way: str) -> None:
    _command(
        *("sweep", "table", "digits", "--objectives", "dm", "--ipc", "1", "--sets", "1", "--seeds", "1"),
        *("--network", "convnet1-w16", "--controls", "random", "--steps", "3", "--evaluation-steps", "3"),
        *("--output", str(folder / "sweep")),
    )


def _relabel(folder: Path, way: str) -> None:
    import fedcondense as fc

    source = folder / "set.safetensors"
    fc.select(fc.load_data("digits").train, 1, "random").save(source, overwrite=True)
    _command(
        *("relabel", str(source), "--data", "digits", "--network", "convnet1-w16", "--no-evaluate", "--threads", "1"),
        *("--output", str(folder / "soft.safetensors")),
        *(() if way == "first" else ("--overwrite",)),
    )


def _memory(folder: Path, way: str) -> None:
    """Add a stream's pieces to a memory that is saved after each, and go on where the file is."""
    import fedcondense as fc
    from fedcondense.memory import Condenser, Memory

    path, data = folder / "memory.safetensors", fc.load_data("digits").train
    condenser = Condenser("dm", "pixels", network="convnet1-w16", steps=2)
    memory = Memory(20, condenser)
    if way == "again" and path.exists():
        memory.load(path)
    for k in range(3):
        if not set(memory.names) >= {data.spec.classes[2 * k]}:
            memory.add(data.subset(data.labels // 2 == k))
            memory.save(path, overwrite=True)


def _avalanche(folder: Path, way: str) -> None:
    """Train on a stream with a checkpoint after each experience, and go on from it."""
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

    import fedcondense as fc
    from fedcondense.avalanche import CondensedBuffer, maybe_load_checkpoint, save_checkpoint
    from fedcondense.memory import Condenser

    path, data = folder / "strategy.pt", fc.load_data("digits").train
    few = data.subset(torch.arange(400))
    samples = torch.utils.data.TensorDataset(few.images.float() / 255, few.labels)
    samples.targets = few.labels.tolist()  # type: ignore[attr-defined]
    stream = nc_benchmark(samples, samples, 5, task_labels=False, fixed_class_order=list(range(10))).train_stream
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    buffer = CondensedBuffer(20, condenser=Condenser("dm", "pixels", network="convnet1-w16", steps=2))
    strategy: Any = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=16,
        plugins=[ReplayPlugin(mem_size=20, storage_policy=buffer)],
        evaluator=EvaluationPlugin(loggers=[]),
    )
    strategy, begin = maybe_load_checkpoint(strategy, path) if path.exists() else (strategy, 0)
    for experience in list(stream)[begin:3]:
        torch.manual_seed(experience.current_experience)
        strategy.train(experience)
        save_checkpoint(strategy, path)
    weights = {name: value.tolist() for name, value in strategy.model.state_dict().items()}
    (folder / "weights.json").write_text(json.dumps(weights))


def _server(folder: Path, way: str) -> None:
    """Serve three rounds of anchored under FedAdam, to nodes that live and die with the server, and go on with them."""
    from functools import partial

    import fedcondense as fc
    from fedcondense.flower import served_run
    from fedcondense.flower.caps import Caps
    from fedcondense.flower.client import make_client_app
    from fedcondense.flower.hosts.inprocess import run_in_process
    from fedcondense.flower.run_folder import RunFolder
    from fedcondense.flower.server import make_server_app
    from fedcondense.flower.strategies import ServerSide
    from fedcondense.training.fit import Fit

    served_run.ServerSide = partial(ServerSide, recipe=Fit(steps=20))  # type: ignore  # few, as no setting can say
    output, digits = folder / "run", fc.load_data("digits")
    if way == "again" and RunFolder(output).holds_run() and not RunFolder(output).is_unfinished():
        return
    parts = [digits.train.subset(torch.arange(k, 240, 3)) for k in range(3)]
    nodes = make_client_app(
        lambda context: parts[int(context.node_config["partition-id"])],
        caps=Caps.none(),
        cache=folder / "nodes",
        is_counted=False,
    )
    config: dict[str, Any] = {"strategy": "anchored", "average": "fedadam", "num-rounds": 3, "steps": 2, "ipc": 1}
    config |= {"objective": "dm", "network": "convnet1-w16", "polish-steps": 2, "min-available-nodes": 3}
    config |= {"output": str(output)} if way == "first" else {"resume": str(output)}
    server = make_server_app(test=digits.test.subset(torch.arange(50)))
    run_in_process(server, nodes, 3, run_config=config, node_config={"share-with": "sites"})


def _served_folder(folder: Path) -> Any:
    from fedcondense.flower.run_folder import RunFolder

    result = RunFolder(folder / "run").read_result()
    rounds = [{key: one[key] for key in ("round", "accuracy", "asked", "answered")} for one in result["rounds"]]
    return result["digest"], rounds, (folder / "run" / "weights.safetensors").read_bytes().hex()


def _sets(folder: Path) -> dict[str, Any]:
    """Return the codes of every set in a folder, by place."""
    from fedcondense.sets.synthetic import SyntheticSet

    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        one = SyntheticSet.load(path)
        codes = [(n, p.codes[n].tolist()) for p in one.parts for n in sorted(p.codes)]
        found[path.relative_to(folder).as_posix()] = (codes, [p.targets.tolist() for p in one.parts])
    return found


def _run_folder(folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "run" / "result.json").read_text())["rows"]
    return _sets(folder / "run" / "clients") | {name: row["accuracy"] for name, row in rows.items()}


def _sweep_folder(folder: Path) -> dict[str, Any]:
    import csv

    with (folder / "sweep" / "table.csv").open() as file:
        measured = ("second", "peak", "version")  # of the machine, the moment and the checkout
        rows = list(csv.DictReader(file))
    return {"rows": [{k: v for k, v in row.items() if not any(map(k.count, measured))} for row in rows]}


def _memory_file(folder: Path) -> Any:
    from fedcondense.memory import Condenser, Memory

    memory = Memory(20, Condenser("dm", "pixels", network="convnet1-w16", steps=2))
    memory.load(folder / "memory.safetensors")
    held = memory.synthetic
    return (memory.names, [] if held is None else held.pixels().images.tolist())


SUBJECTS: dict[str, Subject] = {
    "condense": Subject(_condense, _sets),
    "federate": Subject(_federate, _run_folder),
    "server": Subject(_server, _served_folder),
    "sweep": Subject(_sweep, _sweep_folder),
    "relabel": Subject(_relabel, _sets),
    "memory": Subject(_memory, _memory_file),
    "avalanche": Subject(_avalanche, lambda folder: json.loads((folder / "weights.json").read_text())),
}


class _Marker:
    """Counts what a child does, and kills it at a number; at 0 it only counts, and names what it counted."""

    def __init__(self, at: int) -> None:
        self.at, self.count, self.names = at, 0, list[str]()

    def passed(self, name: str) -> None:
        self.count += 1
        if self.at == 0:
            self.names.append(name)
        elif self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a call that passes a marker before and after it."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passed(f"before {name}")
            value = call(*args, **kwargs)
            self.passed(f"after {name}")
            return value

        return counted

    def watch(self) -> None:
        """Count calls that change files, in this process from now on, and steps."""
        from fedcondense.condensing.loop import Loop

        for name in _CALLS:
            call = self.around(name, getattr(os, name))
            setattr(os, name, call)
        fcntl.flock = self.around("flock", fcntl.flock)
        plain = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if any(letter in mode for letter in "wax+"):
                self.passed(f"before open {mode}")
                value = plain(file, mode, *args, **kwargs)
                self.passed(f"after open {mode}")
                return value
            return plain(file, mode, *args, **kwargs)

        builtins.open = io.open = opened
        Loop.step = self.around("step", Loop.step)  # type: ignore[method-assign]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="trust-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def forked(work: Callable[[], None]) -> tuple[int, str]:
    """Run something in a child of this process; return its exit status, negative for a signal, and what it printed."""
    sys.stdout.flush()
    reader, writer = os.pipe()  # not a file, whose size a child may bound
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.close(reader)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            work()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="replace") as printed:
        text = printed.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text.strip()


def _count(subject: Subject, folder: Path) -> list[str]:
    """Run once without a kill and return the names of all markers that it passed."""

    def work() -> None:
        marker = _Marker(0)
        marker.watch()
        subject.run(folder, "first")
        names = list(marker.names)  # what follows passes markers of its own
        (folder / "markers.json").write_text(json.dumps(names))

    code, text = forked(work)
    if code:
        raise RuntimeError(f"the run that is to be killed fails by itself ({code}): {text[-600:]}")
    names: list[str] = json.loads((folder / "markers.json").read_text())
    (folder / "markers.json").unlink()
    return names


def _last_save(names: list[str]) -> list[int]:
    """Return the markers, from 1, of the last file that was put in its place: from the one before, or the last step."""
    last = max(i for i, name in enumerate(names) if name == "after replace")
    begin = max((i + 1 for i in range(last) if names[i] in ("after replace", "after step")), default=0)
    return [i + 1 for i in range(begin, min(last + 5, len(names)))]


def _killed(subject: Subject, at: int, expected: Any, tally: Tally, said: str) -> bool:
    """Kill a run at a marker, go on, and return whether the end is equal."""
    tally.tried += 1
    with scratch() as place:

        def first() -> None:
            _Marker(at).watch()
            subject.run(place, "first")

        code, text = forked(first)
        if code not in (-signal.SIGKILL, 0):
            tally.note("crashed", f"{said}: ended with {code}: {text[-200:]}")
            return False
        if code == 0:
            return _equal(subject, place, expected, tally, f"{said} (not reached)")
        began = time.monotonic()
        code, text = forked(lambda: subject.run(place, "again"))
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        is_done = "exists; choose another path" in text and subject.found(place) == expected  # killed after its end
        if code and not is_done:
            tally.note("crashed", f"{said}: going on ended with {code}: {text[-250:]}")
            return False
        left = [path.name for path in place.rglob("*") if path.name.endswith(".part")]
        if left:
            tally.note("wrong", f"{said}: {left[0]} was left behind")
            return False
        return _equal(subject, place, expected, tally, said)


def _equal(subject: Subject, place: Path, expected: Any, tally: Tally, said: str) -> bool:
    found = subject.found(place)
    if found != expected:
        tally.note("wrong", f"{said}: another end")
        return False
    return True


def import_all() -> None:
    """Import what the subjects import, so that children have it at once."""
    import importlib
    import pkgutil

    import fedcondense

    for module in pkgutil.walk_packages(fedcondense.__path__, "fedcondense."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    fedcondense.load_data("digits")


def check(name: str, count: int, seed: int) -> Row:
    """Kill a subject at each system call of its last save, and at `count` markers drawn among all."""
    torch.set_num_threads(1)
    import_all()
    subject, tally, equal = SUBJECTS[name], Tally(), 0
    with scratch() as whole:
        names = _count(subject, whole)
        expected = subject.found(whole)
    last = _last_save(names)
    drawn = random.Random(f"{seed}/{name}").sample(range(1, len(names) + 1), min(count, len(names)))
    for at in sorted({*last, *drawn}):
        equal += _killed(subject, at, expected, tally, f"{name} at marker {at} of {len(names)} ({names[at - 1]})")
    return tally.row(equal=(equal, tally.tried), notes=(f"{len(names)} markers, {len(last)} of the last save",))
