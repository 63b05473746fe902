"""A run that is killed inside an experience and started again ends as if it had never stopped."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche import checkpointing
from avalanche.training import ER_ACE, Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import GDumbPlugin, MIRPlugin, ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer

from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedBufferWithLogits,
    CondensedDER,
    CondensedGDumb,
    CondensedReplay,
    maybe_load_checkpoint,
    save_checkpoint,
)
from fedcondense.errors import OutputError, ResumeError, SettingError
from fedcondense.memory import Condenser, Selector

CONDENSER = Condenser("dm", "pixels", steps=2)
DIE = "TEST_DIES_INSIDE_AN_EXPERIENCE"


class Killer:
    """A plugin that kills its process in the middle of the second experience, if the environment says so."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        clock = strategy.clock
        if DIE in os.environ and (clock.train_exp_counter, clock.train_exp_iterations) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)


def replay(told: Any) -> Any:
    buffer = CondensedBuffer(20, condenser=CONDENSER)
    return Naive(**told(plugins=[ReplayPlugin(mem_size=20, storage_policy=buffer), Killer()]))


def hybrid_online(told: Any) -> Any:
    """Stock replay with all that a memory can hold: condensed, real, and waiting images."""
    buffer = CondensedBuffer(40, condenser=CONDENSER, real_fraction=0.4, min_samples=50)
    return Naive(**told(plugins=[ReplayPlugin(mem_size=40, storage_policy=buffer), Killer()]))


def gdumb(told: Any) -> Any:
    plugin = GDumbPlugin(20)
    plugin.storage_policy = CondensedBuffer(20, condenser=CONDENSER)
    return Naive(**told(plugins=[plugin, Killer()]))


def er_ace(told: Any) -> Any:
    strategy = ER_ACE(**told(mem_size=20, plugins=[Killer()]))
    strategy.storage_policy = CondensedBuffer(20, condenser=CONDENSER)
    return strategy


def condensed_replay(told: Any) -> Any:
    return CondensedReplay(storage_policy=CondensedBuffer(20, condenser=CONDENSER), **told(plugins=[Killer()]))


def condensed_gdumb(told: Any) -> Any:
    return CondensedGDumb(storage_policy=CondensedBuffer(20, condenser=CONDENSER), **told(plugins=[Killer()]))


def condensed_der(told: Any) -> Any:
    buffer = CondensedBufferWithLogits(20, condenser=CONDENSER)
    return CondensedDER(storage_policy=buffer, **told(batch_size_mem=8, plugins=[Killer()]))


def buffer_of(strategy: Any) -> CondensedBuffer:
    for holder in (strategy, *strategy.plugins):
        if isinstance(getattr(holder, "storage_policy", None), CondensedBuffer):
            return holder.storage_policy  # type: ignore[no-any-return]
    raise AssertionError


def end(strategy: Any) -> tuple[bytes, ...]:
    """Return what a run ends with: weights, momentum, the buffer's images and logits, the random state."""
    buffer = buffer_of(strategy)
    assert buffer.memory.synthetic is not None
    momentum = [s["momentum_buffer"] for s in strategy.optimizer.state.values()]
    logits = getattr(buffer, "logits", None)
    tensors = [*strategy.model.parameters(), *momentum, *([] if logits is None else [logits]), torch.get_rng_state()]
    whole = buffer.memory.synthetic.with_record(seconds=0.0).to_bytes()
    return whole, *(tensor.detach().numpy().tobytes() for tensor in tensors)


def run(make: Callable[[Any], Any], setting: Any, bench: Any, path: Path | None) -> Any:
    """Train as a script would: seed, build, load, train, save."""
    RNGManager.set_random_seeds(1234)
    strategy, begin = make(setting(classes=4)), 0
    if path is not None:
        strategy, begin = maybe_load_checkpoint(strategy, path)
    for experience in bench.train_stream[begin:]:
        strategy.train(experience)
        if path is not None:
            save_checkpoint(strategy, path)
    return strategy


