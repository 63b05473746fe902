"""What the experiments share: cells that are computed once and kept as JSON, side by side in several processes."""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def run_cells(path: Path, cells: Mapping[str, Callable[[], dict[str, Any]]], shard: str = "0/1") -> None:
    """Compute the cells that the file lacks, in order and on one thread, and add each when it is done.

    Args:
        path: A JSON object, by cell name.
        cells: Compute one each.
        shard: ``"i/n"``: of the cells that are missing, take every n-th from the i-th on.
    """
    torch.set_num_threads(1)
    first, every = map(int, shard.split("/"))
    for name in list(cells)[first::every]:
        if name in read(path):
            continue
        began, cpu = time.monotonic(), time.process_time()
        result = cells[name]()
        took = {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}
        _add(path, name, result | took)
        print(name, json.dumps(result)[:160], flush=True)


def command(text: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every experiment takes; `run_at_precision` heeds ``--shard`` and ``--float32``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell from the i-th on")
    parser.add_argument("--table", action="store_true", help="print Markdown from what is there")
    parser.add_argument("--float32", action="store_true", help="for a CPU whose bfloat16 is slow; the cells say so")
    return parser


def run_at_precision(
    arguments: argparse.Namespace, path: Path, cells: Mapping[str, Callable[[], dict[str, Any]]]
) -> None:
    """As `run_cells`, with features in bfloat16 unless ``--float32`` was given."""

    def marked(compute: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        return (lambda: compute() | {"precision": "float32"}) if arguments.float32 else compute

    with torch.autocast("cpu", torch.bfloat16, enabled=not arguments.float32, cache_enabled=False):
        run_cells(path, {name: marked(compute) for name, compute in cells.items()}, arguments.shard)


def read(path: Path) -> dict[str, Any]:
    """Return what the file holds; nothing if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def _add(path: Path, name: str, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = read(path) | {name: result}
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(content[key])}" for key in sorted(content))
        path.write_text(f"{{\n{lines}\n}}\n")
