"""What the commands around one synthetic set share: their options, and how a set is saved, measured and described."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.terminal import columns, given, note, printable, typed
from fedcondense.cli.values import Bytes, Whole
from fedcondense.errors import SettingError
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from fedcondense.checkpoints import Checkpoint
    from fedcondense.data.images import Data
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.evaluation import Evaluation

__all__ = [
    "Amount",
    "Codec",
    "DataName",
    "Ipc",
    "IpcOrNot",
    "Labels",
    "Network",
    "Objective",
    "Parametrization",
    "Seed",
    "Seeds",
    "SetFile",
    "Steps",
    "Unit",
    "checkpoint_of",
    "describe",
    "measure",
    "named_data",
    "next_of",
    "result_of",
    "save_measured",
]

_KEPT_EVERY_S = 30.0  # an evaluation's progress: a shorter one leaves no file
_LETTERS = 40  # of a set's file, in the name of that beside it

DataName = Annotated[str, typer.Argument(metavar="DATA")]
SetFile = Annotated[Path, typer.Argument(metavar="FILE")]
Ipc = Annotated[int, typer.Option(parser=Whole(1, 10**6), help="Images per class whose bytes the set may take.")]
IpcOrNot = Annotated[
    int | None,
    typer.Option(parser=Whole(1, 10**6), help="Images per class whose bytes the set may take; default: 10."),
]
Amount = Annotated[
    str | None,
    typer.Option(parser=Bytes(), help="Bytes that the file may take, evaluation included, such as '20 kB'."),
]
Codec = Annotated[
    str | None,
    typer.Option(help="How images are stored: raw, bits-2, jpeg-10, webp-20, ...; default: raw, or as a budget asks."),
]
_OBJECTIVES = (
    "mmd-ridge (default), dm-ridge, ridge, dm, mmd, ncfm, dc, dsa, idc, mtt, mtt-recompute, tesla, kip, frepo, dd"
)
Objective = Annotated[str | None, typer.Option(help=f"{_OBJECTIVES}, or a plugin's.")]
_STORED = "pixels (default), multi-formation (four images in one), multi-formation-4, bases, hallucinators or latents"
Parametrization = Annotated[str | None, typer.Option(help=f"{_STORED}.")]
Network = Annotated[str | None, typer.Option(help="Such as convnet3-w32; default: as the image size asks.")]
Steps = Annotated[
    int | None, typer.Option(parser=Whole(1, 10**9), help="Optimisation steps; default: the objective's.")
]
Labels = Annotated[Path | None, typer.Option(help="The labels of a .pt of images alone, such as labels_best.pt.")]
Seeds = Annotated[
    int, typer.Option(parser=Whole(1, 1000), help="Networks that are trained to measure each set, or row.")
]
Unit = Annotated[bool, typer.Option("--unit", help="Values of a .pt are in [0, 1], not normalised.")]
Seed = Annotated[int, typer.Option(parser=Whole(), help="All that is random follows from it.")]


def named_data(synthetic: SyntheticSet, data: str | None) -> str:
    """Return the data that an option or a set's record names."""
    if not data and ":" in synthetic.name:  # a stranger's file must not choose what is read from this disk
        raise SettingError(f"the set was made from {printable(synthetic.name)!r}; name the data with --data")
    return data or synthetic.name


def next_of(file: Path, synthetic: SyntheticSet, data: str | None = None, **options: Any) -> list[str | Path] | None:
    """Return the command that measures a set, or makes a network of one whose data its maker alone knows.

    None: both need a plugin that is not loaded.
    """
    from fedcondense.data.augment import augmentations
    from fedcondense.data.catalogue import CATALOGUE

    used = {name for part in synthetic.parts for name in part.record.augmentation}
    if not used <= {*augmentations()}:
        return None
    if data is None and synthetic.name not in CATALOGUE:
        network = free(file.with_name("network.safetensors"))
        return ["train", file, "--output", network, *typed(plugin=options.get("plugin"))]
    return ["evaluate", file, *typed(data=data, **options)]


