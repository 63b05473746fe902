"""Anchored against what it is made of and against its rivals: Fashion-MNIST, ten clients, label-wise Dirichlet.

    python experiments/anchored.py choose --float32  # step sizes and the rest, on held-out training images
    python experiments/anchored.py rows --float32    # four rounds after round 0; `long`, ten; `longer`, twenty
    python experiments/anchored.py four --float32    # so `one`, `two`, `ten`: rows that solve for the last layer
    python experiments/anchored.py four --seeds 1 2 --float32   # on the same divisions, everything else drawn anew
    python experiments/anchored.py cifar10 --float32 # ten rounds; `cifar10-long`, fifty; `cifar10-one`, `cifar10-two`
    python experiments/anchored.py --table           # Markdown, from what is there

Round 0 is one-shot: `mmd-ridge`, 200 steps, a reply of at most 12 kB a client, coded by the rate rule; 800 steps of
training on the union. Every row then trains a ConvNet-3 width 32 on records as they are, with the same two passes over
each client's records a round and a step size that falls to nothing within it (cells named `constant` and `augmented`
are of one pass at one step size, the latter with an augmentation of each record; anchors draw theirs in any case), all
clients in every round, weights at eight bits both ways, through Flower's real serialisation; accuracy is
that of the last step on all test images. Rows of one division and seed share round 0, whose answers are kept in the
work folder; a second seed of a division draws sets, networks and batches anew. What each row is:

- anchors: the union, at most 100 kB, stands beside the records at each client; the server only averages;
- server: no anchors; the server trains on the union after each averaging;
- both: both of them;
- neither: averaging from the weights of round 0, and with one of three cures that cost no byte: restricted, calibrated
  and masked softmax on the records, a proximal term;
- noise, means, real: anchors of another kind in the place of the union, from the same weights: a pattern of noise per
  class (after VHL: Tang et al., ICML 2022), means of groups of records, and real images in the codec that was best for
  them at 10 kB, as many as a tenth of the cap holds of each client's (they show records);
- fedadam, fedavgm: both, combined by Flower's FedAdam and FedAvgM; fedexp: combined by FedExP;
- head: in the last round sites send sums of features, of about as many bytes as weights, from which the last layer is
  solved; whole head: of all 512 features;
- mixed: networks of three architectures, each trained on the union of round 0, as any site may do for itself;
- scratch: FedAvg from an untrained network; scratch restricted: the same with restricted softmax.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import fedcondense as fc
from fedcondense.contract import Parametrization
from fedcondense.data.images import Data
from fedcondense.flower import Bench, Condense
from fedcondense.flower.contract import State
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.strategies.anchored import Anchored
from fedcondense.flower.strategies.anchors import Nothing, Shared
from fedcondense.flower.strategies.averages import AVERAGES
from fedcondense.flower.strategies.continuing import Continue
from fedcondense.networks import build
from fedcondense.parametrizations import Pixels
from fedcondense.sets.fitting import Within
from fedcondense.sets.synthetic import Part, Record, SyntheticSet
from fedcondense.training.fit import Fit, accuracy

PATH = RESULTS / "anchored.json"
CLIENTS, HELD_OUT, NETWORK = 10, 500, "convnet3-w32"
BUDGET, CAP, STEPS = 12_000, 100_000, 200
CHOICE = 2  # rounds after round 0 that settings are chosen by
KINDS = {  # data and rounds after round 0
    "rows": ("fashion-mnist", 4),
    "one": ("fashion-mnist", 1),
    "two": ("fashion-mnist", 2),
    "four": ("fashion-mnist", 4),
    "ten": ("fashion-mnist", 10),
    "long": ("fashion-mnist", 10),
    "longer": ("fashion-mnist", 20),
    "cifar10-one": ("cifar10", 1),
    "cifar10-two": ("cifar10", 2),
    "cifar10": ("cifar10", 10),
    "cifar10-long": ("cifar10", 50),
}
MIXED = ("convnet3-w32", "lenet", "mlp")  # architectures that sites of one federation may have
CHOOSING = 7  # the division and seed that settings are chosen on
DIVISIONS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """A row: what goes down, what sites and the server do."""

    anchors: str = "none"
    polish: Fit = Fit(steps=0)
    steps: Mapping[str, Any] = field(default_factory=dict)
    average: str = "fedavg"
    starts: bool = True  # from the weights of round 0
    head: int | None = None  # bytes of sums that the last layer is solved from, in the last round


LOCAL: dict[str, Any] = {"loss": "softmax", "lr": 0.03, "anchor_batch": 32, "anchor_weight": 0.25, "augment": False}
PASSES: dict[str, Any] = {"lr_end": 0.0, "epochs": 2}  # but in cells to choose by, whose rows say so themselves
BALANCED: dict[str, Any] = {"loss": "balanced", "strength": 1.0}
POLISH = Fit(steps=100, lr=0.01)
ROWS: dict[str, Row] = {
    "both": Row("union", POLISH),
    "anchors": Row("union"),
    "both, more anchors": Row("union", POLISH, {"anchor_batch": 64, "anchor_weight": 0.5}),
    "anchors, more": Row("union", steps={"anchor_batch": 64, "anchor_weight": 0.5}),
    "both, balanced": Row("union", POLISH, BALANCED),
    "server": Row(polish=POLISH),
    "neither": Row(),
    "restricted": Row(steps={"loss": "restricted", "strength": 0.5}),
    "masked": Row(steps={"loss": "calibrated", "strength": 0.0}),
    "calibrated": Row(steps={"loss": "calibrated", "strength": 1.0}),
    "balanced": Row(steps=BALANCED),
    "anchors, balanced": Row("union", steps=BALANCED),
    "server, balanced": Row(polish=POLISH, steps=BALANCED),
    "proximal": Row(steps={"proximal_mu": 0.1}),
    "anchors, restricted": Row("union", steps={"loss": "restricted", "strength": 0.5}),
    "noise": Row("noise"),
    "means": Row("means"),
    "real": Row("real"),
    "fedadam": Row("union", POLISH, average="fedadam"),
    "fedavgm": Row("union", POLISH, average="fedavgm"),
    "balanced, fedexp": Row(steps=BALANCED, average="fedexp"),
    "balanced, fedexp, 4 passes": Row(steps={**BALANCED, "epochs": 4}, average="fedexp"),
    "neither, fedexp": Row(average="fedexp"),
    "both, balanced, fedexp": Row("union", POLISH, BALANCED, "fedexp"),
    "real, balanced, fedexp": Row("real", steps=BALANCED, average="fedexp"),
    "scratch, balanced, fedexp": Row(steps=BALANCED, average="fedexp", starts=False),
    "balanced, head": Row(steps=BALANCED, head=0),
    "balanced, whole head": Row(steps=BALANCED, head=140_000),
    "neither, head": Row(head=0),
    "balanced, fedexp, head": Row(steps=BALANCED, average="fedexp", head=0),
    "scratch, balanced, head": Row(steps=BALANCED, starts=False, head=0),
    "scratch, balanced, whole head": Row(steps=BALANCED, starts=False, head=140_000),
    "scratch": Row(starts=False),
    "scratch, balanced": Row(steps=BALANCED, starts=False),
}


@lru_cache(2)
def load(name: str, held_out: bool) -> tuple[Data, Data]:
    """Return training and test images; held out: the training images but for the last of each class, and those."""
    train, test = fc.load_data(name)
    if not held_out:
        return train, test
    last = torch.cat([torch.where(train.labels == c)[0][-HELD_OUT:] for c in range(len(train.spec.classes))])
    first = torch.ones(len(train), dtype=torch.bool).index_fill(0, last, False)
    return train.subset(first), train.subset(last)


def bench_of(name: str, alpha: float, division: int, work: Path, held_out: bool, seed: int = 0) -> Bench:
    """Return a division and what runs on it; seed 0 is the division's own number."""
    train, test = load(name, held_out)
    index = fc.partition(train, CLIENTS, "dirichlet", alpha=alpha, seed=division)
    return Bench(train, test, index, NETWORK, division + 100 * seed, work=work, min_records=10)


