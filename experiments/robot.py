"""A robot's memory: the condensed-replay program on one core and 1 GB, on 64-pixel photographs within 512 KiB.

    python experiments/robot.py FOLDER [--only condensed]  # FOLDER/train/<class>/1.jpg, FOLDER/test/<class>/1.jpg
    python experiments/robot.py --table                             # those of the page, which --output names

The program runs as a child process, as a user starts it. It gets one core by `sched_setaffinity`. The bound is on
anonymous memory, which a machine without swap cannot give back: the parent reads it from /proc every tenth of a second
and kills what has more. (`RLIMIT_AS` and `RLIMIT_DATA` count what is reserved: torch reserves 4 GB and touches 0.5.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cells import RESULTS, read, run_cells

PATH = RESULTS / "robot.json"  # of the page's pictures; those of others go elsewhere
PROGRAM = Path(__file__).parent.parent / "strategies" / "condensed-replay" / "train.py"
BUDGET, MOST = "512 KiB", 10**9  # of the memory's file; bytes of anonymous memory
MEMORIES = {"condensed": (), "real images as JPEG": ("--real", "jpeg-15")}  # more of the program's arguments
IMPORTED = "import fedcondense.avalanche as a; [getattr(a, name) for name in a.__all__]"  # by a program of one's own
_EVERY_S = 0.1


def held(process: int) -> dict[str, int]:
    """Return what a process holds, in bytes: the most it ever held, and what is anonymous now; nothing if it ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon") if name in fields}


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds that a process has used; 0 if it ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limited(command: list[str], most: int) -> dict[str, Any]:
    """Run a command on one core, and kill it where it holds more anonymous memory than `most` bytes.

    Returns:
        The most it held, in all and anonymous, and the lines that it printed, each with the CPU seconds until then.
    """
    core = max(os.sched_getaffinity(0))
    peak = {"VmHWM": 0, "RssAnon": 0}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=partial(os.sched_setaffinity, 0, {core}),
    )

    def watch() -> None:
        while child.poll() is None:
            for name, value in held(child.pid).items():
                peak[name] = max(peak[name], value)
            if peak["RssAnon"] > most:
                child.kill()
            time.sleep(_EVERY_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert child.stdout is not None
    lines = [(cpu_seconds(child.pid), line.strip()) for line in child.stdout]
    code = child.wait()
    watcher.join()
    if peak["RssAnon"] > most:
        sys.exit(f"killed: {peak['RssAnon']:,} bytes of anonymous memory, more than {most:,}; {' '.join(command)}")
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}")
    return {"peak_bytes": peak["VmHWM"], "peak_anonymous_bytes": peak["RssAnon"], "lines": lines}


def imports() -> dict[str, Any]:
    """Measure what torch and Avalanche take before anything is done."""
    found = limited([sys.executable, "-W", "ignore", "-c", IMPORTED], MOST)
    return {name: found[name] for name in ("peak_bytes", "peak_anonymous_bytes")}


def robot(folder: Path, size: int, budget: str, more: Sequence[str]) -> dict[str, Any]:
    """Run the program on a folder of photographs."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-W", "ignore", str(PROGRAM), "--data", f"folder:{folder}", "--size", str(size)]
        command += ["--max-bytes", budget, *more, "--output", output]
        found = limited(command, MOST)
        files = {file.name: file.stat().st_size for file in Path(output).iterdir() if file.is_file()}
    lines = found.pop("lines")
    ends = [second for second, line in lines if line.startswith("experience ")]
    (result,) = (json.loads(line) for _, line in lines if line.startswith('{"accuracy"'))
    kept = {name: result[name] for name in ("accuracy", "images")}
    each = [round(b - a, 1) for a, b in zip([0.0, *ends[:-1]], ends, strict=True)]
    return found | kept | {"file_bytes": files["memory.safetensors"], "files": files, "experience_cpu_seconds": each}


def table(path: Path = PATH) -> str:
    """Return a row for each memory, and what the imports take."""
    results = read(path)
    lines = [
        "| | memory's file, bytes | replayed images | accuracy | CPU s per experience | peak MB | anonymous MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MEMORIES:
        if (row := results.get(name)) is not None:
            seconds = ", ".join(f"{s:.0f}" for s in row["experience_cpu_seconds"])
            cells = [f"{row['file_bytes']:,}", row["images"], f"{row['accuracy']:.1f}", seconds, *_megabytes(row)]
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    if (row := results.get("imports")) is not None:
        lines.append(f"| imports alone | | | | | {' | '.join(_megabytes(row))} |")
    return "\n".join(lines)


def _megabytes(row: dict[str, Any]) -> list[str]:
    return [f"{row[name] / 1e6:,.0f}" for name in ("peak_bytes", "peak_anonymous_bytes")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=MEMORIES)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--max-bytes", default=BUDGET, help="of the memory's file")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/robot.json"), help="where rows are kept; another for other pictures"
    )
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    if arguments.folder is None:
        parser.error("FOLDER is needed: train and test in it, each with a folder per class")
    cells: dict[str, Callable[[], dict[str, Any]]] = {"imports": imports}
    what = arguments.folder.absolute(), arguments.size, arguments.max_bytes
    chosen = [arguments.only] if arguments.only else MEMORIES
    cells |= {name: partial(robot, *what, MEMORIES[name]) for name in chosen}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    run_cells(arguments.output, cells)
    print(table(arguments.output))


if __name__ == "__main__":
    main()
