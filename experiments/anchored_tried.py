"""What was tried to make anchored's rounds better, on held-out training images: none of it is a default.

    python experiments/anchored_tried.py --float32    # results/anchored_tried.json, resumes
    python experiments/anchored_tried.py --table

Fashion-MNIST, ten clients, Dirichlet 0.1, divisions of their own (seeds 7 and 8), tested on 500 training images of each
class that no client holds. Rounds are simulated without messages and without eight bits, from round 0 of `anchored.py`
(sets of 200 steps in division 7, of 50 in division 8): balanced softmax, two passes, a step size that falls from 0.03
to nothing, averaged by records. Each row changes one or two things:

- step N: the server goes N times as far as the average; fedexp: as far as FedExP says, at most 1.5, in round 1 alone;
- classes: a class's row of the head is averaged by the records of that class; uniform: all sites count alike;
- 4 passes; step size 0.06; plain softmax;
- not-true: the global network's distribution over the classes that are not a record's is kept (FedNTD: Lee et al.,
  NeurIPS 2022, weight 1); anchors distilled: the global network's outputs on 32 images of the union are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anchored
import torch
import torch.nn.functional as F
from cells import RESULTS, command, read, run_at_precision
from torch import Tensor, nn

from fedcondense.data.images import Data
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.evaluation import batch_for
from fedcondense.training.fit import accuracy

PATH = RESULTS / "anchored_tried.json"
STEPS = {7: 200, 8: 50}  # of condensing, by division
MOMENTUM, DECAY, BATCH, ANCHORS = 0.9, 5e-4, 64, 32
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Tried:
    """What a site does in a round, and how the server combines; `first_alone`: in the first round alone."""

    lr: float = 0.03
    passes: int = 2
    balanced: bool = True
    not_true: float = 0.0
    distilled: float = 0.0
    step: float = 1.0
    fedexp: bool = False
    most: float = float("inf")
    first_alone: bool = False
    by_class: bool = False
    uniform: bool = False


EXP = Tried(fedexp=True)
ROWS: dict[str, tuple[Tried, int]] = {  # and rounds
    "as it is": (Tried(), 4),
    "fedexp": (EXP, 4),
    "fedexp, at most 1.5": (replace(EXP, most=1.5), 4),
    "fedexp in the first round": (replace(EXP, first_alone=True), 4),
    "4 passes": (Tried(passes=4), 4),
    "fedexp, at most 2": (replace(EXP, most=2.0), 4),
    "step 1.5": (Tried(step=1.5), 2),
    "step 2": (Tried(step=2.0), 2),
    "classes": (Tried(by_class=True), 2),
    "uniform": (Tried(uniform=True), 2),
    "4 passes, fedexp": (replace(EXP, passes=4), 2),
    "step size 0.06, fedexp": (replace(EXP, lr=0.06), 2),
    "not-true, fedexp": (replace(EXP, not_true=1.0), 2),
    "anchors distilled, fedexp": (replace(EXP, distilled=1.0), 2),
    "plain softmax, fedexp": (replace(EXP, balanced=False), 2),
}
BOTH = 5  # rows, the first, that both divisions have


def trained(model: nn.Module, data: Data, union: Any, how: Tried, generator: torch.Generator) -> Weights:
    """Train a network in place on a site's records for a round; return its weights."""
    teacher = build(anchored.NETWORK, data.spec.shape, len(data.spec.classes), 0)
    teacher.load_state_dict(model.state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), how.lr, MOMENTUM, weight_decay=DECAY)
    last = max(how.passes * -(-len(data) // BATCH) - 1, 1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, last)
    prior = (data.counts.float() / len(data)).clamp_min(torch.finfo(torch.float32).tiny).log()
    for _ in range(how.passes):
        for index in torch.randperm(len(data), generator=generator).split(BATCH):
            if len(index) == 1:
                continue
            images, labels, n = data.batch(index).images, data.labels[index], len(index)
            if how.distilled:
                images = torch.cat(
                    [images, union.images[torch.randint(len(union.images), (ANCHORS,), generator=generator)]]
                )
            logits = model(images)
            loss = F.cross_entropy(logits[:n] + prior if how.balanced else logits[:n], labels)
            if how.not_true or how.distilled:
                with torch.no_grad():
                    before = teacher(images)
            if how.not_true:
                own = F.one_hot(labels, logits.shape[1]).bool()
                loss = loss + how.not_true * _kept(logits[:n].masked_fill(own, -1e9), before[:n].masked_fill(own, -1e9))
            if how.distilled:
                loss = loss + how.distilled * _kept(logits[n:], before[n:])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def _kept(logits: Tensor, before: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(before, 1), reduction="batchmean")


def combined(before: Weights, sites: list[Weights], data: list[Data], how: Tried, is_first: bool) -> Weights:
    """Return the server's next weights."""
    sizes = torch.tensor([1.0 if how.uniform else float(len(one)) for one in data])
    shares = (sizes / sizes.sum()).tolist()
    changes = [{name: site[name] - old for name, old in before.items()} for site in sites]
    mean = {name: sum(share * change[name] for share, change in zip(shares, changes, strict=True)) for name in before}
    step = how.step
    if how.fedexp and (is_first or not how.first_alone):
        lengths = sum(share * _length(change) for share, change in zip(shares, changes, strict=True))
        step = min(how.most, max(1.0, lengths / (2 * _length(mean))))
    moved = {name: old + step * mean[name] for name, old in before.items()}
    if how.by_class:
        counts = torch.stack([one.counts.float() for one in data])
        weights = counts / counts.sum(0).clamp_min(1)
        for name in list(before)[-2:]:  # the head's weight and bias, a row a class
            each = torch.stack([change[name] for change in changes])
            moved[name] = before[name] + (each * weights.view(*weights.shape, *[1] * (each.dim() - 2))).sum(0)
    return moved


def _length(change: Any) -> float:
    return sum(float(value.square().sum()) for value in change.values())


def cell(name: str, division: int, work: Path) -> dict[str, Any]:
    how, rounds = ROWS[name]
    anchored.STEPS = STEPS[division]
    bench = anchored.bench_of("fashion-mnist", 0.1, division, work, True)
    state = anchored.first_round(bench)
    assert state.weights is not None
    assert state.joined is not None
    model = build(anchored.NETWORK, bench.test.spec.shape, len(bench.test.spec.classes), 0)
    state.weights.load_into(model)
    union = batch_for(state.joined, bench.test.spec.classes, torch.device("cpu"))[0]
    sites = [bench.train.subset(index) for index in bench.partition]
    found, weights = [accuracy(model, bench.test)[0]], {n: v.clone() for n, v in model.state_dict().items()}
    for number in range(1, rounds + 1):
        answers = []
        for place, data in enumerate(sites):
            model.load_state_dict(weights)
            answers.append(trained(model, data, union, how, stream(0, "anchored", place, number)))
        weights = combined(weights, answers, sites, how, number == 1)
        model.load_state_dict(weights)
        found.append(accuracy(model, bench.test)[0])
    return {"accuracies": [round(value, 2) for value in found]}


def table() -> str:
    """Return a row per trial as Markdown: accuracy after two and four rounds in each division."""
    results = read(PATH)
    lines = ["| | division 7: 2 rounds | 4 rounds | division 8: 2 rounds | 4 rounds |", "|---|---|---|---|---|"]
    for name in ROWS:
        texts = []
        for division in STEPS:
            found = results.get(f"{division} | {name}", {}).get("accuracies", [])
            texts += [f"{found[at]:.1f}" if len(found) > at else "" for at in (2, 4)]
        if any(texts):
            lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--work", type=Path, default=Path("anchored-tried-work"), help="keeps round 0")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells: dict[str, Any] = {}
    for division in STEPS:
        work = arguments.work / str(division)
        work.mkdir(parents=True, exist_ok=True)
        names = list(ROWS)[:BOTH] if division != 7 else list(ROWS)
        cells |= {f"{division} | {name}": partial(cell, name, division, work) for name in names}
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
