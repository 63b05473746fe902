"""A federation by files, and a site that is forgotten: `join`, `train`, `forget`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcondense.cli.outputs import RUN, check_output, check_output_folder, free
from fedcondense.cli.sets import Network, Seed
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Overwrite,
    Plugin,
    Size,
    Threads,
    columns,
    command,
    emit,
    finish,
    given,
    note,
    set_up,
    typed,
)
from fedcondense.cli.unfinished import go_on_with
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole
from fedcondense.errors import SettingError
from fedcondense.machine import usual_device

Folder = Annotated[Path, typer.Argument(metavar="FOLDER")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(
        cls=Command, epilog="Example: fedcondense join inbox/*.safetensors --manifest sites.toml --output runs/mail"
    )(join)
    app.command(cls=Command, epilog="Example: fedcondense train memory.safetensors -o network.safetensors")(train)
    app.command(cls=Command, epilog="Example: fedcondense forget hospital-b runs/mail")(forget)


@command
def join(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    manifest: Annotated[Path, typer.Option(help="A .toml or .json with sites: NAME = SHA-256 of its file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The run's folder; what it holds goes on.")],
    data: Annotated[
        str | None, typer.Option(help="A data set whose shape and classes the sets must have; default: any.")
    ] = None,
    screens: Annotated[
        str | None, typer.Option(help="What judges sets, by commas: agreement, means, share; or all. Default: nothing.")
    ] = None,
    size: Size = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Take in FILEs that sites handed in (by mail, in a drop folder), as answers of a federation.

    The manifest alone says whose a file is; what a file is called or claims decides nothing. Files that cannot be used
    are a line each, and the others go on. Call it again when more have come: what was taken in is passed over, a late
    site is in, and of each site the last set counts. With allowed_signers = FILE in the manifest each file needs a
    signature of its site: ssh-keygen -Y sign -n fedcondense -f KEY FILE.

    JSON keys: `taken` (file by site), `refused` (a list of `client` and `reason`), `known` (files that were taken in
    before), `remarks` (by site, of which a part is left out), `sites` (who has a set now), `ages` (of absent sites),
    `images`, `round`, `output`.
    """
    from fedcondense.flower.by_files import join as join_files
    from fedcondense.flower.manifest import read_manifest
    from fedcondense.flower.run_folder import RunFolder

    set_up(plugins=plugin)
    check_output_folder(output, RUN)
    read = read_manifest(manifest)
    root = None if data_root is None else str(data_root)
    with _quiet():
        joined = join_files(output, files, read, screens=screens, data=data, data_root=root, size=size)
    for refusal in joined.refused:
        note(f"{refusal.site.name} is left out: {refusal.reason}")
    for name, remark in joined.remarks.items():
        note(f"{name}: {remark}")
    if joined.known:
        note(f"{len(joined.known)} files were taken in before")
    state = joined.state
    record = RunFolder(output).read_result() if state.round else {}
    result = {
        "taken": joined.taken,
        "refused": [{"client": site.name, "reason": reason} for site, reason in joined.refused],
        "known": joined.known,
        "remarks": joined.remarks,
        "sites": list(state.sets),
        "ages": record.get("ages", {}),
        "images": sum(map(len, state.sets.values())),
        "round": state.round,
        "output": output,
    }
    lines: list[Sequence[object]] = [("taken in", ", ".join(joined.taken) or "nothing new")]
    lines += [("sites", f"{len(state.sets)} with a set"), ("images", result["images"])]
    emit(result, columns(lines), form)
    wrote = [_report(output)] if joined.taken else []
    finish(wrote, ["train", output, *typed(data=data, size=size, data_root=data_root)] if state.sets else None)


@command
def train(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|SET", help="A run's folder, or a file of a set or memory.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Of a SET: where the network goes, NAME.safetensors.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Of a FOLDER: whose test split it is tested on; default: what `join` was told, if anything."),
    ] = None,
    network: Network = None,
    seed: Seed = 0,
    seeds: Annotated[
        int | None,
        typer.Option(parser=Whole(1, 1000), help="Of a FOLDER: networks that measure its sets, 3; one is kept."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(parser=Whole(1, 10**9), help="Steps of training; default: the usual ones.")
    ] = None,
    size: Size = None,
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    form: Output = Format.text,
) -> None:
    """Train a network on a SET or a replay memory alone, or on the sets that `join` put in FOLDER.

    Of a SET, --output gets the network, with the set's classes and normalisation, for `fedcondense predict` and
    fedcondense.load_network. FOLDER gets weights.safetensors, for the same, and the report; it is measured if there
    are data to test on.

    JSON keys: `images`, `output`; of a FOLDER `accuracy` (percent; null where nothing was tested on), `accuracy_std`,
    `per_class`, `clients`, `data` too.
    """
    set_up(threads, plugin)
    if source.is_file():
        if output is None or given(data=data, seeds=seeds, size=size):
            raise SettingError(
                f"{source} is a set's file: give -o NAME.safetensors, and no --data, --seeds or --size; "
                "`fedcondense predict NAME.safetensors FOLDER` scores the network"
            )
        _train_on_set(source, output, overwrite, form, seed, device, network, steps)
        return
    if output is not None or overwrite:
        raise SettingError(f"{source} is no set's file, and a run's folder is its own output: leave out --output")
    _train_on_folder(
        source, data, data_root, size, form, seed, device, **given(network=network, seeds=seeds, steps=steps)
    )


