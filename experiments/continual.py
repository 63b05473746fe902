"""Streams in Avalanche: a memory of condensed images beside real ones, at equal bytes.

    python experiments/continual.py prototype             # split Fashion-MNIST, 2,000 images a class, ConvNet 3x16
    python experiments/continual.py full mnist cifar10    # all images, ConvNet 3x32
    python experiments/continual.py full-long             # GDumb trains four times as long
    python experiments/continual.py budgets               # 39,200 to 1,254,400 bytes, and hybrid memories
    python experiments/continual.py domain online cifar100
    python experiments/continual.py coded-cifar10 coded-fashion-mnist  # codecs, 307,200 and 78,400 bytes of file
    python experiments/continual.py coded-cifar10-held-out             # how their codecs were chosen, one seed
    python experiments/continual.py capped                # condensing stopped after 4, 10 and 25 seconds
    python experiments/continual.py prototype --table     # Markdown, from what is there

Every row is a run of Avalanche 0.6.0. Class-incremental streams show the classes in an order that changes with the
seed, in experiences of equal size, for one head without task labels; accuracy is that after the last experience, on all
test images. `gdumb` trains a fresh network on the memory alone; `replay` trains two epochs of batches of 128 images of
the stream and 128 of the memory. "stock" is Avalanche's own plugin with its `storage_policy` swapped (and the memory
"stock" its own `ClassBalancedBuffer`); the other rows are `CondensedGDumbPlugin` and `CondensedReplayPlugin` with
averaged weights, for real memories too. Features in bfloat16. Writes results/continual.json, resumes; a set that one
row condensed serves the other rows of the seed, with the CPU seconds that it took.
"""

from __future__ import annotations

import copy
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from cells import RESULTS, command, read, run_cells
from continual_coded import Coded, coded_buffer
from continual_protocols import BUDGETS, CONTROLS, PROTOCOLS, SEEDS, Protocol, is_adaptive, maker
from continual_streams import experiences, load
from torch import nn

import fedcondense as fc
from fedcondense.memory import Maker
from fedcondense.training.fit import accuracy

warnings.filterwarnings("ignore")
PATH = RESULTS / "continual.json"
CACHE = Path(tempfile.gettempdir()) / "fedcondense-continual"


class Cached:
    """Makes each set once and keeps it: rows of one seed replay the same sets. `spent` adds up their CPU seconds."""

    def __init__(self, make: Maker, name: str) -> None:
        self.make, self.name, self.spent = make, name, [0.0]
        self.steps: list[int] = []  # that were made, of each set

    @property
    def per_image(self) -> int:
        """As the maker."""
        return self.make.per_image

    @property
    def update(self) -> str:
        """As the maker."""
        return str(getattr(self.make, "update", "recondense"))

    def __repr__(self) -> str:
        return repr(self.make)

    def __call__(self, data: fc.Data, ipc: int, seed: int, stored: torch.Tensor) -> fc.SyntheticSet:
        """Return the set of before, or make it."""
        told = "/".join(map(str, (data.fingerprint, ipc, seed, self.make, self.name, data.spec.operations)))
        path = CACHE / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            began = time.process_time()
            made = self.make(data, ipc, seed, stored)
            made.with_record(seconds=round(time.process_time() - began, 1)).save(path, overwrite=True)
        kept = fc.SyntheticSet.load(path)
        self.spent[-1] += kept.record.seconds
        self.steps.append(kept.record.steps)
        return kept


def network(width: int, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Three blocks of convolution, group norm, ReLU and average pooling, as the prototype of this comparison had."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels, side = shape[0], shape[1]
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, classes))


