"""What a server takes of 100, 1,000 and 10,000 sites: seconds, peak memory, bytes, and what bends first.

    python experiments/thousands.py                           # results/thousands.json, resumes; a process per row
    python experiments/thousands.py --row one-shot --sites 1000 --profile
    python experiments/thousands.py --ray                     # the first row at 100 sites, a process per core
    python experiments/thousands.py --table

Fashion-MNIST. A site holds 200 records, drawn with replacement from classes that a Dirichlet (0.5) mixes. The first 100
sites are real: the library's ClientApp answers the question that the strategy asks, on that site's records. Condensing
at ten thousand sites is too dear for two cores, so the answers of the others are those of the first hundred, made
distinct: the low bit of each pixel is drawn anew (sets), numbers are scaled by less than a percent (sums), the low bit
of a quarter of the rounded weights is drawn anew (FedAvg at 8 bits). Each goes through the same encoders
(`pack_answer`, Flower's serialisation), is parsed as it would be on arrival, and passes all checks of the server. No
answer exists before the server pulls it, so memory is the server's own.

Server seconds are CPU seconds of the process without those in which answers are made. Memory is the peak of the
resident set after the first pull, above what was resident then. A poll brings a twentieth of the sites.
"""

from __future__ import annotations

import argparse
import base64
import cProfile
import json
import pstats
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, read, run_cells
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp

import fedcondense as fc
from fedcondense.flower import asking
from fedcondense.flower.around import GridAround
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import log_from, task_identity
from fedcondense.flower.hosts.simulation import simulate
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.running import checked_grid, run_strategy
from fedcondense.flower.serialised import message_of, message_parts, over_the_wire
from fedcondense.flower.strategies import STRATEGIES, TASKS, ServerSide
from fedcondense.flower.strategies.one_shot import train_network
from fedcondense.flower.wire import About, Received, pack_answer, read_answer
from fedcondense.sets.parts import Part
from fedcondense.sets.synthetic import SyntheticSet

PATH = RESULTS / "thousands.json"
SIZES = (100, 1_000, 10_000)
REAL, RECORDS = 100, 200  # sites whose answers are made of records, and how many each holds
NETWORK = "convnet3-w32"
FIT = fc.Fit(steps=50)
TINY = {"ipc": 1, "objective": "dm", "steps": 5, "network": NETWORK}
ROWS: dict[str, tuple[str, dict[str, Any], int]] = {  # strategy, its settings, rounds
    "one-shot": ("one-shot", TINY, 1),
    "FedAvg, 8 bits": ("fedavg-8bit", {}, 1),
    "ridge, 8 bits, 128 features": ("ridge-8bit", {"dims": 128}, 1),
    "analytic, 128 features": ("analytic", {"classes_per_task": 10, "dims": 128}, 1),
    "feature statistics": ("feature-statistics", {}, 1),
    "one-shot, two bits": ("one-shot", {**TINY, "codec": "bits-2"}, 1),
    "one-shot, 10 per class": ("one-shot", {**TINY, "ipc": 10}, 1),
    "iterative": ("iterative", {"ipc": 1, "steps": 2, "networks": 1}, 1),
}
SPARSE = "one-shot, a tenth asked, a fifth of those silent"


