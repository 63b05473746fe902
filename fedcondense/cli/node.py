"""`fedcondense node check | plan | preview | log | release`: a node's config, an answer in advance, what left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import PICTURE, check_output, free
from fedcondense.cli.terminal import Format, Output, Overwrite, Size, columns, command, emit, finish, typed
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole
from fedcondense.errors import SettingError
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from fedcondense.flower.caps import Caps

Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A TOML file, or what follows --node-config, such as 'max-ipc=10'.")
]


Setting = Annotated[list[str] | None, typer.Option("--set", help="A field of the task, such as ipc=5.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    node = typer.Typer(help="Look at a node's config where its data are; nothing is sent.", no_args_is_help=True)
    node.command(cls=Command, epilog="Example: fedcondense node check 'data=\"folder:scans\" max-ipc=10'")(check)
    node.command(
        cls=Command, epilog="Example: fedcondense node preview node.toml --task condense --set ipc=5 --output sent.png"
    )(preview)
    node.command(cls=Command, epilog="Example: fedcondense node plan 'data=\"folder:scans\" size=64' --set ipc=5")(plan)
    node.command(cls=Command, epilog="Example: fedcondense node release node.toml --output release.html")(release)
    node.command(cls=Command, epilog="Example: fedcondense node log node.toml --last 20")(log)
    app.add_typer(node, name="node")


@command
def check(config: Config, size: Size = None, form: Output = Format.text) -> None:
    """Read CONFIG and the data that it names, as the node would at its first message; nothing is kept.

    JSON keys: `name`, `classes` (records per class), `left_out` (classes of fewer records than `min-records`), `apart`
    (records kept apart to evaluate networks on), `broken` (image files that cannot be read), `caps`, `allowance`, and
    `spent` over the node's life (null: nothing was counted yet).
    """
    from dataclasses import asdict

    from fedcondense.flower.preview import check_node, read_config

    found = check_node(_sized(read_config(config), size))
    caps, life = asdict(found.placed.caps), asdict(found.placed.allowance)
    spent = None if found.spent is None else asdict(found.spent)
    result = {"name": found.name, "classes": found.classes, "left_out": found.left_out, "apart": found.apart}
    result |= {"broken": found.broken}
    total, lost = sum(found.classes.values()), sum(found.left_out.values())
    own = found.placed.config.data
    named = (
        own or "none of its own: a public set that the run names, here digits; it is nobody's, and weights may travel"
    )
    lines: list[tuple[object, ...]] = [("site", found.name), ("data", named), ("records", total)]
    lines += [("class", f"{name}: {n}{' (left out)' if name in found.left_out else ''}") for name, n in _some(found)]
    lines += [("left out", f"{len(found.left_out)} classes, {lost} records below min-records")] if lost else []
    lines += [("cannot be read", name) for name in found.broken]
    lines += [("kept apart", f"{found.apart} records, to evaluate networks on")] if found.apart else []
    here = found.placed.config
    lines += [("share-with", here.share_with), ("send", here.send), ("size", here.size or "as the run says")]
    lines += [("cache", here.cache or "none"), ("skip-broken", here.skip_broken)]
    lines += [(key.replace("_", "-"), value) for key, value in {**caps, **life}.items()]
    lines += [("spent", f"{spent['questions']} questions, {spent['nbytes']} bytes")] if spent else []
    emit(result | {"caps": caps, "allowance": life, "spent": spent}, columns(lines), form)
    fitting = [word for text in _within(found.placed.caps) for word in ("--set", text)] + typed(size=size)
    finish([], ["node", "preview", config, "--task", "condense", *fitting, "--output", free(Path("preview.png"))])


@command
def plan(
    config: Config,
    task: Annotated[str, typer.Option(help="What a server would ask: a name in TASKS.")] = "condense",
    setting: Setting = None,
    size: Size = None,
    form: Output = Format.text,
) -> None:
    """Say what an answer of the node would take and let out, on its own data; nothing is worked out or sent.

    JSON keys: `site`, `task`, `nbytes` (at most), `seconds` and `memory` (estimates), `images` (stored, per class),
    `records`, `left_out` (classes of too few records), `leaves` (texts).
    """
    from fedcondense.flower.preview import plan_answer, read_config
    from fedcondense.progress import clock
    from fedcondense.report.units import human_bytes

    found = plan_answer(*_asked(read_config(config), task, setting, size))
    cost, images = found.cost, sum(found.cost.images.values())
    seen = "the server, and the other sites of its runs" if found.shares == "sites" else "the server"
    leaves = [f"{human_bytes(cost.nbytes)} to {seen}", found.leaves]
    if images:
        leaves.append(f"{images} synthetic images, one for {found.least} records of its class at least")
    leaves += [
        "the site's name, the number of records in all and of each class, and the seconds that it took",
        f"epsilon {cost.epsilon:.3g} of differential privacy"
        if cost.epsilon
        else "no noise is added, so nothing here is differentially private: look at `fedcondense node preview`",
    ]
    lines: list[tuple[object, ...]] = [("site", found.name), ("task", task), ("bytes", human_bytes(cost.nbytes))]
    lines += [
        ("time", f"about {clock(cost.seconds)} on this machine"),
        ("memory", f"{human_bytes(cost.memory)} more than the program and the data take"),
    ]
    lines += [("records", found.records), ("image size", found.size)]
    lines += [("images", f"{name}: {n}") for name, n in list(cost.images.items())[:40]]
    lines += [("left out", f"{name}: {n} records, fewer than {found.least}") for name, n in found.left_out.items()]
    lines += [("leaves", text) for text in leaves]
    result = {"site": found.name, "task": task, "nbytes": cost.nbytes, "seconds": cost.seconds, "memory": cost.memory}
    result |= {"images": dict(cost.images), "records": found.records, "left_out": found.left_out, "leaves": leaves}
    emit(result, columns(lines), form)
    again = typed(set=setting, size=size)
    finish([], ["node", "preview", config, "--task", task, *again, "--output", free(Path("preview.png"))])


@command
def release(
    config: Config,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the page is written.")],
    overwrite: Overwrite = False,
    form: Output = Format.text,
) -> None:
    """Write one page on what left the node of CONFIG over its life, to whom, and what protected it.

    It is made from the node's log and ledger, whose chains are checked.

    JSON keys: `output`, `site`, `answers` (how many left), `nbytes` (of all), `refused`.
    """
    from fedcondense.flower.preview import read_config
    from fedcondense.flower.release import released
    from fedcondense.flower.wire import own_version
    from fedcondense.report.release import write_release

    check_output(output, overwrite, "html")
    found = released(read_config(config))
    write_release(output, found, own_version())
    lines = [("site", found.site), ("answers", len(found.answers)), ("bytes", found.nbytes), ("refused", found.refused)]
    result = {"output": output, "site": found.site, "answers": len(found.answers), "nbytes": found.nbytes}
    emit(result | {"refused": found.refused}, columns(lines), form)
    finish([output], None)


@command
def preview(
    config: Config,
    task: Annotated[str, typer.Option(help="What a server would ask: a name in TASKS.")] = "condense",
    setting: Setting = None,
    size: Size = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where its images are drawn, as PNG.")] = None,
    overwrite: Overwrite = False,
    form: Output = Format.text,
) -> None:
    """Work out what the node would answer, within its caps; nothing is sent, kept or charged.

    JSON keys: `task`, `nbytes`, `images` (stored, per class), `seconds` (estimated), `nearest` (per class, the root
    mean squared difference of the closest image and record), `output`.
    """
    from fedcondense.flower.preview import preview as preview_task
    from fedcondense.flower.preview import read_config
    from fedcondense.sets.pictures import show_set
    from fedcondense.sets.synthetic import SyntheticSet

    if output is not None:
        check_output(output, overwrite, PICTURE)
    asked = _asked(read_config(config), task, setting, size)
    with reporting(task) as update:
        made = preview_task(*asked, lambda at: update(at.step / at.steps, "condensing"))
    nbytes = len(made.payload.to_bytes())
    lines: list[tuple[object, ...]] = [("task", task), ("payload", f"{nbytes} bytes")]
    lines += [("images", f"{name}: {n}") for name, n in made.cost.images.items()]
    lines += [("nearest record", f"{name}: rmse {value:.3f}") for name, value in made.nearest.items()]
    if output is not None and isinstance(made.payload, SyntheticSet):
        show_set(made.payload, output)
    result = {"task": task, "nbytes": nbytes, "images": dict(made.cost.images), "seconds": made.cost.seconds}
    emit(result | {"nearest": made.nearest, "output": output}, columns(lines), form)
    finish([] if output is None else [output], None)


@command
def log(
    config: Config,
    last: Annotated[int, typer.Option(parser=Whole(1), help="Lines that are shown.")] = 50,
    form: Output = Format.text,
) -> None:
    """Show who asked the node of CONFIG what, what it decided, and what left.

    JSON keys: `log` (the file), `lines` (each with `when`, `task`, `round`, `run`, `version`, `wire`, `asked`,
    `question`, `decision`, `reason`, `nbytes`, `sha256`), `all` (how many there are), `torn` (pieces of lines that
    processes left which died).
    """
    from dataclasses import asdict

    from fedcondense.flower.preview import read_config, read_log

    path, lines, torn = read_log(read_config(config))
    shown = lines[-last:]
    head = ("when (UTC)", "asked", "round", "run", "server", "decision", "bytes", "SHA-256", "reason")
    rows: list[tuple[object, ...]] = [head]
    for line in shown:
        about = (line.when.removesuffix("+00:00"), line.task, line.round, str(line.run), line.version)
        rows.append((*about, line.decision, line.nbytes, line.sha256[:12], line.reason))
    others = [] if shown else [str(other) for other in sorted(path.parent.glob("*.log")) if other != path]
    beside = f"; others are kept for other configs (data, partition-id): {', '.join(others[:5])}" if others else ""
    text = columns(rows) if shown else f"{path}: nothing was asked yet{beside}"
    result = {"log": path, "lines": [asdict(line) for line in shown], "all": len(lines), "torn": torn}
    emit(result, text, form)
    finish([], None)


def _within(caps: Caps) -> list[str]:
    """Return settings of a `Condense` that these caps allow, where its own would not do."""
    from fedcondense.flower.strategies.one_shot import Condense
    from fedcondense.objectives import OBJECTIVES

    usual = Condense()
    ipc, steps = min(usual.ipc, caps.max_ipc), usual.steps or OBJECTIVES[usual.objective].recipe.steps
    network = caps.networks.partition(",")[0].strip()
    told = {"ipc": ipc if ipc < usual.ipc else 0, "steps": caps.max_steps if caps.max_steps < steps else 0}
    return [f"{name}={value}" for name, value in {**told, "network": network}.items() if value]


def _asked(
    config: dict[str, Any], task: str, settings: list[str] | None, size: int | None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return a node's config, the task and its fields; a run's ``size`` may be one of them."""
    fields = _fields(settings)
    return _sized(config, fields.pop("size", size)), task, fields


def _sized(config: dict[str, Any], size: int | None) -> dict[str, Any]:
    """Return a node's config with the size of images that a run asks for, where it says none itself."""
    if size is not None and config.get("size", size) != size:
        raise SettingError(f"size {size}; this node's config says {config['size']}: leave one of the two out")
    return config if size is None else {**config, "size": size}


def _fields(settings: list[str] | None) -> dict[str, Any]:
    """Read what was set, NAME=VALUE each."""
    fields: dict[str, Any] = {}
    for text in settings or ():
        if "=" not in text:
            raise SettingError(f"--set {text}; needed: NAME=VALUE, such as ipc=5")
        fields |= _field(text)
    return fields


def _field(text: str) -> dict[str, Any]:
    """Read NAME=VALUE as TOML does, and a value that is none as a text."""
    import tomllib

    key, _, value = text.partition("=")
    try:
        return {key: tomllib.loads(f"value = {value}")["value"]}
    except tomllib.TOMLDecodeError:
        return {key: value}


def _some(found: Any) -> list[tuple[str, int]]:
    """Return the first forty classes."""
    return list(found.classes.items())[:40]