def run(protocol: Protocol, learner: str, memory: str, seed: int, float32: bool = False) -> dict[str, Any]:
    """Train on the stream and return the accuracy after its last experience."""
    from avalanche.training import Naive
    from avalanche.training.plugins import GDumbPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer

    from fedcondense.avalanche import (
        CondensedBuffer,
        CondensedGDumbPlugin,
        CondensedReplayPlugin,
        WeightAveragingPlugin,
    )

    domains, test = load(protocol, seed)
    spec = domains[0].spec
    _, train_stream = experiences(protocol, domains, test, seed)
    is_online, is_gdumb = protocol.stream == "online", learner.startswith("gdumb")
    coded = Coded.named(memory) if protocol.max_bytes else None
    makes = coded.makes if coded else memory
    make = None if makes in ("", "none", "stock") else Cached(maker(protocol, makes), makes)
    like_stream: dict[str, Any] = {"operations": spec.operations, "mean": spec.mean, "std": spec.std, "seed": seed}
    if coded is not None:
        buffer: Any = coded_buffer(coded, protocol, make, len(spec.classes), like_stream)
    elif make is None:
        buffer = ClassBalancedBuffer(protocol.images)
    else:
        waits = is_online and memory not in CONTROLS  # what waits takes the other half of the bytes
        buffer = CondensedBuffer(
            protocol.images * make.per_image // (2 if waits else 1),
            condenser=make,
            adaptive_size=is_adaptive(protocol, memory),
            total_num_groups=None if is_adaptive(protocol, memory) else len(spec.classes),
            real_fraction=0.5 if memory.startswith("half ") else 0.0,
            min_samples=protocol.images if waits else 1,
            **like_stream,
        )
    if learner == "gdumb-stock":
        plugin: Any = GDumbPlugin(buffer.max_size)
        plugin.storage_policy = buffer
    elif learner == "replay-stock":
        plugin = ReplayPlugin(buffer.max_size, batch_size_mem=64 if is_online else None, storage_policy=buffer)
    elif learner == "gdumb":
        plugin = CondensedGDumbPlugin(storage_policy=buffer)
    else:
        plugin = CondensedReplayPlugin(storage_policy=buffer, batch_size_mem=64 if is_online else None)
    plugins = [] if memory == "none" else [plugin] if learner.endswith("stock") else [plugin, WeightAveragingPlugin()]
    model = network(protocol.width, spec.shape, len(spec.classes), seed)
    batch = 32 if is_gdumb else 10 if is_online else 128
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(
            model.parameters(), lr=0.01 if is_online else 0.05, momentum=0.0 if is_online else 0.9
        ),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=1 if is_online else 2,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
    )
    decoded = protocol.images * (1 if make is None else make.per_image)
    for number, experience in enumerate(train_stream, 1):
        last = number == protocol.experiences
        if make is not None:
            make.spent.append(0.0)
        if coded is not None and not last:
            buffer.post_adapt(strategy, experience)
            continue
        if coded is not None:  # how many images there will be is known once they are encoded
            trial = copy.deepcopy(buffer)
            trial.post_adapt(strategy, experience)
            decoded = len(trial.buffer)
        if is_gdumb:  # earlier networks are thrown away: only the last one is trained in full
            strategy.train_epochs = max(1, round(protocol.updates * batch / decoded)) if last else 1
        with torch.autocast("cpu", torch.bfloat16, enabled=not float32, cache_enabled=False):
            strategy.train(experience)
    percent, _ = accuracy(strategy.model, test)
    cell: dict[str, Any] = {"accuracy": round(percent, 2)} | ({"precision": "float32"} if float32 else {})
    if make is not None or coded is not None:
        cell |= {"nbytes": buffer.nbytes, "image_bytes": buffer.memory.image_bytes, "images": len(buffer.buffer)}
        cell |= (
            {"condense_cpu_s": [round(s, 1) for s in make.spent if s], "steps": make.steps} if make is not None else {}
        )
    return cell


def cells(name: str, float32: bool = False) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the rows of a protocol, by name."""
    protocol = PROTOCOLS[name]
    return {
        f"{name} | {learner} | {memory} | seed {seed}": partial(run, protocol, learner, memory, seed, float32)
        for seed in SEEDS
        for learner, memory in protocol.rows
    }


def table(name: str) -> str:
    results = read(PATH)
    lines = ["| learner | memory | image bytes | all bytes | images | accuracy | most CPU s per experience | seeds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    rows = dict.fromkeys(key.rsplit(" | ", 1)[0] for key in cells(name))
    for row in rows:
        found = [results[key] for seed in SEEDS if (key := f"{row} | seed {seed}") in results]
        if found:
            accuracies = [cell["accuracy"] for cell in found]
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(found) > 1 else ""
            sizes = [
                f"{round(statistics.fmean(c.get(k, 0) for c in found)):,}" for k in ("image_bytes", "nbytes", "images")
            ]
            spent = max((s for cell in found for s in cell.get("condense_cpu_s", [])), default=0)
            _, learner, memory = row.split(" | ")
            mean = statistics.fmean(accuracies)
            lines.append(
                f"| {learner} | {memory} | {' | '.join(sizes)} | {mean:.1f}{spread} | {spent:.0f} | {len(found)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("protocols", nargs="+", choices=["budgets", *PROTOCOLS], metavar="PROTOCOL")
    parser.add_argument("--match", default="", help="only rows whose name holds this text")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    budgets = [f"budget {images}" for images in BUDGETS]
    for name in (n for given in arguments.protocols for n in (budgets if given == "budgets" else [given])):
        if arguments.table:
            print(table(name))
            continue
        CACHE.mkdir(exist_ok=True)
        wanted = [f"seed {seed}" for seed in arguments.seeds]
        chosen = {
            key: cell
            for key, cell in cells(name, arguments.float32).items()
            if arguments.match in key and key.rsplit(" | ")[-1] in wanted
        }
        run_cells(PATH, chosen, arguments.shard)


if __name__ == "__main__":
    main()
