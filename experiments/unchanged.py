"""Whether two checkouts give equal results: the same federation by the command line of each, on one machine.

    git worktree add /tmp/before 9e37afd
    python experiments/unchanged.py /tmp/before            # beside this checkout, digits; results/unchanged.json

Sets and weights must be equal bit by bit and accuracies to the last digit; messages may differ by a constant per row,
which is printed. Both run with one thread and at ``min-records`` 1, which the older one does by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "unchanged.json"
ROWS = "one-shot,random-real,half-resolution-real,herding,fedavg-1,fedavg-3,ridge,ridge-equal-bytes,feature-statistics"
ASKED = ("--clients", "5", "--alpha", "0.3", "--ipc", "2", "--steps", "60", "--seeds", "2", "--threads", "1")


def run(checkout: Path, data: str, output: Path, more: tuple[str, ...]) -> dict[str, Any]:
    """Run a federation by a checkout's command line and return what its folder holds, in numbers and hashes."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedcondense", "federate", data, *ASKED, "--rows", ROWS, "--output", str(output)]
    subprocess.run([*command, *more], env=environment, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return summary(output)


def summary(folder: Path) -> dict[str, Any]:
    """Return accuracies and bytes per row, and hashes of sets (by the order of their names) and weights."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    keys = ("accuracy", "accuracy_std", "per_class", "images")
    rows = {name: {key: row.get(key) for key in keys} for name, row in result["rows"].items()}
    sets = sorted((folder / "clients").glob("*.safetensors"), key=lambda path: [len(path.stem), path.stem])
    return {
        "rows": rows,
        "bytes": {name: [row["bytes_up"], row["bytes_down"]] for name, row in result["rows"].items()},
        "sets": [digest(load_file(path)) for path in sets],
        "weights": digest(load_file(folder / "weights.safetensors")),
    }


def digest(tensors: Mapping[str, Any]) -> str:
    """Return sixteen hex digits over names and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("--data", default="digits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        old = run(arguments.before, arguments.data, Path(scratch) / "old", ())
        new = run(HERE, arguments.data, Path(scratch) / "new", ("--min-records", "1"))
    differ = [key for key in ("sets", "weights") if old[key] != new[key]]
    differ += [name for name in old["rows"] if old["rows"][name] != new["rows"][name]]
    for name, (up, down) in old["bytes"].items():
        now_up, now_down = new["bytes"][name]
        print(f"{name}: {old['rows'][name]['accuracy']:.4f}, {new['rows'][name]['accuracy']:.4f} %; ", end="")
        print(f"messages {now_up - up:+.1f} bytes up, {now_down - down:+.1f} down")
    print("equal" if not differ else f"DIFFERENT: {', '.join(differ)}")
    if arguments.data == "digits":
        RESULT.write_text(json.dumps({"asked": [*ASKED, ROWS], "old": old, "new": new}, indent=1) + "\n")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
