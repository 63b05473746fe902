"""A condensed buffer that also keeps logits, for dark experience replay (DER): Buzzega et al., NeurIPS 2020."""

from __future__ import annotations

import os
from typing import Any

import torch
from avalanche.benchmarks.utils import DataAttribute
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.models.utils import avalanche_forward
from torch import Tensor
from torch.utils.data import Dataset

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.avalanche.decoded import Working
from fedcondense.avalanche.stream import first_image
from fedcondense.errors import SettingError

__all__ = ["CondensedBufferWithLogits"]

_AT_ONCE = 512  # images in a forward pass


class CondensedBufferWithLogits(CondensedBuffer):
    """Holds the model's logits of each image beside it, as half-precision numbers: 2 bytes per output and image.

    Logits are taken when an image enters, after an experience, and stay as long as the image. Assign it to the
    `storage_policy` of `avalanche.training.DER`, or use `CondensedDER`. `nbytes` counts the logits, and `max_bytes`
    bounds them; `save` leaves them out, and `save_checkpoint` keeps them. After `update_from_dataset`, which has no
    model, there are none until `take_logits`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logits: Tensor | None = None
        self._logits_of = -1  # the memory's number of changes when they were taken

    @property
    def logits(self) -> Tensor | None:
        """A copy, (N, outputs), float16, of the logits of the images of `decoded`; None: some were not taken yet."""
        held = self._held_logits
        return None if held is None else held.clone()

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take in an experience, and the logits of the images that are new with it."""
        known = self._known()
        self._make_room(agent, *first_image(exp.dataset))
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

    def drop(self, label: str | int, task: int = 0) -> None:
        """Forget a class; the others keep their logits, but where they were made again: `take_logits` has them then."""
        known = self._known()
        super().drop(label, task)
        rows = [known.get(key) for key in _keys(self.working)] if self.working is not None else []
        kept = [row for row in rows if row is not None]
        if kept and len(kept) == len(rows):
            self._logits, self._logits_of = torch.stack(kept), self.memory.changes

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, which has no logits: `take_logits` gets them from a model."""
        super().load(path)
        self._logits = None

    def take_logits(self, strategy: Any) -> None:
        """Take the logits of all images from a strategy's model; within `max_bytes`, images may have to leave."""
        self._take(strategy, {})

    @property
    def nbytes(self) -> int:
        """The bytes of everything that persists, logits included."""
        held = self._held_logits
        return super().nbytes + (0 if held is None else 2 * held.numel())

    @property
    def _held_logits(self) -> Tensor | None:
        """What `logits` copies: images that came or went since have made them worthless."""
        return self._logits if self._logits_of == self.memory.changes else None

    def _known(self) -> dict[tuple[int, int, bytes], Tensor]:
        """Return the logits of each image by its label, task and values."""
        if self.working is None or self._held_logits is None:
            return {}
        return dict(zip(_keys(self.working), self._held_logits, strict=True))

    def _make_room(self, agent: Any, images: Tensor, tasks: Tensor) -> None:
        """Within `max_bytes`, leave room for as many logits per image as the model has outputs."""
        if self.memory.max_bytes is not None:
            self.memory.refit(max(self.memory.beside, 2 * self._told(agent, images, tasks).shape[1]))

    def _take(self, agent: Any, known: dict[tuple[int, int, bytes], Tensor]) -> None:
        if self.working is not None and self.layout is not None:
            first = self.working.tasks[self.working.targets[:1].argmax(1)]
            self._make_room(agent, self.layout.cast(self.working.take(slice(0, 1))), first)
        decoded = self.working
        self._cache.pop("buffer", None)
        self._cache.pop("groups", None)
        if decoded is None or self.layout is None:
            return
        keys = _keys(decoded)
        new = torch.tensor([i for i, key in enumerate(keys) if key not in known], dtype=torch.int64)
        tasks = decoded.tasks[decoded.targets[new].argmax(1)]
        told = self._told(agent, self.layout.cast(decoded.take(new)), tasks) if len(new) else ()
        rows = known | {keys[i]: row for i, row in zip(new.tolist(), told, strict=True)}
        kept = [rows[key] for key in keys]
        logits = torch.zeros(len(kept), max(map(len, kept)), dtype=torch.float16)
        for mine, row in zip(logits, kept, strict=True):  # a head may have grown: new outputs are zero
            mine[: len(row)] = row
        self._logits, self._logits_of = logits, self.memory.changes

    @torch.no_grad()
    def _told(self, agent: Any, images: Tensor, tasks: Tensor) -> Tensor:
        """Return a model's logits of images in the stream's values, (N, outputs) float16."""
        modes = {module: module.training for module in agent.model.modules()}
        agent.model.eval()
        try:
            pieces = [
                avalanche_forward(agent.model, x.to(agent.device), t.to(agent.device)).cpu().half()
                for x, t in zip(images.split(_AT_ONCE), tasks.split(_AT_ONCE), strict=True)
            ]
        finally:
            for module, training in modes.items():
                module.training = training
        return torch.cat(pieces)

    def _beside(self, rows: Tensor) -> list[DataAttribute]:
        logits = self._held_logits
        if logits is None or self.layout is None:
            raise SettingError("a buffer without logits, as a file has none; call take_logits(strategy) first")
        dtype = self.layout.dtype if self.layout.dtype.is_floating_point else torch.float32
        copies = _Copies(logits[rows].to(dtype))
        return [TensorDataAttribute(FlatData([copies]), name="logits", use_in_getitem=True)]


class _Copies(Dataset[Tensor]):
    """Rows of a tensor (N, K), each handed out as a copy (K,)."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index].clone()


def _keys(decoded: Working) -> list[tuple[int, int, bytes]]:
    column = decoded.targets.argmax(1)
    labels, tasks = decoded.labels[column].tolist(), decoded.tasks[column].tolist()
    values = [image.numpy().tobytes() for image in decoded.images]
    return list(zip(labels, tasks, values, strict=True))
