"""Streams in Avalanche: a memory of condensed images beside real ones, at equal bytes.

    python experiments/continual.py prototype             # split Fashion-MNIST, 2,000 images a class, ConvNet 3x16
    python experiments/continual.py full mnist cifar10    # all images, ConvNet 3x32
    python experiments/continual.py full-long             # GDumb trains four times as long
    python experiments/continual.py budgets               # 39,200 to 1,254,400 bytes, and hybrid memories
    python experiments/continual.py domain online cifar100
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

import argparse
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from cells import RESULTS, add_precision, read, run_cells
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

import fedcondense as fc
from fedcondense.memory import Condenser, Maker, Selector
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy

warnings.filterwarnings("ignore")
PATH = RESULTS / "continual.json"
SEEDS = (0, 1, 2)
CACHE = Path(tempfile.gettempdir()) / "fedcondense-continual"


@dataclass(frozen=True)
class Protocol:
    """A stream and a learner's budget."""

    data: str
    images: int  # of the memory, plain
    width: int = 32
    per_class: int | None = None  # real images of a class; None: all
    experiences: int = 5
    stream: str = "classes"  # "classes", "domains" (rotations), or "online" (mini-experiences of 50)
    updates: int = 940  # of the network that GDumb trains last
    rows: tuple[tuple[str, str], ...] = ()  # learner, memory
    steps: Mapping[str, int] = field(default_factory=dict)  # of condensing, by memory; else those of `STEPS`
    adaptive: bool = True  # share the memory among the classes seen so far, where that serves


CONTROLS = ("random", "herding", "k-means", "half-resolution")
DISTILLED = ("dm", "dm factor 2", "dm-ridge", "dm-ridge factor 2")
STOCK = (("gdumb-stock", "stock"), ("replay-stock", "stock"))
BEST = "dm-ridge factor 2"
ALIKE = f"{BEST}, group norm"  # made on networks with the learner's norm and width; final shares from the start
KERNEL = "mmd factor 2"  # on networks of the learner's width; final shares from the start
STEPS = {"pixels": 1200, "multi-formation": 600}
BUDGETS = (50, 100, 200, 400, 800, 1600)


def both(*memories: str) -> tuple[tuple[str, str], ...]:
    return tuple((learner, memory) for memory in memories for learner in ("gdumb", "replay"))


def gdumb(*memories: str) -> tuple[tuple[str, str], ...]:
    return tuple(("gdumb", memory) for memory in memories)


