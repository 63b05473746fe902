"""CUDA graphs: a small batch leaves a GPU waiting for the CPU to launch kernels; a graph launches them at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedcondense.augment import Augmentation
from fedcondense.contract import Draw, Objective, Synthetic

if TYPE_CHECKING:
    from fedcondense.contract import NetworkFactory

__all__ = ["StepGraph", "captured"]

_LOG = logging.getLogger(__name__)
_WARM_UP = 3  # runs on a side stream before a capture, as torch asks for


def captured(run: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
    """Return what replays a function's kernels; None, and a line in the log, if they cannot be captured.

    Args:
        run: Reads and writes the same tensors each time and never waits for the device; it is called a few times first.
            What it returns is overwritten by each replay.
    """
    here = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(here)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                run()
        here.wait_stream(aside)
        with torch.cuda.graph(graph):
            result = run()
    except RuntimeError as error:
        _LOG.info("not captured as a CUDA graph, and run kernel by kernel: %s", error)
        return None

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class StepGraph:
    """An objective's `backward`, replayed on tensors of its own into which each step's are copied.

    For the draws of a pool: networks of one layout, observations of fixed shapes, a fixed number of images.

    Args:
        objective: Whose `backward` it is.
        build: Builds the network whose weights are replaced in each step.
        at_once: As `Objective.backward` takes it.
    """

    def __init__(self, objective: Objective, build: NetworkFactory, at_once: int) -> None:
        self.objective, self.build, self.at_once = objective, build, at_once
        self._replay: Callable[[], Tensor] | None = None
        self._own: list[Tensor] = []
        self.failed = False

    def backward(self, draw: Draw, observed: Any, leaves: Synthetic) -> Tensor:
        """Fill the leaves' gradients and return the loss; the first call captures, or finds that it cannot."""
        if self._replay is None and not self.failed:
            self._capture(draw, observed, leaves)
        if self._replay is None:
            self.failed = True
            return self.objective.backward(draw, observed, leaves, self.at_once)
        with torch.no_grad():
            torch._foreach_copy_(self._own, list(_tensors(_parts(draw, observed, leaves))))
        loss = self._replay()
        for mine, theirs in zip(self._leaves[:2], leaves[:2], strict=True):
            theirs.grad = mine.grad
        return loss

    def _capture(self, draw: Draw, observed: Any, leaves: Synthetic) -> None:
        device = leaves.images.device
        network = self.build(0).to(device).requires_grad_(False)
        augment = Augmentation(draw.augment.choice.to(device).clone(), draw.augment.amounts.to(device).clone())
        mine, seen = draw._replace(network=network, augment=augment), _copied(observed)
        images, targets = (leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves[:2])
        self._leaves = Synthetic(images, targets)
        self._own = list(_tensors(_parts(mine, seen, self._leaves)))

        def run() -> Tensor:
            self._leaves.images.grad = self._leaves.targets.grad = None
            return self.objective.backward(mine, seen, self._leaves, self.at_once)

        self._replay = captured(run)


def _parts(draw: Draw, observed: Any, leaves: Synthetic) -> tuple[Any, ...]:
    network: nn.Module = draw.network
    return network.state_dict(), draw.augment.choice, draw.augment.amounts, observed, leaves.images, leaves.targets


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and dicts, always in the same order."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_copied(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
