"""What a cap on the seconds of condensing costs: four digits at 64 pixels, replayed.

    python experiments/capped.py [--seeds 0 1 2] [--caps 2 8 20]

Real images first, then each cap, then none; a row is kept as it is done, and not computed twice.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

import fedcondense as fc
from fedcondense.avalanche import CondensedBuffer, CondensedReplay, split_benchmark
from fedcondense.data.images import Data
from fedcondense.memory import Condenser, Maker, Selector
from fedcondense.networks import ConvNet

RESULTS = Path(__file__).parent / "results" / "capped.json"
SIZE, CLASSES, PER_CLASS, IMAGES = 64, 4, 60, 8  # pixels, classes, real images of each, stored images in all


def enlarged(data: Data, most: int | None) -> Data:
    """Return so many images of each of the first classes, at the size of the experiment."""
    rows = data.per_class(most, torch.Generator().manual_seed(0))
    rows = rows[data.labels[rows] < CLASSES]
    images = F.interpolate(data.images[rows].float(), (SIZE, SIZE), mode="bilinear").round().to(torch.uint8)
    return Data(
        images, data.labels[rows], replace(data.spec, shape=(1, SIZE, SIZE), classes=data.spec.classes[:CLASSES])
    )


def row(seed: int, cap: float | None, make: Maker) -> dict[str, Any]:
    """Train on the stream and return what came out."""
    train, test = fc.load_data("digits")
    benchmark = split_benchmark(enlarged(train, PER_CLASS), enlarged(test, None), 2, seed=seed)
    buffer = CondensedBuffer(
        IMAGES * make.per_image, condenser=make, adaptive_size=False, total_num_groups=CLASSES, seed=seed
    )
    torch.manual_seed(seed)
    model = ConvNet((1, SIZE, SIZE), CLASSES, 16, 3, "group")
    strategy = CondensedReplay(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        storage_policy=buffer,
        train_mb_size=32,
        train_epochs=4,
        eval_mb_size=400,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[BaseLogger()]),
    )
    began = time.monotonic()
    for experience in benchmark.train_stream:
        strategy.train(experience)
    seconds = time.monotonic() - began
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    steps = [part.record.steps for one in buffer.memory.sets for part in one.parts]
    return {
        "seed": seed,
        "memory": repr(make),
        "max_seconds": cap,
        "accuracy": round(100 * accuracy, 2),
        "steps": steps,
        "condensing_seconds": [round(s, 2) for s in buffer.seconds],
        "share_condensing": round(sum(buffer.seconds) / seconds, 3),
        "nbytes": buffer.nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--caps", type=float, nargs="+", default=[2.0, 8.0, 20.0])
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for seed in arguments.seeds:
        makers: list[tuple[float | None, Maker]] = [(None, Selector("half-resolution"))]
        makers += [
            (cap, Condenser(network="convnet3-w16", steps=100, max_seconds=cap))
            for cap in (*sorted(arguments.caps), None)
        ]
        for cap, make in makers:
            if any((r["seed"], r["memory"], r["max_seconds"]) == (seed, repr(make), cap) for r in rows):
                continue
            rows.append(row(seed, cap, make))
            print(json.dumps(rows[-1]), flush=True)
            RESULTS.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