def save_measured(
    synthetic: SyntheticSet, output: Path, test: Data | None, seeds: int, network: str | None, options: Sequence[str]
) -> SyntheticSet:
    """Write a set, measure it if there is something to test on, and return it with what was measured, written too.

    `options`: those with which `fedcondense evaluate` measures the same, for whoever interrupts it.
    """
    synthetic.save(output, overwrite=True)  # before it is evaluated: from here on nothing is lost
    if test is not None:
        checkpoint = checkpoint_of(output, network)
        try:
            measured = measure(synthetic, test, seeds, network, checkpoint=checkpoint)
        except KeyboardInterrupt:
            same = shlex.join(["fedcondense", "evaluate", str(output), *options])
            raise KeyboardInterrupt(f"{output} is written, but was not measured; do so with: {same}") from None
        synthetic = synthetic.with_evaluation(measured.to_dict())
        synthetic.save(output, overwrite=True)
        if checkpoint is not None:
            checkpoint.remove()
    return synthetic


def checkpoint_of(file: Path, network: str | None, protocol: str | None = None) -> Checkpoint | None:
    """Return where an evaluation of the set in a file keeps what it has done, so that the same command goes on.

    It lies beside the file, or here where that folder cannot be written; None: neither can. Each network and protocol
    has its own, so that several may be evaluated at the same time.
    """
    from fedcondense.checkpoints import Checkpoint

    of = hashlib.sha256(f"{file.name} {network} {protocol}".encode()).hexdigest()[:8]
    folder = next((folder for folder in (file.parent, Path()) if os.access(folder, os.W_OK)), None)
    path = None if folder is None else folder / f"{file.name[:_LETTERS]}.evaluating-{of}"
    return None if path is None else Checkpoint(path, _KEPT_EVERY_S, resume=True, anew=True)


def measure(
    synthetic: SyntheticSet,
    test: Data,
    seeds: int,
    network: str | None,
    protocol: str | None = None,
    as_recorded: bool = False,
    checkpoint: Checkpoint | None = None,
    parts: bool = False,
) -> Evaluation:
    """Measure what `seeds` networks reach after training on the set, or what the set's record says of it once more.

    `parts`: whether other evaluations follow.
    """
    from fedcondense.training.evaluation import evaluate as evaluate_set
    from fedcondense.training.evaluation import evaluate_as_recorded

    if seeds < 1:
        raise SettingError(f"{seeds} seeds; needed: 1 or more")
    with reporting("evaluating", parts=parts) as update:

        def follow(step: int, steps: int) -> None:
            update(step / steps)

        if as_recorded:
            try:
                return evaluate_as_recorded(synthetic, test, progress=follow, checkpoint=checkpoint)
            except SettingError as error:
                note(f"{error}, here with {seeds} networks of the default kind")
        options = given(network=network, protocol=protocol, checkpoint=checkpoint)
        return evaluate_set(synthetic, test, seeds=tuple(range(seeds)), progress=follow, **options)


def result_of(synthetic: SyntheticSet) -> dict[str, Any]:
    """Return the keys that machines rely on."""
    record, evaluation = synthetic.record, synthetic.evaluation or {}
    return {
        "data": record.data,
        "method": record.method,
        "ipc": record.ipc,
        "images": len(synthetic),
        "nbytes": synthetic.nbytes,
        "codec": synthetic.codec,
        "seconds": synthetic.seconds,
        "network": record.network,
        "accuracy": evaluation.get("accuracy"),
        "accuracy_std": evaluation.get("accuracy_std"),
    }


def describe(synthetic: SyntheticSet) -> str:
    """Describe a set and, where it was measured, its accuracy, for people."""
    from fedcondense.report.units import human_bytes

    record, evaluation = synthetic.record, synthetic.evaluation
    stored = f"{human_bytes(synthetic.nbytes)} ({synthetic.codec})"
    fields = [
        ("data", f"{record.data}, {len(synthetic.classes)} classes"),
        ("method", record.method),
        ("set", f"{len(synthetic)} images in {stored}, made in {synthetic.seconds:.1f} s"),
    ]
    if evaluation and "accuracy" in evaluation:
        network = evaluation.get("network", "")
        once = len(evaluation.get("seeds", ())) < 2
        spread = "" if once else f" ± {evaluation.get('accuracy_std', 0.0):.1f}"
        measured = f"{evaluation['accuracy']:.1f}{spread} %"
        under = "" if (name := evaluation.get("protocol", "short")) == "short" else f", {name} protocol"
        fields.append(("accuracy", f"{measured} of {network}, trained on the set alone{under}"))
        fields += [("decoder", decoder) for decoder in [evaluation.get("decoder")] if decoder]
    return columns(fields)
