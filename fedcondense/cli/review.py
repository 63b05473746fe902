"""`fedcondense review`: what a node holds back until its people have looked at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedcondense.cli.node import Config
from fedcondense.cli.outputs import check_output, free
from fedcondense.cli.terminal import Format, Output, Overwrite, columns, command, emit, finish
from fedcondense.cli.usage import Command
from fedcondense.errors import SettingError


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense review node.toml 3f9a --output look.html")(review)


@command
def review(
    config: Config,
    sha256: Annotated[str | None, typer.Argument(metavar="SHA256", help="How the answer's SHA-256 begins.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where a page of it is written.")] = None,
    send: Annotated[bool, typer.Option("--send", help="It may leave.")] = False,
    withhold: Annotated[bool, typer.Option("--withhold", help="It stays, and the server is told.")] = False,
    overwrite: Overwrite = False,
    form: Output = Format.text,
) -> None:
    """Look at the answers that the node of CONFIG holds (send = "ask"), and decide what becomes of each.

    The page shows images beside the records that they are closest to, counts, bytes and who will have it. It holds
    records, only its owner reads it, and it must not leave the site.

    JSON keys: `answers`, each with `sha256`, `site`, `task`, `round`, `version`, `when`, `nbytes`, `records`, `counts`,
    `seen`, `decision` (empty while it waits), and for one that is looked at `nearest` (per class the root mean squared
    difference of the closest image and record) and `output`.
    """
    from dataclasses import asdict

    from fedcondense.flower.preview import look_at, read_config, waiting_at
    from fedcondense.report.review import write_review

    read = read_config(config)
    holding, answers = waiting_at(read)
    if sha256 is None:
        if output or send or withhold:
            raise SettingError("which answer? name how its SHA-256 begins, as `fedcondense review CONFIG` lists them")
        head = ("SHA-256", "made (UTC)", "asked", "round", "bytes", "decision")
        rows = [
            (one.sha256[:12], one.when.removesuffix("+00:00"), one.task, one.round, one.nbytes, one.decision or "waits")
            for one in answers
        ]
        emit({"answers": [asdict(one) for one in answers]}, columns([head, *rows]) if rows else "nothing waits", form)
        waiting = next((one.sha256[:12] for one in answers if not one.decision), None)
        page = free(Path("review.html"))
        finish([], None if waiting is None else ["review", config, waiting, "--output", page])
        return
    if send and withhold:
        raise SettingError("--send and --withhold; give one of them")
    held = holding.find(sha256)
    lines: list[tuple[object, ...]] = [("site", held.site), ("asked", f"{held.task}, round {held.round}")]
    lines += [("bytes", held.nbytes), ("who will have it", held.seen), ("SHA-256", held.sha256)]
    nearest: dict[str, float] = {}
    if output is not None:
        check_output(output, overwrite, "html")
        payload, beside = look_at(read, holding, held)
        nearest = {name: round(float(one.distances.min()), 4) for name, one in beside.items()}
        lines += [("closest record", f"{name}: rmse {value:.3f}") for name, value in nearest.items()]
        write_review(output, held, payload, beside)
    if send or withhold:
        held = holding.decide(held, "send" if send else "withhold")
    lines.append(("decision", held.decision or "waits"))
    emit({"answers": [asdict(held) | {"nearest": nearest, "output": output}]}, columns(lines), form)
    decided: list[str | Path] | None = None if held.decision else ["review", config, held.sha256[:12], "--send"]
    finish([] if output is None else [output], decided)
