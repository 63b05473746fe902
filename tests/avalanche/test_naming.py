"""Classes by name: in the file, in labels that come back, and in what is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.avalanche import CodedBuffer, CondensedBuffer, CondensedBufferWithLogits
from fedcondense.avalanche.naming import group_name, label_and_task
from fedcondense.errors import DataError, ResumeError, SettingError
from fedcondense.memory import Selector
from fedcondense.sets.synthetic import SyntheticSet

RANDOM = Selector("random")
TREES = ("elm", "oak", "fir", "yew")


def test_names_of_groups_lead_back_to_label_and_task() -> None:
    for label, task in ((0, 0), (12, 0), (3, 2)):
        assert label_and_task(group_name(label, task)) == (label, task)
        assert label_and_task(f"{group_name(label, task)}#7") == (label, task)
    assert group_name(3, 0) == "3"
    assert group_name(1, 2, TREES) == "oak@2"
    assert label_and_task("oak@2#7", TREES) == (1, 2)
    with pytest.raises(DataError, match="label 4 of a stream whose classes are elm, oak, fir, yew; name all of them"):
        group_name(4, 0, TREES)


def fill(buffer: Any, bench: Any) -> Any:
    for experience in bench.train_stream:
        buffer.post_adapt(None, experience)
    return buffer


@pytest.mark.parametrize("kind", [CondensedBuffer, CodedBuffer])
def test_the_file_has_the_names_and_the_samples_have_the_labels(kind: Any, few: Any, tmp_path: Path) -> None:
    told = {} if kind is CodedBuffer else {"condenser": RANDOM}
    named = fill(kind(20, classes=TREES, **told), few.with_tasks(2))
    path = named.save(tmp_path / "memory.safetensors")
    assert set(SyntheticSet.load(path).classes) == set(TREES)
    again = kind(20, classes=TREES, **told)
    again.load(path)
    assert again.seen_classes == named.seen_classes == {0, 1, 2, 3}
    assert again.buffer_groups[1].buffer.targets.uniques == {1}
    with pytest.raises(ResumeError, match="it has a class 'elm', the classes of this buffer are numbers; give"):
        kind(20, **told).load(path)


def test_a_class_is_dropped_by_name_or_label_and_its_task(few: Any, tmp_path: Path) -> None:
    buffer = fill(CondensedBuffer(20, condenser=RANDOM, classes=TREES), few.tasks(2))
    with pytest.raises(SettingError, match="no class 'fir' in this memory; it has elm, oak, fir@1, yew@1"):
        buffer.drop("fir")
    buffer.drop("fir", task=1)
    assert buffer.seen_classes == {0, 1, 3}
    buffer.drop(0)
    assert buffer.seen_classes == {1, 3}
    assert {sample[1] for sample in buffer.buffer} == {1, 3}
    assert set(SyntheticSet.load(buffer.save(tmp_path / "m.safetensors")).classes) == {"oak", "yew@1"}


def test_the_others_keep_their_logits(few: Any, setting: Any) -> None:
    buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
    told = setting(classes=4)
    told.device = "cpu"
    for experience in few.with_tasks(2).train_stream:
        buffer.post_adapt(told, experience)
    before = {image.numpy().tobytes(): row for image, _, _, row in buffer.buffer}
    buffer.drop(1)
    after = {image.numpy().tobytes(): row for image, _, _, row in buffer.buffer}
    assert 0 < len(after) < len(before)
    assert all(torch.equal(row, before[image]) for image, row in after.items())


@pytest.mark.parametrize(("classes", "says"), [(("a@1", "b"), "a class called 'a@1'"), (("a", "a"), "of its own")])
def test_names_that_would_not_lead_back_are_refused(classes: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        CondensedBuffer(20, classes=classes)


def test_an_online_stream_is_condensed_every_so_many_samples_however_many_come_at_a_time(few: Any) -> None:
    from avalanche.benchmarks.scenarios import split_online_stream

    found = []
    for size in (7, 30):
        buffer = CondensedBuffer(20, condenser=RANDOM, every_samples=50, mean=(0.0,), std=(1.0,))
        for experience in split_online_stream(few.with_tasks(1).train_stream, experience_size=size, seed=0):
            buffer.post_adapt(None, experience)
        assert (len(buffer.seconds), len(buffer.memory.gathered)) == (4, 40)  # of 240
        before = buffer.buffer
        assert len(before) == 20
        buffer.flush()
        assert sum(buffer.memory.seen.values()) == 240
        found.append(before)
    assert len(found[0]) == len(found[1])
