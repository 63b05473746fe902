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
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import fedcondense as fc
from fedcondense.avalanche.splits import check_split
from fedcondense.budgets import budget_bytes
from fedcondense.checksums import without_checksum
from fedcondense.cli.terminal import heard
from fedcondense.data.images import Spec
from fedcondense.data.loading import count_listed
from fedcondense.errors import MissingExtraError, OutputError, ResumeError
from fedcondense.files import hold, remove, write_file
from fedcondense.memory import Condenser
from fedcondense.networks import ConvNet
from fedcondense.networks.names import WIDTHS
from fedcondense.networks.saved import NetworkCard, save_network
from fedcondense.plain import whole_number
from fedcondense.progress import reporting
from fedcondense.sets.codecs import codec_named

CHECKPOINT, ARGUMENTS, MEMORY, PAST = "strategy.pt", "arguments.json", "memory.safetensors", "accuracies.json"
LEARNED = (MEMORY, "weights.safetensors")  # what a run must not replace unless it wrote it
NOT_KEPT = ("output", "data_root", "overwrite")  # of the arguments: where things lie, not what is learned
FEW = 60  # updates of the network
ANEW = "give another --output, or --overwrite to begin anew and replace what is there"


def main() -> None:
    """Check what was asked for, quickest first, and train."""
    given = read_arguments()
    asked = {name: str(value) for name, value in vars(given).items() if name not in NOT_KEPT}
    check_values(given)
    with heard(), hold(given.output, is_folder=True):
        if not given.overwrite:
            check_output(given.output, asked)
        if (listed := count_listed(given.data, given.data_root)) is not None:  # before images are read
            check_split(given.data, *listed, given.experiences)
        learn(given, asked)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument("--width", type=int, choices=WIDTHS, default=16, help="channels of the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/condensed-replay"))
    parser.add_argument("--overwrite", action="store_true", help="begin anew where the output folder holds a run")
    given = parser.parse_args()
    if given.max_bytes is not None and given.images is not None:
        parser.error("--max-bytes and --images; give one of them")
    if given.real is not None and given.max_bytes is None:
        parser.error("--real without --max-bytes, which says how many images there are")
    return given


def check_values(given: argparse.Namespace) -> None:
    """Refuse what cannot work with any data, before anything is read or imported that takes long."""
    if find_spec("avalanche") is None:
        raise MissingExtraError("avalanche-lib", "avalanche")
    for name in ("experiences", "epochs", "images"):
        if (value := getattr(given, name)) is not None:
            whole_number(value, f"--{name}", 1)
    whole_number(given.seed, "--seed")
    if given.max_bytes is not None:
        budget_bytes(given.max_bytes, "--max-bytes")
    if given.real is not None:
        codec_named(given.real)
    condenser_of(given, is_tiny=False).check()


def check_output(output: Path, asked: dict[str, str]) -> None:
    """Refuse an output folder that holds what another run learned.

    A run writes its checkpoint before its first experience, so a memory without one is not that of a run to go on with.
    """
    checkpoint, kept = output / CHECKPOINT, output / ARGUMENTS
    held = [name for name in LEARNED if (output / name).exists()]
    if not checkpoint.exists():
        if held:
            raise OutputError(f"{output} holds {' and '.join(held)}, but no {CHECKPOINT} to go on from; {ANEW}")
        return
    part = checkpoint
    try:
        without_checksum(checkpoint.read_bytes())
        part = kept
        before = json.loads(kept.read_text())
    except (OSError, ValueError) as error:
        raise ResumeError(f"no run can go on in {output}: {part} is missing or damaged ({error}); {ANEW}") from error
    if before != asked:
        raise ResumeError(f"{checkpoint} is of other arguments ({kept}); give them, or {ANEW.removeprefix('give ')}")


def condenser_of(given: argparse.Namespace, is_tiny: bool) -> Condenser:
    """Return what condenses: on networks as wide as the learner's, which is quick enough for one core."""
    parametrization = given.parametrization or ("pixels" if is_tiny else "multi-formation")
    network = f"convnet{depth_of(is_tiny)}-w{given.width}"
    return Condenser(given.objective, parametrization, network=network, steps=given.steps)


def depth_of(is_tiny: bool) -> int:
    """Return the depth of the networks."""
    return 2 if is_tiny else 3


