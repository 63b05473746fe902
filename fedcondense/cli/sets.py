"""The commands around one synthetic set: `data`, `plan`, `condense`, `evaluate`, `relabel`, `show`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Overwrite,
    Plugin,
    Precisely,
    Precision,
    Threads,
    check_output,
    clock,
    columns,
    command,
    emit,
    finish,
    given,
    invocation,
    note,
    pick_device,
    printable,
    progress,
    set_up,
    typed,
)
from fedcondense.errors import DivergenceError, OutputError, SettingError, look_up

if TYPE_CHECKING:
    from fedcondense.condensing.checkpoints import Checkpoint
    from fedcondense.condensing.loop import Progress
    from fedcondense.data.images import Data
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.evaluation import Evaluation

DataName = Annotated[str, typer.Argument(metavar="DATA")]
SetFile = Annotated[Path, typer.Argument(metavar="FILE")]
Ipc = Annotated[int, typer.Option(help="Images per class whose bytes the set may take.")]
_OBJECTIVES = (
    "mmd-ridge (default), dm-ridge, ridge, dm, mmd, ncfm, dc, dsa, idc, mtt, mtt-recompute, tesla, kip, frepo, dd"
)
Objective = Annotated[str | None, typer.Option(help=f"{_OBJECTIVES}, or a plugin's.")]
_STORED = "pixels (default), multi-formation (four images in one), multi-formation-4, bases, hallucinators or latents"
Parametrization = Annotated[str | None, typer.Option(help=f"{_STORED}.")]
Network = Annotated[str | None, typer.Option(help="Such as convnet3-w32; default: as the image size asks.")]
Steps = Annotated[int | None, typer.Option(help="Optimisation steps; default: the objective's.")]
Seed = Annotated[int, typer.Option(help="All that is random follows from it.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line, in the order in which they are used."""
    app.command(epilog="Example: fedcondense data --data-root ~/data")(data)
    app.command(epilog="Example: fedcondense plan cifar10 --ipc 10 --objective dsa")(plan)
    app.command(epilog="Example: fedcondense condense fashion-mnist --ipc 10 --output fashion.safetensors")(condense)
    app.command(epilog="Example: fedcondense evaluate fashion.safetensors --seeds 3 --format json")(evaluate)
    app.command(epilog="Example: fedcondense relabel cifar10.safetensors --output taught.safetensors")(relabel)
    app.command(epilog="Example: fedcondense show fashion.safetensors --output fashion.png")(show)


@command
def data(data_root: DataRoot = None, form: Output = Format.text) -> None:
    """List the data sets that can be named, and where each one lies or is looked for.

    JSON keys: `root`, and `data`: an object a name with `where` (null: not here, `condense` tries to download it),
    `shape`, `train` and `test` (images), `classes` (their number) and `files` (what the root would hold).
    """
    from fedcondense.data.catalogue import CATALOGUE
    from fedcondense.data.listing import available
    from fedcondense.data.loading import data_root as find_root

    found = available(data_root)
    lines: list[tuple[object, ...]] = [("name", "images", "of", "classes", "where")]
    for row in found:
        size = "x".join(map(str, row.shape)) if row.shape else "?"
        images = f"{row.train}+{row.test}" if row.train is not None else "?"
        advice = CATALOGUE[row.name].where if row.name in CATALOGUE else ""
        where = row.where or f"not here; {advice or 'downloaded when it is asked for'}"
        lines.append((row.name, images, size, row.classes or "?", where))
    result = {row.name: {k: v for k, v in row._asdict().items() if k != "name"} for row in found}
    emit({"root": find_root(data_root), "data": result}, columns(lines), form)
    note(f"looked in {find_root(data_root)}; folder:DIR and npz:FILE name data of your own")
    finish([], ["condense", "digits", "--ipc", "1", "--output", "digits.safetensors"])


