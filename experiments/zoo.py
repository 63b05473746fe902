"""The ready sets of `fedcondense/sets/zoo`: their files, the index with their hashes, and the page that describes them.

    python experiments/zoo.py             # makes what is missing, one to four minutes of a CPU core a set, and resumes
    python experiments/zoo.py --again     # codes and evaluates all of them again, from what was condensed
    python experiments/zoo.py --page      # writes the page alone, from the index

The default objective on ConvNet-3 width 32, float32, one thread, seed 0, from class Gaussians: no set starts from a
record. Steps are fixed beforehand and every set is the first that was made: none is selected on the test data. What
was condensed, in 8 bits a value, is kept in `results/ready/` (`original`); the package has it in two.
Evaluated as `fedcondense evaluate` does: three networks, 400 steps, last step, all test images. The distance of the
closest training image is measured on what the file decodes to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict

import torch
from cells import RESULTS, read

import fedcondense as fc
from fedcondense.parametrizations import PARAMETRIZATIONS, MultiFormation
from fedcondense.report.units import human_bytes
from fedcondense.sets.zoo import FOLDER, ReadySet

NETWORK = "convnet3-w32"
INDEX = FOLDER / "zoo.json"
ORIGINALS = RESULTS / "ready"
CODEC = "bits-2"  # of 8 bits a value it keeps all but half a point, in a sixth to a quarter of the bytes (coded.md)

SETS = {  # data and images per class: how images are stored, and steps
    ("mnist", 1): ("multi-formation", 1000),
    ("mnist", 10): ("pixels", 1000),
    ("fashion-mnist", 1): ("multi-formation", 1000),
    ("fashion-mnist", 10): ("multi-formation", 720),
    ("cifar10", 1): ("multi-formation", 1000),
    ("cifar10", 10): ("multi-formation", 720),
}

PAGE = """# Ready sets

Condensed sets that come with the package: `fedcondense.load_set("fashion-mnist", ipc=10)`. Each file is verified by its
SHA-256 (`zoo.json`) when it is loaded, and is an ordinary synthetic set: `fedcondense zoo` says where the files lie,
`fedcondense evaluate FILE` measures one again, `fedcondense show FILE --output FILE.png` draws it, `fedcondense export`
turns it into images.

| set | file | stored as | decodes to | test accuracy | steps | CPU s | nearest record |
|---|---|---|---|---|---|---|---|
{rows}

Accuracy: percent, mean ± standard deviation of three networks ({network}) trained on the set alone from scratch, 400
steps, last step, all test images; the evaluation is in each file. CPU s: one core of a shared x86 machine without AMX
or bfloat16. Nearest record: how far the decoded image that is closest to any training image is from it, root mean
square a pixel in [0, 1]; in brackets the same for as many real test images.

How they were made: `python experiments/zoo.py`, that is `{method}` with random {network} networks, seed 0, started
from a Gaussian a class (`--start gaussian`), in float32, as its recipe says but for the steps. No image is a training
image. Every set is the first that was made; how they are stored follows from other sets' accuracy on the test data
(`experiments/one-holder.md`). They were condensed in 8 bits a value (`experiments/results/ready/`) and coded in
two: half a point or less for four fifths of the bytes (`experiments/coded.md`). None was condensed for its codec. **No
privacy is promised**: these are public data, condensed without noise.

