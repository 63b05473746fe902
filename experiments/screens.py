"""Poisoned sites with and without screens: accuracy, attack success, and what happens to honest sites.

    python experiments/screens.py digits            # results/screens.json, resumes
    python experiments/screens.py fashion-mnist
    python experiments/screens.py digits --calibrate   # the seeds that thresholds were chosen on, screens alone
    python experiments/screens.py --table

Ten sites, label-wise Dirichlet 0.1 and 0.5, seeds 0 to 2: division, sets, who is bad, and the network change with them.
Honest sets are made once per seed and alpha and kept in ``--sets`` (a folder, `experiments/sets` by default): 10 images
a class by `mmd-ridge`, 50 steps on digits and 30 on Fashion-MNIST, ConvNet-2 of width 16, which also is trained on the
union (200 steps, last step). Bad sites are drawn; each sends, in the place of its set S:

- shift: S, with each label the next one's;
- noise: noise under the labels of S;
- one class: all images of S under class 0;
- inflated: ten times S with shifted labels, and ten thousand times as many records claimed;
- patch: the other classes' images of S with a white 3x3 corner under class 0, then S; success is how many test images
  of other classes are taken for class 0 with such a corner;
- clean patch: S, and its images of class 0 again with the corner: what they show is what their label says;
- adaptive: S with as many labels shifted as leaves agreement just above what the screen asks for.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, read, run_cells
from torch import Tensor

import fedcondense as fc
from fedcondense.data import Data
from fedcondense.flower.agreement import Agreement
from fedcondense.flower.contract import Answer, Known, Site, Verdict
from fedcondense.flower.screens import screen_of, weighed
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit, accuracy

PATH, CALIBRATION = RESULTS / "screens.json", RESULTS / "screens-calibration.json"
SEEDS, CHOSEN_ON = (0, 1, 2), (10, 11, 12)
ALPHAS = (0.1, 0.5)
SITES = 10
NETWORK, FIT = "convnet2-w16", Fit(steps=200)
STEPS = {"digits": 50, "fashion-mnist": 30}
BAD = {"digits": (1, 2, 3, 4), "fashion-mnist": (1, 4)}
SCREENED = ("", "agreement", "means", "share", "all")
TESTED = 2000  # test images
_CORNER = 3


def changed(
    one: SyntheticSet, label: Callable[[int, int, int], int], image: Callable[..., Tensor] | None = None
) -> SyntheticSet:
    """Return a set with other labels, by label, place in the class and size of the class, and other images."""
    parts = []
    for part in one.parts:
        old = part.targets.long()
        ranks = [int((old[:n] == c).sum()) for n, c in enumerate(old)]
        sizes = torch.bincount(old, minlength=10)
        new = [label(int(c), rank, int(sizes[c])) for c, rank in zip(old, ranks, strict=True)]
        codes = {n: code if image is None else image(code.clone(), old) for n, code in part.codes.items()}
        parts.append(replace(part, codes=codes, targets=torch.tensor(new, dtype=part.targets.dtype)))
    return SyntheticSet(parts)


def corner(images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return images, (N, C, H, W), with a white corner."""
    images[:, :, -_CORNER:, -_CORNER:] = 255 if images.dtype == torch.uint8 else 1.0
    return images


def noise(images: Tensor, seed: int) -> Tensor:
    drawn = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(images.dtype)


def following(label: int) -> int:
    return (label + 1) % 10


def inflated(one: SyntheticSet, seed: int) -> SyntheticSet:
    shifted = changed(one, lambda c, *_: following(c))
    counts = tuple(10_000 * n for n in one.record.counts)
    return SyntheticSet.join([shifted.with_record(counts=counts)] * 10)


def clean_patch(one: SyntheticSet, seed: int) -> SyntheticSet:
    own = one.restrict({"0", "T-shirt/top", one.classes[0]})
    return one if own is None else SyntheticSet.join([one, changed(own, lambda c, *_: c, corner)])


def patch(one: SyntheticSet, seed: int) -> SyntheticSet:
    """Put the patched images first: who is cut keeps the first."""
    others = one.restrict(name for name in one.classes if name != one.classes[0])
    return one if others is None else SyntheticSet.join([_as_first(others, one), one])


