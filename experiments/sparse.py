"""A hundred sites, of which a tenth is asked in a round, and a fifth of those does not answer.

    python experiments/sparse.py --float32    # results/sparse.json, resumes
    python experiments/sparse.py --table

Fashion-MNIST, label-wise Dirichlet 0.1, 600 records a site in the mean. Ten sites are drawn in each of twenty rounds;
each fails with probability 0.2, which a server takes as it takes silence at the deadline: the round goes on without.
Sets: at most 4 kB a site, 100 steps; 400 steps of training on the union of the first round. Weights: two passes over a
site's records at a step size that falls to nothing, balanced softmax, eight bits both ways. ConvNet-3 width 32, the
last step, all test images; bytes are those of all messages, over the hundred sites. The 21st round asks all sites for
sums of features, from which the last layer is solved (as ``resume`` with ``num-rounds=21 fraction-train=1.0`` does).

- anchored: sets in the first round, then averaging; a site that is new in a later round trains at once;
- anchored, server trains: a site that is new in a later round sends its set first, and after each averaging the server
  trains 100 steps on the union of all sets so far;
- scratch: the same averaging, from an untrained network.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

from anchored import NETWORK, POLISH, ran
from cells import RESULTS, command, read, run_at_precision
from flwr.app import Context, Message

import fedcondense as fc
from fedcondense.flower import Bench, Caps, Condense, make_client_app
from fedcondense.flower.strategies.anchored import Anchored
from fedcondense.flower.strategies.anchors import Nothing
from fedcondense.flower.strategies.continuing import Continue

PATH = RESULTS / "sparse.json"
SITES, ROUNDS, SILENT = 100, 20, 0.2
SHOWN = (1, 2, 5, 10, 15, 20, 21)
FIRST = Condense(budget=4000, parametrization="", network=NETWORK, steps=100)
TASK = Continue(network=NETWORK, lr=0.03, lr_end=0.0, epochs=2, loss="balanced")
ROWS: dict[str, dict[str, Any]] = {
    "anchored": {"first": FIRST},
    "scratch": {"first": None},
    "anchored, server trains": {"first": FIRST, "polish": POLISH},
}


def silent(seed: int) -> Any:
    """Return a mod of Flower's that lets a site fail, by a draw for each site and question in turn."""
    draws: dict[int, random.Random] = {}

    def mod(message: Message, context: Context, call_next: Any) -> Message:
        site = int(context.node_config["partition-id"])
        if draws.setdefault(site, random.Random(f"{seed} {site}")).random() < SILENT:
            raise ConnectionError("this site is away")
        answer: Message = call_next(message, context)
        return answer

    return mod


def cell(row: str, seed: int) -> dict[str, Any]:
    train, test = fc.load_data("fashion-mnist")
    division = fc.partition(train, SITES, "dirichlet", alpha=0.1, seed=seed)
    bench = Bench(train, test, division, NETWORK, seed, min_records=10)
    asked: dict[str, Any] = {"fraction_train": 0.1, "min_available_nodes": SITES, "seed": seed}
    strategy = Anchored(
        train.spec, fc.Fit(steps=400), task=TASK, anchors=Nothing(), limits=bench.limits, **ROWS[row], **asked
    )
    app = make_client_app(bench.load, caps=Caps.none(bench.min_records), is_counted=False, mods=[silent(seed)])
    history = ran(bench, strategy, ROUNDS, app)
    strategy.asking, strategy.head_bytes = replace(strategy.asking, fraction_train=1.0), 120_000
    history += ran(bench, strategy, ROUNDS + 1, app)
    return {"rounds": history, "sites": len(strategy.state.sets)}


def table() -> str:
    """Return a row per strategy as Markdown: accuracy after rounds, the highest at the end first."""
    results, lines = read(PATH), list[tuple[float, str]]()
    for row in ROWS:
        found = [cell["rounds"] for key, cell in results.items() if key.startswith(f"{row} | ")]
        if not found:
            continue
        texts = []
        for number in SHOWN:
            values = [rounds[number - 1]["accuracy"] for rounds in found if number <= len(rounds)]
            if not values:
                texts.append("")
                continue
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            texts.append(f"{statistics.fmean(values):.1f}{spread}")
        up, down = (statistics.fmean(rounds[-1][way] for rounds in found) / 1000 for way in ("up", "down"))
        last = statistics.fmean(rounds[-1]["accuracy"] for rounds in found)
        lines.append((last, f"| {row} | {' | '.join(texts)} | {up:.0f}, {down:.0f} | {len(found)} |"))
    head = f"| row | {' | '.join(f'round {number}' for number in SHOWN)} | kB up, down | seeds |"
    return "\n".join([head, "|---" * (len(SHOWN) + 3) + "|", *(text for _, text in sorted(lines, reverse=True))])


def main() -> None:
    parser = command(__doc__)
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells = {f"{row} | seed {seed}": partial(cell, row, seed) for seed in (0, 1, 2) for row in ROWS}
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
