"""Try what strangers, damage, kills and full disks do to the toolkit, and print a table.

    make trust                                   # at most ten minutes on two cores; results/trust.json
    cd experiments && python -m trust --full     # an hour
    cd experiments && python -m trust --only unsafe

Each check runs in a process of its own, two at a time, with counts and seeds and never until a time is up. The command
fails if anything crashed, was accepted wrongly, ended unequal after a resume, or could not be checked here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from trust.rows import Check, Row

RESULT = Path(__file__).resolve().parents[1] / "results" / "trust.json"


def _in(module: str, name: str = "check", *first: str) -> Callable[[int, int], Row]:
    """Return a check of a module of ours that is imported when it runs."""

    def run(count: int, seed: int) -> Row:
        found: Callable[..., Row] = getattr(import_module(f"trust.{module}"), name)
        return found(*first, count, seed)

    return run


CHECKS: dict[str, Check] = {
    "mutants of set files": Check(_in("mutants"), 8_000, 160_000),
    "mutants of coded sets": Check(_in("coded"), 3_000, 60_000),
    "set files by hand": Check(_in("mutants", "check_by_hand"), 150, 150),
    "coded sets by hand": Check(_in("coded", "check_by_hand"), 400, 400),
    "hostile servers, a node": Check(_in("messages", "check_servers"), 600, 10_000),
    "hostile nodes, a server": Check(_in("messages", "check_nodes"), 60, 600),
    "a flood of replies": Check(_in("messages", "check_floods"), 300, 3_000),
    **{
        f"kills: {name}": Check(_in("kills", "check", name), count, 20 * count)
        for name, count in (
            ("condense", 12),
            ("federate", 8),
            ("sweep", 12),
            ("relabel", 8),
            ("memory", 20),
            ("avalanche", 16),
        )
    },
    "poisoned sites": Check(_in("poison"), 5, 5),
    "full disks": Check(_in("disks", "check_full"), 5, 6),
    "read-only folders": Check(_in("disks", "check_read_only"), 1, 1),
    "nothing unsafe is called": Check(_in("unsafe"), 1, 1),
}
"""What is tried, by name, with the counts of the short and the full run."""


def _run_here(name: str, count: int, seed: int, path: Path) -> None:
    """Make one check in this process and write its row."""
    try:
        row = CHECKS[name].run(count, seed)
    except MemoryError as error:
        row = Row(1, 1, notes=(f"crashed: {type(error).__name__}: {error}",))
    path.write_text(json.dumps(row.plain()), encoding="utf-8")


def _run_apart(name: str, count: int, seed: int) -> Row:
    """Make one check in a process of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "row.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "trust", "--only", name, "--count", str(count), "--seed", str(seed)]
        ended = subprocess.run(
            [*command, "--row", str(path)], env=environment, capture_output=True, text=True, check=False
        )
        if not path.exists():
            said = " ".join((ended.stderr or "no word").split())[-300:]
            return Row(1, 1, notes=(f"crashed: the check itself ended with {ended.returncode}: {said}",))
        fields = json.loads(path.read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - began, 1)
    return _row({**fields, "seconds": seconds})


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| check | tried | crashed | accepted wrongly | slowest refusal | peak memory | resumed bit-equal | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        equal = "" if row.equal is None else f"{row.equal[0]} of {row.equal[1]}"
        slowest = f"{row.slowest:.2f} s" if row.slowest else ""
        if row.not_run:
            lines.append(f"| {name} | not run: {row.not_run} | | | | | | |")
            continue
        cells = (f"{row.tried:,}", row.crashed, row.wrong, slowest, f"{row.peak:,.0f} MiB", equal, f"{row.seconds:.0f}")
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def quoted() -> str:
    """Return the table of the kept result."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))["checks"]
    return table({name: _row(fields) for name, fields in found.items()})


def quoted_short() -> str:
    """Return the kept result in a sentence."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = {name: _row(fields) for name, fields in found["checks"].items()}
    killed = [row for name, row in rows.items() if name.startswith("kills")]
    equal, kills = (sum(row.equal[k] for row in killed if row.equal) for k in (0, 1))
    crashed, wrong = (sum(getattr(row, name) for row in rows.values()) for name in ("crashed", "wrong"))
    files = sum(row.tried for name, row in rows.items() if "mutants" in name or "by hand" in name)
    messages = sum(row.tried for name, row in rows.items() if "server" in name or "flood" in name)
    disks = sum(rows[name].tried for name in ("full disks", "read-only folders"))
    return (
        f"`make trust` ({found['about']['seconds'] / 60:.0f} minutes) tries {files:,} spoiled set files, {messages:,} "
        f"hostile messages, {kills} kills and {disks} full or read-only disks: {crashed} crashed anything, {wrong} "
        f"were accepted wrongly, and {equal} of {kills} killed runs ended equal bit by bit."
    )


def _row(fields: dict[str, Any]) -> Row:
    lists = {"notes": tuple(fields["notes"]), "equal": fields["equal"] and tuple(fields["equal"])}
    return Row(**{**fields, **lists})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 0 if all are sound."""
    parser = argparse.ArgumentParser(
        prog="trust", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="twenty times as many; an hour")
    parser.add_argument("--only", choices=CHECKS, action="append", help="this check alone; may be given again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="how many inputs; default: the check's own")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="where the JSON goes; default: results/trust.json of a run of all")
    given = parser.parse_args(arguments)
    names = given.only or list(CHECKS)
    counts = {name: given.count or (CHECKS[name].full if given.full else CHECKS[name].short) for name in names}
    if given.row:
        _run_here(names[0], counts[names[0]], given.seed, given.row)
        return 0
    began = time.monotonic()
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(_run_apart, name, counts[name], given.seed) for name in names}
        for name, future in running.items():
            rows[name] = future.result()
            verdict = "sound" if rows[name].is_sound else "NOT SOUND"
            print(f"{name}: {verdict}, {rows[name].seconds:.0f} s", file=sys.stderr, flush=True)
            for note in rows[name].notes:
                print(f"    {note}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    print(table(rows))
    sound = all(row.is_sound for row in rows.values())
    print(f"{'sound' if sound else 'NOT SOUND'} in {seconds:.0f} s")
    output = given.output or (None if given.only else RESULT)
    if output is not None:
        about = {
            "seed": given.seed,
            "full": given.full,
            "seconds": round(seconds, 1),
            "python": platform.python_version(),
        }
        found = {name: row.plain() for name, row in rows.items()}
        output.write_text(json.dumps({"about": about, "checks": found}, indent=1) + "\n", encoding="utf-8")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
