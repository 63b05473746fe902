"""Writes the tables of README.md and of the other pages from the results: what they quote is what was measured.

python experiments/tables.py             # between <!-- table NAME --> and <!-- end -->
python experiments/tables.py --check     # change nothing, fail if a table is not what the results say
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import analytic_bits
import anchored
import anchored_tried
import central
import coded_tables
import continual
import continual_protocols
import deployed
import deployment
import divisions
import federated
import federated_bytes
import flowers
import freed
import gpu
import growing
import head_tried
import incremental
import iterative
import labels
import large
import papers
import plan_bytes
import robot
import screens
import sparse
import superlink
import thousands
import turned
import turned_steps
import versions
from cells import RESULTS, read
from trust import __main__ as trust

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "docs/papers.md",
    *sorted(ROOT.glob("experiments/*.md")),
    ROOT / "strategies/condensed-replay/README.md",
    ROOT / "strategies/condensed-replay/robot.md",
    ROOT / "strategies/one-shot/README.md",
]


def federated_six() -> str:
    """Return six rows of the first partition for the front page, the most accurate first."""
    results, averaged = read(federated.PATH), federated.fedavg_rows(0.1)
    rows = [
        ("ridge on 512 features of a shared random network", federated.summary(results, (0.1, 10, "ridge", ""))),
        ("FedAvg, 20 rounds", averaged.get(20)),
        (
            "**one-shot** `mmd-ridge`, 10 images per class",
            federated.summary(results, (0.1, 10, "one-shot mmd-ridge", "pixels")),
        ),
        ("random real images, 10 per class", federated.summary(results, (0.1, 10, "random-real", ""))),
        (
            "**one-shot** `mmd-ridge`, factor 2, 2 images per class",
            federated.summary(results, (0.1, 2, "one-shot mmd-ridge", "multi-formation")),
        ),
        ("FedAvg, 5 rounds", averaged.get(5)),
    ]
    lines = ["| | kB up per client | kB down | accuracy |", "|---|---|---|---|"]
    for text, cell in rows:
        if cell:
            size = f"{cell['bytes_up'] / 1000:,.1f} | {cell['bytes_down'] / 1000:,.1f}"
            lines.append(f"| {text} | {size} | {cell['accuracy']:.1f} ± {cell['std']:.1f} |")
    return "\n".join(lines)


def central_short() -> str:
    """Return the mean accuracies of a data holder, a row a size."""
    results = read(RESULTS / "central.json")
    columns = {
        "random real": ("random", "pixels"),
        "herding": ("herding", "pixels"),
        "k-means": ("k-means", "pixels"),
        "half resolution": ("half-resolution", "pixels"),
        "DM": ("dm", "pixels"),
        "`dm-ridge`": ("dm-ridge", "pixels"),
        "`mmd-ridge`": ("mmd-ridge", "pixels"),
        "`dm-ridge`, factor 2": ("dm-ridge", "multi-formation"),
        "DSA": ("dsa", "pixels"),
    }
    lines = [f"| data, images per class | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for data in central.DATA:
        for ipc in central.IPC:
            texts = []
            for method in columns.values():
                names = [central.name_of(data, ipc, *method, seed) for seed in central.SEEDS]
                found = [results[name]["accuracy"] for name in names if name in results]
                texts.append(f"{statistics.fmean(found):.1f}" if found else "")
            lines.append(f"| {data}, {ipc} | {' | '.join(texts)} |")
    return "\n".join(lines)


def continual_short() -> str:
    """Return what each memory reaches, a row a stream: on real data at equal bytes."""
    results = read(continual.PATH)
    learners = {"gdumb-stock": "GDumb, stock", "gdumb": "GDumb", "replay-stock": "replay, stock", "replay": "replay"}
    memories = (
        "stock",
        "random",
        "k-means",
        "half-resolution",
        "dm-ridge",
        continual_protocols.BEST,
        continual_protocols.KERNEL,
    )
    lines = [
        f"| stream | image bytes | learner | {' | '.join(m.replace('stock', 'class-balanced') for m in memories)} |",
        "|---" * (len(memories) + 3) + "|",
    ]
    for name, protocol in continual_protocols.PROTOCOLS.items():
        if name.startswith(("budget", "coded", "capped")):
            continue
        for learner, text in learners.items():
            cells = []
            for memory in memories:
                keys = [f"{name} | {learner} | {memory} | seed {seed}" for seed in continual_protocols.SEEDS]
                found = [results[key]["accuracy"] for key in keys if key in results]
                spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
                cells.append(f"{statistics.fmean(found):.1f}{spread}" if found else "")
            if any(cells):
                size = protocol.images * (3072 if "cifar" in protocol.data else 784)
                lines.append(f"| {name} | {size:,} | {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def budgets() -> str:
    """Return GDumb's accuracy by budget, a column a memory."""
    results = read(continual.PATH)
    memories = [memory for _, memory in continual_protocols.budget(100).rows]
    lines = [f"| image bytes | {' | '.join(memories)} | seeds |", "|---" * (len(memories) + 2) + "|"]
    for images in continual_protocols.BUDGETS:
        cells, seeds = [], 0
        for memory in memories:
            keys = [f"budget {images} | gdumb | {memory} | seed {seed}" for seed in continual_protocols.SEEDS]
            found = [results[key]["accuracy"] for key in keys if key in results]
            seeds = max(seeds, len(found))
            cells.append(f"{statistics.fmean(found):.1f}" if found else "")
        if seeds:
            lines.append(f"| {images * 784:,} | {' | '.join(cells)} | {seeds} |")
    return "\n".join(lines)