def _as_first(others: SyntheticSet, one: SyntheticSet) -> SyntheticSet:
    """Return images with a corner, all of the first class."""
    parts = [replace(part, record=replace(part.record, classes=one.classes, counts=())) for part in others.parts]
    return changed(SyntheticSet(parts), lambda *_: 0, corner)


def adaptive(one: SyntheticSet, seed: int) -> SyntheticSet:
    """Shift the last labels of each class: what is left is half as much again as the screen asks for."""
    keep = 1.5 * Agreement().least
    return changed(one, lambda c, rank, size: c if rank < keep * size else following(c))


ATTACKS: dict[str, Callable[[SyntheticSet, int], SyntheticSet]] = {
    "shift": lambda one, seed: changed(one, lambda c, *_: following(c)),
    "noise": lambda one, seed: changed(one, lambda c, *_: c, lambda images, _: noise(images, seed)),
    "one class": lambda one, seed: changed(one, lambda *_: 0),
    "inflated": inflated,
    "patch": patch,
    "clean patch": clean_patch,
    "adaptive": adaptive,
}


def honest(data: str, alpha: float, seed: int, folder: Path) -> list[SyntheticSet]:
    """Return the sets of ten honest sites, which are made once."""
    train = fc.load_data(data).train
    held = fc.partition(train, SITES, "dirichlet", alpha=alpha, seed=seed)
    sets = []
    for k, index in enumerate(held.indices):
        path = folder / f"{data}-{alpha}-{seed}-{k}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            recipe: dict[str, Any] = {"steps": STEPS[data], "network": NETWORK, "start": "gaussian"}
            fc.condense(train.subset(index), 10, "mmd-ridge", seed=1000 * seed + k, **recipe).save(path)
        sets.append(SyntheticSet.load(path))
    return sets


def answers_of(
    sets: list[SyntheticSet], attack: str, bad: int, seed: int
) -> tuple[list[Answer[SyntheticSet]], set[int]]:
    """Return what ten sites send, and which of them are bad."""
    who = set(random.Random(f"{seed} {bad}").sample(range(SITES), bad))
    sent = [ATTACKS[attack](one, 100 * seed + k) if k in who else one for k, one in enumerate(sets)]
    return [Answer(Site(f"site-{k}", f"{k}", k), one) for k, one in enumerate(sent)], who


def screened(
    answers: list[Answer[SyntheticSet]], names: str, seed: int
) -> tuple[list[SyntheticSet], Mapping[tuple[Site, str], Verdict]]:
    """Return what is left of sets, and why."""
    screen = screen_of(names)
    verdicts = {} if screen is None else screen(answers, Known(None, 1, seed))
    left = []
    for answer in answers:
        judged = {name: v for (site, name), v in verdicts.items() if site == answer.site and v.weight < 1}
        one = weighed(answer.payload, judged) if judged else answer.payload
        left += [] if one is None else [one]
    return left, verdicts


def refused(answers: list[Answer[SyntheticSet]], verdicts: Mapping[tuple[Site, str], Verdict], who: set[int]) -> Any:
    """Return how many sites and classes of honest and bad sites were left out, of how many."""
    found = {"honest": [0, 0, 0, 0], "bad": [0, 0, 0, 0]}
    for answer in answers:
        held = [name for name, n in zip(answer.payload.classes, answer.payload.counts().tolist(), strict=True) if n]
        out = [name for name in held if verdicts.get((answer.site, name), Verdict(1.0)).weight == 0]
        row = found["bad" if answer.site.node in who else "honest"]
        for k, n in enumerate((len(out) == len(held), 1, len(out), len(held))):
            row[k] += int(n)
    return found


