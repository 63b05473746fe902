"""Replay and GDumb on a condensed buffer: augmented batches, soft targets, one tensor in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import avalanche_forward
from avalanche.training.plugins import GDumbPlugin
from torch import Tensor

from fedcondense.avalanche.buffer import CondensedBuffer
from fedcondense.avalanche.losses import InPlaceOfCriterion, memory_loss, refuse_own_criterion, stream_loss
from fedcondense.avalanche.sampling import EpochLoader, Replayed, Sampler
from fedcondense.errors import SettingError

__all__ = ["CondensedGDumbPlugin", "CondensedReplayPlugin"]


class CondensedReplayPlugin(SupervisedPlugin):
    """Mixes the loss of a batch from a condensed buffer into the strategy's criterion, in each iteration.

    Both sides are the strategy's criterion, and what other plugins add to the loss, or make of it, stays (`losses`). A
    strategy that takes no criterion once it replays, as `DER` and `ER_ACE`, keeps its loss, and the memory's is added.
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
        asymmetric: The loss of ER-ACE (Caccia et al., ICLR 2022, https://arxiv.org/abs/2104.05025): the criterion sees
            real images as if the model had outputs for their experience's classes alone. False: for all outputs, and a
            buffer that is updated last.
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
        self._entered: InPlaceOfCriterion | None = None
        self._checked = False
        self._classes = torch.empty(0, dtype=torch.int64)  # of the experience

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Condense the experience if the loss is asymmetric, and read the buffer."""
        self._leave()
        if self.asymmetric:
            refuse_own_criterion(strategy)
            self.storage_policy.post_adapt(strategy, strategy.experience)
        if not self.storage_policy.memory.names:
            return
        self._sampler = Sampler(self.storage_policy, strategy.device, self.augment, strategy.clock.train_exp_counter)
        labels = sorted({int(label) for label in strategy.adapted_dataset.targets})
        self._classes = torch.tensor(labels, device=strategy.device)
        self._checked = False

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Take the place of the criterion that the strategy is about to ask for."""
        if self._sampler is not None:
            self._entered = InPlaceOfCriterion(strategy, partial(self._mixed, strategy, self._sampler))

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the memory's loss where the strategy made its own without the criterion."""
        if self._sampler is not None and self._leave():
            batch, loss = self._replayed(strategy, self._sampler)
            mine, theirs = self._weights(strategy, self._sampler, batch)
            strategy.loss = strategy.loss + loss * (mine / theirs)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Condense the experience, unless that is done already, and release the tensors."""
        self._leave()
        self._sampler = self._entered = None
        if not self.asymmetric:
            self.storage_policy.post_adapt(strategy, strategy.experience)

    def _mixed(self, strategy: Any, sampler: Sampler) -> Tensor:
        """Return the criterion of the stream's batch, mixed with that of one from the memory."""
        if self.asymmetric:
            streamed = stream_loss(strategy, self._classes, check=not self._checked)
            self._checked = True
        else:
            streamed = strategy.criterion()
        batch, loss = self._replayed(strategy, sampler)
        mine, theirs = self._weights(strategy, sampler, batch)
        return (theirs * streamed + mine * loss) / (mine + theirs)

    def _replayed(self, strategy: Any, sampler: Sampler) -> tuple[Replayed, Tensor]:
        batch = sampler.draw(self.batch_size_mem or strategy.train_mb_size)
        output = avalanche_forward(strategy.model, batch.images, batch.tasks)
        return batch, memory_loss(strategy, output, batch, sampler)

    def _weights(self, strategy: Any, sampler: Sampler, batch: Replayed) -> tuple[int, int]:
        """Return what the memory and the stream weigh: their classes, or their images."""
        if self.balance:
            return sampler.classes, len(self._classes)
        return len(batch.images), len(strategy.mb_x)

    def _leave(self) -> bool:
        return self._entered is not None and self._entered.undo()


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
        self._entered: InPlaceOfCriterion | None = None

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
        """Refuse a model that has no output for a label of the buffer; where targets are soft, have them learned."""
        loader = self._loader
        if loader is None:
            return
        loader.sampler.check(strategy.mb_output.shape[1])
        if loader.sampler.is_soft and loader.batch is not None:
            soft = partial(memory_loss, strategy, strategy.mb_output, loader.batch, loader.sampler)
            self._entered = InPlaceOfCriterion(strategy, soft)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Release the loader, which a checkpoint need not hold."""
        if self._entered is not None:
            self._entered.undo()
        self._loader = self._entered = None


def _buffer(mem_size: int | None, policy: CondensedBuffer | None) -> CondensedBuffer:
    if policy is None:
        return CondensedBuffer(200 if mem_size is None else mem_size)
    if not isinstance(policy, CondensedBuffer):
        raise SettingError(f"a storage_policy of {type(policy).__name__}; give a CondensedBuffer, or the stock plugin")
    if mem_size not in (None, policy.max_size):
        raise SettingError(f"mem_size {mem_size}, but the storage_policy holds {policy.max_size}; give one of them")
    return policy
