from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedBufferWithLogits,
    CondensedDER,
    CondensedGDumb,
    CondensedReplay,
    buffer_metrics,
)
from fedcondense.memory import Condenser, Selector

RANDOM = Selector("random")


def stock(**told: Any) -> Naive:
    buffer = told.pop("storage_policy")
    return Naive(plugins=[ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)], **told)


@pytest.mark.parametrize("make", [stock, CondensedReplay, CondensedGDumb])
def test_bytes_and_seconds_are_among_the_results_of_training(make: Any, few: Any, setting: Any, tmp_path: Path) -> None:
    buffer = CondensedBuffer(20, condenser=RANDOM)
    strategy = make(storage_policy=buffer, **setting(classes=4)(accuracy_metrics(stream=True), buffer_metrics()))
    for number, experience in enumerate(few.with_tasks(2).train_stream):
        results = strategy.train(experience)
        assert results["Buffer_Bytes/train_phase/train_stream/Task000"] == buffer.nbytes
        assert results["Condensing_Seconds/train_phase/train_stream/Task000"] == buffer.seconds[number] > 0
    assert not any(name.startswith("Buffer_Images") for name in results)
    curves = strategy.evaluator.get_all_metrics()
    iterations, sizes = curves["Buffer_Bytes/train_phase/train_stream/Task000"]
    assert len(iterations) == len(sizes) == 2
    assert iterations[0] < iterations[1] == strategy.clock.train_iterations
    assert sizes[1] == buffer.save(tmp_path / "buffer").stat().st_size


def test_the_logits_of_der_are_among_the_bytes(few: Any, setting: Any) -> None:
    buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
    strategy = CondensedDER(storage_policy=buffer, **setting(classes=4)(buffer_metrics()))
    results = strategy.train(few.with_tasks(1).train_stream[0])
    sizes = [value for name, value in results.items() if name.startswith("Buffer_Bytes")]
    assert sizes == [buffer.nbytes] == [buffer.memory.nbytes + 2 * 20 * 4]


def test_what_was_not_asked_for_is_not_measured() -> None:
    assert [str(metric) for metric in buffer_metrics()] == ["Buffer_Bytes", "Condensing_Seconds"]
    assert [str(metric) for metric in buffer_metrics(nbytes=False, seconds=False, images=True)] == ["Buffer_Images"]


def test_a_strategy_without_a_condensed_buffer_has_no_such_results(few: Any, setting: Any) -> None:
    results = Naive(**setting(classes=4)(buffer_metrics(images=True))).train(few.with_tasks(1).train_stream[0])
    assert not [name for name in results if name.startswith(("Buffer_", "Condensing_"))]


def test_the_images_reach_tensorboard_a_class_a_row(few: Any, setting: Any, tmp_path: Path) -> None:
    logger, table = TensorboardLogger(tmp_path / "board"), CSVLogger(str(tmp_path / "csv"))
    told = setting(classes=4)()
    told["evaluator"] = EvaluationPlugin(buffer_metrics(images=True), loggers=[logger, table])
    strategy = CondensedReplay(storage_policy=CondensedBuffer(48, condenser=Condenser("dm", steps=1)), **told)
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    logger.writer.flush()
    events = EventAccumulator(str(tmp_path / "board"), {"images": 0, "scalars": 0}).Reload()
    (tag,) = [tag for tag in events.Tags()["images"] if tag.startswith("Buffer_Images")]
    grids = events.Images(tag)
    assert [(grid.width, grid.height) for grid in grids] == [(8 * 10 + 2, rows * 10 + 2) for rows in (2, 4)]
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("Buffer_Bytes")]
    logger.writer.close()
    table.close()


@pytest.mark.parametrize("make", [CondensedReplay, CondensedGDumb])
def test_avalanche_s_text_loggers_show_the_numbers_and_nothing_of_ours(
    make: Any, few: Any, setting: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings are errors here; a grid of images is not for them, and our own log says nothing."""
    text, told = io.StringIO(), setting(classes=4)()
    metrics = (accuracy_metrics(experience=True), buffer_metrics(images=True))
    told["evaluator"] = EvaluationPlugin(*metrics, loggers=[TextLogger(text), InteractiveLogger()])
    strategy = make(storage_policy=CondensedBuffer(20, condenser=RANDOM), **told)
    bench = few.with_tasks(2)
    strategy.train(bench.train_stream[0])
    strategy.eval(bench.test_stream[:1])
    for said in (text.getvalue(), capsys.readouterr().out):
        assert all(name in said for name in ("Buffer_Bytes", "Condensing_Seconds", "Top1_Acc_Exp/eval_phase"))
        assert "tensor(" not in said
    assert caplog.messages == []


def test_the_grid_shows_the_first_images_of_each_class(few: Any, setting: Any) -> None:
    """Seven images a class in rows of eight, each in a frame of two: the last place is black."""
    buffer = CondensedBuffer(28, condenser=RANDOM)
    strategy = CondensedReplay(storage_policy=buffer, **setting(classes=4)(buffer_metrics(images=True)))
    results = strategy.train(few.with_tasks(1).train_stream[0])
    (grid,) = [value.image for name, value in results.items() if name.startswith("Buffer_Images")]
    assert buffer.memory.synthetic is not None
    images = buffer.memory.synthetic.pixels().images
    assert grid.shape == (3, 42, 82)
    torch.testing.assert_close(grid[0, 2:10, 2:10], images[0, 0])
    torch.testing.assert_close(grid[0, 12:20, 2:10], images[7, 0])
    assert not grid[:, :, 72:80].any()
