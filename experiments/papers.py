"""The methods of the field beside their published figures: what `docs/papers.md` quotes. Computes nothing.

Published are percent on CIFAR-10 at 1, 10 and 50 images per class, as the papers or their authors' pages print them; a
dash where they print none.
"""

from __future__ import annotations

import csv
import statistics
from typing import NamedTuple

from cells import RESULTS, read

GPU = RESULTS / "gpu.json"


class Paper(NamedTuple):
    """A method, and what its paper reports."""

    name: str  # in `OBJECTIVES`, or in `PARAMETRIZATIONS`
    title: str
    source: str
    arxiv: str
    published: str
    how: str  # what is not as in the published protocol
    on_gpu: str = ""  # the row of `gpu.py`


OBJECTIVES = [
    Paper("dd", "Dataset Distillation", "Wang et al., 2018", "1811.10959", "- / 36.8 / -", "replays its own steps"),
    Paper("dc", "DC", "Zhao, Mopuri and Bilen, ICLR 2021", "2006.05929", "28.3 / 44.9 / 53.9", "300 epochs, no DSA"),
    Paper("dsa", "DSA", "Zhao and Bilen, ICML 2021", "2102.08259", "28.8 / 52.1 / 60.6", "", "dsa"),
    Paper("dm", "DM", "Zhao and Bilen, WACV 2023", "2110.04181", "26.0 / 48.9 / 63.0", "", "dm"),
    Paper(
        "idc", "IDC, one image in one", "Kim et al., ICML 2022", "2205.14959", "36.7 / 58.3 / 69.5", "batch 64, CutMix"
    ),
    Paper(
        "mtt",
        "MTT",
        "Cazenavette et al., CVPR 2022",
        "2203.11932",
        "46.3 / 65.3 / 71.6",
        "mostly ZCA, learned step size, best of many",
    ),
    Paper("tesla", "TESLA", "Cui et al., ICML 2023", "2211.10586", "48.5 / 66.4 / 72.6", "as MTT"),
    Paper(
        "kip",
        "KIP, images alone",
        "Nguyen et al., ICLR 2021",
        "2011.00050",
        "40.6 / 47.2 / 56.9",
        "measured by DC-BENCH",
    ),
    Paper(
        "frepo",
        "FRePo",
        "Zhou et al., NeurIPS 2022",
        "2206.00719",
        "46.8 / 65.5 / 71.7",
        "ZCA, learned labels, wider network",
    ),
    Paper("mmd", "M3D", "Zhang et al., AAAI 2024", "2312.15927", "45.3 / 63.5 / 69.9", "four images in one"),
    Paper(
        "ncfm",
        "NCFM",
        "Wang et al., CVPR 2025",
        "2502.20653",
        "49.5 / 71.8 / 77.4",
        "four images in one, a teacher, best epoch",
    ),
]
OURS = {"dm-ridge": "dm-ridge", "mmd-ridge": "mmd-ridge", "ridge": ""}
STORED = [
    Paper(
        "multi-formation",
        "IDC, four images in one",
        "Kim et al., ICML 2022",
        "2205.14959",
        "50.6 / 67.5 / 74.5",
        "CutMix",
    ),
    Paper(
        "bases",
        "LinBa, of RTP",
        "Deng and Russakovsky, NeurIPS 2022",
        "2206.02916",
        "66.4 / 71.2 / 73.6",
        "300 epochs, no schedule",
    ),
    Paper(
        "hallucinators",
        "HaBa",
        "Liu et al., NeurIPS 2022",
        "2210.16774",
        "48.3 / 69.9 / 74.0",
        "as MTT; up to twice the bytes",
    ),
]


def objectives() -> str:
    """Return each objective with its paper, its published figures and ours."""
    lines = [
        "| objective | paper | published at 1 / 10 / 50 | where it departs | ours, short | ours, published, at 10 |",
        "|---|---|---|---|---|---|",
    ]
    for paper in OBJECTIVES:
        numbers = f"{paper.published} | {paper.how} | {_short(paper.name)} | {_on_gpu(paper.on_gpu)}"
        lines.append(f"| `{paper.name}` | {_cited(paper)} | {numbers} |")
    for name, row in OURS.items():
        lines.append(f"| `{name}` | ours | | | {_short(name)} | {_on_gpu(row)} |")
    return "\n".join(lines)


def stored() -> str:
    """Return each way of storing images with its paper, its published figures and ours."""
    lines = [
        "| stored as | paper | published at 1 / 10 / 50 | where it departs | ours, Fashion-MNIST at 1 |",
        "|---|---|---|---|---|",
    ]
    with (RESULTS / "parametrizations-fashion-mnist.csv").open(newline="") as file:
        found = {row["parametrization"]: row for row in csv.DictReader(file) if row["accuracy"] and row["steps"]}
    for paper in STORED:
        ours = f"{float(found[paper.name]['accuracy']):.1f}" if paper.name in found else "not run"
        lines.append(f"| `{paper.name}` | {_cited(paper)} | {paper.published} | {paper.how} | {ours} |")
    return "\n".join(lines)


def _cited(paper: Paper) -> str:
    return f"{paper.title}: {paper.source}, [{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"


def _short(name: str) -> str:
    """Return our accuracies at 1, 10 and 50 images per class by the short protocol."""
    found = []
    for ipc in (1, 10, 50):
        with (RESULTS / f"objectives-cifar10-{ipc}.csv").open(newline="") as file:
            accuracy = {row["objective"]: row["accuracy"] for row in csv.DictReader(file)}.get(name)
        found.append(f"{float(accuracy):.1f}" if accuracy else "not run")
    return " / ".join(found)


def _on_gpu(name: str) -> str:
    """Return our accuracy by the published protocol on a GPU."""
    cells = [cell["accuracy"] for key, cell in read(GPU).items() if name and key.startswith(f"{name} seed")]
    return f"{statistics.fmean(cells):.1f}" if cells else "not run"