def ran(bench: Bench, strategy: Anchored, rounds: int, app: ClientApp | None = None) -> list[dict[str, float]]:
    """Run a strategy up to a round; return accuracy, and bytes per client so far, of each."""
    server, history = ServerApp(), list[dict[str, float]]()
    spec = bench.test.spec

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        def measure(number: int, arrays: ArrayRecord) -> MetricRecord:
            network = build(NETWORK, spec.shape, len(spec.classes), 0)
            network.load_state_dict(arrays.to_torch_state_dict())
            percent, _ = accuracy(network, bench.test)
            history.append({"round": number, "accuracy": round(percent, 3)})
            return MetricRecord({"accuracy": percent})

        strategy.keep = lambda at: history[-1].update(
            up=round(at.spent["bytes-up"]), down=round(at.spent["bytes-down"])
        )
        strategy.start(grid, num_rounds=rounds, timeout=1e9, evaluate_fn=measure)

    app = app or bench.client("anchored")
    run_in_process(server, app, bench.everyone, node_config={"share-with": "sites"})
    return history


def made(bench: Bench, row: Row) -> Anchored:
    task = Continue(network=NETWORK, seed=bench.seed, **{**LOCAL, **row.steps})
    first = Condense(budget=BUDGET, parametrization="", network=NETWORK, steps=STEPS, seed=bench.seed)
    return Anchored(
        bench.train.spec,
        Fit(steps=800),
        first=first if row.starts else None,
        task=task,
        anchors=Nothing() if row.anchors == "none" else Shared(CAP),
        polish=row.polish,
        average=AVERAGES[row.average](),
        head_bytes=row.head,
        limits=bench.limits,
        **bench.asked,
    )