@pytest.mark.parametrize(
    "make", [replay, hybrid_online, gdumb, er_ace, condensed_replay, condensed_gdumb, condensed_der]
)
def test_killed_inside_an_experience_and_run_again_it_ends_bit_equal(
    make: Callable[[Any], Any], few: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, path = few.with_tasks(4), tmp_path / "run.checkpoint"
    whole = end(run(make, setting, bench, None))
    with monkeypatch.context() as patch:
        patch.setenv(DIE, "1")
        process = multiprocessing.get_context("fork").Process(target=run, args=(make, setting, bench, path))
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["run.checkpoint"]
    torch.manual_seed(99)
    resumed = run(make, setting, bench, path)
    assert resumed.clock.train_exp_counter == 4
    assert end(resumed) == whole
    again, begin = maybe_load_checkpoint(make(setting(classes=4)), path)
    assert begin == 4
    assert end(again) == whole


def script(streams: Any, setting: Any, accuracy: Any, path: Path | None) -> None:
    """Train on a stream, and print how good the model is and what the run ended with."""
    strategy = run(condensed_replay, setting, streams.with_tasks(4), path)
    print(accuracy(strategy, streams.test), hashlib.sha256(b"".join(end(strategy))).hexdigest())


ANEW = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from conftest import Setting, Streams, right
from fedcondense import load_data
from test_checkpoints import script
script(Streams(load_data("digits"), classes=4), Setting, right, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_script_that_is_killed_and_run_again_prints_the_same(
    forked: Any, few: Any, setting: Any, accuracy: Any, tmp_path: Path
) -> None:
    """Three processes; the two that are started anew, imports and all, share nothing but the file."""
    whole = forked(partial(script, few, setting, accuracy, None), tmp_path).end()
    assert whole.code == 0, whole.err

    def start(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ANEW, str(Path(__file__).parent), str(tmp_path / "run.checkpoint")]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | more, timeout=600)

    killed = start(**{DIE: "1"})
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, ""), killed.stderr
    resumed = start()
    assert resumed.returncode == 0, resumed.stderr
    assert "Mapping" not in resumed.stdout
    assert resumed.stdout.splitlines()[-1] == whole.out.splitlines()[-1]
    assert float(whole.out.split()[-2]) > 0.5