class ManySites(GridAround):
    """Sites that answer when they are asked for it.

    Args:
        count: How many.
        train: What their records are drawn from.
        polls: In how many polls their answers come.
        silent: Share of the sites that are asked and never answer.
        kept: Where the real sites' answers are kept for the next size; None: nowhere.
    """

    def __init__(
        self, count: int, train: fc.Data, polls: int = 20, silent: float = 0.0, kept: Path | None = None
    ) -> None:
        super().__init__(self)
        self.count, self.train, self.polls, self.silent = count, train, polls, silent
        self.infos = [NodeInfo(node_id=k + 1, name=f"site-{k}") for k in range(count)]
        self.client = make_client_app(self.load, caps=Caps.none(10), is_counted=False)
        self.cpu, self.at_first_pull, self.kept = 0.0, 0, kept
        self._answers: dict[int, RecordDict] = {}  # of the real sites
        self._read: dict[int, Received] = {}
        self._waiting: dict[str, Message] = {}

    def load(self, context: Context) -> fc.Data:
        """Return a site's records."""
        return records_of(int(context.node_config["partition-id"]), self.train)

    def get_node_ids(self) -> Iterable[int]:
        """Return all sites, connected from the start."""
        return [info.node_id for info in self.infos]

    def get_nodes(self) -> Iterable[Any]:
        """Return all sites, registered by name."""
        return self.infos

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take the questions; the real sites answer them now."""
        began, sent = time.process_time(), list[str]()
        draws = np.random.default_rng(0)
        for message in messages:
            message.metadata.__dict__["_message_id"] = identifier = str(uuid.uuid4())
            sent.append(identifier)
            base = self.base(message)
            if base not in self._answers:
                self._answers[base] = self.real(message, base)
            if draws.random() >= self.silent:
                self._waiting[identifier] = message
        self.cpu += time.process_time() - began
        return sent

    def real(self, message: Message, base: int) -> RecordDict:
        """Return what a real site answers to this question."""
        path = None if self.kept is None else self.kept / f"{base}.json"
        if path is not None and path.exists():
            root, pieces = json.loads(path.read_text())
            return message_of(root, {name: base64.b64decode(text) for name, text in pieces.items()}).content
        delivered, _ = over_the_wire(message)
        config: dict[str, bool | float | int | str] = {"partition-id": base, "num-partitions": 0, "allow-weights": True}
        reply = self.client(delivered, Context(1, base + 1, config, RecordDict(), {}))
        assert not reply.has_error(), reply.error
        if path is not None:
            root, parts = message_parts(reply)
            pieces = {name: base64.b64encode(blob).decode() for name, blob in parts.items()}
            path.write_text(json.dumps([root, pieces]))
        return reply.content

    def base(self, message: Message) -> int:
        """Return which real site a site's answer is made of."""
        return (message.metadata.dst_node_id - 1) % REAL

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the next answers."""
        began = time.process_time()
        if not self.at_first_pull:
            self.at_first_pull = forget_peak()
        most = max(1, -(-self.count // self.polls))
        mine = [one for one in message_ids if one in self._waiting][:most]
        replies = [self.reply(self._waiting.pop(one)) for one in mine]
        self.cpu += time.process_time() - began
        return replies

    def reply(self, message: Message) -> Message:
        """Return a site's answer as it arrives."""
        site, base = message.metadata.dst_node_id - 1, self.base(message)
        content = self._answers[base]
        if site >= REAL:
            classes, kind = self.train.spec.classes, message.metadata.message_type
            if kind != "train" and base not in self._read:
                payload = TASKS[kind.removeprefix("query.")].payload
                self._read[base] = read_answer(content, payload, ReplyLimits().limits, classes)
            content = varied(content, self._read.get(base), message, site, classes)
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__.update(_src_node_id=site + 1, _message_id=str(uuid.uuid4()))
        arrived, _ = over_the_wire(reply)
        return arrived

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return all answers, as Flower's own strategies want them."""
        waiting, replies = set(self.push_messages(messages)), list[Message]()
        while found := list(self.pull_messages(waiting)):
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            replies += found
        return replies


def records_of(site: int, train: fc.Data) -> fc.Data:
    """Return a site's records: of each class as many as a Dirichlet says, drawn with replacement."""
    draws = np.random.default_rng(site)
    wanted = draws.multinomial(RECORDS, draws.dirichlet(np.full(len(train.spec.classes), 0.5)))
    labels = train.labels.numpy()
    drawn = [draws.choice(np.flatnonzero(labels == label), n) for label, n in enumerate(wanted) if n]
    return train.subset(torch.from_numpy(np.concatenate(drawn)))


@lru_cache(maxsize=1)
def training_data() -> fc.Data:
    """Return Fashion-MNIST, once per process."""
    return fc.load_data("fashion-mnist").train


