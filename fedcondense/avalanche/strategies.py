"""Strategies ready to train, named as Avalanche names its own: `Replay`, `GDumb` and `DER` on a condensed buffer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from avalanche.training import DER
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor

from fedcondense.avalanche.averaging import WeightAveragingPlugin
from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.avalanche.logits import CondensedBufferWithLogits
from fedcondense.avalanche.plugins import CondensedGDumbPlugin, CondensedReplayPlugin
from fedcondense.errors import SettingError

__all__ = ["CondensedDER", "CondensedGDumb", "CondensedReplay"]


class CondensedReplay(SupervisedTemplate):
    """`avalanche.training.Replay` with a condensed buffer (`CondensedReplayPlugin`) and averaged weights.

    Args:
        mem_size: Decoded images of the default buffer; left out where a `storage_policy` is given.
        storage_policy: The buffer.
        batch_size_mem: Images of the memory in an iteration; None: as many as of the stream.
        kwargs: As for `avalanche.training.Replay`: model, optimizer, criterion, train_mb_size, train_epochs, ...
    """

    def __init__(
        self,
        *,
        mem_size: int | None = None,
        storage_policy: CondensedBuffer | None = None,
        batch_size_mem: int | None = None,
        plugins: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        replay = CondensedReplayPlugin(mem_size, storage_policy, batch_size_mem)
        super().__init__(plugins=[*(plugins or []), replay, WeightAveragingPlugin()], **kwargs)


class CondensedGDumb(SupervisedTemplate):
    """`avalanche.training.GDumb` with a condensed buffer (`CondensedGDumbPlugin`) and averaged weights.

    Args:
        mem_size: Decoded images of the default buffer; left out where a `storage_policy` is given.
        storage_policy: The buffer.
        kwargs: As for `avalanche.training.GDumb`.
    """

    def __init__(
        self,
        *,
        mem_size: int | None = None,
        storage_policy: CondensedBuffer | None = None,
        plugins: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        gdumb = CondensedGDumbPlugin(mem_size, storage_policy)
        super().__init__(plugins=[*(plugins or []), gdumb, WeightAveragingPlugin()], **kwargs)


class CondensedDER(DER):
    """`avalanche.training.DER` with a condensed buffer that keeps logits; a head may grow, which stock DER refuses.

    Args:
        mem_size: Decoded images of the default buffer; left out where a `storage_policy` is given.
        storage_policy: A `CondensedBufferWithLogits`.
        kwargs: As for `avalanche.training.DER`; its streams need task labels.
    """

    batch_logits: Tensor  # (B, outputs), of the memory's part of a batch; stock DER sets them

    def __init__(
        self, *, mem_size: int | None = None, storage_policy: CondensedBufferWithLogits | None = None, **kwargs: Any
    ) -> None:
        if storage_policy is None:
            storage_policy = CondensedBufferWithLogits(200 if mem_size is None else mem_size)
        if not isinstance(storage_policy, CondensedBufferWithLogits):
            given = type(storage_policy).__name__
            raise SettingError(f"a storage_policy of {given}; needed: a CondensedBufferWithLogits")
        if mem_size not in (None, storage_policy.max_size):
            raise SettingError(
                f"mem_size {mem_size}, but the storage_policy holds {storage_policy.max_size}; give one of them"
            )
        super().__init__(mem_size=storage_policy.max_size, **kwargs)
        self.storage_policy = storage_policy

    def _before_training_exp(self, **kwargs: Any) -> None:
        layout = self.storage_policy.layout
        if layout is not None and not layout.tasks:
            raise SettingError("a stream without task labels; DER needs them: make it with nc_benchmark, say")
        super()._before_training_exp(**kwargs)

    def _after_forward(self, **kwargs: Any) -> None:
        super()._after_forward(**kwargs)
        if self.replay_loader is not None:  # the head may have grown in this experience
            wide = F.pad(self.batch_logits, (0, self.mb_output.shape[1] - self.batch_logits.shape[1]))
            self.batch_logits = wide.to(self.mb_output.dtype)
