"""Random streams: everything is drawn on the CPU from one root seed, a child stream for each purpose.

So a client and a server, on any device, share draws by sharing a seed, and no draw depends on how many came before it
for another purpose. Privacy noise is the exception: it never comes from here.

Torch's layers draw from one generator that all threads share. `Drawn` gives them another, in its own thread alone, so
that nobody else's draws change ours and ours change nobody else's.
"""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedcondense.plain import whole_number

__all__ = ["Drawn", "batches", "child_seed", "draw_seed", "stream"]

_LOCK = threading.RLock()  # of the global generators, for the few operations that take no other


def child_seed(root: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2**63) that `root` and the purpose determine on any machine."""
    text = "/".join(map(str, (whole_number(root, "seed", -(2**63)), *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(root: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator seeded with `child_seed`."""
    return torch.Generator().manual_seed(child_seed(root, *purpose))


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed in [0, 2**62)."""
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def batches(number: int, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Draw `steps` batches of `size` indices below `number` (all of them if fewer), each pass in a new order."""
    size = min(size, number)
    passes = -(-steps * size // number)
    order = torch.cat([torch.randperm(number, generator=generator, device="cpu") for _ in range(passes)])
    return list(order[: steps * size].split(size))


class Drawn(TorchDispatchMode):
    """While it is entered, what this thread draws without a generator comes from one of a seed.

    The numbers are those after `torch.manual_seed`, whose generators stay where they are: other threads may draw from
    them at the same time. The few operations that take no generator (dropout of recurrent layers and of fused
    attention) borrow the global one for a moment; there alone another thread's draw could still come in between.

    Args:
        seed: From 0, below 2**64.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.draws = 0  # operations that drew
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call an operation, with a generator where it draws and none is given."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        device = _device_of(args, kwargs)
        if device.type == "meta":
            return func(*args, **kwargs)
        self.draws += 1
        with_generator = _with_generator(func)
        if with_generator is not None:
            return with_generator(*args, **{**kwargs, "generator": self._generator(device)})
        return self._borrowing(func, args, kwargs, device)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self._generators[device]

    def _borrowing(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Any:
        """Call an operation that takes no generator with the global one in the place of ours."""
        own, is_cpu = self._generator(device), device.type == "cpu"
        with _LOCK, torch.random.fork_rng(devices=[] if is_cpu else [device], device_type="cuda"):
            if is_cpu:
                torch.set_rng_state(own.get_state())
            else:
                torch.cuda.set_rng_state(own.get_state(), device)
            result = func(*args, **kwargs)
            own.set_state(torch.get_rng_state() if is_cpu else torch.cuda.get_rng_state(device))
        return result


@cache
def _with_generator(func: Any) -> Any:
    """Return an operation that draws, in the form that takes a generator; None if it has none."""
    wanted = {a.name: str(a.type) for a in func._schema.arguments}
    if "generator" in wanted:
        return func
    packet = func.overloadpacket
    for overload in (getattr(packet, name) for name in packet.overloads()):
        taken = {a.name: str(a.type) for a in overload._schema.arguments}
        if taken.pop("generator", None) is not None and taken == wanted:
            return overload
    return None


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return where an operation draws."""
    given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    device = torch.device(kwargs.get("device") or ("cpu" if given is None else given.device))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
