"""The program in `strategies/condensed-replay`, as a user would start it."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedcondense as fc
import fedcondense.avalanche
from fedcondense.checksums import append_checksum

PROGRAM = Path(__file__).parents[2] / "strategies" / "condensed-replay" / "train.py"


def result(printed: str) -> dict[str, Any]:
    assert len(printed.splitlines()) < 60
    (line,) = [line for line in printed.splitlines() if line.startswith('{"accuracy"')]
    told: dict[str, Any] = json.loads(line)
    return told


@pytest.fixture
def program(forked: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run the program in a copy of this process; `before` is called in it first."""

    def run(*flags: str, before: Callable[[], object] = lambda: None) -> Any:
        def work() -> None:
            sys.argv = [str(PROGRAM), *flags]
            warnings.simplefilter("ignore")
            before()
            runpy.run_path(str(PROGRAM), run_name="__main__")

        return forked(work, tmp_path).end()

    return run


def no_data() -> None:
    """Let nothing be loaded: what is refused is refused before."""
    fc.load_data = lambda *_, **__: pytest.fail("data were loaded")


def refusal(ended: Any) -> str:
    """Return the one line that a run was refused with."""
    assert ended.code == 1, (ended.out, ended.err)
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    return str(line)


@pytest.mark.slow
def test_the_recipe_learns_the_digits_leaves_a_memory_and_started_again_has_nothing_left_to_do(
    program: Any, tmp_path: Path
) -> None:
    flags = ["--output", str(tmp_path / "run"), "--steps", "40", "--epochs", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *flags]
    started = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert started.returncode == 0, started.stderr[-2000:]
    assert "QP solver" not in started.stderr
    first = result(started.stdout)
    assert first["accuracy"] > 80
    assert first["images"] == 100
    memory = fc.SyntheticSet.load(first["memory"])
    assert len(memory) == 100
    assert Path(first["memory"]).stat().st_size == first["nbytes"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    assert Path(first["picture"]).read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "run" / "accuracies.json").read_text())
    assert [len(row) for row in table] == [1, 2, 3, 4, 5]
    alone = fc.train(memory, recipe=fc.Fit(steps=200))
    test = fc.load_data("digits").test
    called = [alone.classes[c] for c in alone.predict(test.images).tolist()]
    right = [name == test.spec.classes[label] for name, label in zip(called, test.labels.tolist(), strict=True)]
    assert sum(right) / len(right) > 0.7
    assert result(program(*flags).out) == first
    Path(first["memory"]).unlink()
    assert result(program(*flags).out) == first
    assert fc.SyntheticSet.load(first["memory"]).to_bytes() == memory.to_bytes()
    Path(first["memory"]).write_bytes(b"damaged")
    assert result(program(*flags).out) == first
    assert fc.SyntheticSet.load(first["memory"]).to_bytes() == memory.to_bytes()
    again = refusal(program("--output", str(tmp_path / "run"), "--strategy", "replay", before=no_data))
    assert "is of other arguments" in again