@command
def plan(
    name: DataName,
    ipc: Ipc = 10,
    objective: Objective = None,
    parametrization: Parametrization = None,
    network: Network = None,
    steps: Steps = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Say what condensing DATA would take before anything starts: bytes, seconds, memory, and what wins without it.

    JSON keys: `nbytes`, `decoded` (images that are trained on), `steps`, `seconds`, `memory` (bytes), `advice` (texts).
    """
    from fedcondense.condensing.planning import plan as plan_run
    from fedcondense.data.loading import load_data
    from fedcondense.report.pictures import human_bytes

    set_up(threads, plugin, precision)
    train = load_data(name, data_root).train
    options = given(objective=objective, parametrization=parametrization, network=network, steps=steps)
    planned = plan_run(train, ipc, **options)
    fields = [
        ("set", f"{human_bytes(planned.nbytes)}, {planned.decoded} images to train on"),
        ("time", f"{clock(planned.seconds)} for {planned.steps} steps on this machine"),
        ("memory", human_bytes(planned.memory)),
        *(("advice", text) for text in planned.advice),
    ]
    emit(planned.to_dict(), columns(fields), form)
    precise = None if precision is Precision.float32 else precision
    same = typed(ipc=ipc, **options, data_root=data_root, plugin=plugin, threads=threads, precision=precise)
    finish([], ["condense", name, *same, "--output", f"{_stem(name)}.safetensors"])


@command
def condense(
    name: DataName,
    output: Annotated[Path, typer.Option(help="Where the set is written, as safetensors.")],
    ipc: Ipc = 10,
    objective: Objective = None,
    parametrization: Parametrization = None,
    method: Annotated[
        str | None, typer.Option(help="Select instead: random, herding, k-center, k-means or half-resolution.")
    ] = None,
    network: Network = None,
    start: Annotated[str | None, typer.Option(help="gaussian, grey, noise or real (shows records).")] = None,
    steps: Steps = None,
    prefixes: Annotated[
        bool, typer.Option("--prefixes", help="Let the first images of each class serve alone.")
    ] = False,
    learn_labels: Annotated[
        bool, typer.Option("--learn-labels", help="Learn soft labels with the images; their bytes are counted.")
    ] = False,
    experts: Annotated[
        Path | None, typer.Option(help="Folder that keeps the experts of mtt and tesla, for later runs as well.")
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="Networks that the evaluation trains.")] = 3,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Leave the evaluation out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints, at least.")] = 5.0,
    overwrite: Overwrite = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Condense DATA into a few synthetic images per class, and measure them.

    DATA is a name that `fedcondense data` lists, folder:DIR (one sub-folder for each class) or npz:FILE (x_train,
    y_train, x_test, y_test). The training split is condensed, the test split measures.

    JSON keys: `data`, `method`, `ipc`, `images` (decoded), `nbytes`, `seconds`, `network`, `accuracy` (percent) and
    `accuracy_std` (both null with --no-evaluate), `output`.
    """
    from fedcondense.condensing.checkpoints import Checkpoint
    from fedcondense.condensing.loop import condense as condense_data
    from fedcondense.data.loading import load_data
    from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, with_learned_labels
    from fedcondense.sets.selection import select
    from fedcondense.sources.trajectories import kept_in

    set_up(threads, plugin, precision)
    checkpoint = Checkpoint(output.with_name(f"{output.name}.checkpoint"), checkpoint_every, resume)
    _check_run(output, Path(checkpoint.path), resume, overwrite)
    options = given(objective=objective, parametrization=parametrization, network=network, start=start, steps=steps)
    if prefixes:
        options["prefixes"] = True
    named = look_up("objective", objective or DEFAULT_OBJECTIVE, OBJECTIVES)
    if learn_labels:
        options["objective"] = with_learned_labels(named)
    if experts is not None:
        options["recipe"] = kept_in(experts, named.recipe)
    if method is not None and options:
        raise SettingError(f"--method {method} selects, and takes no --{', --'.join(options)}; leave one side out")
    device = pick_device(device)
    train, test = (split.to(device) for split in load_data(name, data_root))
    with _kept(checkpoint, output):
        if method is not None:
            synthetic = select(train, ipc, method, seed=seed)
        else:
            with progress(f"condensing {name}") as update:

                def follow(now: Progress) -> None:
                    update(now.step / now.steps, f"loss {now.loss:.4g}")

                synthetic = condense_data(train, ipc, seed=seed, checkpoint=checkpoint, progress=follow, **options)
        told = typed(data=name, data_root=data_root, network=network, seeds=seeds, plugin=plugin)
        synthetic = _saved(synthetic, output, None if no_evaluate else test, seeds, network, told)
    checkpoint.remove()
    emit(_result(synthetic) | {"output": output}, _text(synthetic), form)
    finish([output], ["show", output, "--output", output.with_suffix(".png")])


def _check_run(output: Path, checkpoint: Path, resume: bool, overwrite: bool) -> None:
    """Refuse an output path that is taken, unless it belongs to the run that is resumed."""
    if not checkpoint.exists():
        check_output(output, overwrite)
        return
    if not (resume or overwrite):
        raise OutputError(f"{checkpoint} is an unfinished run's; pass --resume to go on, or --overwrite to start anew")
    check_output(output, overwrite=True)


@contextlib.contextmanager
def _kept(checkpoint: Checkpoint, output: Path) -> Iterator[None]:
    """Say what is kept and how to go on when a run is interrupted, diverges or finds the disk full."""
    try:
        yield
    except KeyboardInterrupt:
        if not Path(checkpoint.path).exists():
            raise
        raise KeyboardInterrupt(f"{checkpoint.path} is kept; go on with: {invocation('--resume')}") from None
    except DivergenceError as error:
        good = output.with_name(f"{output.stem}-last-good{output.suffix}")
        if error.synthetic is not None:
            note(f"wrote {error.synthetic.save(good, overwrite=True)}")
        raise
    except OutputError as error:
        if Path(checkpoint.path).exists():
            raise OutputError(f"{error}; the checkpoint is kept, go on with: {invocation('--resume')}") from error
        raise


@command
def evaluate(
    file: SetFile,
    data: Annotated[str | None, typer.Option(help="Whose test split; default: the one in the set's record.")] = None,
    network: Network = None,
    seeds: Annotated[int | None, typer.Option(help="How many networks are trained, from seed 0 on; else 3.")] = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Train networks from scratch on the set in FILE and test them on real data.

    Without --network and --seeds it repeats the evaluation that the set's record holds, if there is one.

    JSON keys: `accuracy` (percent, mean), `accuracy_std`, `accuracies`, `per_class` (percent a class, by name; null
    where the test data have none), `network`, `seeds`, `recipe`, `weighted`, `test`, `seconds`, `nbytes`, `data`,
    `file`.
    """
    from fedcondense.data.loading import load_data
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(threads, plugin, precision)
    synthetic = SyntheticSet.load(file)
    name = _named(synthetic, data)
    test = load_data(name, data_root).test
    as_recorded = network is None and seeds is None and synthetic.evaluation is not None
    measured = _evaluate(synthetic, test.to(pick_device(device)), 3 if seeds is None else seeds, network, as_recorded)
    per_class = {name: round(v, 3) for name, v in zip(test.spec.classes, measured.per_class, strict=True)}
    result = measured.to_dict() | {"per_class": per_class, "nbytes": synthetic.nbytes, "data": name, "file": file}
    emit(result, _text(synthetic.with_evaluation(measured.to_dict())), form)
    finish([], ["show", file, "--output", file.with_suffix(".png")])


@command
def relabel(
    file: SetFile,
    output: Annotated[Path, typer.Option(help="Where the set with soft labels is written.")],
    data: Annotated[str | None, typer.Option(help="Teaches; default: the one in the set's record.")] = None,
    network: Network = None,
    teachers: Annotated[int, typer.Option(help="Networks that are trained on the real data.")] = 1,
    share: Annotated[float, typer.Option(help="How much of a label is theirs, up to 1.")] = 0.5,
    temperature: Annotated[float, typer.Option(help="What their logits are divided by: more is softer.")] = 2.0,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="Networks that the evaluation trains.")] = 3,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Leave the evaluation out.")] = False,
    overwrite: Overwrite = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Mix what networks trained on the real data say of each image into the labels of the set in FILE.

    Soft labels are stored for each decoded image, and their bytes are counted.

    JSON keys: those of `fedcondense condense`.
    """
    from fedcondense.data.loading import load_data
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.labels import relabel as relabel_set

    set_up(threads, plugin, precision)
    check_output(output, overwrite)
    synthetic = SyntheticSet.load(file)
    device = pick_device(device)
    train, test = (split.to(device) for split in load_data(_named(synthetic, data), data_root))
    with progress("training teachers") as update:

        def follow(step: int, steps: int) -> None:
            update(step / steps)

        chosen = given(network=network)
        synthetic = relabel_set(
            synthetic,
            train,
            teachers=teachers,
            share=share,
            temperature=temperature,
            seed=seed,
            progress=follow,
            **chosen,
        )
    told = typed(data=data, data_root=data_root, network=network, seeds=seeds, plugin=plugin)
    synthetic = _saved(synthetic, output, None if no_evaluate else test, seeds, network, told)
    emit(_result(synthetic) | {"output": output}, _text(synthetic), form)
    finish([output], ["show", output, "--output", output.with_suffix(".png")])


def _named(synthetic: SyntheticSet, data: str | None) -> str:
    """Return the data that an option or a set's record names."""
    if not data and ":" in synthetic.name:  # a stranger's file must not choose what is read from this disk
        raise SettingError(f"the set was made from {printable(synthetic.name)!r}; name the data with --data")
    return data or synthetic.name


@command
def show(
    file: SetFile,
    output: Annotated[Path, typer.Option(help="Where the PNG is written.")],
    columns: Annotated[int | None, typer.Option(help="Images a row; default: all of a class, at most 20.")] = None,
    scale: Annotated[int | None, typer.Option(help="Screen pixels a pixel; default: images 64 high.")] = None,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Draw the set in FILE as a PNG: a row for each class, every pixel a square.

    JSON keys: `output`, `images`, `nbytes`.
    """
    from fedcondense.report.pictures import show_set
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(plugins=plugin)
    check_output(output, overwrite)
    synthetic = SyntheticSet.load(file)
    show_set(synthetic, output, columns, scale)
    result = {"output": output, "images": len(synthetic), "nbytes": synthetic.nbytes}
    emit(result, _text(synthetic), form)
    finish([output], ["evaluate", file])


def _saved(
    synthetic: SyntheticSet, output: Path, test: Data | None, seeds: int, network: str | None, told: Sequence[str]
) -> SyntheticSet:
    """Write a set, measure it if there is something to test on, and return it with what was measured, written too.

    `told`: the options with which `fedcondense evaluate` measures the same, for whoever interrupts it.
    """
    synthetic.save(output, overwrite=True)  # before it is evaluated: from here on nothing is lost
    if test is not None:
        try:
            measured = _evaluate(synthetic, test, seeds, network)
        except KeyboardInterrupt:
            measure = shlex.join(["fedcondense", "evaluate", str(output), *told])
            raise KeyboardInterrupt(f"{output} is written, but was not measured; do so with: {measure}") from None
        synthetic = synthetic.with_evaluation(measured.to_dict())
        synthetic.save(output, overwrite=True)
    return synthetic


def _evaluate(
    synthetic: SyntheticSet, test: Data, seeds: int, network: str | None, as_recorded: bool = False
) -> Evaluation:
    """Measure what `seeds` networks reach after training on the set, or what the set's record says of it once more."""
    from fedcondense.training.evaluation import evaluate as evaluate_set
    from fedcondense.training.evaluation import evaluate_as_recorded

    if seeds < 1:
        raise SettingError(f"{seeds} seeds; needed: 1 or more")
    with progress("evaluating") as update:

        def follow(step: int, steps: int) -> None:
            update(step / steps)

        if as_recorded:
            try:
                return evaluate_as_recorded(synthetic, test, progress=follow)
            except SettingError as error:
                note(f"{error}, here with {seeds} networks of the default kind")
        return evaluate_set(synthetic, test, seeds=tuple(range(seeds)), progress=follow, **given(network=network))


def _result(synthetic: SyntheticSet) -> dict[str, Any]:
    """Return the keys that machines rely on."""
    record, evaluation = synthetic.record, synthetic.evaluation or {}
    return {
        "data": record.data,
        "method": record.method,
        "ipc": record.ipc,
        "images": len(synthetic),
        "nbytes": synthetic.nbytes,
        "seconds": synthetic.seconds,
        "network": record.network,
        "accuracy": evaluation.get("accuracy"),
        "accuracy_std": evaluation.get("accuracy_std"),
    }


def _text(synthetic: SyntheticSet) -> str:
    """Describe a set and, where it was measured, its accuracy, for people."""
    from fedcondense.report.pictures import human_bytes

    record, evaluation = synthetic.record, synthetic.evaluation
    fields = [
        ("data", f"{record.data}, {len(synthetic.classes)} classes"),
        ("method", record.method),
        ("set", f"{len(synthetic)} images in {human_bytes(synthetic.nbytes)}, made in {synthetic.seconds:.1f} s"),
    ]
    if evaluation and "accuracy" in evaluation:
        network = evaluation.get("network", "")
        once = len(evaluation.get("seeds", ())) < 2
        spread = "" if once else f" ± {evaluation.get('accuracy_std', 0.0):.1f}"
        measured = f"{evaluation['accuracy']:.1f}{spread} %"
        fields.append(("accuracy", f"{measured} of {network}, trained on the set alone"))
    return columns(fields)


def _stem(name: str) -> str:
    """Return a file name for a data set's."""
    return Path(name.partition(":")[2] or name).stem