def budget(images: int) -> Protocol:
    """The prototype at another budget, each class with its final share from the start.

    A step of condensing takes longer with more images, so there are fewer: an experience stays below 60 s.
    """
    steps = dict.fromkeys((BEST, f"half {BEST}"), max(60, 600 * 100 // images))
    steps["dm-ridge"] = 400 if images > 800 else STEPS["pixels"]
    memories = (*CONTROLS, "dm-ridge", BEST, f"half {BEST}")
    told = {"rows": gdumb(*memories), "steps": steps, "adaptive": False}
    return Protocol("fashion-mnist", images, 16, 2000, updates=max(940, 3 * images), **told)


FULL = Protocol(
    "fashion-mnist",
    100,
    rows=(*STOCK, *both(BEST, *CONTROLS, ALIKE, KERNEL)),
    steps={ALIKE: 1000},
)

PROTOCOLS = {
    "prototype": Protocol(
        "fashion-mnist",
        100,
        16,
        2000,
        rows=(
            *STOCK,
            ("replay-stock", "none"),
            *both(BEST, "dm-ridge", "dm factor 2", "dm", *CONTROLS),
            *(("gdumb-stock", BEST), ("replay-stock", BEST), ("replay-stock", "dm")),
            *both(ALIKE, KERNEL),
        ),
        steps={"dm factor 2": 300, ALIKE: 2000},
    ),
    "full": FULL,
    # GDumb trains 300 epochs of the 400 images, whatever the memory
    "full-long": replace(FULL, updates=3750, rows=gdumb(BEST, ALIKE, KERNEL, *CONTROLS)),
    "mnist": Protocol(
        "mnist",
        300,
        rows=(("gdumb-stock", "stock"), *gdumb("dm-ridge", *CONTROLS)),
        steps={"dm-ridge": 600},
    ),
    "cifar10": Protocol(
        "cifar10",
        200,
        updates=2000,
        rows=(
            ("gdumb-stock", "stock"),
            *gdumb(BEST, ALIKE, f"{BEST}, shrinking", *CONTROLS),
        ),
        steps={f"{BEST}, shrinking": 200, ALIKE: 500},
        adaptive=False,
    ),
    **{f"budget {images}": budget(images) for images in BUDGETS},
    "domain": Protocol(
        "mnist",
        100,
        16,
        500,
        stream="domains",
        rows=(*STOCK, *both(BEST, "dm-ridge", *CONTROLS)),
        steps={BEST: 300},
    ),
    "online": Protocol(
        "fashion-mnist",
        100,
        16,
        2000,
        stream="online",
        rows=(("replay-stock", "stock"), *(("replay", memory) for memory in (BEST, *CONTROLS))),
        steps={BEST: 50},
    ),
    "cifar100": Protocol(
        "cifar100-cut",
        500,
        updates=2000,
        rows=gdumb(BEST, *CONTROLS),
        steps={BEST: 100},
    ),
}


def is_adaptive(protocol: Protocol, memory: str) -> bool:
    """Say whether a memory starts with large shares that shrink: plain pixels lose by being condensed again."""
    shrinks = protocol.adaptive and memory not in ("dm", "dm-ridge", ALIKE, KERNEL)
    return protocol.stream != "classes" or shrinks or memory.endswith(", shrinking")


def maker(protocol: Protocol, memory: str) -> Maker:
    """Return what makes a memory's sets: a selection by name, or ``OBJECTIVE [factor 2]``; ``half`` is a hybrid."""
    name = memory.removeprefix("half ").partition(",")[0]
    if name in CONTROLS:
        return Selector(name)
    objective = name.removesuffix(" factor 2")
    stored_as = "pixels" if name == objective else "multi-formation"
    steps = protocol.steps.get(memory, STEPS[stored_as])
    recipe = replace(fc.OBJECTIVES[objective].recipe, lr=0.04 if memory == KERNEL else 0.02, steps=steps)
    network = f"convnet3-w{protocol.width if memory in (ALIKE, KERNEL) else 16}" + "-group" * (memory == ALIKE)
    return Condenser(objective, stored_as, network=network, recipe=recipe)


class Cached:
    """Makes each set once and keeps it: rows of one seed replay the same sets. `spent` adds up their CPU seconds."""

    def __init__(self, make: Maker) -> None:
        self.make, self.spent = make, [0.0]

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
        told = "/".join(map(str, (data.fingerprint, ipc, seed, self.make, data.spec.operations)))
        path = CACHE / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.safetensors"
        if not path.exists():
            began = time.process_time()
            made = self.make(data, ipc, seed, stored)
            made.with_record(seconds=round(time.process_time() - began, 1)).save(path, overwrite=True)
        kept = fc.SyntheticSet.load(path)
        self.spent[-1] += kept.record.seconds
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


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Normalised images in memory, as Avalanche reads a data set."""

    def __init__(self, data: fc.Data) -> None:
        self.images = data.batch().images
        self.targets = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.targets[index]


def load(protocol: Protocol, seed: int) -> tuple[list[fc.Data], fc.Data]:
    """Return the training data, by domain, and the test data of all of them."""
    train, test = fc.load_data(protocol.data)
    if protocol.stream != "domains":
        if protocol.per_class:
            train = train.subset(train.per_class(protocol.per_class, stream(seed)))
        return [train], test
    domains, tests = [], []
    for number in range(protocol.experiences):  # each domain turns other images, by 20 degrees more
        chosen = train.subset(train.per_class(protocol.per_class, stream(seed, number)))
        domains.append(turned(chosen, 20.0 * number))
        tests.append(turned(test.subset(test.per_class(200, stream(0))), 20.0 * number))
    joined = torch.cat([t.images for t in tests]), torch.cat([t.labels for t in tests])
    return domains, fc.Data(*joined, test.spec)


def turned(data: fc.Data, degrees: float) -> fc.Data:
    return fc.Data(rotate(data.images, degrees, InterpolationMode.BILINEAR), data.labels, data.spec)


def experiences(protocol: Protocol, domains: list[fc.Data], test: fc.Data, seed: int) -> tuple[Any, list[Any]]:
    """Return Avalanche's benchmark and its training stream."""
    from avalanche.benchmarks import dataset_benchmark, nc_benchmark, split_online_stream

    if protocol.stream == "domains":
        benchmark = dataset_benchmark([Images(domain) for domain in domains], [Images(test)])
        return benchmark, list(benchmark.train_stream)
    classes = len(test.spec.classes)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    told = {"task_labels": False, "fixed_class_order": order}
    benchmark = nc_benchmark(Images(domains[0]), Images(test), protocol.experiences, **told)
    if protocol.stream == "online":
        torch.manual_seed(seed)
        return benchmark, split_online_stream(benchmark.train_stream, experience_size=50)
    return benchmark, list(benchmark.train_stream)


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
    make = None if memory in ("none", "stock") else Cached(maker(protocol, memory))
    if make is None:
        buffer: Any = ClassBalancedBuffer(protocol.images)
    else:
        waits = is_online and memory not in CONTROLS  # what waits takes the other half of the bytes
        buffer = CondensedBuffer(
            protocol.images * make.per_image // (2 if waits else 1),
            condenser=make,
            adaptive_size=is_adaptive(protocol, memory),
            total_num_groups=None if is_adaptive(protocol, memory) else len(spec.classes),
            real_fraction=0.5 if memory.startswith("half ") else 0.0,
            min_samples=protocol.images if waits else 1,
            operations=spec.operations,
            mean=spec.mean,
            std=spec.std,
            seed=seed,
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
        if is_gdumb:  # earlier networks are thrown away: only the last one is trained in full
            last = number == protocol.experiences
            strategy.train_epochs = max(1, round(protocol.updates * batch / decoded)) if last else 1
        if make is not None:
            make.spent.append(0.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=not float32, cache_enabled=False):
            strategy.train(experience)
    percent, _ = accuracy(strategy.model, test)
    cell: dict[str, Any] = {"accuracy": round(percent, 2)} | ({"precision": "float32"} if float32 else {})
    if make is not None:
        cell |= {"nbytes": buffer.nbytes, "image_bytes": buffer.memory.image_bytes, "images": len(buffer.buffer)}
        cell |= {"condense_cpu_s": [round(s, 1) for s in make.spent if s]}
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
    parser.add_argument("protocols", nargs="+", choices=["budgets", *PROTOCOLS], metavar="PROTOCOL")
    parser.add_argument("--match", default="", help="only rows whose name holds this text")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true")
    add_precision(parser)
    arguments = parser.parse_args()
    budgets = [f"budget {images}" for images in BUDGETS]
    for name in (n for given in arguments.protocols for n in (budgets if given == "budgets" else [given])):
        if arguments.table:
            print(table(name))
            continue
        torch.set_num_threads(1)
        CACHE.mkdir(exist_ok=True)
        wanted = [f"seed {seed}" for seed in arguments.seeds]
        chosen = {
            key: cell
            for key, cell in cells(name, arguments.float32).items()
            if arguments.match in key and key.rsplit(" | ")[-1] in wanted
        }
        run_cells(PATH, chosen)


if __name__ == "__main__":
    main()
