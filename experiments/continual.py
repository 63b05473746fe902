"""Class-incremental streams in Avalanche: a memory of condensed images beside real ones, at equal bytes.

    python experiments/continual.py prototype     # split Fashion-MNIST, 2,000 images a class, ConvNet 3x16
    python experiments/continual.py full          # all images, ConvNet 3x32
    python experiments/continual.py mnist cifar10 budgets domain online cifar100
    python experiments/continual.py --table prototype

Every row is a real run of Avalanche 0.6.0: five experiences of two classes in an order that changes with the seed, one
head, no task labels, accuracy after the last experience on all test images. `gdumb` trains a fresh network on the
memory alone; `replay` trains two epochs of batches of 128 of the stream and 128 of the memory. "stock" is Avalanche's
own plugin with its `storage_policy` swapped; the others are `CondensedGDumbPlugin` and `CondensedReplayPlugin`, which
augment the memory's batches (and `CondensedReplayPlugin` lets each class weigh the same). Features in bfloat16. Writes
results/continual.json, resumes; sets that were condensed for one row serve the others of the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from cells import RESULTS, read, run_cells
from torch import nn
from torch.utils.data import Dataset

import fedcondense as fc
from fedcondense.memory import Condenser, Maker, Selector
from fedcondense.training import accuracy

warnings.filterwarnings("ignore")
PATH = RESULTS / "continual.json"
SEEDS = (0, 1, 2)
CACHE = Path(tempfile.gettempdir()) / "fedcondense-continual"


@dataclass(frozen=True)
class Protocol:
    """A stream and a learner's budget."""

    data: str
    images: int  # of the memory, plain
    width: int
    per_class: int | None = None  # real images of a class; None: all
    experiences: int = 5
    gdumb_epochs: int = 300  # over a memory of plain images; fewer where it decodes to more
    depth: int = 3


PROTOCOLS = {
    "prototype": Protocol("fashion-mnist", 100, 16, 2000),
    "full": Protocol("fashion-mnist", 100, 32),
    "mnist": Protocol("mnist", 300, 32, gdumb_epochs=100),
    "cifar10": Protocol("cifar10", 200, 32, gdumb_epochs=200),
}
STEPS = {"dm-ridge": 300, "dm": 300}

MEMORIES: dict[str, Callable[[], Maker]] = {
    "random": lambda: Selector("random"),
    "herding": lambda: Selector("herding"),
    "k-means": lambda: Selector("k-means"),
    "half-resolution": lambda: Selector("half-resolution"),
    "dm": lambda: _condenser("dm", "pixels"),
    "dm factor 2": lambda: _condenser("dm", "multi-formation"),
    "dm-ridge": lambda: _condenser("dm-ridge", "pixels"),
    "dm-ridge factor 2": lambda: _condenser("dm-ridge", "multi-formation"),
}


def _condenser(objective: str, parametrization: str) -> Condenser:
    recipe = replace(fc.OBJECTIVES[objective].recipe, lr=0.02, steps=STEPS[objective])
    return Condenser(objective, parametrization, network="convnet3-w32", recipe=recipe)


class Cached:
    """Makes each set once and keeps it: rows of one seed replay the same sets. `spent` adds up their CPU seconds."""

    def __init__(self, make: Maker) -> None:
        self.make, self.spent = make, [0.0]

    @property
    def per_image(self) -> int:
        return self.make.per_image

    def __repr__(self) -> str:
        return repr(self.make)

    def __call__(self, data: fc.Data, ipc: int, seed: int) -> fc.SyntheticSet:
        told = "/".join(map(str, (data.fingerprint, ipc, seed, self.make, data.spec.operations)))
        path = CACHE / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            began = time.process_time()
            made = self.make(data, ipc, seed)
            made.with_record(seconds=round(time.process_time() - began, 1)).save(path, overwrite=True)
        kept = fc.SyntheticSet.load(path)
        self.spent[-1] += kept.record.seconds
        return kept


