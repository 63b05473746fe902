"""CIFAR-10 in five tasks of two classes at five sites: what a server that keeps sets of old classes remembers.

    python experiments/incremental.py                    # results/incremental.json, resumes
    python experiments/incremental.py --only 'seed 0'    # cells by a part of their name
    python experiments/incremental.py --table            # Markdown, from what is there

The seed says the order of the classes, how each task is divided (label-wise Dirichlet 0.5 within it), and all else. A
memory is the file of all sets that the server keeps; sites keep nothing. Sites get equal shares of what is left of it.
One round per task in all rows, and the same training: ConvNet-3 width 32, 600 steps, last step, all test images of the
classes so far. Rows:

- finetune: no memory; the sets of `condensed`, each task's alone, train on from the weights of the task before;
- real: random real images as JPEG 10 (they show records; a site may send half of a class);
- condensed: `mmd-ridge`, 120 steps, images and bits by the rate rule, an image for ten records;
- hybrid: seven tenths of the bytes for real images (or nine), the rest condensed;
- joint: from scratch on all records of the classes so far;
- analytic: no images; sums of random features, which the server adds up: as many features of an untrained ConvNet-3
  width 64 as the memory has room for, or as its share of a site and task has ("analytic, up");
- own order: each site begins at another task, and questions name no class; replies may take a 25th of the memory.

Rows that only train otherwise take the sets that another row has left in ``--cache``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision
from flwr.app import ArrayRecord, Context, MetricRecord

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.flower import Caps, make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.running import accuracy_of_weights
from fedcondense.flower.strategies import ServerSide
from fedcondense.flower.strategies.analytic import Analytic, ProductsOfClasses
from fedcondense.flower.strategies.condense_classes import CondenseClasses
from fedcondense.flower.strategies.incremental import Incremental, tasks_of
from fedcondense.flower.strategies.ridge import ridge_dims
from fedcondense.networks import build
from fedcondense.randomness import child_seed
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import accuracy, fit_on

PATH = RESULTS / "incremental.json"
SITES, TASKS, BETA = 5, 5, 0.5
NETWORK, FIT, STEPS = "convnet3-w32", fc.Fit(steps=600), 120
WIDE = "convnet3-w64"  # whose features are summed: 1,024
SMALL, LARGE = 46_080, 460_800  # 15 and 150 images of 8 bits
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Way:
    """How a row makes and uses its sets."""

    real_fraction: float = 0.0
    codec: str = ""
    parametrization: str = ""
    steps: int = STEPS
    own_order: bool = False


@dataclass(frozen=True)
class Training:
    """How a row trains on the sets of another."""

    sets: str
    fit: fc.Fit = FIT
    anew: bool = True
    forgets: bool = False


ROWS = {
    "real": Way(1.0),
    "condensed": Way(),
    "hybrid": Way(0.7),
    "real, own order": Way(1.0, own_order=True),
    "condensed, own order": Way(own_order=True),
}
TRAINED = {
    "finetune": Training("condensed", anew=False, forgets=True),
    "condensed, from weights": Training("condensed", anew=False),
    "condensed, 1500 steps": Training("condensed", fc.Fit(steps=1500)),
}
TRIED = {"condensed, pixels": Way(parametrization="pixels"), "hybrid, nine tenths real": Way(0.9)}


@lru_cache(1)
def load() -> tuple[Data, Data]:
    return fc.load_data("cifar10")


@lru_cache(3)
def division(seed: int) -> tuple[tuple[tuple[str, ...], ...], list[list[torch.Tensor]], str]:
    """Return the tasks, the records of each task and site, and the hashes of the divisions."""
    train, _ = load()
    tasks, held, said = tasks_of(train.spec.classes, 10 // TASKS, seed + 1), [], []
    for number, names in enumerate(tasks):
        places = torch.tensor([train.spec.classes.index(name) for name in names])
        index = torch.isin(train.labels, places).nonzero().flatten()
        divided = fc.partition(train.subset(index), SITES, "dirichlet", alpha=BETA, seed=10 * seed + number)
        held.append([index[mine] for mine in divided])
        said.append(str(divided.to_dict()["hash"])[:8])
    return tasks, held, " ".join(said)


def stream(row: str, memory: int, seed: int, cache: Path) -> dict[str, Any]:
    """Run a stream and return what the server's network knows after each task, per class, and what it took."""
    (train, test), (tasks, held, said) = load(), division(seed)
    way = {**ROWS, **TRIED}[row]
    question = CondenseClasses(
        budget=memory // (SITES * TASKS) if way.own_order else 0,
        in_union=True,
        parametrization=way.parametrization,
        codec=way.codec,
        steps=way.steps,
        network=NETWORK,
        seed=1000 * seed,
        real_fraction=way.real_fraction,
    )
    everyone: Any = {"min_train_nodes": SITES, "min_available_nodes": SITES}
    which = () if way.own_order else tasks
    strategy = Incremental(train.spec, which, question, memory=memory, fit=FIT, network=NETWORK, **everyone)

    def holds(context: Context) -> Data:
        site = int(context.node_config["partition-id"])
        if way.own_order:  # what a site holds at present: each begins at another task
            return train.subset(held[(strategy.state.round + site) % TASKS][site])
        return train.subset(torch.cat([task[site] for task in held]).sort().values)

    after: list[dict[str, Any]] = []

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        joined = strategy.state.joined
        if joined is not None:
            side = ServerSide(None, lambda joined: torch.nn.Identity(), {}, network=NETWORK)
            found = {"memory": joined.nbytes, "images": len(joined), "sites": len(strategy.answers)}
            after.append(_known(accuracy_of_weights(arrays, side, test)[1]) | found)
        return None

    caps = Caps.none(2 if way.real_fraction else 10)
    app = make_client_app(holds, caps=caps, cache=cache, is_counted=False)
    with task_identity():
        grid = InProcessGrid(app, SITES)
        strategy.start(grid, num_rounds=TASKS, evaluate_fn=measure)
    joined = strategy.state.joined
    assert joined is not None
    joined.save(cache / f"{_key(row, memory, seed)}.safetensors", overwrite=True)
    up = sum(traffic.up for traffic in grid.traffic.values()) / SITES
    return {"after": after, "tasks": _order(tasks, train), "bytes_up": up, "codec": joined.codec, "divisions": said}


