"""The tables of `coded.py`, from what there is."""

from __future__ import annotations

import statistics
from typing import Any

from cells import read
from coded_codecs import MEASURED, SETS
from coded_plan import BUDGETS, CANDIDATES, CONDENSED, FULL, HALF, PATH, READY, READY_NAMES, SEEDS

from fedcondense.sets.codecs import CODECS


def spread(cells: list[dict[str, Any]]) -> str:
    values = [cell["accuracy"] for cell in cells]
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table_at_budgets() -> str:
    """Return who is best at each budget, the winner first."""
    results = read(PATH)
    lines = ["| data | bytes | set | codec | images a class | file bytes | accuracy | seeds |", "|---" * 8 + "|"]
    for name, budgets in BUDGETS.items():
        for budget in budgets:
            kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for method in (FULL, HALF, "herding", "k-means"):
                begin = f"real | {name} | {budget} | {method} | "
                for cell in (results[key] for key in sorted(results) if key.startswith(begin)):
                    if "accuracy" in cell:
                        kinds.setdefault((f"{method}, real", cell["codec"]), []).append(cell)
            keys = [f"condensed | {name} | {budget} | seed {seed}" for seed in SEEDS]
            for cell in (results[key] for key in keys if key in results):
                kinds.setdefault((f"**`{CONDENSED}`**, factor 2", cell["codec"]), []).append(cell)
            best = {method: leader(results, name, budget, method) for method in (FULL, HALF)}
            for (text, codec), found in sorted(kinds.items(), key=lambda kind: -mean(kind[1], "accuracy")):
                chosen = best[HALF if text.startswith(HALF) else FULL]
                note = "" if codec == chosen or text.startswith("**") else ", an earlier choice"
                images, size = mean(found, "images") / 10, mean(found, "nbytes")
                row = f"{text} | {codec}{note} | {images:.0f} | {size:,.0f} | {spread(found)} | {len(found)}"
                lines.append(f"| {name} | {budget:,} | {row} |")
    return "\n".join(lines)


def mean(cells: list[dict[str, Any]], name: str) -> float:
    return statistics.fmean(cell[name] for cell in cells)


def leader(results: dict[str, Any], name: str, budget: int, method: str) -> str | None:
    """Return which candidate was best on held-out training images; None: none was tried."""
    found = tried(results, name, budget, method)
    found = {
        key: value for key, value in found.items() if key.partition("-")[0] in CODECS
    }  # dct was tried, and is not kept
    return max(found, key=lambda key: (len(found[key]), statistics.fmean(found[key]))) if found else None


def tried(results: dict[str, Any], name: str, budget: int, method: str) -> dict[str, list[float]]:
    """Return the accuracies on held-out training images, the first network first, by candidate."""
    found: dict[str, list[float]] = {}
    begin = f"choose | {name} | {budget} | {method} | "
    for key in sorted(results):  # by seed
        if key.startswith(begin) and results[key].get("nbytes", budget + 1) <= budget:
            found.setdefault(key.removeprefix(begin).partition(" | ")[0], []).append(results[key]["accuracy"])
    return found


def table_of_choices() -> str:
    """Return what was tried on held-out training images, the best first."""
    results = read(PATH)
    lines = ["| data | bytes | set | tried, best first: accuracy (images a class; networks) |", "|---" * 4 + "|"]
    for (name, budget), methods in CANDIDATES.items():
        for method in methods:
            found = tried(results, name, budget, method)
            texts = []
            for codec in sorted(found, key=lambda codec: (-len(found[codec]), -statistics.fmean(found[codec]))):
                images = results[f"choose | {name} | {budget} | {method} | {codec} | seed 0"]["images"] // 10
                texts.append(f"{codec} {statistics.fmean(found[codec]):.1f} ({images}; {len(found[codec])})")
            if texts:
                lines.append(f"| {name} | {budget:,} | {method} | {', '.join(texts)} |")
    return "\n".join(lines)


def table_ready() -> str:
    """Return bytes and accuracy of the ready sets by codec."""
    results = read(PATH)
    names = READY_NAMES
    lines = [f"| codec | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for codec in READY:
        cells = [results.get(f"ready | {name} | {codec}") for name in names]
        texts = [f"{c['accuracy']:.1f} ± {c['std']:.1f} at {c['nbytes']:,}" if c else "" for c in cells]
        lines.append(f"| {codec} | {' | '.join(texts)} |")
    return "\n".join(lines)


def table_of_speed() -> str:
    """Return speed by codec, and how far Pillows are apart."""
    results = read(PATH)
    lines = ["| codec | " + " | ".join(f"{d}: bytes, encode, decode MB/s" for d in SETS) + " |", "|---" * 3 + "|"]
    for codec in MEASURED:
        found = [results.get(f"speed | {data} | {codec}") for data in SETS]
        texts = [f"{c['nbytes']:,}, {c['encode']:g}, {c['decode']:g}" if c else "" for c in found]
        lines.append(f"| {codec} | {' | '.join(texts)} |")
    return "\n".join(lines)


def table_of_agreement() -> str:
    """Return the largest differences of two Pillows, in grey levels, and how many values differ."""
    results = read(PATH)
    lines = ["| data | codec | ours | another | condensed: largest, share | real: largest, share |", "|---" * 6 + "|"]
    for key, cell in results.items():
        if key.startswith("agreement"):
            _, _, data, codec = key.split(" | ")
            texts = [f"{cell[k]['largest']}, {100 * cell[k]['differ']:g} %" for k in ("condensed", "real")]
            lines.append(f"| {data} | {codec} | {' | '.join([*cell['versions'], *texts])} |")
    return "\n".join(lines)


TABLES = {
    "coded budgets": table_at_budgets,
    "coded choices": table_of_choices,
    "coded ready": table_ready,
    "coded speed": table_of_speed,
    "coded agreement": table_of_agreement,
}
