from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense import checkpoints
from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import Progress, condense, prepare, running
from fedcondense.condensing.loop import Loop
from fedcondense.data.images import Data, Spec
from fedcondense.errors import OutputError, ResumeError
from fedcondense.networks import NETWORKS, ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Fresh, Pool, TrainedOnSynthetic

CONFIGURATION = {"seed": 3, "objective": "dm", "limit": 0.5}


def state() -> dict[str, Any]:
    """Everything that an optimizer, a generator and a source hand over."""
    return {
        "codes": {"images": torch.rand(2, 3, generator=torch.Generator().manual_seed(0))},
        "optimizer": {0: {"step": torch.tensor(4.0), "exp_avg": torch.ones(2)}, 1: {}},
        "draws": torch.Generator().manual_seed(5).get_state(),
        "source": {"seed": None, "taken": 7, "weights": {}},
        "half": torch.tensor([0.1]).half(),
        "same": [torch.tensor(1), [2, "text", True]],
        "transposed": torch.arange(6).view(2, 3).T,
        "seconds": 0.1 + 0.2,
        "large": 2**62 + 1,
    }


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def written(path: Path) -> bytes:
    Checkpoint(path).write(CONFIGURATION, state())
    return path.read_bytes()


def test_the_state_comes_back_bit_by_bit_with_its_integer_keys(tmp_path: Path) -> None:
    written(tmp_path / "c")
    read = Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION)
    assert_equal(read, state())


def test_a_state_with_the_key_tensor_is_not_mistaken_for_a_tensor(tmp_path: Path) -> None:
    tricky = {"tensor": "0", "items": [["tensor", 1]], "weights": {"tensor": torch.ones(1)}}
    Checkpoint(tmp_path / "c").write({}, tricky)
    assert_equal(Checkpoint(tmp_path / "c", resume=True).read({}), tricky)


def test_nothing_is_read_without_a_file_or_unless_asked(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION) is None
    written(tmp_path / "c")
    assert Checkpoint(tmp_path / "c").read(CONFIGURATION) is None


def test_a_write_replaces_the_file_whole(tmp_path: Path) -> None:
    written(tmp_path / "c")
    Checkpoint(tmp_path / "c").write(CONFIGURATION, {"done": 2})
    assert_equal(Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION), {"done": 2})
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_another_configuration_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    written(tmp_path / "c")
    other = {"seed": 4, "objective": "dm", "precision": "torch.float32"}
    with pytest.raises(ResumeError) as refused:
        Checkpoint(tmp_path / "c", resume=True).read(other)
    text = str(refused.value)
    assert "c belongs to another run: " in text
    assert "seed was 3, is 4" in text
    assert "limit was 0.5, is None" in text
    assert "precision was None, is 'torch.float32'" in text
    assert "objective" not in text
    assert "Resume with the settings it was started with, or delete it to start again" in text


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    blob = written(path)
    for size in range(0, len(blob), 7):
        path.write_bytes(blob[:size])
        with pytest.raises(
            ResumeError, match=r"is no checkpoint of this version, or is damaged .*; delete it and start again"
        ):
            Checkpoint(path, resume=True).read(CONFIGURATION)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"noise" * 100,
        safetensors.torch.save({"weight": torch.ones(2)}),
        safetensors.torch.save({}, metadata={"checkpoint": "not json"}),
        safetensors.torch.save({}, metadata={"checkpoint": "[]"}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": {"tensor": "7"}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": 3, "state": {"items": []}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": {"items": [[1]]}}'}),
        safetensors.torch.save({}, metadata={"checkpoint": '{"configuration": {}, "state": 3}'}),
    ],
)
def test_what_is_no_checkpoint_is_refused(blob: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(blob)
    with pytest.raises(ResumeError, match="is no checkpoint"):
        Checkpoint(tmp_path / "c", resume=True).read({})


def test_a_write_is_due_after_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "c", every_s=5, _written=now)
    assert not checkpoint.is_due()
    now = 105.0
    assert checkpoint.is_due()
    checkpoint.write({}, {})
    assert not checkpoint.is_due()


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    written(tmp_path / "c")
    checkpoint = Checkpoint(tmp_path / "c")
    checkpoint.remove()
    checkpoint.remove()
    assert not list(tmp_path.iterdir())