def network(width: int, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Three blocks of convolution, group norm, ReLU and average pooling, as the prototype of this comparison had."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels, side = shape[0], shape[1]
    for _ in range(3):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU(), nn.AvgPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side**2, 10))


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Normalised images in memory, as Avalanche reads a data set."""

    def __init__(self, data: fc.Data) -> None:
        self.images = data.batch().images
        self.targets = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.targets[index]


def load(protocol: Protocol, seed: int) -> fc.DataSet:
    train, test = fc.load_data(protocol.data)
    if protocol.per_class:
        train = train.subset(train.per_class(protocol.per_class, torch.Generator().manual_seed(seed)))
    return fc.DataSet(train, test)


def run(
    protocol: Protocol, learner: str, memory: str, seed: int, images: int | None = None, real_fraction: float = 0.0
) -> dict[str, Any]:
    """Train on the stream and return the accuracy after its last experience."""
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training import Naive
    from avalanche.training.plugins import GDumbPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer

    from fedcondense.avalanche import CondensedBuffer, CondensedGDumbPlugin, CondensedReplayPlugin

    train, test = load(protocol, seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
    benchmark = nc_benchmark(
        Images(train), Images(test), protocol.experiences, task_labels=False, fixed_class_order=order
    )
    images = images or protocol.images
    make = None if memory in ("none", "stock") else Cached(MEMORIES[memory]())
    if make is None:
        buffer: Any = ClassBalancedBuffer(images)
    else:
        size = images * make.per_image
        ranges = {"mean": train.spec.mean, "std": train.spec.std, "operations": train.spec.operations}
        buffer = CondensedBuffer(size, condenser=make, seed=seed, real_fraction=real_fraction, **ranges)
    if learner == "gdumb-stock":
        plugin: Any = GDumbPlugin(buffer.max_size)
        plugin.storage_policy = buffer
    elif learner == "gdumb":
        plugin = CondensedGDumbPlugin(storage_policy=buffer)
    elif learner == "replay-stock":
        plugin = ReplayPlugin(buffer.max_size, storage_policy=buffer)
    else:
        plugin = CondensedReplayPlugin(storage_policy=buffer)
    plugins = [] if memory == "none" else [plugin]
    is_gdumb = learner.startswith("gdumb")
    model = network(protocol.width, train.spec.shape, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = 32 if is_gdumb else 128
    strategy = Naive(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=2,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
    )
    per_image = 1 if make is None else make.per_image
    for number, experience in enumerate(benchmark.train_stream):
        if is_gdumb:  # earlier networks are thrown away: only the last one is trained in full
            last = number == protocol.experiences - 1
            strategy.train_epochs = max(1, protocol.gdumb_epochs // per_image) if last else 1
        if make is not None:
            make.spent.append(0.0)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            strategy.train(experience)
    percent, _ = accuracy(strategy.model, test)
    cell: dict[str, Any] = {"accuracy": round(percent, 2)}
    if make is not None:
        cell |= {"nbytes": buffer.nbytes, "image_bytes": buffer.memory.image_bytes, "images": len(buffer.buffer)}
        cell |= {"condense_cpu_s": [round(s, 1) for s in make.spent[1:]]}
    return cell


CONTROLS = ("random", "herding", "k-means", "half-resolution")
DISTILLED = ("dm", "dm factor 2", "dm-ridge", "dm-ridge factor 2")


def cells(name: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the rows of a protocol, by name."""
    protocol = PROTOCOLS[name]
    rows = [("gdumb-stock", "stock"), ("replay-stock", "stock"), ("replay-stock", "none")]
    rows += [(learner, memory) for memory in (*DISTILLED[::-1], *CONTROLS[::-1]) for learner in ("gdumb", "replay")]
    rows += [(f"{learner}-stock", "dm-ridge factor 2") for learner in ("gdumb", "replay")]
    return {
        f"{name} | {learner} | {memory} | seed {seed}": partial(run, protocol, learner, memory, seed)
        for seed in SEEDS
        for learner, memory in rows
    }


def table(name: str) -> str:
    results = read(PATH)
    lines = ["| learner | memory | image bytes | all bytes | images | accuracy | most CPU s an experience | seeds |"]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="*", default=["prototype"])
    parser.add_argument("--match", default="", help="only rows whose name holds this text")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.protocols:
        if arguments.table:
            print(table(name))
            continue
        torch.set_num_threads(1)
        CACHE.mkdir(exist_ok=True)
        wanted = [f"seed {seed}" for seed in arguments.seeds]
        chosen = {
            key: cell for key, cell in cells(name).items() if arguments.match in key and key.rsplit(" | ")[-1] in wanted
        }
        run_cells(PATH, chosen)


if __name__ == "__main__":
    main()