QUICK = ("--steps", "1", "--epochs", "1", "--images", "10")


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_it_goes_on_and_overwrite_begins_anew(program: Any, tmp_path: Path) -> None:
    """The memory of the first experience is on the disk, and what comes after it is not."""
    flags, memory = (*QUICK, "--output", str(tmp_path / "run")), tmp_path / "run" / "memory.safetensors"

    def dies() -> None:
        real, calls = fedcondense.avalanche.save_checkpoint, itertools.count()
        fedcondense.avalanche.save_checkpoint = lambda *given: os._exit(9) if next(calls) else real(*given)

    assert program(*flags, before=dies).code == 9
    assert len(fc.SyntheticSet.load(memory).classes) == 2
    ended = program(*flags)
    assert ended.code == 0, ended.err
    whole = memory.read_bytes()
    assert len(fc.SyntheticSet.load(memory).classes) == 10
    past = tmp_path / "run" / "accuracies.json"
    for blob, says in ((b"[", "no run can go on without"), (b"[[1.0]]", "has not the accuracies of the 5 experiences")):
        past.write_bytes(blob)
        ended = program(*flags)
        assert ended.code == 1
        assert says in ended.err.splitlines()[-1]
    (tmp_path / "run" / "strategy.pt").unlink()
    assert "holds memory.safetensors and weights.safetensors, but no strategy.pt" in refusal(program(*flags))
    assert memory.read_bytes() == whole
    assert program(*flags, "--overwrite", "--seed", "1").code == 0
    assert memory.read_bytes() != whole
    assert [len(row) for row in json.loads(past.read_text())] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"memory.safetensors": b"a memory"}, "holds memory.safetensors, but no strategy.pt to go on from"),
        ({"weights.safetensors": b"a network"}, "holds weights.safetensors, but no strategy.pt to go on from"),
        ({"memory.safetensors": b"a memory", "strategy.pt": b"cut"}, "strategy.pt is missing or damaged"),
        ({"memory.safetensors": b"a memory", "strategy.pt": append_checksum(b"")}, "arguments.json is missing or dam"),
        ({"strategy.pt": append_checksum(b""), "arguments.json": b"{"}, "arguments.json is missing or damaged"),
        ({"strategy.pt": append_checksum(b""), "arguments.json": b"[]"}, "is of other arguments"),
    ],
)
def test_what_another_run_learned_is_not_replaced(
    files: dict[str, bytes], says: str, program: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    line = refusal(program("--output", str(folder), before=no_data))
    assert says in line
    assert line.endswith("another --output, or --overwrite to begin anew and replace what is there")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--experiences", "0"), "--experiences 0; needed: a whole number from 1"),
        (("--epochs", "0"), "--epochs 0; needed: a whole number from 1"),
        (("--images", "-1"), "--images -1; needed: a whole number from 1"),
        (("--steps", "-1"), "-1 steps; give a whole number"),
        (("--seed", "-1"), "--seed -1; needed: a whole number"),
        (("--max-bytes", "512 KB"), "--max-bytes '512 KB'; needed: kB"),
        (("--max-bytes", "9 kB", "--real", "png"), "no codec is called 'png'"),
        (("--parametrization", "pixel"), "no parametrization is called 'pixel'; did you mean 'pixels'?"),
        (("--data", "folder:nowhere"), "no nowhere here, nor in the data root"),
        (("--output", "/proc/none/run"), "/proc/none/run: No such file or directory; free the disk or choose a folder"),
    ],
)
def test_what_cannot_work_is_one_line_before_data_are_loaded(
    flags: tuple[str, ...], says: str, program: Any, tmp_path: Path
) -> None:
    assert says in refusal(program("--output", str(tmp_path / "run"), *flags, before=no_data))


def test_a_folder_is_looked_at_before_its_images_are_read(program: Any, tmp_path: Path) -> None:
    leaves = tmp_path / "leaves"
    for place in ("train/ash", "train/elm", "train/oak", "test/ash", "test/oak"):
        (leaves / place).mkdir(parents=True)
        (leaves / place / "1.jpg").write_bytes(b"never opened")
    flags = ("--data", f"folder:{leaves}", "--output", str(tmp_path / "run"))
    line = refusal(program(*flags, before=no_data))
    assert "5 experiences for 3 classes; needed: as many classes in each, so give a number that divides 3: 1, 3" in line
    line = refusal(program(*flags, "--experiences", "3", before=no_data))
    assert "1 of 3 classes have no images to test on (elm); needed: some of each class in both parts" in line
    assert not any((tmp_path / "run").iterdir())


def test_classes_of_other_data_are_counted_when_they_are_loaded(program: Any, tmp_path: Path) -> None:
    line = refusal(program("--experiences", "4", "--output", str(tmp_path / "run")))
    assert "digits: 4 experiences for 10 classes" in line


def test_its_help_imports_no_avalanche() -> None:
    code = f"""
import runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path({str(PROGRAM)!r}, run_name="__main__")
except SystemExit as ended:
    print("code", ended.code, "avalanche" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.splitlines()[-1] == "code 0 False", done.stderr
    assert done.stderr == ""