TINY = partial(ConvNet, width=8, depth=2)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the loss, report and keep a checkpoint after each step."""
    monkeypatch.setattr(running, "_LOOK_S", 0.0)


def toy(counts: tuple[int, ...] = (20, 15, 12)) -> Data:
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(3).repeat_interleave(torch.tensor(counts)), spec)


def bytes_of(synthetic: SyntheticSet) -> bytes:
    return synthetic.with_record(seconds=0.0).to_bytes()


def other_make(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))


def start(data: Data, counts: list[int], draws: torch.Generator) -> torch.Tensor:
    return torch.zeros(sum(counts), *data.spec.shape)


def changed(objective: Any, power: int) -> Any:
    """Return an objective of a class of the same name and fields, whose distance is another."""
    kind = type(objective)
    return type(kind.__name__, (kind,), {"distance": lambda self, a, b: (a - b).abs().pow(power).sum(1)})()


class Flat(torch.nn.Module):
    """A network of one's own; `offset` is what may change in its code."""

    offset = 0.0

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.last = torch.nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(x.flatten(1)) + self.offset
        return scores


SPEC: dict[str, st.SearchStrategy[Any]] = {
    "name": st.text("abc xyz", min_size=1, max_size=5).filter(str.strip).map(str.strip),
    "classes": st.permutations(("a", "b", "c")).map(tuple),
    "mean": st.floats(0, 1).map(lambda mean: (mean,)),
    "std": st.floats(0.01, 1).map(lambda std: (std,)),
    "operations": st.sets(st.sampled_from(("color", "crop", "cutout", "flip", "scale", "rotate"))).map(tuple),
}


class TestOfAnotherRun:
    @given(drawn=st.data(), field=st.sampled_from(sorted(SPEC)))
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_any_other_field_of_the_datas_description_is_refused(
        self, drawn: st.DataObject, field: str, tmp_path: Path
    ) -> None:
        data = toy()
        value: Any = drawn.draw(SPEC[field])
        other = Data(data.images, data.labels, replace(data.spec, **{field: value}))
        mine, theirs = (prepare(one, 1, "dm", "pixels", network=TINY).configuration for one in (data, other))
        Checkpoint(tmp_path / "c").write(mine, {"done": 1})
        resumed = Checkpoint(tmp_path / "c", resume=True)
        if value == getattr(data.spec, field):
            assert resumed.read(theirs) == {"done": 1}
        else:
            with pytest.raises(ResumeError, match=f"{field} of the data was "):
                resumed.read(theirs)

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"network": other_make}, {"network": lambda shape, classes: Flat(shape, classes)}),
            ({"network": Flat}, {"network": type("Flat", (Flat,), {"offset": 1.0})}),
            ({"network": partial(ConvNet, width=8, depth=2)}, {"network": partial(ConvNet, width=8, depth=1)}),
            ({"start": lambda *told: start(*told) + 0}, {"start": lambda *told: start(*told) + 1}),
            ({"objective": OBJECTIVES["dm"]}, {"objective": changed(OBJECTIVES["dm"], 1)}),
            ({"objective": changed(OBJECTIVES["dm"], 1)}, {"objective": changed(OBJECTIVES["dm"], 2)}),
        ],
    )
    def test_other_code_of_the_same_name_is_refused(
        self, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
    ) -> None:
        told: dict[str, Any] = {"data": toy(), "ipc": 1, "objective": "dm", "network": Flat, "steps": 1}
        condense(**told | first, checkpoint=Checkpoint(tmp_path / "c"))
        condense(**told | first, checkpoint=Checkpoint(tmp_path / "c", resume=True))
        with pytest.raises(ResumeError, match="belongs to another run"):
            condense(**told | second, checkpoint=Checkpoint(tmp_path / "c", resume=True))

    def test_a_plugins_network_of_a_name_is_its_code(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        told: dict[str, Any] = {"data": toy(), "ipc": 1, "objective": "dm", "network": "mine", "steps": 1}
        monkeypatch.setitem(NETWORKS, "mine", Flat)
        condense(**told, checkpoint=Checkpoint(tmp_path / "c"))
        monkeypatch.setitem(NETWORKS, "mine", other_make)
        with pytest.raises(ResumeError, match="code of the network was "):
            condense(**told, checkpoint=Checkpoint(tmp_path / "c", resume=True))

    def test_nobody_looks_after_a_file_that_is_to_begin_anew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = condense(toy(), 1, "dm", network=TINY, steps=2)
        (tmp_path / "c").write_bytes(b"damaged")
        kept = Checkpoint(tmp_path / "c", resume=True, anew=True)
        assert bytes_of(condense(toy(), 1, "dm", network=TINY, steps=2, checkpoint=kept)) == bytes_of(whole)
        assert "the run starts again" in caplog.text


class TestDamage:
    @given(place=st.integers(0, 10**6), change=st.integers(1, 255))
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_every_byte_counts(self, place: int, change: int, tmp_path: Path) -> None:
        blob = bytearray(written(tmp_path / "c"))
        blob[place % len(blob)] ^= change
        (tmp_path / "c").write_bytes(bytes(blob))
        with pytest.raises(ResumeError, match=r"c is no checkpoint of this version, or is damaged .*; delete it"):
            Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION)

    def test_a_value_that_was_replaced_is_refused(self, tmp_path: Path) -> None:
        blob = written(tmp_path / "c")
        assert blob.count(b"7]") == 1
        (tmp_path / "c").write_bytes(blob.replace(b"7]", b"9]"))
        with pytest.raises(ResumeError, match="its checksum is another"):
            Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION)

    def test_another_format_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoints, "_FORMAT", 3)
        written(tmp_path / "c")
        monkeypatch.undo()
        with pytest.raises(ResumeError, match="it is of format 3, this version reads 2"):
            Checkpoint(tmp_path / "c", resume=True).read(CONFIGURATION)


