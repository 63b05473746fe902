"""Streams of any dtype, label form and sample: as they are, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import loss_metrics
from avalanche.logging import BaseLogger
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedcondense.avalanche import CondensedBuffer, CondensedGDumb, CondensedReplay
from fedcondense.errors import DataError
from fedcondense.memory import Selector

RANDOM = Selector("random")
FEW = settings(
    max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

LABELS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "numpy int64": np.int64,
    "numpy int32": np.int32,
    "numpy of no dimension": np.array,
    "numpy of one": lambda y: np.array([y]),
    "tensor": torch.tensor,
    "tensor of int32": lambda y: torch.tensor(y, dtype=torch.int32),
    "tensor of float": lambda y: torch.tensor(float(y)),
    "tensor of one": lambda y: torch.tensor([y]),
}
DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8"]


class Formed(Dataset[tuple[Any, ...]]):
    """Images of a dtype, labels of a form, and perhaps further fields."""

    def __init__(self, few: Any, dtype: str, label: Callable[[int], Any], *more: Callable[[int], Any]) -> None:
        data = few.train.subset(torch.arange(len(few.train)).view(4, -1)[:, :12].flatten())
        scale = 1 if dtype == "uint8" else 255
        self.images = (data.images.double() / scale).to(getattr(torch, dtype))
        self.labels, self.label, self.more = data.labels.tolist(), label, more

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (self.images[index], self.label(self.labels[index]), *(field(index) for field in self.more))


def experiences(formed: Formed, tasks: bool = False) -> Any:
    """Two experiences: the first two classes, then the others; with a task label each, or without."""
    found = []
    for task in range(2):
        rows = [i for i, label in enumerate(formed.labels) if label // 2 == task]
        attributes = [DataAttribute([formed.labels[i] for i in rows], "targets")]
        if tasks:
            attributes.append(DataAttribute([task] * len(rows), "targets_task_labels", use_in_getitem=True))
        part = torch.utils.data.Subset(formed, rows)
        found.append(AvalancheDataset([part], data_attributes=attributes))
    return benchmark_from_datasets(train=found).train_stream


class Net(nn.Module):
    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.kind = torch.float32 if dtype == "uint8" else getattr(torch, dtype)
        self.to(self.kind)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == (torch.uint8 if self.kind == torch.float32 and not x.is_floating_point() else self.kind)
        return self.linear(x.to(self.kind).flatten(1))  # type: ignore[no-any-return]


def flat(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.float(), labels.flatten().long())


@FEW
@given(
    dtype=st.sampled_from(DTYPES),
    label=st.sampled_from(sorted(LABELS)),
    kind=st.sampled_from(["ours", "stock", "gdumb"]),
)
def test_a_stream_of_any_dtype_and_label_form_trains(dtype: str, label: str, kind: str, few: Any) -> None:
    buffer = CondensedBuffer(16, condenser=RANDOM)
    model = Net(dtype)
    told: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "criterion": flat,
        "train_mb_size": 8,
        "evaluator": EvaluationPlugin(loss_metrics(epoch=True), loggers=[BaseLogger()]),
    }
    if kind == "stock":
        strategy = Naive(**told, plugins=[ReplayPlugin(16, storage_policy=buffer)])
    else:
        strategy = {"ours": CondensedReplay, "gdumb": CondensedGDumb}[kind](storage_policy=buffer, **told)
    stream = experiences(Formed(few, dtype, LABELS[label]))
    for experience in stream:
        strategy.train(experience)
    assert buffer.seen_classes == {0, 1, 2, 3}
    theirs, mine = stream[0].dataset[0], buffer.buffer[0]
    assert (mine[0].dtype, mine[0].shape) == (theirs[0].dtype, theirs[0].shape)
    assert np.shape(mine[1]) == np.shape(theirs[1])
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_come_back_in_the_stream_s_dtype(dtype: str, few: Any, tmp_path: Any) -> None:
    formed = Formed(few, dtype, torch.tensor)
    buffer, again = (CondensedBuffer(48, condenser=RANDOM) for _ in range(2))
    for experience in experiences(formed):
        buffer.post_adapt(None, experience)
    again.load(buffer.save(tmp_path / "buffer"))
    for one in (buffer, again):
        images = torch.stack([sample[0] for sample in one.buffer])
        assert images.dtype == formed.images.dtype
        distance = (images.double().unsqueeze(1) - formed.images.double()).abs().flatten(2).amax(2).amin(1)
        assert distance.max() <= (0 if dtype == "uint8" else 4e-3)
    assert again.layout == buffer.layout


class TestTasks:
    @pytest.mark.parametrize("field", [int, lambda i: torch.rand(1, 8, 8), lambda i: str(i), lambda i: 0])
    @pytest.mark.parametrize("tasks", [False, True])
    def test_a_further_field_is_no_task_label(self, field: Callable[[int], Any], tasks: bool, few: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM)
        experience = experiences(Formed(few, "float32", int, field), tasks)[0]
        with pytest.raises(DataError, match="a task label only where the data set has `targets_task_labels`"):
            buffer.post_adapt(None, experience)
        assert buffer.memory.names == []

    def test_task_labels_that_samples_do_not_show_are_groups_too(self, few: Any) -> None:
        formed = Formed(few, "float32", int)
        attributes = [
            DataAttribute(formed.labels, "targets"),
            DataAttribute([i % 2 for i in range(len(formed))], "targets_task_labels"),
        ]
        buffer = CondensedBuffer(16, condenser=RANDOM)
        buffer.update_from_dataset(AvalancheDataset([formed], data_attributes=attributes))
        assert sorted(buffer.memory.names) == sorted(f"{c}{task}" for c in range(4) for task in ("", "@1"))
        assert len(buffer.buffer[0]) == 2


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (lambda y: F.one_hot(torch.tensor(y), 4), r"a label of shape \(4,\)"),
        (lambda y: y + 0.5, r"labels such as \d\.5"),
        (lambda y: y - 1, "labels such as -1"),
        (lambda y: torch.tensor(-float(y) - 1), "labels such as"),
        (str, "do not stack"),
        (lambda y: None, "do not stack"),
        (lambda y: float("nan"), "labels such as nan"),
    ],
)
def test_labels_that_are_no_place_of_an_output_are_refused(label: Callable[[int], Any], says: str, few: Any) -> None:
    with pytest.raises(DataError, match=says):
        CondensedBuffer(20, condenser=RANDOM).post_adapt(None, experiences(Formed(few, "float32", label))[0])


def test_what_is_no_avalanche_dataset_or_no_numbers_is_refused(few: Any) -> None:
    buffer = CondensedBuffer(20, condenser=RANDOM)
    with pytest.raises(DataError, match="a Formed; give an AvalancheDataset"):
        buffer.update_from_dataset(Formed(few, "float32", int))
    for dtype in ("bool", "complex64"):
        with pytest.raises(DataError, match=f"of torch.{dtype}; needed"):
            buffer.post_adapt(None, experiences(Formed(few, dtype, int))[0])


class TestCopies:
    def test_what_is_handed_out_is_not_what_is_kept(self, few: Any) -> None:
        buffer = CondensedBuffer(16, condenser=RANDOM)
        for experience in experiences(Formed(few, "float32", torch.tensor)):
            buffer.post_adapt(None, experience)
        before = [(image, int(label)) for image, label in buffer.buffer]
        decoded = buffer.decoded
        assert decoded is not None
        for value in decoded:
            value.zero_()
        for image, label in buffer.buffer:
            image.zero_()
            label.fill_(9)
        buffer.buffer_groups.clear()
        buffer.seconds.clear()
        buffer.seen_classes.clear()
        after = [(image, int(label)) for image, label in buffer.buffer]
        assert all(torch.equal(a, b) and x == y for (a, x), (b, y) in zip(before, after, strict=True))
        assert set(buffer.buffer_groups) == {0, 1, 2, 3}
        assert len(buffer.seconds) == 2

    def test_a_memory_that_is_changed_beside_the_buffer_is_read_again(self, few: Any) -> None:
        buffer = CondensedBuffer(16, condenser=RANDOM)
        buffer.post_adapt(None, experiences(Formed(few, "float32", int))[0])
        assert len(buffer.buffer) == 16
        buffer.memory.resize(4)
        assert len(buffer.buffer) == 4
