"""What a trained network is used for: `predict`, `export-network`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedcondense.cli.outputs import check_output, free
from fedcondense.cli.terminal import (
    Device,
    Format,
    Output,
    Overwrite,
    SkipBroken,
    Threads,
    columns,
    command,
    emit,
    finish,
    note,
    set_up,
)
from fedcondense.cli.unfinished import network_of
from fedcondense.cli.usage import Command
from fedcondense.machine import usual_device

Network = Annotated[Path, typer.Argument(metavar="FOLDER|FILE", help="A run's folder, or a network's file.")]


_LISTED = 20  # pictures beside scores: of more, --format json has each


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense predict runs/demo leaf.jpg more-leaves")(predict)
    app.command("export-network", cls=Command, epilog="Example: fedcondense export-network runs/demo -o leaves.onnx")(
        export_network
    )


@command
def predict(
    network: Network,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Images, or folders of images.")],
    skip_broken: SkipBroken = False,
    device: Device = None,
    threads: Threads = None,
    form: Output = Format.text,
) -> None:
    """Say which class a trained network sees in each picture, and how surely; pictures are brought to its size.

    A folder whose sub-folders are called as the network's classes is scored, too: accuracy, and per class sensitivity,
    specificity and area under the ROC curve, with 95 percent intervals.

    JSON keys: `network`, `predictions` (`file`, `class`, `probability`, `probabilities` by class), `scores` (null
    unless all pictures are in folders of its classes; keys as in fedcondense.training.scores.Scores).
    """
    import torch

    from fedcondense.data.layouts import first
    from fedcondense.networks.pictures import pictures_in, pictures_of
    from fedcondense.training.scores import scores_of

    set_up(threads)
    saved = network_of(network).to(device or usual_device())
    files, broken = pictures_in(pictures), dict[int, str]()
    images = pictures_of([file.absolute() for file in files], saved.shape, broken if skip_broken else None)
    for why in broken.values():
        note(f"left out: {why}")
    files = [file for place, file in enumerate(files) if place not in broken]
    found = saved.probabilities(images)
    best, index = found.max(1)
    rows = [
        {
            "file": file,
            "class": saved.classes[c],
            "probability": round(p, 4),
            "probabilities": dict(zip(saved.classes, (round(v, 4) for v in each), strict=True)),
        }
        for file, c, p, each in zip(files, index.tolist(), best.tolist(), found.tolist(), strict=True)
    ]
    known = [saved.classes.index(file.parent.name) if file.parent.name in saved.classes else -1 for file in files]
    scores = None if -1 in known else scores_of(found, torch.tensor(known), saved.classes).to_dict()
    folders = {file.parent.name for file in files}
    if -1 in known and folders & set(saved.classes):
        odd = first(map(repr, sorted(folders - set(saved.classes))))
        note(f"not scored: no class of this network is called {odd}; it has {first(saved.classes, 10)}")
    lines: list[tuple[Any, ...]] = [("file", "class", "probability")]
    lines += [(row["file"], row["class"], f"{100 * row['probability']:.1f} %") for row in rows]
    texts = [columns(lines)] if scores is None or len(rows) <= _LISTED else []
    texts += [table_of(scores)] if scores is not None and any(path.is_dir() for path in pictures) else []
    emit({"network": network, "predictions": rows, "scores": scores}, "\n\n".join(texts), form)
    exported = network / "network.pt2" if network.is_dir() else network.with_suffix(".pt2")
    finish([], ["export-network", network, "--output", free(exported)])


def table_of(scores: dict[str, Any]) -> str:
    """Return scores as text: what holds for all, then a line for each class."""
    low, high = scores["accuracy_interval"]
    head = (
        f"accuracy {scores['accuracy']:.1f} % ({low:.1f} to {high:.1f}) on {scores['records']} pictures, balanced "
        f"{scores['balanced_accuracy']:.1f} %, calibration error {scores['calibration_error']:.1f} %"
    )
    lines: list[tuple[str, ...]] = [("class", "pictures", "sensitivity", "specificity", "AUROC")]
    for one in scores["classes"]:
        auroc = "" if one["auroc"] is None else f"{one['auroc']:.3f}"
        shares = [_share(one[key], one[f"{key}_interval"]) for key in ("sensitivity", "specificity")]
        lines.append((one["name"], str(one["records"]), *shares, auroc))
    return f"{head}\n\n{columns(lines)}"


def _share(value: float | None, interval: tuple[float, float] | None) -> str:
    return "" if value is None or interval is None else f"{value:.1f} % ({interval[0]:.1f} to {interval[1]:.1f})"


@command
def export_network(
    network: Network,
    output: Annotated[Path, typer.Option("-o", "--output", help="A name that ends in .pt2 (torch.export) or .onnx.")],
    overwrite: Overwrite = False,
    form: Output = Format.text,
) -> None:
    """Write a trained network for other programs, with its classes and normalisation inside, and run what was written.

    It takes images as they are decoded, uint8 (N, C, H, W), and gives probabilities (N, K). ONNX needs the extra
    `export`.

    JSON keys: `output`, `classes`, `shape`, `off` (how far probabilities are from ours at most).
    """
    from fedcondense.networks.exported import export_network as export

    set_up()
    saved = network_of(network)
    check_output(output, overwrite, output.suffix.lower().removeprefix("."))
    off = export(saved, output, overwrite=overwrite)
    shape = "x".join(map(str, saved.shape))
    text = f"{len(saved.classes)} classes, images of {shape}; run again, its probabilities are within {off:.1g} of ours"
    emit({"output": output, "classes": saved.classes, "shape": saved.shape, "off": off}, text, form)
    finish([output], None)