def test_a_second_run_on_a_checkpoint_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    said = []

    def second(now: Progress) -> None:
        with pytest.raises(OutputError, match=r"is being written by another run, of process \d+") as refused:
            condense(toy(), 1, "dm", network=TINY, steps=2, checkpoint=Checkpoint(tmp_path / "c"))
        said.append(str(refused.value))

    condense(toy(), 1, "dm", network=TINY, steps=1, checkpoint=Checkpoint(tmp_path / "c", 0), progress=second)
    assert str(os.getpid()) in said[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


class TestResume:
    @pytest.mark.parametrize(
        ("change", "differs"),
        [
            ({"seed": 1}, ["seed was 0, is 1"]),
            ({"ipc": 3}, ["ipc was 2, is 3"]),
            ({"limit": 0.5}, ["limit was 1.0, is 0.5"]),
            ({"objective": "ridge"}, ["objective was ", "DistributionMatching(", "RidgeRegression("]),
            ({"parametrization": "multi-formation"}, ["parametrization was 'Pixels()'"]),
            ({"network": "convnet2-w32"}, ["network was ", "is 'convnet2-w32'"]),
            ({"steps": 5}, ["steps=4", "steps=5"]),
            ({"start": "noise"}, ["start='gaussian'", "start='noise'"]),
            ({"data": toy((9, 9, 9))}, ["data was "]),
            ({"recipe": replace(OBJECTIVES["dm"].recipe, lr=0.5, steps=4)}, ["lr=0.5"]),
            (
                {"recipe": replace(OBJECTIVES["dm"].recipe, source=partial(Pool, size=5), steps=4)},
                ["size=96", "size=5"],
            ),
            ({"seed": 1, "ipc": 1}, ["seed was 0, is 1", "ipc was 2, is 1"]),
        ],
    )
    def test_another_configuration_is_refused_with_what_differs(
        self, change: dict[str, Any], differs: list[str], tmp_path: Path
    ) -> None:
        settings: dict[str, Any] = {"data": toy(), "ipc": 2, "objective": "dm", "network": TINY, "steps": 4}
        condense(**settings, checkpoint=Checkpoint(tmp_path / "c"))
        before = (tmp_path / "c").read_bytes()
        with pytest.raises(ResumeError) as refused:
            condense(**(settings | change), checkpoint=Checkpoint(tmp_path / "c", resume=True))
        for text in differs:
            assert text in str(refused.value)
        assert (tmp_path / "c").read_bytes() == before

    def test_a_damaged_checkpoint_is_refused(self, tmp_path: Path) -> None:
        condense(toy(), 1, network=TINY, steps=1, checkpoint=Checkpoint(tmp_path / "c"))
        (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-9])
        with pytest.raises(ResumeError, match="is no checkpoint"):
            condense(toy(), 1, network=TINY, steps=1, checkpoint=Checkpoint(tmp_path / "c", resume=True))

    def test_a_run_that_was_done_is_not_done_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = condense(toy(), 1, network=TINY, steps=3, checkpoint=Checkpoint(tmp_path / "c"))
        monkeypatch.setattr(Loop, "step", lambda self: pytest.fail("a step was taken"))
        again = condense(toy(), 1, network=TINY, steps=3, checkpoint=Checkpoint(tmp_path / "c", resume=True))
        assert bytes_of(again) == bytes_of(first)

    @pytest.mark.parametrize("parametrization", ["pixels", "multi-formation"])
    @pytest.mark.parametrize("make", [partial(TrainedOnSynthetic, outer=3, epochs=1), partial(Pool, size=3), Fresh])
    def test_at_every_step_it_goes_on_bit_by_bit(
        self, make: Callable[..., Any], parametrization: str, tmp_path: Path, every_step: None
    ) -> None:
        recipe = replace(OBJECTIVES["dm"].recipe, source=make, steps=7)

        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            made = condense(
                *(toy(), 1, "dm", parametrization),
                network=TINY,
                recipe=recipe,
                checkpoint=checkpoint,
                progress=progress,
            )
            return bytes_of(made)

        unbroken = run(None)
        for stop in range(1, 8):
            path = tmp_path / str(stop)
            with pytest.raises(KeyboardInterrupt):
                run(Checkpoint(path, 0), stop)
            assert run(Checkpoint(path, 0, resume=True)) == unbroken