def retrain(how: Training, memory: int, seed: int, cache: Path) -> dict[str, Any]:
    """Train in another way on the sets that a row has left, as they were after each task."""
    (train, test), (tasks, _, said) = load(), division(seed)
    union = SyntheticSet.load(cache / f"{_key(how.sets, memory, seed)}.safetensors")
    after: list[dict[str, Any]] = []
    network: Any = NETWORK
    for number in range(1, TASKS + 1):
        begin = number - 1 if how.forgets else 0
        known = union.restrict([name for names in tasks[begin:number] for name in names])
        assert known is not None
        trained = train_on(known, test, network=network, recipe=how.fit, seed=1000 * seed + number)
        after.append(_known(accuracy(trained, test)[1]))
        if not how.anew:
            network = partial(_again, Weights.of(trained))
    kept = {"memory": 0 if how.forgets else union.nbytes, "images": 0 if how.forgets else len(union)}
    return {"after": [*after[:-1], after[-1] | kept], "tasks": _order(tasks, train), "divisions": said}


def _again(weights: Weights, shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    return weights.load_into(build(NETWORK, shape, classes, 0))


def _known(per_class: torch.Tensor) -> dict[str, Any]:
    return {"per_class": [round(value, 2) for value in per_class.tolist()]}


def _order(tasks: Sequence[Sequence[str]], data: Data) -> list[list[int]]:
    return [[data.spec.classes.index(name) for name in names] for names in tasks]


def analytic(memory: int, seed: int, per_site: bool) -> dict[str, Any]:
    """Run a stream of sums: as many features as the memory has room for, or as its share of a site and task has."""
    (train, test), (tasks, held, said) = load(), division(seed)
    dims = ridge_dims(memory // (SITES * TASKS), len(train.spec.classes), "int8-deflated") if per_site else 0
    everyone: Any = {"min_train_nodes": SITES, "min_available_nodes": SITES}
    question = ProductsOfClasses(seed=seed, dims=dims)
    strategy = Analytic(train.spec, tasks, question, memory=memory, network=WIDE, **everyone)
    mine = [train.subset(torch.cat([task[site] for task in held]).sort().values) for site in range(SITES)]
    after: list[dict[str, Any]] = []

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        side = ServerSide(None, lambda joined: torch.nn.Identity(), {}, network=WIDE)
        kept = Sums({name: strategy.state.tensors[name] for name in ("rows", "scales")})
        found = {"memory": len(kept.to_bytes()), "sites": len(strategy.answers)}
        after.append(_known(accuracy_of_weights(arrays, side, test)[1]) | found)
        return None

    app = make_client_app(
        lambda context: mine[int(context.node_config["partition-id"])], caps=Caps.none(2), is_counted=False
    )
    with task_identity():
        grid = InProcessGrid(app, SITES)
        strategy.start(grid, num_rounds=TASKS, evaluate_fn=measure)
    up = sum(traffic.up for traffic in grid.traffic.values()) / SITES
    found = {"after": after, "tasks": _order(tasks, train), "bytes_up": up, "dims": strategy.size - 1}
    return found | {"form": strategy.form, "divisions": said}


def joint(seed: int) -> dict[str, Any]:
    """Train from scratch on all records of the classes so far, after each task."""
    (train, test), (tasks, held, said) = load(), division(seed)
    after = []
    for number in range(1, TASKS + 1):
        known = train.subset(torch.cat([mine for task in held[:number] for mine in task]).sort().values)
        network = build(NETWORK, train.spec.shape, 10, child_seed(seed, "network"))
        fit_on(network, known, FIT, seed=seed + number, operations=train.spec.operations)
        after.append(_known(accuracy(network, test)[1]))
    return {"after": after, "tasks": _order(tasks, train), "divisions": said}


def cells(cache: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return all cells, the most wanted first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}

    def add(rows: Sequence[str], memory: int, seeds: Sequence[int] = SEEDS) -> None:
        for seed in seeds:
            for row in rows:
                compute = partial(retrain, TRAINED[row]) if row in TRAINED else partial(stream, row)
                found[_key(row, memory, seed)] = partial(compute, memory, seed, cache)

    add(("real", "condensed"), SMALL, SEEDS[:1])
    add(("condensed, from weights", "finetune"), SMALL, SEEDS[:1])
    found[_key("joint", 0, SEEDS[0])] = partial(joint, SEEDS[0])
    add(("real", "hybrid", "condensed"), LARGE, SEEDS[:1])
    add(("real", "condensed"), SMALL, SEEDS[1:])
    add(("condensed, own order", "real, own order"), SMALL, SEEDS[:1])
    add(("condensed, 1500 steps", "condensed, pixels"), SMALL, SEEDS[:1])
    add(("finetune",), SMALL, SEEDS[1:])
    found |= {_key("joint", 0, seed): partial(joint, seed) for seed in SEEDS[1:]}
    for row, memory in (("analytic", SMALL), ("analytic, up", SMALL), ("analytic", LARGE), ("analytic, up", LARGE)):
        found |= {_key(row, memory, seed): partial(analytic, memory, seed, row == "analytic, up") for seed in SEEDS}
    add(("real", "hybrid", "condensed"), LARGE, SEEDS[1:])
    add(("hybrid, nine tenths real",), LARGE)
    return found


def _key(row: str, memory: int, seed: int) -> str:
    return f"{row} | {memory:06} | seed {seed}"


def scores(cell: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return mean over tasks, final accuracy and forgetting of a cell, in percent.

    Accuracies are over the test images of the classes so far. Forgetting is the mean over all tasks but the last of the
    best accuracy on a task's classes before the end less that at the end.
    """
    tasks, after = cell["tasks"], [one["per_class"] for one in cell["after"]]
    so_far = [statistics.fmean(known[c] for task in tasks[: k + 1] for c in task) for k, known in enumerate(after)]
    lost = []
    for k, task in enumerate(tasks[:-1]):
        on_task = [statistics.fmean(known[c] for c in task) for known in after[k:]]
        lost.append(max(on_task[:-1]) - on_task[-1])
    return statistics.fmean(so_far), so_far[-1], statistics.fmean(lost)


def table() -> str:
    """Return a row per way and memory, over the seeds that are there."""
    results = read(PATH)
    lines = ["| memory, kB | row | final | mean over tasks | forgetting | kB kept | kB up per site | seeds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    names = ["joint", "analytic", "analytic, up", *TRAINED, *ROWS, *TRIED]  # the ceiling, and the rival that wins
    for memory in (0, SMALL, LARGE):
        for row in names:
            found = [results[key] for seed in SEEDS if (key := _key(row, memory, seed)) in results]
            if not found:
                continue
            final, mean, lost = ([scores(cell)[k] for cell in found] for k in (1, 0, 2))
            own = "own order" in row  # every class is there from the first round on
            kept = statistics.fmean(cell["after"][-1].get("memory", 0) for cell in found) / 1000
            up = statistics.fmean(cell.get("bytes_up", 0) for cell in found) / 1000
            is_empty = row in ("finetune", "joint")
            said = [
                "-" if is_empty else f"{memory / 1000:.0f}",
                row,
                _with_spread(final),
                "-" if own else _with_spread(mean),
                "-" if own else _with_spread(lost),
                "0" if row == "finetune" else "all records" if row == "joint" else f"{kept:.1f}",
                "-" if row == "joint" else f"{up:.1f}",
                str(len(found)),
            ]
            lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


def _with_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of cells")
    parser.add_argument("--cache", type=Path, default=RESULTS.parent / "sets", help="for answers and sets")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    arguments.cache.mkdir(parents=True, exist_ok=True)
    wanted = {name: cell for name, cell in cells(arguments.cache).items() if any(p in name for p in arguments.only)}
    run_at_precision(arguments, PATH, wanted)


if __name__ == "__main__":
    main()
