"""How anchored's last layer was decided on: bytes, who answers, weights by class, sharpness; on held-out images.

    python experiments/head_tried.py --float32    # results/head_tried.json, resumes
    python experiments/head_tried.py --table

Fashion-MNIST, ten clients, Dirichlet 0.1, divisions of their own (seeds 7 and 8), tested on 500 training images of each
class that no client holds. The network is that of `anchored_tried.py` ("as it is") after two rounds, weights without
eight bits; the last layer is solved for by the functions of the product. Where some of ten sites answer, six choices of
them are drawn, and classes that none of them holds are left out.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import anchored
import anchored_tried
import torch
import torch.nn.functional as F
from anchored_tried import STEPS, combined, trained
from cells import RESULTS, command, read, run_at_precision
from torch import Tensor, nn

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Answer, Node, Site
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.strategies.closed_head import SHARPNESS, Head, balanced, with_head
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy

PATH = RESULTS / "head_tried.json"
ROUNDS, CHOICES = 2, 6
DIMS = (128, 202, 225, 256, 0)
ANSWERING = (3, 5, 7)
SHARP = (3.0, 5.0, 8.0, 12.0)


@lru_cache(1)
def start(division: int, work: Path) -> tuple[nn.Module, list[Data], Data]:
    """Return the network after two rounds, what each site holds, and the held-out images."""
    anchored.STEPS = STEPS[division]
    folder = work / str(division)
    folder.mkdir(parents=True, exist_ok=True)
    bench = anchored.bench_of("fashion-mnist", 0.1, division, folder, True)
    state, how = anchored.first_round(bench), anchored_tried.Tried()
    assert state.weights is not None
    model = build(anchored.NETWORK, bench.test.spec.shape, len(bench.test.spec.classes), 0)
    state.weights.load_into(model)
    sites = [bench.train.subset(index) for index in bench.partition]
    weights = {n: v.clone() for n, v in model.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        answers = []
        for place, data in enumerate(sites):
            model.load_state_dict(weights)
            answers.append(trained(model, data, None, how, stream(0, "anchored", place, number)))
        weights = combined(weights, answers, sites, how, number == 1)
    model.load_state_dict(weights)
    return model, sites, bench.test


def solved(model: nn.Module, sites: Sequence[Data], dims: int, is_balanced: bool) -> tuple[nn.Module, int]:
    """Return the network with its last layer solved for, and the bytes of a site's sums."""
    spec, packed = sites[0].spec, Packed.of(model.state_dict(), model)
    counts = torch.stack([data.counts for data in sites]).sum(0).double()
    task = Head(packed, spec.classes, spec.mean, spec.std, anchored.NETWORK, 0, dims)
    task = replace(task, balance=balanced(counts, 1.0)) if is_balanced else task
    answers, nbytes = [], 0
    for place, data in enumerate(sites):
        sums = task.prepare(Own(data), Node(f"client-{place}", Caps.none())).run()
        nbytes = max(nbytes, len(sums.to_bytes()))
        answers.append(Answer(Site(f"client-{place}"), sums, len(data)))
    other = build(anchored.NETWORK, spec.shape, len(spec.classes), 0)
    return with_head(other, task, answers).load_into(other), nbytes


def averaged(division: int, work: Path) -> dict[str, Any]:
    model, _, test = start(division, work)
    return {"accuracy": round(accuracy(model, test)[0], 2)}


def of_dims(division: int, dims: int, work: Path) -> dict[str, Any]:
    model, sites, test = start(division, work)
    found, nbytes = solved(model, sites, dims, True)
    return {"accuracy": round(accuracy(found, test)[0], 2), "bytes": nbytes}


def of_few(division: int, many: int, is_balanced: bool, work: Path) -> dict[str, Any]:
    model, sites, test = start(division, work)
    draw, found = random.Random(0), []
    for _ in range(CHOICES):
        network, _ = solved(model, [sites[k] for k in draw.sample(range(len(sites)), many)], 0, is_balanced)
        found.append(round(accuracy(network, test)[0], 2))
    return {"accuracies": found}


def of_sharpness(division: int, sharpness: float, work: Path) -> dict[str, Any]:
    """Return the negative log-likelihood and the expected calibration error, in 15 bins of equal width."""
    model, sites, test = start(division, work)
    logits = scores(solved(model, sites, 0, True)[0], test) * (sharpness / SHARPNESS)
    sure, said = logits.softmax(1).max(1)
    right = (said == test.labels).float()
    bins = (15 * sure).long().clamp(max=14)
    error = sum(float((sure - right)[bins == k].sum().abs()) for k in range(15)) / len(right)
    return {"nll": round(float(F.cross_entropy(logits, test.labels)), 3), "error": round(100 * error, 1)}


def scores(model: nn.Module, data: Data) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(data.batch(index).images) for index in torch.arange(len(data)).split(500)])


def cells(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for division in STEPS:
        found[f"{division} | averaged"] = partial(averaged, division, work)
        found |= {f"{division} | dims | {dims}": partial(of_dims, division, dims, work) for dims in DIMS}
        found |= {f"{division} | sharpness | {s:g}": partial(of_sharpness, division, s, work) for s in SHARP}
        for many in ANSWERING:
            for is_balanced in (False, True):
                name = f"{division} | sites | {many} | {'balanced' if is_balanced else 'plain'}"
                found[name] = partial(of_few, division, many, is_balanced, work)
    return found


def table() -> str:
    """Return what is there as Markdown, a row per setting and a column per division."""
    results, lines = (
        read(PATH),
        [f"| | {' | '.join(f'division {d}' for d in STEPS)} |", "|---" * (len(STEPS) + 1) + "|"],
    )

    def row(label: str, text: Any, *names: str) -> None:
        found = [results.get(" | ".join((str(division), *names))) for division in STEPS]
        if any(found):
            lines.append(f"| {label} | {' | '.join(text(one) if one else '' for one in found)} |")

    row("averaged", lambda one: f"{one['accuracy']:.1f}", "averaged")
    for dims in DIMS:
        text = f"{dims} features" if dims else "all 512 features"
        row(text, lambda one: f"{one['accuracy']:.1f}, {one['bytes'] / 1000:.0f} kB", "dims", str(dims))
    for many in ANSWERING:
        for kind, said in (("plain", "records count alike"), ("balanced", "classes count alike")):
            text = f"{many} of 10 sites, {said}"
            row(text, lambda one: f"{statistics.fmean(one['accuracies']):.1f}", "sites", str(many), kind)
    for s in SHARP:
        label = f"sharpness {s:g}: log-likelihood, calibration error"
        row(label, lambda one: f"-{one['nll']:.2f}, {one['error']:.1f}", "sharpness", f"{s:g}")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--work", type=Path, default=Path("anchored-tried-work"), help="keeps round 0")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    run_at_precision(arguments, PATH, cells(arguments.work))


if __name__ == "__main__":
    main()