def _train_on_set(
    source: Path,
    output: Path,
    overwrite: bool,
    form: Format,
    seed: int,
    device: str | None,
    network: str | None,
    steps: int | None,
) -> None:
    from fedcondense.networks.saved import save_network
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.fit import Fit
    from fedcondense.training.ready import train as train_on

    check_output(output, overwrite, reads=source)
    synthetic = SyntheticSet.load(source)
    recipe = Fit(**given(steps=steps))
    trained = train_on(synthetic, network=network, recipe=recipe, seed=seed, device=device or usual_device())
    save_network(output, trained.network, trained.card, overwrite=overwrite)
    lines = [("images", len(synthetic)), ("classes", ", ".join(synthetic.classes)), ("network", trained.card.network)]
    emit({"images": len(synthetic), "output": output}, columns(lines), form)
    finish([output], ["export-network", output, "--output", free(output.with_suffix(".pt2"))])


def _train_on_folder(
    folder: Path,
    data: str | None,
    data_root: Path | None,
    size: int | None,
    form: Format,
    seed: int,
    device: str | None,
    **how: Any,
) -> None:
    from fedcondense.data.loading import load_data
    from fedcondense.flower.files_run import Trained
    from fedcondense.flower.files_run import train as train_on_files
    from fedcondense.flower.run_folder import RunFolder

    record = RunFolder(folder).read_result() if RunFolder(folder).holds_run() else {}
    name = data if data is not None else str(record.get("settings", {}).get("data") or "")
    size = int(size or record.get("settings", {}).get("size") or 0)
    test = load_data(name, data_root, size).test.to(device or usual_device()) if name else None
    with _quiet():
        row = train_on_files(folder, Trained(seed=seed, data=name, size=size, **how), test)
    result = {key: row.get(key) for key in ("accuracy", "accuracy_std", "per_class", "images", "clients")}
    reached = "not measured; give --data" if row.get("accuracy") is None else f"{row['accuracy']:.1f} % on {name}"
    lines = [("sites", row["clients"]), ("images", row["images"]), ("accuracy", reached)]
    emit(result | {"data": name, "output": folder}, columns(lines), form)
    finish([folder / "weights.safetensors", _report(folder)], ["show", folder])


@command
def forget(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    folder: Folder,
    data: Annotated[
        str | None, typer.Option(help="What the server tested on, where the run's settings do not name it.")
    ] = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    threads: Threads = None,
    form: Output = Format.text,
) -> None:
    """Make the run in FOLDER what it would be if SITE had never answered.

    What it sent is deleted, and so is all that follows from it: the first round is combined anew from the others'
    answers, later ones are dropped, and `flwr run` with resume = true runs them again without the site. What other
    sites or people received cannot be recalled.

    JSON keys: `site`, `rounds` (from its first answer on), `round` (that the run stands after), `left` (what is still
    to do), `went_down` (rounds in which sites were sent something that followed from its answers), `output`.
    """
    from fedcondense.data.loading import load_data
    from fedcondense.flower.forgetting import forget as forget_site

    set_up(threads, plugin)
    test = load_data(data, data_root).test if data else None
    with _quiet():
        done = forget_site(folder, site, test=test, data_root=None if data_root is None else str(data_root))
    result = {**done._asdict(), "output": folder}
    lines: list[Sequence[object]] = [("forgotten", done.site), ("round", f"{done.round}, after which the run stands")]
    lines += [("left to do", done.left)] if done.left else []
    emit(result, columns(lines), form)
    down = ", ".join(map(str, done.went_down))
    others = f"; in rounds {down} the other sites were sent what followed from its answers" if down else ""
    note(f"what others received cannot be recalled: copies of this folder, its network, its report{others}")
    finish([_report(folder)], None)
    if again := go_on_with(folder):
        note("nodes of your own: name their SuperLink after the app, else Flower simulates nodes on this machine")
        note(f"next: {again}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's log of rounds to itself: who is left out is printed here."""
    import logging

    from fedcondense.flower.hosts.inprocess import log_from

    with log_from(logging.ERROR):
        yield


def _report(folder: Path) -> Path:
    from fedcondense.report.page import write_report

    return write_report(folder)
