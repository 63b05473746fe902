"""`fedcondense evaluate`: train networks on a set and test them on real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.sets import (
    Labels,
    SetFile,
    Unit,
    checkpoint_of,
    describe,
    measure,
    named_data,
)
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Plugin,
    Precisely,
    Precision,
    Size,
    SkipBroken,
    Threads,
    columns,
    command,
    emit,
    finish,
    note,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Listed, Whole
from fedcondense.errors import SettingError
from fedcondense.machine import usual_device

if TYPE_CHECKING:
    from fedcondense.checkpoints import Checkpoint
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.measured import Evaluation

_TORCH_FILES = (".pt", ".pth")


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense evaluate fashion.safetensors --seeds 3 --format json")(
        evaluate
    )


@command
def evaluate(
    file: SetFile,
    data: Annotated[str | None, typer.Option(help="Whose test split; default: the one in the set's record.")] = None,
    network: Annotated[
        str | None,
        typer.Option(parser=Listed(), help="By commas: convnet3-w32,resnet18; default: as the image size asks."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(parser=Listed(), help="short (default), or published, 10 to 250 times as long; both by commas."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(parser=Whole(1, 1000), help="Networks that are trained to measure the set; else 3."),
    ] = None,
    labels: Labels = None,
    unit: Unit = False,
    size: Size = None,
    skip_broken: SkipBroken = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Train networks from scratch on the set in FILE and test them on real data.

    What takes more than half a minute is kept beside FILE until it is done: the same command goes on after a kill.
    Without --network, --protocol and --seeds it repeats the evaluation that the set's record holds, if there is one.
    FILE may be one that other code wrote with torch.save, as `import` reads it: normalised by the mean and std of
    --data, or with --unit in [0, 1]. Classes that FILE lacks count as wrong.

    JSON keys: `rows`, one a protocol and network, each with `accuracy` (percent, mean), `accuracy_std`, `accuracies`,
    `per_class` (percent per class, by name; null where the test data have none), `missing` (classes without an image
    in FILE), `network`, `seeds`, `protocol`, `recipe`, `weighted`, `test`, `seconds`; those of the first once more by
    themselves; `nbytes`, `data`, `file`.
    """
    from fedcondense.data.loading import load_test
    from fedcondense.networks import probe
    from fedcondense.training.protocols import protocol_named

    set_up(threads, plugin, precision)
    protocols = [None] if protocol is None else protocol.split(",")
    for name in filter(None, protocols):
        protocol_named(name)
    synthetic = _read(file, labels, data, data_root, unit)
    name = named_data(synthetic, data)
    test = load_test(name, data_root, size, skip_broken).to(device or usual_device())
    networks = [None] if network is None else network.split(",")
    for name_of_network in filter(None, networks):  # all of them, before hours go into the first
        probe(name_of_network, synthetic.shape, len(test.spec.classes), images=min(2, len(synthetic)))
    as_recorded = (network, protocol, seeds) == (None, None, None) and synthetic.evaluation is not None
    several = len(protocols) * len(networks) > 1
    rows: list[Evaluation] = []
    checkpoints: list[Checkpoint | None] = []
    for under in protocols:
        for one in networks:
            if under is not None:
                which = one or protocol_named(under).network(synthetic.shape)
                number = seeds or 3
                note(
                    f"training {number} network{'s' if number > 1 else ''} {which} by the protocol {under}; killed, "
                    "the same command goes on"
                )
            checkpoints.append(checkpoint_of(file, one, under))
            number = 3 if seeds is None else seeds
            measured = measure(synthetic, test, number, one, under, as_recorded, checkpoints[-1], several)
            rows.append(measured)
            if several:
                note(f"{measured.network}, {measured.protocol} protocol: {_percent(measured)}")
    for checkpoint in filter(None, checkpoints):
        checkpoint.remove()
    values = [
        row.to_dict()
        | {"per_class": {c: round(v, 3) for c, v in zip(test.spec.classes, row.per_class, strict=True)}}
        | {"missing": row.missing}
        for row in rows
    ]
    text = describe(synthetic.with_evaluation(rows[0].to_dict()) if len(rows) == 1 else synthetic)
    if len(rows) > 1:
        text += f"\n\n{_table(rows)}"
    emit({"rows": values} | values[0] | {"nbytes": synthetic.nbytes, "data": name, "file": file}, text, form)
    if file.suffix in _TORCH_FILES:
        options = typed(labels=labels, data=data, unit=unit, data_root=data_root)
        finish([], ["import", file, *options, "--output", free(file.with_suffix(".safetensors"))])
    else:
        finish([], ["show", file, "--output", free(file.with_suffix(".png")), *typed(plugin=plugin)])


def _read(file: Path, labels: Path | None, data: str | None, data_root: Path | None, unit: bool) -> SyntheticSet:
    """Return the set in a file of ours, or of tensors that other code saved."""
    from fedcondense.sets.exchange import import_tensors, spec_of
    from fedcondense.sets.synthetic import SyntheticSet

    if file.suffix not in _TORCH_FILES:
        if labels is not None:
            raise SettingError(f"{file} holds its labels; leave --labels {labels} out")
        if unit:
            raise SettingError(f"{file} says how its values are meant; leave --unit out")
        return SyntheticSet.load(file)
    if data is None:
        raise SettingError(f"{file} does not say what it stands for; name the data, such as --data cifar10")
    return import_tensors(file, labels, data=spec_of(data, data_root), normalised=not unit)


def _percent(row: Evaluation) -> str:
    return f"{row.accuracy:.1f}" + (f" ± {row.accuracy_std:.1f}" if len(row.seeds) > 1 else "") + " %"


def _table(rows: list[Evaluation]) -> str:
    """Return a line per protocol and network, the most accurate first."""
    lines: list[tuple[Any, ...]] = [("network", "protocol", "accuracy", "networks", "seconds")]
    for row in sorted(rows, key=lambda row: -row.accuracy):
        lines.append((row.network, row.protocol, _percent(row), len(row.seeds), f"{row.seconds:.0f}"))
    return columns(lines)