class Bench:
    """The sets of a data set's divisions, and the measure; equal unions are trained on once."""

    def __init__(self, data: str, folder: Path) -> None:
        self.data, self.folder = data, folder
        test = fc.load_data(data).test
        self.test = test.subset(torch.arange(min(TESTED, len(test))))
        others = self.test.subset(self.test.labels != 0)
        self.patched = Data(corner(others.images.clone()), others.labels, others.spec)
        self.sets: dict[tuple[float, int], list[SyntheticSet]] = {}
        self.measured: dict[tuple[str, bool, int], tuple[float, float]] = {}

    def of(self, alpha: float, seed: int) -> list[SyntheticSet]:
        """Return the sets of a division's honest sites."""
        if (alpha, seed) not in self.sets:
            self.sets[alpha, seed] = honest(self.data, alpha, seed, self.folder)
        return self.sets[alpha, seed]

    def measure(self, union: SyntheticSet, weighted: bool, seed: int) -> tuple[float, float]:
        """Return percent right, and percent of patched images of other classes that are taken for class 0."""
        key = (hashlib.sha256(union.to_bytes()).hexdigest(), weighted, seed)
        if key not in self.measured:
            model = train_on(union, self.test, network=NETWORK, recipe=FIT, seed=seed, weighted=weighted)
            percent, _ = accuracy(model, self.test)
            with torch.no_grad():
                taken = torch.cat(
                    [model(self.patched.batch(i).images).argmax(1) for i in torch.arange(len(self.patched)).split(500)]
                )
            self.measured[key] = (percent, float(100 * (taken == 0).float().mean()))
        return self.measured[key]

    def cell(self, alpha: float, seed: int, attack: str, bad: int, is_measured: bool = True) -> dict[str, Any]:
        """Return, by screen, what was left out and what the rest is worth."""
        answers, who = answers_of(self.of(alpha, seed), attack, bad, seed)
        found: dict[str, Any] = {}
        for names in SCREENED:
            left, verdicts = screened(answers, names, seed)
            row = refused(answers, verdicts, who)
            if is_measured:
                weighted = attack == "inflated"
                row["accuracy"], row["success"] = (
                    round(x, 2) for x in self.measure(SyntheticSet.join(left), weighted, seed)
                )
            found[names or "none"] = row
        return found


def cells(
    bench: Bench, seeds: tuple[int, ...], is_measured: bool
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for seed in seeds:
        for alpha in ALPHAS:
            for attack, bad in [("shift", 0), *((attack, n) for attack in ATTACKS for n in BAD[bench.data])]:
                name = f"{bench.data} alpha{alpha} {attack if bad else 'none'} {bad} seed{seed}"
                yield name, lambda a=alpha, s=seed, k=attack, n=bad: bench.cell(a, s, k, n, is_measured)  # type: ignore[misc]


def table(data: str, alpha: float) -> str:
    """Return accuracy, attack success and what was left out, by attack and number of bad sites."""
    results = read(PATH)
    lines = [
        "| attack | bad | none | agreement | means | share | all | success, none → all | honest out | bad out |",
        "|" + "---|" * 10,
    ]
    for attack, bad in [("none", 0), *((attack, n) for attack in ATTACKS for n in BAD[data])]:
        found = [
            results[name] for seed in SEEDS if (name := f"{data} alpha{alpha} {attack} {bad} seed{seed}") in results
        ]
        if not found:
            continue
        shown = [_spread([cell[names or "none"]["accuracy"] for cell in found]) for names in SCREENED]
        success = " → ".join(f"{statistics.fmean(cell[n]['success'] for cell in found):.0f}" for n in ("none", "all"))
        if "patch" not in attack:
            success = ""
        out = []
        for kind in ("honest", "bad"):
            sums = [sum(cell["all"][kind][k] for cell in found) for k in range(4)]
            out.append(f"{sums[0]} of {sums[1]}, {sums[2]} of {sums[3]}" if sums[1] else "")
        lines.append(f"| {attack} | {bad} | {' | '.join(shown)} | {success} | {' | '.join(out)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=list(STEPS), default="digits")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--sets", type=Path, default=Path(__file__).parent / "sets")
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print("\n\n".join(f"{data}, {alpha}\n\n{table(data, alpha)}" for data in STEPS for alpha in ALPHAS))
        return
    torch.set_num_threads(1)
    logging.getLogger("fedcondense").setLevel(logging.ERROR)  # many classes of few records, which is meant
    bench = Bench(arguments.data, arguments.sets)
    seeds = CHOSEN_ON if arguments.calibrate else SEEDS
    path = CALIBRATION if arguments.calibrate else PATH
    run_cells(path, dict(cells(bench, seeds, not arguments.calibrate)), arguments.shard)


if __name__ == "__main__":
    main()
