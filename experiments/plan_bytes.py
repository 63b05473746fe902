"""How far bytes are from what is expected of them before a run, and what is left out when a set does not fit.

    python experiments/plan_bytes.py               # resumes; results/plan_bytes.json
    python experiments/plan_bytes.py --table sizes # or budgets, or kept

`sizes`: files of the ready sets, and of digits condensed here, in five codecs, against `on_trial`. `budgets`: whole
runs of the default recipe within a number of bytes, four data sets. `kept`: sets of ten images per class in factor 2,
condensed from all but the last 5,000 training images and measured on those (two networks), with fewer images in two
bits and all of them in one: when images should go before bits. ConvNet-3 width 32, float32, one thread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from cells import RESULTS, read, run_cells
from zoo import original

import fedcondense as fc
from fedcondense.condensing import prepare
from fedcondense.condensing.trial import on_trial
from fedcondense.sets.fitting import Within
from fedcondense.sets.forecast import file_bytes, largest_file

PATH = RESULTS / "plan_bytes.json"
CODECS = ("bits-1", "bits-2", "bits-3", "jpeg-25", "webp-20")
READY = [(data, ipc) for data in ("mnist", "fashion-mnist", "cifar10") for ipc in (1, 10)]
BUDGETS = {
    "digits": ("2 kB", "6 kB"),
    "mnist": ("4 kB", "12 kB"),
    "fashion-mnist": ("4 kB", "12 kB"),
    "cifar10": ("12 kB", "30 kB"),
}
HELD_OUT = 5000
KEPT = (("bits-2", 10), ("bits-2", 8), ("bits-2", 7), ("bits-2", 5), ("bits-1", 10))
KEPT_DATA = ("fashion-mnist", "cifar10")


def sizes(data: str, ipc: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train = fc.load_data(data).train
        made = fc.condense(train, ipc) if data == "digits" else original(f"{data}-ipc{ipc}")
        part = made.parts[0]
        loop = prepare(train, ipc, "mmd-ridge", part.parametrization, steps=1)
        expected = on_trial(loop.holder, train, part.parametrization, fc.STARTS["gaussian"], 1)
        assert expected is not None
        found: dict[str, Any] = {}
        images = [ipc] * len(made.classes)
        for codec in CODECS:
            fixed, each = expected(codec)
            said = file_bytes(part.parametrization, part.record, images, codec, fixed + each * sum(images))
            most = largest_file(part.parametrization, part.record, images, codec)
            found[codec] = [said, made.recode(codec).nbytes, most]
        return {"parametrization": type(part.parametrization).__name__, "expected, written, most": found}

    return compute


def budget(data: str, size: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data(data)
        within = Within(size)
        loop = prepare(train, within, "mmd-ridge", steps=1)
        assert loop.rate is not None
        made = fc.condense(train, within)
        measured = fc.evaluate(made, test)
        written = made.with_evaluation(measured.to_dict())
        part = made.parts[0]
        return {
            "bound": within.most,
            "expected": loop.rate.nbytes,
            "written": written.nbytes,
            "planned": [loop.rate.codec, sum(loop.rate.images)],
            "stored": [part.codec, part.stored],
            "parametrization": type(part.parametrization).__name__,
            "accuracy": round(measured.accuracy, 2),
            "accuracy_std": round(measured.accuracy_std, 2),
        }

    return compute


@cache
def _without_last(data: str) -> tuple[fc.Data, fc.Data, fc.SyntheticSet]:
    train = fc.load_data(data).train
    first, last = (train.subset(rows) for rows in torch.arange(len(train)).split(len(train) - HELD_OUT))
    return first, last, fc.condense(first, 10, parametrization="multi-formation")


def kept(data: str, codec: str, ipc: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        _, last, made = _without_last(data)
        cut = made.restrict(made.classes, dict.fromkeys(made.classes, ipc))
        assert cut is not None
        stored = cut.recode(codec)
        found = fc.evaluate(stored, last, seeds=(0, 1))
        return {"nbytes": stored.nbytes, "held_out": round(found.accuracy, 2)}

    return compute


CELLS = {
    **{f"kept {data} {codec} {ipc}": kept(data, codec, ipc) for data in KEPT_DATA for codec, ipc in KEPT},
    **{f"sizes {data} {ipc}": sizes(data, ipc) for data, ipc in (("digits", 1), ("digits", 10), *READY)},
    **{f"budget {data} {size}": budget(data, size) for data, all_sizes in BUDGETS.items() for size in all_sizes},
}


def table(kind: str) -> str:
    return {"sizes": _sizes, "budgets": _budgets, "kept": _kept}[kind](read(PATH))


def _sizes(results: dict[str, Any]) -> str:
    lines = [f"| data, images per class | {' | '.join(CODECS)} |", "|---" * (len(CODECS) + 1) + "|"]
    errors: dict[str, list[float]] = {codec: [] for codec in CODECS}
    for name, cell in results.items():
        if not name.startswith("sizes"):
            continue
        found = cell["expected, written, most"]
        shown = []
        for codec in CODECS:
            said, written, most = found[codec]
            error = 100 * (said / written - 1)
            errors[codec].append(abs(error))
            shown.append(f"{written:,} ({error:+.0f} %{'' if most is None else f', at most {most:,}'})")
        lines.append(f"| {name.removeprefix('sizes ')}, {cell['parametrization']} | {' | '.join(shown)} |")
    mean = [f"{statistics.fmean(errors[codec]):.0f} %" for codec in CODECS if errors[codec]]
    return "\n".join([*lines, f"| mean size of the error | {' | '.join(mean)} |"])


def _budgets(results: dict[str, Any]) -> str:
    lines = ["| data | budget | expected | written | planned | stored | accuracy |", "|---|---|---|---|---|---|---|"]
    for name, cell in results.items():
        if name.startswith("budget"):
            plans = [f"{count} in {codec}" for codec, count in (cell["planned"], cell["stored"])]
            lines.append(
                f"| {name.split()[1]}, {cell['parametrization']} | {cell['bound']:,} | {cell['expected']:,} "
                f"| {cell['written']:,} | {' | '.join(plans)} | {cell['accuracy']:.1f} ± {cell['accuracy_std']:.1f} |"
            )
    return "\n".join(lines)


def _kept(results: dict[str, Any]) -> str:
    columns = [f"{ipc} in {codec}" for codec, ipc in KEPT]
    lines = [f"| data | {' | '.join(columns)} |", "|---" * (len(KEPT) + 1) + "|"]
    for data in KEPT_DATA:
        cells = [results.get(f"kept {data} {codec} {ipc}") for codec, ipc in KEPT]
        shown = [f"{cell['held_out']:.1f} ({cell['nbytes']:,})" if cell else "" for cell in cells]
        lines.append(f"| {data} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th cell from the i-th on")
    parser.add_argument("--only", default="", help="cells whose names begin so")
    parser.add_argument("--table", choices=("sizes", "budgets", "kept"))
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    torch.set_num_threads(1)
    chosen = {name: compute for name, compute in CELLS.items() if name.startswith(arguments.only)}
    run_cells(PATH, chosen, arguments.shard)


if __name__ == "__main__":
    main()
