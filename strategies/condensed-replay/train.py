"""Class-incremental learning with a memory of condensed images; killed, it goes on with the broken experience.

python strategies/condensed-replay/train.py                                   # digits, embedded
python strategies/condensed-replay/train.py --data fashion-mnist --width 32 --output runs/split
python strategies/condensed-replay/train.py --data folder:leaves --size 64 --max-bytes "512 KiB" --output runs/robot
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger, TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from matplotlib.figure import Figure
from torch import nn

import fedcondense as fc
from fedcondense.avalanche import (
    CodedBuffer,
    CondensedBuffer,
    CondensedGDumb,
    CondensedReplay,
    buffer_metrics,
    maybe_load_checkpoint,
    save_checkpoint,
    split_benchmark,
)
from fedcondense.files import write_file
from fedcondense.memory import Condenser
from fedcondense.networks import ConvNet
from fedcondense.networks.saved import NetworkCard, save_network


def main() -> None:
    """Train on the stream, an experience at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="digits", help="a name that `fedcondense data` lists, or npz:FILE, folder:DIR"
    )
    parser.add_argument("--data-root")
    parser.add_argument("--size", type=int, help="pixels a side that images are brought to")
    parser.add_argument("--skip-broken", action="store_true", help="leave images of a folder out that cannot be read")
    parser.add_argument("--strategy", choices=["gdumb", "replay"], default="gdumb")
    parser.add_argument("--max-bytes", help="what the memory's file may take, header and labels included: 512 KiB")
    parser.add_argument("--images", type=int, help="plain images whose bytes its images may take instead; default 100")
    parser.add_argument("--real", metavar="CODEC", help="hold real images instead, such as jpeg-15; with --max-bytes")
    parser.add_argument("--experiences", type=int, default=5)
    parser.add_argument(
        "--epochs", type=int, help="default: 300 over the memory's bytes (gdumb), 2 over the stream (replay)"
    )
    parser.add_argument(
        "--objective", choices=fc.OBJECTIVES, default="mmd", help="default: mmd, for classes that never meet the others"
    )
    parser.add_argument("--parametrization", help="default: multi-formation, or pixels where images are tiny")
    parser.add_argument("--steps", type=int, default=200, help="of condensing, an experience")
    parser.add_argument("--width", type=int, default=16, help="channels of the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/condensed-replay"))
    arguments = parser.parse_args()
    if arguments.max_bytes is not None and arguments.images is not None:
        parser.error("--max-bytes and --images; give one of them")
    if arguments.real is not None and arguments.max_bytes is None:
        parser.error("--real without --max-bytes, which says how many images there are")
    checkpoint = arguments.output / "strategy.pt"
    asked = {name: str(value) for name, value in vars(arguments).items() if name not in ("output", "data_root")}
    kept = arguments.output / "arguments.json"
    if checkpoint.exists() and kept.exists() and json.loads(kept.read_text()) != asked:
        sys.exit(f"{checkpoint} is of other arguments ({kept}); give them, or another --output")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_file(kept, json.dumps(asked, indent=1).encode(), overwrite=True)

    train, test = fc.load_data(arguments.data, arguments.data_root, arguments.size, arguments.skip_broken)
    benchmark = split_benchmark(train, test, arguments.experiences, seed=arguments.seed)
    is_tiny = min(train.spec.shape[1:]) < 16
    parametrization = arguments.parametrization or ("pixels" if is_tiny else "multi-formation")
    depth = 2 if is_tiny else 3
    condenser = Condenser(
        arguments.objective, parametrization, network=f"convnet{depth}-w{arguments.width}", steps=arguments.steps
    )
    told: dict[str, Any] = {
        "adaptive_size": False,  # how many classes come is known: none has to be condensed again
        "total_num_groups": len(train.spec.classes),
        "max_bytes": arguments.max_bytes,
        "shape": train.spec.shape if arguments.max_bytes else None,
        "classes": train.spec.classes,
        "operations": train.spec.operations,
        "mean": train.spec.mean,
        "std": train.spec.std,
        "seed": arguments.seed,
    }
    most = None if arguments.max_bytes else (arguments.images or 100) * condenser.per_image
    buffer = (
        CodedBuffer(codec=arguments.real, **told)
        if arguments.real
        else CondensedBuffer(most, condenser=condenser, **told)
    )
    torch.manual_seed(arguments.seed)
    model = ConvNet(train.spec.shape, len(train.spec.classes), arguments.width, depth, "group")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    is_gdumb = arguments.strategy == "gdumb"
    loggers = [TensorboardLogger(arguments.output / "tensorboard")]
    metrics = [accuracy_metrics(experience=True, stream=True), buffer_metrics(images=True)]
    strategy = (CondensedGDumb if is_gdumb else CondensedReplay)(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        storage_policy=buffer,
        train_mb_size=32 if is_gdumb else 128,
        train_epochs=arguments.epochs or (300 // condenser.per_image if is_gdumb else 2),
        eval_mb_size=500,
        evaluator=EvaluationPlugin(*metrics, loggers=loggers),
    )
    strategy, done = maybe_load_checkpoint(strategy, checkpoint)
    loggers = [one for one in strategy.evaluator.loggers if not isinstance(one, InteractiveLogger)]
    strategy.evaluator.loggers = loggers + ([InteractiveLogger()] if sys.stdout.isatty() else [])
    if done:
        print(f"{checkpoint} is taken over: {done} of {arguments.experiences} experiences are done", flush=True)
    past = arguments.output / "accuracies.json"
    table: list[list[float]] = json.loads(past.read_text())[:done] if past.exists() else []
    memory = arguments.output / "memory.safetensors"
    for experience in benchmark.train_stream[done:]:
        strategy.train(experience)
        table.append(accuracies_of(strategy, benchmark, len(table) + 1))
        write_file(past, json.dumps(table).encode(), overwrite=True)
        buffer_of(strategy).save(memory, overwrite=True)  # first: where the disk is full, it is the smaller one
        save_checkpoint(strategy, checkpoint)
        print(line_of(table, arguments.experiences), flush=True)
    found = accuracies_of(strategy, benchmark, arguments.experiences)
    buffer = buffer_of(strategy)
    picture = drawn(table, arguments.output / "accuracy.png")
    card = NetworkCard("own", train.spec.classes, train.spec.shape, train.spec.mean, train.spec.std, arguments.strategy)
    save_network(arguments.output, strategy.model, card, overwrite=True)
    counts = [int((test.counts[exp.classes_in_this_experience]).sum()) for exp in benchmark.test_stream]
    accuracy = sum(a * n for a, n in zip(found, counts, strict=True)) / sum(counts)
    result = {"accuracy": round(accuracy, 2), "nbytes": buffer.nbytes, "images": len(buffer.buffer)}
    print(json.dumps(result | {"memory": str(memory), "picture": str(picture)}))
    print(f"next: fedcondense show {memory} --output {arguments.output / 'memory.png'}")


def accuracies_of(strategy: Any, benchmark: Any, count: int) -> list[float]:
    """Return the accuracy on the classes of each of the first experiences, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        metrics = strategy.eval(benchmark.test_stream[:count])
    names = sorted(name for name in metrics if name.startswith("Top1_Acc_Exp/eval_phase"))[:count]
    return [round(100 * metrics[name], 2) for name in names]


def line_of(table: list[list[float]], experiences: int) -> str:
    """Return a line on the last experience: accuracy on each so far, and forgetting, the mean loss since the best."""
    last = table[-1]
    lost = [max(row[k] for row in table[k:]) - last[k] for k in range(len(last) - 1)]
    forgetting = f", forgetting {sum(lost) / len(lost):.1f}" if lost else ""
    each = ", ".join(f"{a:.1f}" for a in last)
    return f"experience {len(table)} of {experiences}: {sum(last) / len(last):.1f} % ({each}){forgetting}"


def drawn(table: list[list[float]], path: Path) -> Path:
    """Draw the accuracy on each experience's classes after each experience."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for k in range(len(table)):
        after = [row[k] for row in table[k:]]
        axes.plot(range(k + 1, len(table) + 1), after, marker="o", label=f"experience {k + 1}")
    axes.plot(range(1, len(table) + 1), [sum(row) / len(row) for row in table], color="black", label="mean so far")
    axes.set(xlabel="after experience", ylabel="accuracy, %", ylim=(0, 100), xticks=range(1, len(table) + 1))
    axes.legend(fontsize=8, loc="lower left", ncols=2)
    figure.savefig(path, dpi=150)
    return path


def buffer_of(strategy: Any) -> Any:
    """Return the memory of a strategy, which a checkpoint brings back."""
    return next(plugin.storage_policy for plugin in strategy.plugins if hasattr(plugin, "storage_policy"))


if __name__ == "__main__":
    try:
        main()
    except fc.FedcondenseError as error:
        sys.exit(str(error))
