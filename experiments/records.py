"""How near a class's images are to its records, by their number, and whom `min-records` leaves out.

    python experiments/records.py                 # all cells, resumes; results/records.json; 17 CPU minutes
    python experiments/records.py --only digits
    python experiments/records.py --table         # the tables of records.md, and what they say of a default

A client holds classes of 1, 2, 3, 5, 10, ... records and condenses as the Flower client does: `mmd-ridge`, 720 steps,
from class Gaussians. Sizes rotate over the classes from one client to the next. For every synthetic image the nearest
of the class's records is compared with the nearest of as many other records of that class, which the client never had;
both are drawn by chance. Distances are root mean squares over pixels in [0, 1]. The ratio of the mean distances is 0
for records and 1 for images that follow from no single record; its 95 % are of a bootstrap over classes and clients.
One thread, float32.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cells import RESULTS, read, run_cells
from torch import Tensor

import fedcondense as fc
from fedcondense.condensing import prepare, run
from fedcondense.data.partitions import Partition, partition
from fedcondense.flower.caps import SHARE_OF_RECORDS as LIMIT
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.randomness import child_seed, stream

PATH = RESULTS / "records.json"
THRESHOLDS = (1, 5, 10, 20, 30, 50)
SMALL = (1, 2, 3, 5, 10, 15, 20, 30, 50, 68)  # every digit has twice the largest
LARGE = (100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000)
NEAR = 0.06  # 1 of 370 test digits is as near to a training digit


class Setting(NamedTuple):
    data: str
    ipc: int
    limit: float  # the share of a class's records that its stored images may come to
    clients: int
    sizes: tuple[int, ...] = SMALL

    def key(self, client: int) -> str:
        """Name a client's cell."""
        large = " large" * (self.sizes == LARGE)
        return f"closeness {self.data}{large} ipc{self.ipc:02d} limit{self.limit:g} client{client}"


SETTINGS = (
    Setting("digits", 10, LIMIT, 10),
    Setting("digits", 10, 0.25, 10),
    Setting("digits", 10, 0.1, 10),
    Setting("digits", 1, LIMIT, 10),
    Setting("fashion-mnist", 10, LIMIT, 5),
    Setting("fashion-mnist", 10, 0.1, 3),
    Setting("fashion-mnist", 10, LIMIT, 2, LARGE),
)
CONTROLS = ("records", "mean of the records", "mean of 5 records", "test images")
DEMO_LIMITS = (LIMIT, 0.25, 0.1)
DEPLOYED = (*(f"demo limit{limit:g}" for limit in DEMO_LIMITS), *(f"folders limit{limit:g}" for limit in (LIMIT, 0.1)))
DIVISIONS: dict[str, Callable[[], Partition]] = {
    "demo": lambda: partition(fc.load_data("digits").train, 10, "dirichlet", alpha=0.1, seed=0),
    "fashion-mnist": lambda: partition(fc.load_data("fashion-mnist").train, 10, "dirichlet", alpha=0.1, seed=0),
    "folders": lambda: partition(fc.load_data("digits").train, 3, "iid", seed=0),
}


def condensed(data: fc.Data, ipc: int, limit: float, seed: int) -> fc.SyntheticSet:
    """Condense by the default objective, without a line on classes of few records: they are the point."""
    return run(prepare(data, ipc, DEFAULT_OBJECTIVE, "pixels", seed=seed, limit=limit))


def nearest(images: Tensor, records: Tensor) -> list[float]:
    """Return each image's distance to the nearest record, root mean square over pixels in [0, 1]."""
    a, b = images.flatten(1).double(), records.flatten(1).double()
    found: list[float] = (torch.cdist(a, b).amin(1) / a.shape[1] ** 0.5).tolist()
    return found


def summary(images: Tensor, records: Tensor, others: Tensor) -> list[float]:
    """Return number of images, sums of distances to records and to others, the least to records, how many are near."""
    held, unseen = nearest(images, records), nearest(images, others)
    return [len(images), round(sum(held), 4), round(sum(unseen), 4), round(min(held), 4), sum(d < NEAR for d in held)]