def first_round(bench: Bench) -> State:
    """Return the state after round 0, with the union as anchors; a work folder keeps it."""
    assert bench.work is not None
    path = bench.work / f"round0-{bench.train.fingerprint[:8]}-{bench.seed}-{len(bench.partition[0])}.state"
    if not path.exists():
        strategy = made(bench, ROWS["both"])
        ran(bench, strategy, 1)
        path.write_bytes(dump_state(strategy.state))
    return load_state(path.read_bytes(), str(path))


def computed(
    name: str, row: Row, rounds: int, alpha: float, division: int, work: Path, held_out: bool = False, seed: int = 0
) -> Any:
    """Return a row's accuracies and bytes by round after round 0."""
    row = row if held_out else replace(row, steps={**PASSES, **row.steps})
    bench = bench_of(name, alpha, division, work, held_out, seed)
    strategy, before = made(bench, row), 1 if row.starts else 0
    if row.starts:
        state = first_round(bench)
        tensors = {} if row.anchors == "none" else dict(state.tensors)
        if row.anchors not in ("none", "union"):
            blob = ANCHORS[row.anchors](bench).to_bytes()
            tensors["anchors"] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
        strategy.state = state.but(tensors=tensors)
    history = ran(bench, strategy, rounds + before)
    start = {"round": 0, "accuracy": _accuracy(bench, strategy, row)}
    anchors = len(strategy.state.tensors["anchors"]) if "anchors" in strategy.state.tensors else 0
    return {"rounds": [start, *({**h, "round": int(h["round"]) - before} for h in history)], "anchor_bytes": anchors}


def _accuracy(bench: Bench, strategy: Anchored, row: Row) -> float | None:
    if not row.starts:
        return None
    network = build(NETWORK, bench.test.spec.shape, len(bench.test.spec.classes), 0)
    weights = first_round(bench).weights
    assert weights is not None
    weights.load_into(network)
    return round(accuracy(network, bench.test)[0], 3)


