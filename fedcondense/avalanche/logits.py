"""A condensed buffer that also keeps logits, for dark experience replay (DER): Buzzega et al., NeurIPS 2020."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, concat_datasets
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.models.utils import avalanche_forward
from torch import Tensor

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.avalanche.stream import as_dataset, label_and_task

__all__ = ["CondensedBufferWithLogits"]

_AT_ONCE = 512


class CondensedBufferWithLogits(CondensedBuffer):
    """Holds the model's logits of each image beside it, as half-precision numbers: 2 bytes an output and image.

    They are taken after an experience, for the classes that were condensed in it; the others keep theirs. Assign it to
    the `storage_policy` of `avalanche.training.DER`, or use `CondensedDER`. `nbytes` counts the logits; `save` leaves
    them out, and `save_checkpoint` keeps them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logits: dict[str, Tensor] = {}  # of each group, (images, outputs), float16

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take in an experience, and the logits of what was condensed."""
        before = {name: id(one) for one in self.memory.sets for name in one.classes}
        super().post_adapt(agent, exp)
        after = {name: id(one) for one in self.memory.sets for name in one.classes}
        self._take_logits(agent, [name for name in self._counts() if before.get(name) != after.get(name)])

    @property
    def nbytes(self) -> int:
        """The bytes of all that persists, logits included."""
        return super().nbytes + sum(2 * logits.numel() for logits in self.logits.values())

    def _counts(self) -> dict[str, int]:
        synthetic = self.memory.synthetic
        return {} if synthetic is None else dict(zip(synthetic.classes, synthetic.counts().tolist(), strict=True))

    @torch.no_grad()
    def _take_logits(self, agent: Any, names: list[str]) -> None:
        decoded = self.decoded
        if decoded is None:
            return
        training = agent.model.training
        agent.model.eval()
        labels = decoded.targets.argmax(1)
        counts = self._counts()
        for column, name in enumerate(counts):
            if name in names or name not in self.logits or len(self.logits[name]) < counts[name]:
                images = decoded.images[labels == column]
                tasks = torch.full((len(images),), label_and_task(name)[1])
                pieces = [
                    avalanche_forward(agent.model, i.to(agent.device), t.to(agent.device)).cpu().half()
                    for i, t in zip(images.split(_AT_ONCE), tasks.split(_AT_ONCE), strict=True)
                ]
                self.logits[name] = torch.cat(pieces)
        self.logits = {name: self.logits[name][:count] for name, count in counts.items()}
        agent.model.train(training)
        self._cache = {"decoded": decoded}

    def _dataset(self, index: Tensor | slice) -> AvalancheDataset:
        decoded = self.decoded
        if decoded is None or self.layout is None:
            return concat_datasets([])
        outputs = max(logits.shape[1] for logits in self.logits.values())  # a head may have grown: new outputs are zero
        column = decoded.targets.argmax(1)
        rows = torch.zeros(len(column), outputs)
        for c, logits in enumerate(self.logits.values()):
            rows[column == c, : logits.shape[1]] = logits.float()
        column, rows = column[index], rows[index]
        extra: list[DataAttribute] = [TensorDataAttribute(FlatData([list(rows)]), name="logits", use_in_getitem=True)]
        return as_dataset(decoded.images[index], decoded.labels[column], decoded.tasks[column], self.layout, extra)