KILLS = """
import json, os, random, signal, sys, time
from dataclasses import replace
from functools import partial
import torch
from fedcondense.condensing import running
from fedcondense.checkpoints import Checkpoint
from fedcondense.data.loading import load_data
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.sources import Pool, TrainedOnSynthetic

torch.set_num_threads(1)
running._LOOK_S = 0.0
folder, name, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
train = load_data("digits").train.subset(torch.arange(200))
objective = OBJECTIVES[name]
source = partial(Pool, size=6) if name == "dm-ridge" else partial(TrainedOnSynthetic, outer=4, epochs=1)
if name == "dsa":
    objective = replace(objective, per_class=8)
recipe = replace(objective.recipe, source=source, steps=steps)
network = partial(ConvNet, width=4, depth=2)


def start(run, resume):
    # one process a run; it says each step to the pipe
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    kept = Checkpoint(f"{folder}/{run}.checkpoint", 0, resume)
    made = running.condense(
        train, 1, objective, network=network, recipe=recipe, checkpoint=kept, progress=lambda now: os.write(write, b".")
    )
    made.with_record(seconds=0.0).save(f"{folder}/{run}")
    os._exit(0)


def end(child, read):
    os.close(read)
    return os.waitpid(child, 0)[1]


os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU cannot be used on both sides of a fork
leaf = torch.zeros(1, requires_grad=True)
leaf.grad = torch.zeros(1)
torch.optim.Adam([leaf]).step()  # what torch imports at the first step, each child would import again
child, read = start("whole", False)
os.read(read, 1)
began = time.monotonic()
while os.read(read, 1):
    pass
a_step = (time.monotonic() - began) / steps
assert end(child, read) == 0
moments = random.Random(0)
for run in range(10):
    child, read = start(run, False)
    for _ in range(moments.randrange(1, steps)):
        os.read(read, 1)
    time.sleep(a_step * moments.random())
    os.kill(child, signal.SIGKILL)
    status = end(child, read)
    assert os.waitstatus_to_exitcode(status) in (-signal.SIGKILL, 0), status
    killed = os.WIFSIGNALED(status)
    child, read = start(run, True) if killed else (0, 0)
    taken = 0
    while killed and os.read(read, 1):
        taken += 1
    assert not killed or end(child, read) == 0
    equal = open(f"{folder}/{run}", "rb").read() == open(f"{folder}/whole", "rb").read()
    print(json.dumps({"killed": killed, "taken": taken, "equal": equal}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "steps"), [("dm-ridge", 24), ("dsa", 12)])
def test_killed_at_ten_random_moments_and_resumed_it_ends_bit_equal(objective: str, steps: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLS, str(tmp_path), objective, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) == 10
    assert all(run["equal"] for run in runs)
    assert sum(run["killed"] for run in runs) >= 8
    assert sum(0 < run["taken"] < steps for run in runs) >= 8  # they went on from a checkpoint, not from the start