def sweeps(name: str) -> str:
    """Return accuracies at a budget of CPU seconds, from the tables of that name that `fedcondense sweep` wrote."""
    lines = [
        "| data | images per class | row | accuracy | CPU s per set | steps | sets | warnings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: list[dict[str, str]] = []
    for path in RESULTS.glob(f"{name}-*.csv"):
        with path.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["accuracy"]]
    for row in sorted(rows, key=lambda row: (row["data"], int(row["ipc"]), -float(row["accuracy"]))):
        spread = f" ± {float(row['accuracy_std']):.1f}" if row["accuracy_std"] else ""
        accuracy = f"{float(row['accuracy']):.1f}{spread}"
        spent = f"{float(row['cpu_seconds']):.0f} | {row['steps']} | {row['sets']}"
        warnings = "no better than random" if "random" in row["warnings"] else ""
        lines.append(f"| {row['data']} | {row['ipc']} | {row['objective']} | {accuracy} | {spent} | {warnings} |")
    return "\n".join(lines)


def parametrizations() -> str:
    """Return what each way of storing images reaches in the same bytes, as `fedcondense sweep` wrote it."""
    lines = ["| stored as | bytes | accuracy | CPU s per set | sets |", "|---|---|---|---|---|"]
    with (RESULTS / "parametrizations-fashion-mnist.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["accuracy"]]
    for row in sorted(rows, key=lambda row: -float(row["accuracy"])):
        made = row["parametrization"] if row["steps"] else f"{row['objective']} real images"
        spent = f"{float(row['cpu_seconds']):.0f} | {row['sets']}"
        accuracy = f"{float(row['accuracy']):.1f} ± {float(row['accuracy_std']):.1f}"
        lines.append(f"| {made} | {int(row['nbytes']):,} | {accuracy} | {spent} |")
    return "\n".join(lines)


def bench() -> str:
    """Return each objective's step, beside the naive loop where there is one."""
    results = read(RESULTS / "bench.json")
    rows = results.get("steps", {}).get("rows", {})
    lines = [
        "| objective | steps per second | GFLOP per step | of the convolution peak | MB | naive / ours | naive MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = " / ".join(map(str, row["naive / ours"])) if "naive / ours" in row else ""
        memory, naive = (results.get(f"memory {kind}{name}", {}).get("MB", "") for kind in ("", "naive "))
        share = f"{100 * row['share_of_peak']:.0f} %"
        lines.append(
            f"| `{name}` | {row['iterations_per_s']} | {row['gflop']} | {share} | {memory} | {ratio} | {naive} |"
        )
    return "\n".join(lines)


def windows() -> str:
    """Return what an N-step match takes by each way of finding its gradient, and how close the direct part is."""
    results = read(RESULTS / "bench.json")
    lines = [
        "| inner steps | unrolled: MB, s | recomputed: MB, s | direct: MB, s | cosine to the whole | norm ratio |",
        "|---|---|---|---|---|---|",
    ]
    for key in sorted(key for key in results if key.startswith("window")):
        cell = results[key]
        spent = [f"{cell[m]['MB']:.0f}, {cell[m]['seconds']:.2f}" for m in ("unroll", "recompute", "direct")]
        direct = cell["direct"]
        lines.append(
            f"| {int(key.split()[1])} | {' | '.join(spent)} | {direct['cosine']:.4f} | {direct['norm_ratio']:.3f} |"
        )
    return "\n".join(lines)


def architectures() -> str:
    """Return the matrix of networks that made sets and networks that were tested, as `fedcondense sweep` wrote it."""
    with (RESULTS / "architectures-cifar10.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tested = list(dict.fromkeys(row["test_network"] for row in rows))
    lines = [f"| made with | {' | '.join(name.removeprefix('convnet3-') for name in tested)} |"]
    lines.append("|---" * (len(tested) + 1) + "|")
    for made in dict.fromkeys(row["network"] for row in rows):
        cells = {row["test_network"]: row for row in rows if row["network"] == made}
        texts = [f"{float(cells[t]['accuracy']):.1f} ± {float(cells[t]['accuracy_std']):.1f}" for t in tested]
        lines.append(f"| {made.replace('convnet3-', '') or rows[0]['objective']} | {' | '.join(texts)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "incremental": incremental.table,
    "analytic bits": analytic_bits.table,
    "iterative": iterative.table,
    "deployment": deployment.table,
    "trust": trust.quoted,
    "trust short": trust.quoted_short,
    "federated": federated.table,
    "federated six": federated_six,
    "central": lambda: central.table(RESULTS / "central.json"),
    "central longer": lambda: central.table(RESULTS / "central.json", central.LONGER),
    "central short": central_short,
    "deployed": deployed.table,
    **{
        f"screens {data} {alpha}": lambda d=data, a=alpha: screens.table(d, a)  # type: ignore[misc]
        for data in screens.STEPS
        for alpha in screens.ALPHAS
    },
    "continual short": continual_short,
    "budgets": budgets,
    "ablation": ablation.table,
    "labels": labels.table,
    "federated bytes": federated_bytes.table,
    "growing": growing.table,
    "anchored": anchored.table,
    "anchored ends": anchored.ends,
    "head tried": head_tried.table,
    "flowers": flowers.table,
    "flowers cifar10": lambda: flowers.table("cifar10"),
    "flowers tuning": flowers.tuning,
    "anchored two classes": lambda: anchored.ends(alpha=0.05),
    "anchored long": lambda: anchored.table("long"),
    "anchored mixed": anchored.architectures,
    "anchored augmented": lambda: anchored.table("augmented"),
    "anchored constant": lambda: anchored.table("constant"),
    "anchored choose": anchored.choices,
    "divisions": divisions.table,
    "superlink": superlink.table,
    "superlink pulls": superlink.pulls,
    "thousands": thousands.table,
    "robot": robot.table,
    "turned": turned.table,
    "turned steps": turned_steps.table,
    "turned steps published": turned_steps.published,
    "sparse": sparse.table,
    "anchored tried": anchored_tried.table,
    "anchored cifar10": lambda: anchored.table("cifar10"),
    "anchored cifar10 ends": lambda: anchored.ends(("cifar10-one", "cifar10-two", "cifar10")),
    "anchored cifar10 long": lambda: anchored.table("cifar10-long"),
    "freed": freed.table,
    **{f"versions {older}": lambda older=older: versions.table(older) for older in read(versions.RESULT)},  # type: ignore[misc]
    "large": large.table,
    "papers": papers.objectives,
    "papers stored": papers.stored,
    "large tried": large.tried,
    **coded_tables.TABLES,
    **{f"plan {kind}": lambda kind=kind: plan_bytes.table(kind) for kind in ("sizes", "budgets", "kept")},  # type: ignore[misc]
    "objectives": lambda: sweeps("objectives"),
    "scaling": lambda: sweeps("scaling"),
    "parametrizations": parametrizations,
    "bench": bench,
    "windows": windows,
    "gpu": gpu.table,
    "gpu speed": gpu.speeds,
    "architectures": architectures,
    **{f"continual {name}": lambda name=name: continual.table(name) for name in continual_protocols.PROTOCOLS},  # type: ignore[misc]
}
_PLACE = re.compile(r"<!-- table (?P<name>[^>]+?) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with its tables as the results say."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return _PLACE.sub(fill, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments: Any = parser.parse_args()
    stale = []
    for path in PAGES:
        before = path.read_text()
        after = filled(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(after)
    if arguments.check and stale:
        sys.exit(f"tables of {', '.join(stale)} are not what the results say; run: python experiments/tables.py")


if __name__ == "__main__":
    main()
