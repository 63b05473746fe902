"""The commands around sets from elsewhere and for elsewhere: `zoo`, `import`, `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedcondense.cli.outputs import check_output, free
from fedcondense.cli.sets import Labels, Unit, next_of
from fedcondense.cli.terminal import (
    DataRoot,
    Format,
    Output,
    Overwrite,
    Plugin,
    Size,
    columns,
    command,
    emit,
    finish,
    given,
    set_up,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole
from fedcondense.errors import SettingError


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense zoo")(zoo)
    app.command(
        "import",
        cls=Command,
        epilog="Example: fedcondense import images.pt --labels labels.pt --data cifar10 --output mtt.safetensors",
    )(import_set)
    app.command("export", cls=Command, epilog="Example: fedcondense export fashion.safetensors --output fashion.npz")(
        export_set
    )


@command
def zoo(form: Output = Format.text) -> None:
    """List the sets that come with the package, and where their files lie.

    JSON keys: `sets`: an object a name with `data`, `ipc`, `file`, `sha256`, `nbytes`, `images` (decoded), `accuracy`
    (percent), `accuracy_std`, `network`, `method`, `parametrization`, `steps`, `cpu_seconds`, `nearest` and
    `nearest_test` (smallest root mean square difference to a training image, of the set and of test images), `codec`,
    `path`.
    """
    from fedcondense.report.units import human_bytes
    from fedcondense.sets.zoo import ready_sets

    sets = ready_sets()
    lines: list[tuple[object, ...]] = [("name", "size", "codec", "images", "accuracy", "of", "file")]
    for name, ready in sets.items():
        accuracy = f"{ready.accuracy:.1f} ± {ready.accuracy_std:.1f} %"
        size = human_bytes(ready.nbytes)
        lines.append((name, size, ready.codec, ready.images, accuracy, ready.network, ready.path))
    emit({"sets": {name: asdict(r) | {"path": r.path} for name, r in sets.items()}}, columns(lines), form)
    first = next(iter(sets.values()))
    finish([], ["show", first.path, "--output", free(Path(f"{first.path.stem}.png"))])


@command
def import_set(
    images: Annotated[Path, typer.Argument(metavar="IMAGES")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the set is written, as safetensors.")],
    data: Annotated[str, typer.Option(help="What the images stand for, such as cifar10: class names, mean and std.")],
    beside: Annotated[Path | None, typer.Argument(metavar="[LABELS]", hidden=True)] = None,  # as it was before
    labels: Labels = None,
    unit: Unit = False,
    experiment: Annotated[int, typer.Option(parser=Whole(), help="Which of the sets in one file, from 0 on.")] = 0,
    method: Annotated[str, typer.Option(help="What the set's record calls the method.")] = "imported",
    overwrite: Overwrite = False,
    data_root: DataRoot = None,
    form: Output = Format.text,
) -> None:
    """Make a set of tensors that other code wrote with torch.save. Nothing in the files is run.

    IMAGES is a result file of DC, DSA or DM ({'data': [[images, labels], ...]}), or, with --labels, one of images
    alone, such as MTT's images_best.pt and labels_best.pt.

    JSON keys: `data`, `method`, `ipc`, `images`, `nbytes`, `output`.
    """
    from fedcondense.report.units import human_bytes
    from fedcondense.sets.exchange import import_tensors, spec_of

    if beside is not None and labels is not None:
        raise SettingError(f"labels in {beside} and in {labels}; give --labels alone")
    labels = labels or beside
    check_output(output, overwrite)
    spec = spec_of(data, data_root)
    synthetic = import_tensors(images, labels, data=spec, normalised=not unit, experiment=experiment, method=method)
    synthetic.save(output, overwrite=True)
    record = synthetic.record
    result = {"data": record.data, "method": record.method, "ipc": record.ipc, "images": len(synthetic)}
    text = columns(
        [("data", f"{record.data}, {len(record.classes)} classes"), ("method", record.method),
         ("set", f"{len(synthetic)} images in {human_bytes(synthetic.nbytes)}")]
    )  # fmt: skip
    emit(result | {"nbytes": synthetic.nbytes, "output": output}, text, form)
    finish([output], next_of(output, synthetic, data, data_root=data_root))


@command
def export_set(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="NAME.npz, or a folder of PNGs by class."),
    ],
    data: Annotated[str | None, typer.Option(help="Whose test images become the test split.")] = None,
    overwrite: Overwrite = False,
    size: Size = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Write the images of the set in FILE for other programs: as arrays in an .npz, or as a folder of PNGs.

    `condense` and `evaluate --data` read both again, as npz:NAME.npz and folder:DIR. Without --data an .npz repeats the
    synthetic images as its test split: an accuracy on them says nothing.

    JSON keys: `output`, `images` (synthetic), `test` (test images, or null).
    """
    from fedcondense.data.loading import load_data
    from fedcondense.sets.exchange import export
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(plugins=plugin)
    synthetic = SyntheticSet.load(file)
    real = load_data(data, data_root, size).test if data is not None else None
    export(synthetic, output, overwrite=overwrite, **given(test=real))
    result = {"output": output, "images": len(synthetic), "test": None if real is None else len(real)}
    lines = [("images", len(synthetic)), ("test images", "none" if real is None else len(real))]
    emit(result, columns(lines), form)
    finish([output], next_of(file, synthetic, data, size=size, data_root=data_root, plugin=plugin))