Sources: MNIST (LeCun, Cortes and Burges), Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, MIT licence), CIFAR-10
(Krizhevsky, 2009). Cite them when you use a set made from them.
"""


def original(name: str) -> fc.SyntheticSet:
    """Return a ready set as it was condensed, in 8 bits a value; ``"fashion-mnist-ipc10"`` say."""
    return fc.SyntheticSet.load(ORIGINALS / f"{name}.safetensors")


def condense(data: str, ipc: int, name: str) -> float:
    """Write a set in 8 bits a value, and return the CPU seconds."""
    parametrization, steps = SETS[data, ipc]
    checkpoint = fc.Checkpoint(RESULTS / f"zoo-{name}.checkpoint", resume=True)
    cpu = time.process_time()
    made = fc.condense(
        fc.load_data(data).train,
        ipc,
        parametrization=parametrization,
        network=NETWORK,
        steps=steps,
        start="gaussian",
        checkpoint=checkpoint,
    )
    cpu = time.process_time() - cpu
    made.save(ORIGINALS / f"{name}.safetensors", overwrite=True)
    checkpoint.remove()
    return round(cpu, 1)


def make(data: str, ipc: int, before: ReadySet | None) -> ReadySet:
    """Code and evaluate a set; it is condensed first if it never was."""
    name, (parametrization, steps) = f"{data}-ipc{ipc}", SETS[data, ipc]
    is_there = before is not None and (ORIGINALS / f"{name}.safetensors").exists()
    cpu = before.cpu_seconds if before is not None and is_there else condense(data, ipc, name)
    train, test = fc.load_data(data)
    made = original(name).recode(CODEC)
    measured = fc.evaluate(made, test, network=NETWORK)
    made = made.with_evaluation(measured.to_dict())
    file = f"{name}.safetensors"
    made.save(FOLDER / file, overwrite=True)
    return ReadySet(
        data=data,
        ipc=ipc,
        file=file,
        sha256=hashlib.sha256((FOLDER / file).read_bytes()).hexdigest(),
        nbytes=made.nbytes,
        images=len(made),
        accuracy=round(measured.accuracy, 2),
        accuracy_std=round(measured.accuracy_std, 2),
        network=NETWORK,
        method=made.record.method,
        parametrization=parametrization,
        steps=steps,
        cpu_seconds=cpu,
        nearest=closest(made.pixels().images, train.images),
        nearest_test=closest(test.images[: len(made)].float() / 255, train.images),
        codec=made.codec,
    )


def closest(images: torch.Tensor, records: torch.Tensor) -> float:
    """Return the root mean square difference of the image, in [0, 1], that is closest to any record."""
    flat = images.flatten(1)
    least = min(float(torch.cdist(flat, piece.flatten(1).float() / 255).min()) for piece in records.split(5000))
    return round(least / math.sqrt(flat.shape[1]), 3)


def page(index: dict[str, ReadySet]) -> str:
    rows = []
    for ready in index.values():
        parametrization = PARAMETRIZATIONS[ready.parametrization]()
        kind = f"factor {parametrization.factor}" if isinstance(parametrization, MultiFormation) else "pixels"
        kind += f", {ready.codec}"
        rows.append(
            f"| {ready.data}, {ready.ipc} a class | `{ready.file}`, {human_bytes(ready.nbytes)} | {kind} "
            f"| {ready.images} images | {ready.accuracy:.1f} ± {ready.accuracy_std:.1f} | {ready.steps} "
            f"| {ready.cpu_seconds:.0f} | {ready.nearest:.2f} ({ready.nearest_test:.2f}) |"
        )
    (method,), (network,) = {r.method for r in index.values()}, {r.network for r in index.values()}
    return PAGE.format(rows="\n".join(rows), method=method, network=network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--again", action="store_true", help="code and evaluate what was condensed once more")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    index = {name: ReadySet(**line) for name, line in read(INDEX).items()}
    for data, ipc in SETS:
        name = f"{data}-ipc{ipc}"
        is_made = name in index and (FOLDER / index[name].file).exists()
        if arguments.page or (is_made and not arguments.again):
            continue
        index[name] = make(data, ipc, index.get(name))
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(asdict(ready))}" for key, ready in index.items())
        INDEX.write_text(f"{{\n{lines}\n}}\n")
        print(name, f"{index[name].accuracy:.1f} ± {index[name].accuracy_std:.1f}", index[name].nbytes, flush=True)
    (FOLDER / "README.md").write_text(page(index))


if __name__ == "__main__":
    main()
