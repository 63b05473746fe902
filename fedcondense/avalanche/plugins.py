"""Replay and GDumb on a condensed buffer: augmented batches, soft targets, one tensor in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import avalanche_forward
from avalanche.training.plugins import GDumbPlugin
from torch import Tensor

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.avalanche.sampling import EpochLoader, Sampler
from fedcondense.errors import SettingError

__all__ = ["CondensedGDumbPlugin", "CondensedReplayPlugin"]


class CondensedReplayPlugin(SupervisedPlugin):
    """Adds the loss of a batch from a condensed buffer to each iteration.

    Unlike the stock `ReplayPlugin` it leaves the stream's loader alone; it augments the memory's batch, which holds few
    images that are seen often, and takes probabilities as targets. Synthetic images do not look like real ones, so a
    network that sees old classes in the memory alone learns that real-looking images belong to new classes. Hence the
    loss is asymmetric: real images choose among the experience's own classes, and the memory, which is updated first,
    teaches all of them.

    Args:
        mem_size: Decoded images of the default buffer; left out where a `storage_policy` is given.
        storage_policy: The buffer.
        batch_size_mem: Images of the memory in an iteration, or all if it holds fewer; None: the `train_mb_size`.
        augment: Augment them, with the buffer's `operations`.
        balance: Let each class weigh the same, whether it is in the memory or in the experience: the memory's loss
            then counts by its number of classes. False: each image weighs the same, as in `ReplayPlugin`.
        asymmetric: The loss of ER-ACE (Caccia et al., ICLR 2022, https://arxiv.org/abs/2104.05025), with cross-entropy
            in the place of the strategy's criterion. False: the criterion, and a buffer that is updated last.
    """

    def __init__(
        self,
        mem_size: int | None = None,
        storage_policy: CondensedBuffer | None = None,
        batch_size_mem: int | None = None,
        *,
        augment: bool = True,
        balance: bool = True,
        asymmetric: bool = True,
    ) -> None:
        super().__init__()
        if batch_size_mem is not None and batch_size_mem < 1:
            raise SettingError(f"batch_size_mem {batch_size_mem}; needed: 1 or more, or None")
        self.storage_policy = _buffer(mem_size, storage_policy)
        self.mem_size = self.storage_policy.max_size
        self.batch_size_mem, self.augment, self.balance, self.asymmetric = batch_size_mem, augment, balance, asymmetric
        self._sampler: Sampler | None = None
        self._classes = torch.empty(0, dtype=torch.int64)  # of the experience

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Condense the experience if the loss is asymmetric, and read the buffer."""
        if self.asymmetric:
            self.storage_policy.post_adapt(strategy, strategy.experience)
        if self.storage_policy.decoded is None:
            return
        self._sampler = Sampler(self.storage_policy, strategy.device, self.augment, strategy.clock.train_exp_counter)
        labels = sorted({int(label) for label in strategy.adapted_dataset.targets})
        self._classes = torch.tensor(labels, device=strategy.device)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Mix the loss of a batch from the memory into that of the stream."""
        if self._sampler is None:
            return
        if self.asymmetric:
            strategy.loss = F.cross_entropy(_among(strategy.mb_output, self._classes), strategy.mb_y)
        streamed = len(strategy.mb_x)
        batch = self._sampler.draw(self.batch_size_mem or strategy.train_mb_size)
        output = avalanche_forward(strategy.model, batch.images, batch.tasks)
        loss = F.cross_entropy(output, self._sampler.wide_targets(batch.targets, output.shape[1]))
        mine, theirs = len(batch.images), streamed
        if self.balance:
            mine, theirs = self._sampler.classes, len(self._classes)
        strategy.loss = (theirs * strategy.loss + mine * loss) / (mine + theirs)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Condense the experience, unless that is done already, and release the tensors."""
        self._sampler = None
        if not self.asymmetric:
            self.storage_policy.post_adapt(strategy, strategy.experience)


class CondensedGDumbPlugin(GDumbPlugin):
    """Trains a fresh model on the condensed buffer alone, at each experience.

    Args:
        mem_size: Decoded images of the default buffer; left out where a `storage_policy` is given.
        storage_policy: The buffer.
        augment: Augment the batches, with the buffer's `operations`.
    """

    def __init__(
        self, mem_size: int | None = None, storage_policy: CondensedBuffer | None = None, *, augment: bool = True
    ) -> None:
        buffer = _buffer(mem_size, storage_policy)
        super().__init__(buffer.max_size)
        self.storage_policy, self.augment = buffer, augment
        self._loader: EpochLoader | None = None

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Condense the experience, and train on the buffer."""
        self.storage_policy.post_adapt(strategy, strategy.experience)
        strategy.adapted_dataset = self.storage_policy.buffer

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Serve the buffer in whole batches."""
        sampler = Sampler(self.storage_policy, strategy.device, self.augment, strategy.clock.train_exp_counter)
        layout = self.storage_policy.layout
        assert layout is not None
        self._loader = strategy.dataloader = EpochLoader(sampler, strategy.train_mb_size, layout.tasks)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a model that has no output for a label of the buffer, before its loss is taken."""
        if self._loader is not None:
            self._loader.sampler.check(strategy.mb_output.shape[1])

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Where targets are soft, take their cross-entropy for the loss."""
        if self._loader is not None and self._loader.is_soft:
            targets = self._loader.sampler.wide_targets(self._loader.targets, strategy.mb_output.shape[1])
            strategy.loss = F.cross_entropy(strategy.mb_output, targets)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Release the loader, which a checkpoint need not hold."""
        self._loader = None


def _among(output: Tensor, classes: Tensor) -> Tensor:
    """Return logits that leave nothing to the outputs of other classes."""
    others = torch.full_like(output[0], torch.finfo(output.dtype).min / 2)
    others[classes] = 0
    return output + others


def _buffer(mem_size: int | None, policy: CondensedBuffer | None) -> CondensedBuffer:
    if policy is None:
        return CondensedBuffer(200 if mem_size is None else mem_size)
    if not isinstance(policy, CondensedBuffer):
        raise SettingError(f"a storage_policy of {type(policy).__name__}; give a CondensedBuffer, or the stock plugin")
    if mem_size not in (None, policy.max_size):
        raise SettingError(f"mem_size {mem_size}, but the storage_policy holds {policy.max_size}; give one of them")
    return policy