def learn(given: argparse.Namespace, asked: dict[str, str]) -> None:
    """Load the data, and train on the stream, an experience at a time."""
    train, test = fc.load_data(given.data, given.data_root, given.size, given.skip_broken)
    counts = train.counts.tolist(), test.counts.tolist()
    check_split(train.spec.name, train.spec.classes, *counts, given.experiences)
    checkpoint, past, memory = (given.output / name for name in (CHECKPOINT, PAST, MEMORY))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no QP solver found", UserWarning)  # of GEM alone, which is not used here
        from fedcondense.avalanche import maybe_load_checkpoint, save_checkpoint, split_benchmark
    benchmark = split_benchmark(train, test, given.experiences, seed=given.seed)
    strategy = strategy_for(given, train.spec)
    if given.overwrite:
        for path in (checkpoint, past):
            remove(path)
    write_file(given.output / ARGUMENTS, json.dumps(asked, indent=1).encode(), overwrite=True)
    strategy, done = maybe_load_checkpoint(strategy, checkpoint)
    listen(strategy)
    if done:
        print(f"{checkpoint} is taken over: {done} of {given.experiences} experiences are done", flush=True)
    elif not checkpoint.exists():
        save_checkpoint(strategy, checkpoint)  # from now on the memory in this folder is this run's
    if done:  # whatever became of its file, which may be missing or damaged
        buffer_of(strategy).save(memory, overwrite=True)
    an_epoch = -(-len(train) // (given.experiences * strategy.train_mb_size))
    if given.strategy == "replay" and (updates := an_epoch * strategy.train_epochs) < FEW:
        print(f"{updates} updates an experience are few; --epochs {-(-FEW // an_epoch)} makes {FEW}", flush=True)
    table = read_table(past, done)
    with contextlib.nullcontext(silent) if sys.stdout.isatty() else reporting("learning") as report:
        for experience in benchmark.train_stream[done:]:
            report(len(table) / given.experiences, f"experience {len(table) + 1} of {given.experiences}")
            strategy.train(experience)
            table.append(accuracies_of(strategy, benchmark, len(table) + 1))
            buffer_of(strategy).save(memory, overwrite=True)  # first: where the disk is full, it is what counts
            write_file(past, json.dumps(table).encode(), overwrite=True)
            save_checkpoint(strategy, checkpoint)
            print(line_of(table, given.experiences), flush=True)
        found = accuracies_of(strategy, benchmark, given.experiences)
    buffer = buffer_of(strategy)
    picture = drawn(table, given.output / "accuracy.png")
    card = NetworkCard("own", train.spec.classes, train.spec.shape, train.spec.mean, train.spec.std, given.strategy)
    save_network(given.output, strategy.model, card, overwrite=True)
    tested = [int((test.counts[exp.classes_in_this_experience]).sum()) for exp in benchmark.test_stream]
    accuracy = sum(a * n for a, n in zip(found, tested, strict=True)) / sum(tested)
    result = {"accuracy": round(accuracy, 2), "nbytes": buffer.nbytes, "images": len(buffer.buffer)}
    print(json.dumps(result | {"memory": str(memory), "picture": str(picture)}))
    network = given.output / "network.safetensors"
    print(
        f"that accuracy is of the stream's own network, of width {given.width}; one that is trained on the memory's "
        f"file alone may be better: fedcondense train {shlex.quote(str(memory))} -o {shlex.quote(str(network))}"
    )
    print(f"next: {shlex.join(['fedcondense', 'show', str(memory), '--output', str(given.output / 'memory.png')])}")


def read_table(past: Path, done: int) -> list[list[float]]:
    """Return the accuracies after each of the experiences that are done."""
    try:
        table: list[list[float]] = json.loads(past.read_text()) if done else []
    except (OSError, ValueError) as error:
        raise ResumeError(f"no run can go on without {past} ({error}); {ANEW}") from error
    if [len(row) for row in table[:done]] != list(range(1, done + 1)):
        raise ResumeError(f"{past} has not the accuracies of the {done} experiences that are done; {ANEW}")
    return table[:done]


def silent(done: float, detail: str) -> None:
    """Take the place of progress lines on a terminal, where Avalanche draws its own."""


def strategy_for(given: argparse.Namespace, spec: Spec) -> Any:
    """Return the strategy, its memory and its network as they are before the first experience."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.logging import TensorboardLogger
    from avalanche.training.plugins import EvaluationPlugin

    from fedcondense.avalanche import CodedBuffer, CondensedBuffer, CondensedGDumb, CondensedReplay, buffer_metrics

    is_tiny, is_gdumb = min(spec.shape[1:]) < 16, given.strategy == "gdumb"
    condenser = condenser_of(given, is_tiny)
    told: dict[str, Any] = {
        "adaptive_size": False,  # how many classes come is known: none has to be condensed again
        "total_num_groups": len(spec.classes),
        "max_bytes": given.max_bytes,
        "shape": spec.shape if given.max_bytes else None,
        "classes": spec.classes,
        "operations": spec.operations,
        "mean": spec.mean,
        "std": spec.std,
        "seed": given.seed,
    }
    most = None if given.max_bytes else (given.images or 100) * condenser.per_image
    buffer = CodedBuffer(codec=given.real, **told) if given.real else CondensedBuffer(most, condenser=condenser, **told)
    torch.manual_seed(given.seed)
    model = ConvNet(spec.shape, len(spec.classes), given.width, depth_of(is_tiny), "group")
    metrics = [accuracy_metrics(experience=True, stream=True), buffer_metrics(images=True)]
    return (CondensedGDumb if is_gdumb else CondensedReplay)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        storage_policy=buffer,
        train_mb_size=32 if is_gdumb else 128,
        train_epochs=given.epochs or (300 // condenser.per_image if is_gdumb else 2),
        eval_mb_size=500,
        evaluator=EvaluationPlugin(*metrics, loggers=[TensorboardLogger(given.output / "tensorboard")]),
    )


def listen(strategy: Any) -> None:
    """Let a strategy, new or from a checkpoint, tell how far it is: on a terminal as Avalanche does, else in lines."""
    from avalanche.logging import InteractiveLogger

    from fedcondense.avalanche import ProgressLogger

    loggers = [one for one in strategy.evaluator.loggers if not isinstance(one, InteractiveLogger | ProgressLogger)]
    strategy.evaluator.loggers = [*loggers, InteractiveLogger() if sys.stdout.isatty() else ProgressLogger()]


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
    except OSError as error:  # a full disk, a folder that vanished: what was complete is on the disk already
        sys.exit(f"{error.filename or 'writing'}: {error.strerror or error}; mend it, and the same command goes on")