def load(context: Context) -> fc.Data:
    """Return a site's records, in a process of Ray's."""
    return records_of(int(context.node_config["partition-id"]), training_data())


def with_ray(count: int = 100) -> dict[str, Any]:
    """Run the first row under Flower's Ray simulation."""
    strategy_name, settings, _ = ROWS["one-shot"]
    entry, spec = STRATEGIES[strategy_name], training_data().spec
    asked = Asked(min_train_nodes=count, min_available_nodes=count)
    fit = partial(train_network, network=NETWORK, recipe=FIT)
    own = replace(entry.settings, **settings)
    strategy = entry.make(ServerSide(own, fit, asked, ReplyLimits.of(spec), spec, NETWORK))
    assert isinstance(strategy, Rounds)
    server, began = ServerApp(), time.monotonic()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, timeout=3600)

    with log_from(40):
        simulate(server, make_client_app(load, caps=Caps.none(10), is_counted=False), count)
    took = {"all_s": round(time.monotonic() - began, 1), "answers": len(strategy.answers)}
    return took | {"refused": len(strategy.refused), "bytes-up": strategy.spent["bytes-up"]}


def varied(
    content: RecordDict, received: Received | None, message: Message, site: int, classes: tuple[str, ...]
) -> RecordDict:
    """Return an answer like another one (`content` as it is sent, `received` as it is read) that nobody else sends."""
    draws = torch.Generator().manual_seed(site)
    if received is None:
        file = content.array_records["arrays"]["file"].numpy().copy()
        signs = torch.randint(0, 2, (len(file) // 4,), generator=draws, dtype=torch.uint8).numpy()
        file[-len(signs) :] ^= signs  # the last layers' codes: four bytes of scale stand before each layer's
        return RecordDict({"arrays": ArrayRecord({"file": Array(file)}), "metrics": content["metrics"]})
    payload, asked = received.payload, About.of(message.content)
    if isinstance(payload, SyntheticSet):
        payload = SyntheticSet([like(part, draws) for part in payload.parts])
    else:
        by = 1 + 0.005 * float(torch.rand((), generator=draws))
        tensors = {n: t * by if t.is_floating_point() else t for n, t in payload.tensors.items()}
        payload = Sums({name: value.to(payload.tensors[name].dtype) for name, value in tensors.items()})
    return pack_answer(payload, asked, (f"site-{site}", site), received.num_examples, received.seconds, classes)


def like(part: Part, draws: torch.Generator) -> Part:
    """Return a part whose pixels' low bits are drawn anew, in the same codec."""
    is_coded = part.codec != "raw"
    plain = SyntheticSet([part]).recode("raw").parts[0] if is_coded else part
    images = plain.codes["images"]
    drawn = torch.randint(0, 2, images.shape, generator=draws, dtype=torch.uint8) * (64 if is_coded else 1)
    new = replace(plain, codes={"images": images ^ drawn})
    return SyntheticSet([new]).recode(part.codec).parts[0] if is_coded else new


def forget_peak() -> int:
    """Return the bytes that are resident now, and let the peak begin here (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def run(row: str, count: int, profiled: bool = False, kept: Path | None = None) -> dict[str, Any]:
    """Run a row at a size and return what it took."""
    torch.set_num_threads(1)
    is_sparse = row == SPARSE
    strategy_name, settings, rounds = ROWS["one-shot"] if is_sparse else ROWS[row]
    train = training_data()
    entry, spec = STRATEGIES[strategy_name], train.spec
    own = replace(entry.settings, **settings)
    asked = Asked(min_train_nodes=count, min_available_nodes=count)
    if is_sparse:
        asked = Asked(fraction_train=0.1, min_train_nodes=2, min_available_nodes=count, min_replies=2, grace=2.0)
        rounds = 1
    grid = ManySites(count, train, silent=0.2 if is_sparse else 0.0, kept=kept)
    fit = partial(train_network, network=NETWORK, recipe=FIT)
    side = ServerSide(own, fit, asked, ReplyLimits.of(spec), spec, NETWORK, recipe=FIT)
    strategy = entry.make(side)
    checked = checked_grid(entry, side, grid) if entry.handlers else None
    asking._POLL_S = 0.01  # sites answer at once
    profile = cProfile.Profile()
    began, cpu, said = time.monotonic(), time.process_time(), ""
    with task_identity(), log_from(40):
        try:
            profile.enable() if profiled else None
            run_strategy(entry, side, strategy, checked or grid, rounds, 3600, None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:300]
        finally:
            profile.disable()
    took = {
        "server_s": round(time.process_time() - cpu - grid.cpu, 2),
        "all_s": round(time.monotonic() - began, 1),
        "memory": memory("VmHWM") - grid.at_first_pull,
        "resident": grid.at_first_pull,
        "said": said,
    }
    if checked is not None:
        took |= dict(checked.spent)
    if isinstance(strategy, Rounds):
        took |= {"answers": len(strategy.answers), "refused": len(strategy.refused)}
        took |= {"reasons": sorted({one.reason[:160] for one in strategy.refused})[:3]}
        took |= {name: value for name, value in strategy.spent.items() if name != "client-seconds"}
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return took


def apart(row: str, count: int, kept: Path) -> Callable[[], dict[str, Any]]:
    """Run a row in a process of its own."""

    def compute() -> dict[str, Any]:
        folder = kept / row.replace(" ", "-")
        folder.mkdir(exist_ok=True)
        command = [sys.executable, __file__, "--row", row, "--sites", str(count), "--kept", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            return {"said": f"ended with {ended.returncode}: {ended.stderr[-300:]}"}
        return dict(json.loads(ended.stdout.splitlines()[-1]))

    return compute


def table() -> str:
    """Return what is kept."""
    kept = read(PATH)
    head = "row | sites | answers | refused | kB up | kB down | server CPU s | ms per site | peak MB | kB per site"
    lines = [f"| {head} |", "|---|---|---|---|---|---|---|---|---|---|"]
    for row in (*ROWS, SPARSE, "one-shot, Ray"):
        for count in SIZES:
            found = kept.get(f"{row} | {count:06}")
            if found is None:
                continue
            if "server_s" not in found:
                said = found.get("said") or f"{found['answers']} | {found['refused']} | {found['bytes-up'] / 1000:.1f}"
                lines.append(f"| {row} | {count:,} | {said} | | | | | |")
                continue
            up, down = (found.get(f"bytes-{way}", float("nan")) / 1000 for way in ("up", "down"))
            seconds, nbytes = found["server_s"], max(0, found["memory"])
            spent = f"{seconds:.1f} | {1000 * seconds / count:.1f} | {nbytes / 1e6:,.0f} | {nbytes / 1000 / count:.0f}"
            counted = f"{found.get('answers', count)} | {found.get('refused', 0)}"
            lines.append(f"| {row} | {count:,} | {counted} | {up:.1f} | {down:.1f} | {spent} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=[*ROWS, SPARSE])
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--kept", type=Path, help="a folder for the real sites' answers, which all sizes share")
    parser.add_argument("--only", nargs="+", choices=[*ROWS, SPARSE], default=[*ROWS, SPARSE])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--ray", action="store_true", help="the first row at 100 sites under Ray")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
    elif arguments.ray:  # by the module's name, which is how Ray's processes find `load`
        import thousands

        run_cells(PATH, {"one-shot, Ray | 000100": thousands.with_ray})
    elif arguments.row:
        print(json.dumps(run(arguments.row, arguments.sites, arguments.profile, arguments.kept)))
    else:
        wanted = [(row, count) for row in arguments.only for count in arguments.sizes if row != SPARSE or count == 100]
        kept = arguments.kept or Path(tempfile.mkdtemp())
        run_cells(PATH, {f"{row} | {count:06}": apart(row, count, kept) for row, count in wanted})


if __name__ == "__main__":
    main()
