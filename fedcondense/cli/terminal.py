"""What all commands share: options, one-line errors, results on stdout, progress on stderr, checked output paths."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from fedcondense.cli.signals import ended_by_signals
from fedcondense.cli.values import Whole
from fedcondense.errors import FedcondenseError
from fedcondense.machine import MOST_THREADS, set_threads
from fedcondense.plugins import fault_of_plugin, load_plugins

P = ParamSpec("P")


class Format(StrEnum):
    """How a result is printed."""

    text = "text"
    json = "json"


class Precision(StrEnum):
    """What features are computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


# In the help, what many commands share stands in groups of its own.
_FROM = {"rich_help_panel": "Data"}
_RUNS = {"rich_help_panel": "How it runs"}
Precisely = Annotated[
    Precision,
    typer.Option("--precision", help="bfloat16 is quicker on a GPU or a CPU with AMX, at the same accuracy.", **_RUNS),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where data sets lie; default: the variable FEDCONDENSE_DATA.", **_FROM)
]
Size = Annotated[
    int | None,
    typer.Option(parser=Whole(8, 128), help="Pixels a side that images are brought to, from their middle.", **_FROM),
]
SkipBroken = Annotated[
    bool,
    typer.Option("--skip-broken", help="Leave images of a folder out that cannot be read, and name them.", **_FROM),
]
Log = Annotated[
    str | None,
    typer.Option(help="Where numbers go meanwhile: jsonl:FILE, tensorboard:DIR, or one that a plugin adds.", **_RUNS),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.", **_RUNS)]
Threads = Annotated[
    int | None,
    typer.Option(
        parser=Whole(1, MOST_THREADS), help="CPU threads; a resumed run is bit-equal only with as many.", **_RUNS
    ),
]
Output = Annotated[
    Format, typer.Option("--format", help="json, or --json, prints one object with stable keys.", **_RUNS)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output path holds.", **_RUNS)]
Plugin = Annotated[
    list[Path] | None, typer.Option(help="A Python file of yours that adds methods by name; it is run.", **_RUNS)
]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line on stderr and an exit code: 2; 130 after Ctrl-C, 143 after SIGTERM."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with ended_by_signals() as ending:
            try:
                with heard():
                    function(*args, **kwargs)
            except FedcondenseError as error:
                _stop(f"error: {error}", 2)
            except KeyboardInterrupt as interrupt:
                again = interrupt if interrupt.args else f"start again with: {invocation()}"
                _stop(f"interrupted; {again}", ending.code)
            except OSError as error:  # a full disk, a folder that vanished: what was complete is on the disk already
                if error.errno == errno.EPIPE or error.strerror is None:
                    raise
                _stop(f"error: {error.filename or 'writing'}: {error.strerror}; nothing that was complete is lost", 2)
            except Exception as error:
                fault = fault_of_plugin(error) or _memory_fault(error)
                if not fault:
                    raise
                _stop(f"error: {fault}", 2)

    return guarded


def _memory_fault(error: Exception) -> str:
    """Say that memory is used up, if that is what an error says; torch has no type for it on a CPU."""
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return f"memory is used up ({str(error)[:200] or 'no more'}); take a smaller ipc, network or data set"
    return ""


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Write what the library logs to stderr while inside; a terminal has a bar instead of lines on progress."""
    handler = _Notes(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    logger = logging.getLogger("fedcondense")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logging.INFO, level or logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Notes(logging.Handler):
    """Lines on stderr, as it is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, in one line."""
        note(record.getMessage())


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
        note(f"next: {shlex.join(['fedcondense', *map(_typed, then)])}")


def _typed(word: str | Path) -> str:
    """Return a word of a command; a path that starts with a dash would be read as an option."""
    return f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)


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
        if isinstance(value, bool):
            texts += [f"--{name.replace('_', '-')}"] if value else []
            continue
        for one in value if isinstance(value, list) else [value]:
            texts += [f"--{name.replace('_', '-')}", str(one)]
    return texts


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
        set_threads(threads)
    load_plugins(plugins or ())


def warn_of_slow(precision: Precision) -> None:
    """Say so where bfloat16 is asked for on a CPU that has none: it works, and takes many times as long."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if precision is Precision.bfloat16 and capability == "AVX2" and not torch.cuda.is_available():
        note("this CPU has no bfloat16 arithmetic and computes it many times slower: leave --precision out")


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


def own_version() -> str:
    """Return the installed version of fedcondense, or say that it runs from a checkout."""
    try:
        return version("fedcondense")
    except PackageNotFoundError:
        return "from a checkout"