def noise(bench: Bench) -> SyntheticSet:
    """Return a blurred pattern per class, each image with noise of its own: as many images as a client's set has."""
    generator = torch.Generator().manual_seed(bench.seed)
    spec, many = bench.train.spec, 84
    channels, height, width = spec.shape
    coarse = torch.randn(len(spec.classes), channels, height // 4, width // 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").repeat_interleave(many, 0)
    images = 0.5 + 0.2 * (patterns + 0.5 * torch.randn(patterns.shape, generator=generator))
    labels = torch.arange(len(spec.classes)).repeat_interleave(many)
    return _set(images, labels, spec, "noise")


def means(bench: Bench) -> SyntheticSet:
    """Return means of groups of a client's records of a class, as many as fit into the cap with those of the others."""
    parts = []
    for index in bench.partition:
        data = bench.train.subset(index)
        images, labels = [], []
        for c, n in enumerate(data.counts.tolist()):
            if n < bench.min_records:
                continue
            mine = data.images[data.labels == c].float().div(255)
            groups = mine[: n - n % 10].split(max(10, n // 14))[:14]
            images += [group.mean(0) for group in groups]
            labels += [c] * len(groups)
        if images:
            parts.append(_set(torch.stack(images), torch.tensor(labels), data.spec, "means"))
    return _capped(parts)


def real(bench: Bench) -> SyntheticSet:
    """Return random records of each client in WebP, as many as its share of the cap holds: no sheet is thinned."""
    sets = []
    for index in bench.partition:
        data = bench.train.subset(index)
        left = data.subset((data.counts >= bench.min_records)[data.labels])
        if len(left):
            within = Within(CAP // CLIENTS - 500, "webp-20", seeds=0)
            sets.append(fc.select(left, within, "random", seed=bench.seed))
    return _capped(sets)


ANCHORS: dict[str, Callable[[Bench], SyntheticSet]] = {"noise": noise, "means": means, "real": real}


def _set(images: torch.Tensor, labels: torch.Tensor, spec: Any, method: str) -> SyntheticSet:
    record = Record(spec.name, spec.shape, spec.classes, spec.mean, spec.std, method=method)
    stored = {"images": (255 * images.clamp(0, 1)).round().to(torch.uint8)}
    pixels: Parametrization = Pixels()
    return SyntheticSet([Part(stored, labels.to(torch.uint8), pixels, record)]).recode("bits-3")


def _capped(sets: Sequence[SyntheticSet]) -> SyntheticSet:
    named = {f"client-{k}": one for k, one in enumerate(sets)}
    found = Shared(CAP)(named, frozenset(named))
    assert found is not None
    return found


FALLING = {"lr_end": 0.0}  # the step size falls to zero within each round
CHOICES: dict[str, Row] = {
    "balanced": Row(steps=BALANCED),
    "balanced, falling": Row(steps={**BALANCED, **FALLING}),
    "balanced, falling, 2 epochs": Row(steps={**BALANCED, **FALLING, "epochs": 2}),
    "balanced, 2 epochs": Row(steps={**BALANCED, "epochs": 2}),
    "balanced, falling, 2 epochs, fedexp": Row(steps={**BALANCED, **FALLING, "epochs": 2}, average="fedexp"),
    "balanced, falling, 4 epochs, fedexp": Row(steps={**BALANCED, **FALLING, "epochs": 4}, average="fedexp"),
    "balanced, falling, augmented, 2 epochs": Row(steps={**BALANCED, **FALLING, "epochs": 2, "augment": True}),
    "balanced, falling, lr 0.1": Row(steps={**BALANCED, **FALLING, "lr": 0.1}),
    "balanced, falling, lr 0.01": Row(steps={**BALANCED, **FALLING, "lr": 0.01}),
    "anchors, balanced, falling": Row("union", steps={**BALANCED, **FALLING}),
    "anchors, falling": Row("union", steps=FALLING),
    "both, falling": Row("union", POLISH, FALLING),
    "neither, falling": Row(steps=FALLING),
    "proximal 0.01, falling": Row(steps={"proximal_mu": 0.01, **FALLING}),
    "proximal 0.1, falling": Row(steps={"proximal_mu": 0.1, **FALLING}),
    "calibrated, falling": Row(steps={"loss": "calibrated", "strength": 1.0, **FALLING}),
    "restricted, falling": Row(steps={"loss": "restricted", "strength": 0.5, **FALLING}),
}


def cells(
    kind: str, work: Path, alpha: float, divisions: Sequence[int], rows: Sequence[str], seeds: Sequence[int] = (0,)
) -> dict[str, Any]:
    if kind == "choose":
        given = ("fashion-mnist", CHOICE, alpha, CHOOSING, work, True)
        return {f"choose | {said}": partial(_of, row, *given) for said, row in CHOICES.items()}
    if kind == "mixed":
        made = {(network, seed): partial(mixed, network, alpha, seed, work) for seed in divisions for network in MIXED}
        return {f"mixed | {alpha:g} | {network} | {seed}": cell for (network, seed), cell in made.items()}
    data, rounds = KINDS[kind]
    return {
        f"{kind} | {alpha:g} | {name} | {division}{f', seed {seed}' if seed else ''}": partial(
            _of, ROWS[name], data, rounds, alpha, division, work, False, seed
        )
        for seed in seeds
        for division in divisions
        for name in rows
    }


def mixed(network: str, alpha: float, seed: int, work: Path) -> dict[str, Any]:
    """Return what networks of one architecture reach that are trained on the union of round 0, as any site may."""
    bench = bench_of("fashion-mnist", alpha, seed, work, False)
    union = first_round(bench).joined
    assert union is not None
    found = fc.evaluate(union, bench.test, network=network, recipe=Fit(steps=800), seeds=(seed,))
    return {"accuracy": round(found.accuracy, 3), "network": network}


def _of(row: Row, name: str, rounds: int, *where: Any) -> dict[str, Any]:
    found: dict[str, Any] = computed(name, row, rounds, *where)
    return found


def table(kind: str = "rows", alpha: float = 0.1) -> str:
    """Return rows as Markdown: accuracy after rounds, bytes per client; the best at the end first."""
    results = read(PATH)
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for key, cell in results.items():
        which, at, name, _ = [*key.split(" | "), "", ""][:4]
        if which == kind and at == f"{alpha:g}":
            found.setdefault(name, []).append(cell["rounds"])
    shown: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 50)
    if kind in ("rows", "augmented", "constant"):
        shown = (0, 1, 2, 3, 4)
    most = max((len(runs[0]) - 1 for runs in found.values()), default=0)
    shown = tuple(r for r in shown if r <= most)
    lines = [
        f"| row | {' | '.join(f'round {r}' for r in shown)} | worst | kB up, down | runs |",
        "|---" * (len(shown) + 4) + "|",
    ]

    def last(runs: list[list[dict[str, Any]]]) -> float:
        return statistics.fmean(run[-1]["accuracy"] for run in runs)

    for name, runs in sorted(found.items(), key=lambda item: -last(item[1])):
        texts = []
        for r in shown:
            values = [run[r]["accuracy"] for run in runs if r < len(run) and run[r]["accuracy"] is not None]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            texts.append(f"{statistics.fmean(values):.1f}{spread}" if values else "")
        worst = min(run[-1]["accuracy"] for run in runs)
        up, down = (statistics.fmean(run[-1][way] for run in runs) / 1000 for way in ("up", "down"))
        lines.append(f"| {name} | {' | '.join(texts)} | {worst:.1f} | {up:.0f}, {down:.0f} | {len(runs)} |")
    return "\n".join(lines)


def ends(kinds: Sequence[str] = ("one", "two", "four", "ten"), alpha: float = 0.1) -> str:
    """Return where rows that solve for the last layer end, and rows beside them, by rounds after round 0.

    Rows are compared on the divisions and seeds that both have: mean difference ± its standard error.
    """
    found: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for key, cell in read(PATH).items():
        which, at, name, drawn = [*key.split(" | "), "", ""][:4]
        if which in kinds and at == f"{alpha:g}":
            last = len(cell["rounds"]) - 1
            for number in {last} if "head" in name else {1, 2, 4, 10} & set(range(last + 1)):
                found.setdefault((number, name), {})[drawn] = cell["rounds"][number]  # equal in runs of more rounds
    lines = ["| rounds | row | accuracy | worst | over averaging alone | over scratch | kB up, in all | runs |"]
    lines.append("|---" * 8 + "|")
    for (number, name), cells in sorted(found.items(), key=lambda one: (one[0][0], -_mean(one[1], "accuracy"))):
        values = [cell["accuracy"] for cell in cells.values()]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        alone = name.removesuffix(", head").removesuffix(", whole head")
        over = [
            _ahead(cells, found.get((number, rival), {})) if rival != name else ""
            for rival in (alone, name if name.startswith("scratch") else f"scratch, {name}")
        ]
        up, down = _mean(cells, "up") / 1000, _mean(cells, "down") / 1000
        lines.append(
            f"| {number} | {name} | {statistics.fmean(values):.1f}{spread} | {min(values):.1f} "
            f"| {' | '.join(over)} | {up:.0f}, {up + down:.0f} | {len(cells)} |"
        )
    return "\n".join(lines)


def _ahead(cells: Mapping[str, Mapping[str, Any]], rivals: Mapping[str, Mapping[str, Any]]) -> str:
    pairs = [cells[drawn]["accuracy"] - rivals[drawn]["accuracy"] for drawn in sorted(cells.keys() & rivals.keys())]
    if not pairs:
        return ""
    error = f" ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.1f}" if len(pairs) > 1 else ""
    return f"{statistics.fmean(pairs):+.1f}{error}"


def _mean(cells: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(cell[key] for cell in cells.values())


def architectures(alpha: float = 0.1) -> str:
    """Return what networks of several architectures reach that are trained on the union of round 0."""
    found: dict[str, list[float]] = {}
    for key, cell in read(PATH).items():
        if key.startswith(f"mixed | {alpha:g} | "):
            found.setdefault(cell["network"], []).append(cell["accuracy"])
    lines = ["| network | accuracy | divisions |", "|---|---|---|"]
    for name, values in sorted(found.items(), key=lambda item: -statistics.fmean(item[1])):
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {statistics.fmean(values):.1f}{spread} | {len(values)} |")
    return "\n".join(lines)


def choices() -> str:
    """Return what was tried on held-out images, the best after two rounds first."""
    found = {name.split(" | ", 1)[1]: cell["rounds"] for name, cell in read(PATH).items() if name.startswith("choose")}
    lines = ["| row | round 0 | round 1 | round 2 |", "|---|---|---|---|"]
    for name, rounds in sorted(found.items(), key=lambda item: -item[1][-1]["accuracy"]):
        after = " | ".join(f"{one['accuracy']:.1f}" for one in rounds)
        lines.append(f"| {name} | {after} |")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("kind", nargs="?", choices=("choose", *KINDS, "mixed"))
    parser.add_argument("--work", type=Path, default=Path("anchored-work"), help="keeps answers and round 0")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--divisions", type=int, nargs="+", default=DIVISIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,), help="of each division")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    given = parser.parse_args()
    if given.kind:
        given.work.mkdir(parents=True, exist_ok=True)
        chosen = cells(given.kind, given.work, given.alpha, given.divisions, given.rows, given.seeds)
        run_at_precision(given, PATH, chosen)
    if given.table or not given.kind:
        print(table())


if __name__ == "__main__":
    main()
