"""A condensed buffer that also keeps logits, for dark experience replay (DER): Buzzega et al., NeurIPS 2020."""

from __future__ import annotations

import os
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, concat_datasets
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.models.utils import avalanche_forward
from torch import Tensor

from fedcondense.avalanche.buffer import CondensedBuffer, Decoded
from fedcondense.avalanche.stream import as_dataset
from fedcondense.errors import SettingError

__all__ = ["CondensedBufferWithLogits"]

_AT_ONCE = 512  # images in a forward pass


class CondensedBufferWithLogits(CondensedBuffer):
    """Holds the model's logits of each image beside it, as half-precision numbers: 2 bytes per output and image.

    Logits are taken when an image enters, after an experience, and stay as long as the image. Assign it to the
    `storage_policy` of `avalanche.training.DER`, or use `CondensedDER`. `nbytes` counts the logits; `save` leaves them
    out, and `save_checkpoint` keeps them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logits: Tensor | None = None  # (N, outputs), float16, of the images of `decoded`; None: not taken yet

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take in an experience, and the logits of the images that are new with it."""
        known = self._known()
        super().post_adapt(agent, exp)
        self._take(agent, known)

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the budget, in decoded images; images that are condensed again get logits from the strategy's model.

        Raises:
            SettingError: There is no strategy, or the size is too small; the buffer is unchanged.
        """
        if strategy is None:
            raise SettingError("a resize without a strategy; give the one whose model tells the logits of new images")
        known = self._known()
        super().resize(strategy, new_size)
        self._take(strategy, known)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, which has no logits: `take_logits` gets them from a model."""
        super().load(path)
        self.logits = None

    def take_logits(self, strategy: Any) -> None:
        """Take the logits of all images from a strategy's model."""
        self._take(strategy, {})

    @property
    def nbytes(self) -> int:
        """The bytes of everything that persists, logits included."""
        return super().nbytes + (0 if self.logits is None else 2 * self.logits.numel())

    def _known(self) -> dict[tuple[int, int, bytes], Tensor]:
        """Return the logits of each image by its label, task and values."""
        if self.decoded is None or self.logits is None:
            return {}
        return dict(zip(_keys(self.decoded), self.logits, strict=True))

    @torch.no_grad()
    def _take(self, agent: Any, known: dict[tuple[int, int, bytes], Tensor]) -> None:
        self._cache.pop("buffer", None)
        decoded = self.decoded
        if decoded is None:
            return
        keys = _keys(decoded)
        new = torch.tensor([i for i, key in enumerate(keys) if key not in known], dtype=torch.int64)
        modes = {module: module.training for module in agent.model.modules()}
        agent.model.eval()
        images, tasks = decoded.images[new], decoded.tasks[decoded.targets[new].argmax(1)]
        pieces = [
            avalanche_forward(agent.model, x.to(agent.device), t.to(agent.device)).cpu().half()
            for x, t in zip(images.split(_AT_ONCE), tasks.split(_AT_ONCE), strict=True)
        ]
        for module, training in modes.items():
            module.training = training
        rows = known | {keys[i]: row for i, row in zip(new.tolist(), torch.cat(pieces) if pieces else (), strict=True)}
        kept = [rows[key] for key in keys]
        self.logits = torch.zeros(len(kept), max(map(len, kept)), dtype=torch.float16)
        for mine, row in zip(self.logits, kept, strict=True):  # a head may have grown: new outputs are zero
            mine[: len(row)] = row

    def _dataset(self, index: Tensor | slice) -> AvalancheDataset:
        decoded = self.decoded
        if decoded is None or self.layout is None:
            return concat_datasets([])
        if self.logits is None:
            raise SettingError("a buffer without logits, as a file has none; call take_logits(strategy) first")
        column = decoded.targets.argmax(1)[index]
        rows = list(self.logits[index].float())
        extra: list[DataAttribute] = [TensorDataAttribute(FlatData([rows]), name="logits", use_in_getitem=True)]
        return as_dataset(decoded.images[index], decoded.labels[column], decoded.tasks[column], self.layout, extra)


def _keys(decoded: Decoded) -> list[tuple[int, int, bytes]]:
    column = decoded.targets.argmax(1)
    labels, tasks = decoded.labels[column].tolist(), decoded.tasks[column].tolist()
    values = [image.numpy().tobytes() for image in decoded.images]
    return list(zip(labels, tasks, values, strict=True))