class TestFile:
    def test_it_holds_the_model_and_the_buffer_and_nothing_of_the_stream(
        self, few: Any, setting: Any, tmp_path: Path
    ) -> None:
        """The stock buffer's file holds all the data that its samples were taken from."""
        sizes, condensed = {}, CondensedBuffer(20, condenser=Selector("random"))
        for name, policy in (("condensed", condensed), ("stock", ClassBalancedBuffer(20))):
            strategy = Naive(**setting(classes=4)(plugins=[ReplayPlugin(mem_size=20, storage_policy=policy)]))
            for experience in few.with_tasks(2).train_stream:
                strategy.train(experience)
            sizes[name] = save_checkpoint(strategy, tmp_path / name).stat().st_size
        weights = 4 * sum(p.numel() for p in strategy.model.parameters())
        assert sizes["stock"] > 4 * 64 * len(few.train)
        rest = sizes["condensed"] - 2 * weights - condensed.nbytes
        assert rest < 30_000  # Avalanche's plugins, clocks and the random state, whatever the stream

    def test_the_stock_functions_read_it_too(self, few: Any, setting: Any, tmp_path: Path) -> None:
        bench = few.with_tasks(2)
        first = run(condensed_replay, setting, bench, tmp_path / "run")
        second, begin = checkpointing.maybe_load_checkpoint(condensed_replay(setting(classes=4)), tmp_path / "run")
        assert begin == 2
        assert end(second)[:-1] == end(first)[:-1]

    def test_attributes_can_be_left_out(self, few: Any, setting: Any, tmp_path: Path) -> None:
        strategy = run(condensed_replay, setting, few.with_tasks(2), None)
        path = save_checkpoint(strategy, tmp_path / "run", exclude=["optimizer"])
        fresh = condensed_replay(setting(classes=4))
        optimizer = fresh.optimizer
        loaded, _ = maybe_load_checkpoint(fresh, path)
        assert loaded.optimizer is optimizer
        assert strategy.optimizer is not optimizer

    def test_the_buffer_alone_is_a_file_that_runs_nothing(self, few: Any, setting: Any, tmp_path: Path) -> None:
        strategy = run(condensed_replay, setting, few.with_tasks(2), None)
        path = buffer_of(strategy).save(tmp_path / "buffer.safetensors")
        other = CondensedBuffer(20, condenser=CONDENSER)
        other.load(path)
        assert other.memory.to_bytes() == buffer_of(strategy).memory.to_bytes()

    def test_without_a_file_training_begins_at_the_beginning(self, setting: Any, tmp_path: Path) -> None:
        strategy = condensed_replay(setting(classes=4))
        assert maybe_load_checkpoint(strategy, tmp_path / "none") == (strategy, 0)

    def test_damaged_files_are_refused_and_the_strategy_is_as_it_was(
        self, few: Any, setting: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        run(condensed_replay, setting, few.with_tasks(2), path)
        whole = path.read_bytes()
        strategy = condensed_replay(setting(classes=4))
        before = dict(vars(strategy))
        for damaged in (whole[: len(whole) // 2], b"", b"hello", whole[:100] + b"x" * 50 + whole[150:]):
            path.write_bytes(damaged)
            with pytest.raises(ResumeError, match=r"run is no checkpoint .*; move it away to begin anew, and with it"):
                maybe_load_checkpoint(strategy, path)
            assert vars(strategy) == before

    def test_nothing_that_is_damaged_is_unpickled(
        self, few: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "run"
        run(condensed_replay, setting, few.with_tasks(2), path)
        whole, strategy = path.read_bytes(), condensed_replay(setting(classes=4))
        monkeypatch.setattr(checkpointing, "maybe_load_checkpoint", lambda *_: pytest.fail("it was unpickled"))
        for place in (0, 100, len(whole) // 3, len(whole) // 2, len(whole) - 80, len(whole) - 1):
            for bit in range(0, 8, 3):
                blob = bytearray(whole)
                blob[place] ^= 1 << bit
                path.write_bytes(bytes(blob))
                with pytest.raises(ResumeError, match="its checksum is another"):
                    maybe_load_checkpoint(strategy, path)

    def test_a_full_disk_leaves_the_last_file(
        self, few: Any, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "run"
        strategy = run(condensed_replay, setting, few.with_tasks(2), path)
        whole = path.read_bytes()

        def full(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device; free the disk"):
            save_checkpoint(strategy, path)
        assert path.read_bytes() == whole
        assert os.listdir(tmp_path) == ["run"]

    def test_a_path_that_cannot_be_written_is_refused(self, few: Any, setting: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        strategy = run(condensed_replay, setting, few.with_tasks(2), None)
        with pytest.raises(OutputError, match="choose a folder that can be written"):
            save_checkpoint(strategy, tmp_path / "file" / "run")


def test_what_cannot_be_pickled_is_named_and_the_last_file_stays(few: Any, setting: Any, tmp_path: Path) -> None:
    """The stock MIR plugin keeps a generator after training, with any buffer."""
    plugin = MIRPlugin(batch_size_mem=4, mem_size=20, subsample=8)
    plugin.storage_policy = CondensedBuffer(20, condenser=Selector("random"))
    strategy = Naive(**setting(classes=4)(plugins=[plugin]))
    path = save_checkpoint(strategy, tmp_path / "run")
    whole = path.read_bytes()
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    with pytest.raises(SettingError, match=r"run: the strategy holds what cannot be kept \(.*generator.*\); clear it"):
        save_checkpoint(strategy, path)
    assert path.read_bytes() == whole
    assert os.listdir(tmp_path) == ["run"]
    plugin.replay_loader = None
    save_checkpoint(strategy, path)
    assert path.read_bytes() != whole
