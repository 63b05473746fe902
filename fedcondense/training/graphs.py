"""CUDA graphs: a small batch leaves a GPU waiting for the CPU to launch kernels; a graph launches them at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import Augmentation

__all__ = ["StepGraph", "captured", "is_plain"]

_LOG = logging.getLogger(__name__)
_WARM_UP = 3  # runs on a side stream before a capture, as torch asks for


def is_plain(network: nn.Module) -> bool:
    """Say whether all modules are of torch, torchvision or this package: none branches on what a graph cannot see."""
    known = ("torch", "torchvision", "fedcondense")
    return all(type(module).__module__.partition(".")[0] in known for module in network.modules())


def captured(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor] | None:
    """Return what replays a function's kernels; None, and a line in the log, if they cannot be captured.

    Args:
        run: Reads and writes the same tensors each time and never waits for the device; it is called a few times first.
        device: Where these tensors are.
    """
    with torch.cuda.device(device):
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
            torch.cuda.set_stream(here)  # a capture that failed may have left another one
            _LOG.info("not captured as a CUDA graph, and run kernel by kernel: %s", error)
            return None

    def replay() -> Tensor:
        graph.replay()
        return result.clone()  # the next replay overwrites it

    return replay


class StepGraph:
    """A step's pass forward and backward, replayed on tensors of its own into which each step's are copied.

    For draws of plain networks of one layout, observations that are nothing but tensors of fixed shapes, a fixed number
    of images.

    Args:
        run: Fills the leaves' gradients and returns the loss, given a draw, of which it may read the network and the
            augmentation alone, what was seen of the real data, and the leaves.
    """

    def __init__(self, run: Callable[[Draw, Any, Synthetic], Tensor]) -> None:
        self.run = run
        self._replay: Callable[[], Tensor] | None = None
        self._kept: tuple[Draw, Any, Synthetic]  # what the graph reads and writes
        self._own: list[Tensor]  # of it, what each step replaces
        self.failed = False

    def backward(self, draw: Draw, observed: Any, leaves: Synthetic) -> Tensor:
        """Fill the leaves' gradients and return the loss; the first call captures, or finds that it cannot."""
        if self._replay is None and not self.failed:
            self._capture(draw, observed, leaves)
        if self._replay is None:
            self.failed = True
            return self.run(draw, observed, leaves)
        with torch.no_grad():
            torch._foreach_copy_(self._own, _tensors(draw, observed, leaves))
        loss = self._replay()
        for mine, theirs in zip(self._kept[2][:2], leaves[:2], strict=True):
            theirs.grad = mine.grad
        return loss

    def _capture(self, draw: Draw, observed: Any, leaves: Synthetic) -> None:
        if not (is_plain(draw.network) and _is_tensors(observed)):
            return
        device = leaves.images.device
        network = copy.deepcopy(draw.network)
        given = draw.augment
        augment = Augmentation(given.choice.clone(), given.amounts.clone(), given.own).to(device)
        images, targets = (leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves[:2])
        own = leaves._replace(images=images, targets=targets)
        mine, seen = draw._replace(network=network, augment=augment), _copied(observed)

        def run() -> Tensor:
            images.grad = targets.grad = None
            return self.run(mine, seen, own)

        self._kept, self._own = (mine, seen, own), _tensors(mine, seen, own)
        self._replay = captured(run, device)


def _tensors(draw: Draw, observed: Any, leaves: Synthetic) -> list[Tensor]:
    """Return all tensors that differ from step to step, always in the same order."""
    network: nn.Module = draw.network
    weights = list(network.state_dict().values())
    augment = draw.augment.to(leaves.images.device)
    return [*weights, augment.choice, augment.amounts, *_flat(observed), *(leaf.detach() for leaf in leaves[:2])]


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _flat(part)


def _is_tensors(value: Any) -> bool:
    """Say whether a value is nothing but tensors in nested tuples, lists and dicts."""
    if isinstance(value, (tuple, list, Mapping)):
        return all(_is_tensors(part) for part in (value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, Tensor)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    parts = [_copied(part) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
