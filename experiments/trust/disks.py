"""Full and read-only disks: one line, nothing half written, and what was there is still there.

A full disk is a bound on the size of files, past which every write fails, and ``/dev/full`` for what is printed. A
read-only folder is one that another user owns: root, whom modes do not hold, becomes somebody else first.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from trust.kills import SUBJECTS, forked, import_all, scratch
from trust.rows import Row, Tally

__all__ = ["check_full", "check_read_only"]

_NOBODY = 65534
_BOUNDS = (1, 0, 100, 1_000, 600, 300)  # bytes: in the header, before it, in the tensors


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _expect_refusal(tally: Tally, said: str, work: Callable[[], None], place: Path) -> None:
    """Run something that cannot write, and count what is not one line, or changes what was there."""
    tally.tried += 1
    before = _contents(place)
    code, text = forked(work)
    after = _contents(place)
    if code == 0:
        tally.note("wrong", f"{said}: it succeeds")
    elif "Traceback" in text or code not in (1, 2):
        tally.note("crashed", f"{said}: ended with {code}: {text[-220:]}")
    if changed := [name for name, blob in before.items() if after.get(name) != blob]:
        tally.note("wrong", f"{said}: {changed[0]} was there before, and is gone or changed")
    if left := [name for name in after if name.endswith(".part")]:
        tally.note("wrong", f"{said}: {left[0]} was left behind")


def _made(name: str, place: Path, tally: Tally) -> bool:
    """Make a subject's result, which the runs that follow are to replace."""
    code, text = forked(lambda: SUBJECTS[name].run(place, "first"))
    if code:
        tally.note("crashed", f"{name} by itself: {text[-200:]}")
    return code == 0


def _over(name: str, place: Path, before: Callable[[], None]) -> Callable[[], None]:
    """Return a run over what is there, after something that keeps it from writing."""

    def work() -> None:
        before()
        try:
            SUBJECTS[name].run(place, "over")
        except OSError as error:  # as a library call says it: one line
            print(f"{type(error).__name__}: {error}")
            raise SystemExit(2) from None

    return work


def check_full(count: int, seed: int) -> Row:
    """Run subjects under `count` bounds on the size of files, over an older result, and print to a full device."""
    torch.set_num_threads(1)
    import_all()
    tally = Tally()
    for name in ("condense", "relabel", "memory", "federate", "sweep"):
        with scratch() as place:
            if not _made(name, place, tally):
                continue
            for bound in _BOUNDS[: count if name in ("condense", "relabel", "memory") else 1]:

                def bounded(bound: int = bound) -> None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail with an error, as on a full disk
                    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, bound))

                if name == "sweep":  # what a folder of a sweep holds is not done again: begin with another
                    with scratch() as other:
                        _expect_refusal(tally, f"sweep under {bound} bytes", _over(name, other, bounded), other)
                    continue
                _expect_refusal(tally, f"{name} under {bound} bytes", _over(name, place, bounded), place)
    if not Path("/dev/full").exists():
        return replace(tally.row(), not_run="there is no /dev/full")
    for command in (("data",), ("zoo",), ("plan", "digits", "--ipc", "1", "--format", "json")):
        tally.tried += 1

        code, text = forked(partial(_print_to_full, command))
        if code == 0 or "Traceback" in text:
            tally.note("crashed", f"{' '.join(command)} > /dev/full: ended with {code}: {text[-200:]}")
    return tally.row()


def _print_to_full(command: tuple[str, ...]) -> None:
    """Run a command whose standard output is a full device."""
    from fedcondense.cli import main

    sys.argv = ["fedcondense", *command]
    with open("/dev/full", "w") as sys.stdout:
        main()


def check_read_only(count: int, seed: int) -> Row:
    """Run each subject as a user who may not write where the results are."""
    torch.set_num_threads(1)
    import_all()
    tally, is_root = Tally(), os.getuid() == 0
    for name in ("condense", "relabel", "memory", "federate", "sweep"):
        with scratch() as place:
            if not _made(name, place, tally):
                continue
            folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
            for folder in folders:
                folder.chmod(0o555)
            for file in (path for path in place.rglob("*") if path.is_file()):
                file.chmod(0o644)

            def dropped() -> None:
                if is_root:
                    os.setgid(_NOBODY)
                    os.setuid(_NOBODY)
                os.environ["HOME"] = "/nonexistent"

            if name == "sweep":
                for path in sorted(place.rglob("*"), reverse=True):  # one cell less, which is to be computed again
                    if path.suffix == ".json":
                        path.unlink()
                        break
            _expect_refusal(tally, f"{name}, read-only", _over(name, place, dropped), place)
            for folder in folders:
                folder.chmod(0o755)
    return tally.row()