def holdings(setting: Setting, client: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Draw the client's records of each class, and as many that it does not have: two indices a class."""
    labels, generator, drawn = fc.load_data(setting.data).train.labels, stream(client, "records"), {}
    for c in range(len(setting.sizes)):
        size = setting.sizes[(c + client) % len(setting.sizes)]
        order = (labels == c).nonzero()[:, 0]
        order = order[torch.randperm(len(order), generator=generator)]
        drawn[c] = order[:size], order[size : 2 * size]
    return drawn


def closeness(setting: Setting, client: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, drawn = fc.load_data(setting.data).train, holdings(setting, client)
        data = train.subset(torch.cat([held for held, _ in drawn.values()]))
        made = condensed(data, setting.ipc, setting.limit, child_seed(client, "client", client))
        images, targets = made.pixels()
        pixels = train.images.float() / 255
        return {
            str(len(held)): summary(images[targets.argmax(1) == c], pixels[held], pixels[others])
            for c, (held, others) in drawn.items()
        }

    return compute


def control(setting: Setting, client: int, kind: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        (train, test), found = fc.load_data(setting.data), {}
        pixels, unseen = train.images.float() / 255, test.images.float() / 255
        for c, (held, others) in holdings(setting, client).items():
            shown = {
                "records": pixels[held][:5],
                "mean of the records": pixels[held].mean(0, keepdim=True),
                "mean of 5 records": pixels[held][:5].mean(0, keepdim=True),
                "test images": unseen[test.labels == c][:10],
            }
            found[str(len(held))] = summary(shown[kind], pixels[held], pixels[others])
        return found

    return compute


def deployment(division: str, limit: float) -> Callable[[], dict[str, Any]]:
    """Condense a division's clients; sets lose the classes of few records after that, not before as a node does."""

    def compute() -> dict[str, Any]:
        (train, test), sets, classes = fc.load_data("digits"), [], []
        for client, index in enumerate(DIVISIONS[division]()):
            data = train.subset(index)
            sets.append(condensed(data, 10, limit, child_seed(0, "client", client)))
            images, targets = sets[-1].pixels()
            for c in data.counts.nonzero()[:, 0].tolist():
                found = nearest(images[targets.argmax(1) == c], data.images[data.labels == c].float() / 255)
                classes.append([int(data.counts[c]), round(min(found), 4), sum(d < NEAR for d in found), len(found)])
        accuracy = {}
        for threshold in THRESHOLDS:
            kept = []
            for made in sets:
                names, counts = made.record.classes, made.record.counts
                kept.append(made.restrict([name for name, n in zip(names, counts, strict=True) if n >= threshold]))
            joined = fc.SyntheticSet.join([made for made in kept if made is not None])
            result = fc.evaluate(joined, test)
            accuracy[str(threshold)] = [round(result.accuracy, 2), round(result.accuracy_std, 2), len(joined)]
        return {"classes": sorted(classes), "accuracy": accuracy}

    return compute


def left_out(division: str) -> Callable[[], dict[str, Any]]:
    """Return what goes below each threshold: percent of records and of pairs of client and class, whole clients."""

    def compute() -> dict[str, Any]:
        counts = DIVISIONS[division]().counts
        held, rows = counts > 0, {}
        for threshold in THRESHOLDS:
            few = held & (counts < threshold)
            records, pairs = counts[few].sum() / counts.sum(), few.sum() / held.sum()
            clients = int((few.sum(1) == held.sum(1)).sum())
            rows[str(threshold)] = [round(100 * float(records), 2), round(100 * float(pairs), 1), clients]
        return {"pairs": int(held.sum()), "below": rows}

    return compute


def cells() -> dict[str, Callable[[], dict[str, Any]]]:
    every = {f"left out {name}": left_out(name) for name in DIVISIONS}
    for setting in (SETTINGS[0], SETTINGS[4]):
        for kind in CONTROLS:
            every |= {f"{kind}, {setting.key(k)}": control(setting, k, kind) for k in range(setting.clients)}
    for setting in SETTINGS:
        every |= {setting.key(client): closeness(setting, client) for client in range(setting.clients)}
    every |= {f"demo limit{limit:g}": deployment("demo", limit) for limit in DEMO_LIMITS}
    return every | {f"folders limit{limit:g}": deployment("folders", limit) for limit in (LIMIT, 0.1)}


def ratio(summaries: list[list[float]]) -> tuple[float, float, float]:
    """Return the ratio of the mean distances and its 95 % interval, drawn over classes and clients."""
    generator = random.Random(0)

    def of(some: list[list[float]]) -> float:
        return sum(s[1] for s in some) / sum(s[2] for s in some)

    drawn = sorted(of(generator.choices(summaries, k=len(summaries))) for _ in range(2000))
    return of(summaries), drawn[50], drawn[-51]


def gathered(results: dict[str, Any], setting: Setting, kind: str = "") -> dict[int, list[list[float]]]:
    """Return the summaries of all clients by the number of records."""
    prefix = f"{kind}, " if kind else ""
    found = [results[prefix + setting.key(client)] for client in range(setting.clients)]
    return {size: [cell[str(size)] for cell in found] for size in setting.sizes}


def ratio_table(results: dict[str, Any], sizes: tuple[int, ...] = SMALL) -> str:
    """Return the ratio and its interval, a row per setting and control, a column per number of records."""
    rows = [(f"{s.data}, ipc {s.ipc}, limit {s.limit:g}", s, "") for s in SETTINGS if s.sizes == sizes]
    if sizes == SMALL:
        rows += [(f"{s.data}: {kind}", s, kind) for s in (SETTINGS[0], SETTINGS[4]) for kind in CONTROLS]
    lines = [f"| images | {' | '.join(map(str, sizes))} |", "|---" * (len(sizes) + 1) + "|"]
    for text, setting, kind in rows:
        entries = map(ratio, gathered(results, setting, kind).values())
        lines.append(f"| {text} | {' | '.join(f'{r:.2f} ({low:.2f} to {high:.2f})' for r, low, high in entries)} |")
    return "\n".join(lines)


def near_table(results: dict[str, Any]) -> str:
    """Return the least distance, and how many images are within `NEAR`."""
    lines = [f"| images | {' | '.join(map(str, SMALL))} |", "|---" * (len(SMALL) + 1) + "|"]
    for setting in (s for s in SETTINGS if s.sizes == SMALL):
        entries = [
            f"{min(s[3] for s in found):.3f}, {sum(s[4] for s in found)} of {sum(s[0] for s in found)}"
            for found in gathered(results, setting).values()
        ]
        lines.append(f"| {setting.data}, ipc {setting.ipc}, limit {setting.limit:g} | {' | '.join(entries)} |")
    return "\n".join(lines)


def left_out_table(results: dict[str, Any]) -> str:
    """Return records and pairs below each threshold in percent, and clients of which nothing is left."""
    lines = [f"| division | {' | '.join(map(str, THRESHOLDS))} |", "|---" * (len(THRESHOLDS) + 1) + "|"]
    for name in DIVISIONS:
        cell = results[f"left out {name}"]
        entries = [f"{r:.1f} / {p:.0f} / {clients}" for r, p, clients in cell["below"].values()]
        lines.append(f"| {name}, {cell['pairs']} pairs | {' | '.join(entries)} |")
    return "\n".join(lines)


def demo_table(results: dict[str, Any]) -> str:
    """Return, for images of classes that a threshold leaves: the least distance, how many are near, the accuracy."""
    lines = [f"| sets | {' | '.join(map(str, THRESHOLDS))} |", "|---" * (len(THRESHOLDS) + 1) + "|"]
    for name in DEPLOYED:
        entries = []
        for threshold in THRESHOLDS:
            classes = [c for c in results[name]["classes"] if c[0] >= threshold]
            accuracy, std, images = results[name]["accuracy"][str(threshold)]
            near = sum(c[2] for c in classes)
            entries.append(f"{min(c[1] for c in classes):.3f}, {near} of {images}; {accuracy:.1f} ± {std:.1f}")
        lines.append(f"| {name} | {' | '.join(entries)} |")
    return "\n".join(lines)


def advice(results: dict[str, Any]) -> str:
    """Say for each limit what `min-records` has to be so that no digit is near a record, and what 10 costs."""
    below, pairs, _ = results["left out demo"]["below"]["10"]
    lines = []
    for setting, limit in zip(SETTINGS, DEMO_LIMITS, strict=False):
        found, demo = gathered(results, setting), results[f"demo limit{limit:g}"]
        close = [size for size, some in found.items() if any(s[4] for s in some)]
        close += [records for records, _, near, _ in demo["classes"] if near]
        value, low, high = ratio([s for size, some in found.items() if size >= 10 for s in some])
        accuracy, std, images = demo["accuracy"]["10"]
        lines.append(
            f"limit {limit:g}: images within {NEAR} of a record in classes of up to {max(close)} records; ratio "
            f"{value:.2f} ({low:.2f} to {high:.2f}) from 10 records on; the demo without classes below 10: "
            f"{accuracy:.1f} ± {std:.1f} % with {images} images"
        )
    lines.append(f"min-records 10 leaves out {below} % of the demo's records and {pairs} % of its pairs")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell from the i-th on")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        results = read(PATH)
        tables = left_out_table(results), ratio_table(results), ratio_table(results, LARGE), near_table(results)
        print(*tables, demo_table(results), advice(results), sep="\n\n")
        return
    torch.set_num_threads(1)
    run_cells(PATH, {name: cell for name, cell in cells().items() if arguments.only in name}, arguments.shard)


if __name__ == "__main__":
    main()
