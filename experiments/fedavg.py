"""FedAvg, tuned: Flower's own strategy on Fashion-MNIST, the baseline of `federated.py`.

    python experiments/fedavg.py --alpha 0.1 0.5 --seeds 0 1 2
    python experiments/fedavg.py --alpha 0.1 --seeds 0 --epochs 3

The step size is chosen by the accuracy after 1 and after 5 rounds (their mean) on 5,000 training images that no client
holds, at Dirichlet 0.1 and seed 0; the rows then train on all 60,000. Features in bfloat16 (autocast). Three epochs
do better a round and cost three times the work: `--epochs 3`. Writes results/fedavg.json after every run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch

from fedcondense.data.loading import load_data
from fedcondense.data.partitions import partition
from fedcondense.flower import Bench, LocalTraining, fedavg
from fedcondense.flower.comparison.averaging import Kept

RESULTS = Path(__file__).parent / "results" / "fedavg.json"
GRID = [LocalTraining(lr=lr) for lr in (0.01, 0.03, 0.1)] + [LocalTraining(lr=0.03, epochs=3)]
NETWORK = "convnet3-w32"


def show(name: str, done: int, rounds: int) -> None:
    print(name, done, "of", rounds, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--float32", action="store_true", help="for a CPU whose bfloat16 is slow; the rows say so")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--checkpoints", type=Path, default=Path(tempfile.gettempdir()) / "fedcondense-fedavg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load_data(arguments.data, arguments.data_root)
    path = arguments.output
    results = json.loads(path.read_text()) if path.exists() else {"tuning": {}, "rows": {}}

    def keep() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")

    held_out = train.per_class(500, torch.Generator().manual_seed(0))
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[held_out] = False
    tuning_train, tuning_test = train.subset(rest), train.subset(held_out)
    torch.set_autocast_enabled("cpu", not arguments.float32)
    torch.set_autocast_cache_enabled(False)
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    for training in GRID:
        name = f"lr {training.lr} epochs {training.epochs}"
        if name not in results["tuning"]:
            split = partition(tuning_train, 10, "dirichlet", alpha=0.1, seed=0)
            rows = fedavg(Bench(tuning_train, tuning_test, split.indices, NETWORK), 5, training)
            results["tuning"][name] = {str(r): row.accuracy for r, row in rows.items()}
            keep()
            print(name, results["tuning"][name], flush=True)
    allowed = [training for training in GRID if training.epochs == arguments.epochs]
    best = max(allowed, key=lambda t: sum(results["tuning"][f"lr {t.lr} epochs {t.epochs}"].values()))
    print("chosen:", best, flush=True)
    for alpha in arguments.alpha:
        for seed in arguments.seeds:
            name = f"alpha {alpha} epochs {best.epochs} seed {seed}"
            if name in results["rows"]:
                continue
            split = partition(train, 10, "dirichlet", alpha=alpha, seed=seed)
            rows = fedavg(
                Bench(train, test, split.indices, NETWORK, seed),
                arguments.rounds,
                best,
                evaluate_at=(1, 5, 10, arguments.rounds),
                kept=Kept(arguments.checkpoints / f"{alpha}-{best.epochs}-{seed}.safetensors", resume=True),
                progress=partial(show, name),
            )
            results["rows"][name] = {
                "partition": split.hash,
                "training": vars(best),
                "precision": "float32" if arguments.float32 else "bfloat16",
                "rounds": {
                    r: row._asdict() | {"per_class": [round(a, 1) for a in row.per_class]} for r, row in rows.items()
                },
            }
            keep()
            print(name, {r: round(row.accuracy, 1) for r, row in rows.items()}, flush=True)


if __name__ == "__main__":
    main()
