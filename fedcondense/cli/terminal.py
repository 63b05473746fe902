"""What all commands share: options, one-line errors, results on stdout, progress on stderr, checked output paths."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from fedcondense.cli.signals import ended_by_signals
from fedcondense.errors import FedcondenseError, OutputError, SettingError

P = ParamSpec("P")


class Format(StrEnum):
    """How a result is printed."""

    text = "text"
    json = "json"


class Precision(StrEnum):
    """What features are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Precisely = Annotated[
    Precision, typer.Option("--precision", help="bfloat16 is quicker on a GPU or a CPU with AMX, at the same accuracy.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Where data sets lie; default: the variable FEDCONDENSE_DATA.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; a resumed run is bit-equal only with as many.")]
Output = Annotated[Format, typer.Option("--format", help="json prints one object with stable keys.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output path holds.")]
Plugin = Annotated[list[Path] | None, typer.Option(help="A Python file of yours that adds methods by name; it is run.")]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line on stderr and an exit code: 2; 130 after Ctrl-C, 143 after SIGTERM."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with ended_by_signals() as ending:
            try:
                function(*args, **kwargs)
            except FedcondenseError as error:
                _stop(f"error: {error}", 2)
            except KeyboardInterrupt as interrupt:
                again = interrupt if interrupt.args else f"start again with: {invocation()}"
                _stop(f"interrupted; {again}", ending.code)
            except OSError as error:  # a full disk, a folder that vanished: what was complete is on the disk already
                if error.filename is None:
                    raise
                _stop(f"error: {error.filename}: {error.strerror}; nothing that was complete is lost", 2)

    return guarded


def _stop(message: str, code: int) -> None:
    note(message)
    raise typer.Exit(code)


def note(message: str) -> None:
    """Write one line to stderr; names from files and the wire cannot break it or reach the terminal's controls."""
    typer.echo(printable(message), err=True)


def printable(text: str) -> str:
    r"""Replace line breaks by spaces and other control characters by their escapes.

    >>> printable("two\nlines \x1b[31m")
    'two lines \\x1b[31m'
    """
    flat = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in flat)


def finish(wrote: Sequence[Path], then: Sequence[str | Path] | None) -> None:
    """End a command: the paths it wrote, and the next one to try, if there is one."""
    for path in wrote:
        note(f"wrote {path}")
    if then is not None:
        note(f"next: {shlex.join(['fedcondense', *map(str, then)])}")


def invocation(*added: str) -> str:
    """Return the command that is running, as one would type it, with options added that it lacks."""
    given = sys.argv[1:]
    return shlex.join(["fedcondense", *given, *(option for option in added if option not in given)])


def given(**options: Any) -> dict[str, Any]:
    """Keep the options that were given: the library's own defaults hold for the rest."""
    return {name: value for name, value in options.items() if value is not None}


def typed(**options: Any) -> list[str]:
    """Return the options that were given, as one would type them; of a list, each.

    >>> typed(data_root="data", steps=None, plugin=["a.py", "b.py"])
    ['--data-root', 'data', '--plugin', 'a.py', '--plugin', 'b.py']
    """
    texts: list[str] = []
    for name, value in given(**options).items():
        for one in value if isinstance(value, list) else [value]:
            texts += [f"--{name.replace('_', '-')}", str(one)]
    return texts


def pick_device(name: str | None) -> str:
    """Return the device that was asked for, or a GPU if there is one.

    Raises:
        SettingError: This machine has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        reason = str(error).splitlines()[0]
        raise SettingError(f"device {name!r} cannot be used ({reason}); on this machine: {here}") from None
    return name


def set_up(
    threads: int | None = None, plugins: Sequence[Path] | None = None, precision: Precision = Precision.float32
) -> None:
    """Set threads and precision for the process, and run the user's own files that add methods to the dicts."""
    if precision is not Precision.float32:
        import torch

        warn_of_slow(precision)
        torch.set_autocast_cache_enabled(False)  # it would keep every network until the process ends
        for device in ("cpu", "cuda"):
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, getattr(torch, precision))
    if threads is not None:
        import torch

        if threads < 1:
            raise SettingError(f"{threads} threads; needed: 1 or more")
        torch.set_num_threads(threads)
    for path in plugins or ():
        if not path.is_file():
            raise SettingError(f"{path}: no such plugin; give a Python file, say one with OBJECTIVES['mine'] = Mine()")
        spec = importlib.util.spec_from_file_location(f"fedcondense_plugin_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise SettingError(f"{path}: not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)


def warn_of_slow(precision: Precision) -> None:
    """Say so where bfloat16 is asked for on a CPU that has none: it works, and takes many times as long."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if precision is Precision.bfloat16 and capability == "AVX2" and not torch.cuda.is_available():
        note("this CPU has no bfloat16 arithmetic and computes it many times slower: leave --precision out")


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a path that exists or whose folder cannot be written, before any work; missing folders are made.

    Raises:
        OutputError: The path cannot be used; nothing was changed.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the path of a file in it")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another path or pass --overwrite")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Make a folder if need be, and refuse it if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the only test that holds for root, quotas and read-only mounts too
            pass
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; choose a folder that can be written") from error


def emit(result: Mapping[str, Any], text: str, form: Format) -> None:
    """Print a result on stdout: as one JSON object, or as the text."""
    if form is Format.json:
        typer.echo(json.dumps(jsonable(result), indent=2, allow_nan=False))
    else:
        typer.echo(text)


def jsonable(value: Any) -> Any:
    """Make lists of tuples and null of numbers that are not finite: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, Path) else value


def columns(lines: Sequence[Sequence[object]]) -> str:
    """Align cells under each other, two spaces apart."""
    cells = [[printable(str(cell)) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[..., None]]:
    """Show a bar with time left on stderr while inside; a pipe sees nothing of it.

    What it yields is called with the share that is done, in [0, 1], a detail such as the loss, and a new label.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    label_column, detail_column = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}", markup=False)
    times = (TaskProgressColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(
        label_column,
        BarColumn(30),
        *times,
        detail_column,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(escape(label), total=1.0, detail="")
        shown = label

        def update(done: float, detail: str = "", label: str = label) -> None:
            nonlocal shown
            if label != shown:
                shown = label
                bar.reset(task, description=escape(label), detail=detail)
            bar.update(task, completed=done, detail=printable(detail))

        yield update


def clock(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    >>> clock(7.4), clock(83), clock(7322)
    ('0:07', '1:23', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def own_version() -> str:
    """Return the installed version of fedcondense, or say that it runs from a checkout."""
    try:
        return version("fedcondense")
    except PackageNotFoundError:
        return "from a checkout"
