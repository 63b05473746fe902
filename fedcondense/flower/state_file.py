"""A strategy's `State` as bytes: one safetensors file with a checksum; a damaged one is refused, never read in part."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.checksums import DamagedError, check, dump_tensors, load_tensors
from fedcondense.errors import ResumeError
from fedcondense.flower.contract import State
from fedcondense.flower.payloads import Weights
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["digest_of", "dump_state", "load_state"]

_FORMAT = 2


def dump_state(state: State) -> bytes:
    """Return a state's bytes."""
    tensors: dict[str, Tensor] = {f"tensors/{name}": value for name, value in state.tensors.items()}
    if state.weights is not None:
        tensors |= {f"weights/{name}": value for name, value in state.weights.tensors.items()}
    for name, synthetic in state.sets.items():
        tensors[f"sets/{name}"] = torch.frombuffer(bytearray(synthetic.to_bytes()), dtype=torch.uint8)
    about = {
        "format": _FORMAT,
        "round": state.round,
        "numbers": dict(state.numbers),
        "sites": dict(state.sites),
        "sets": list(state.sets),
        "has_weights": state.weights is not None,
    }
    return dump_tensors({name: value.detach().cpu().clone() for name, value in tensors.items()}, "state", about)


def digest_of(state: State) -> str:
    """Return sixteen hex digits: runs of equal settings and records that learned the same have the same.

    What depends on the hour or the machine is left out: seconds, bytes of messages, keys of nodes.
    """
    sets = {name: one.with_record(seconds=0.0) for name, one in state.sets.items()}
    keys = tuple(f"/{key}" for key in state.sites)
    numbers = {k: v for k, v in state.numbers.items() if not k.startswith("spent/") and not k.endswith(keys)}
    return hashlib.sha256(dump_state(state.but(sets=sets, numbers=numbers, sites={}))).hexdigest()[:16]


@in_own_state
def load_state(blob: bytes, where: str) -> State:
    """Return what `dump_state` was given.

    Raises:
        ResumeError: The bytes are damaged, or of another format.
    """
    try:
        check(blob)
    except DamagedError:
        raise ResumeError(f"{where} is damaged; delete it, and the run goes on from the round before") from None
    try:
        tensors, about = load_tensors(blob, "state")
        if about["format"] != _FORMAT:
            raise ResumeError(f"{where} is of format {about['format']}; this version reads {_FORMAT}: start over")
        part = {kind: _under(tensors, f"{kind}/") for kind in ("weights", "tensors", "sets")}
        return State(
            about["round"],
            Weights(part["weights"]) if about["has_weights"] else None,
            {name: SyntheticSet.from_bytes(part["sets"][name].numpy().tobytes()) for name in about["sets"]},
            part["tensors"],
            about["numbers"],
            about["sites"],
        )
    except (ValueError, KeyError, TypeError) as broken:
        if isinstance(broken, ResumeError):
            raise
        raise ResumeError(f"{where} holds no state of a run ({broken}); start over in another folder") from None


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
