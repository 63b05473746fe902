"""A network's weights, or what a round changed in them, at eight bits per value with a scale per tensor.

One vector of bytes holds the state's tensors in its order. A parameter is its scale, a float32 (little endian), and a
whole number from -127 to 127 per value: value = scale x number. Buffers, such as the variances of a batch norm, are few
and travel whole. The receiver's own network says what is where, so nothing else is sent.

What rounding takes from a change is not lost: a site keeps it and adds it to its next change (error feedback: Seide et
al., Interspeech 2014; Karimireddy et al., ICML 2019, https://arxiv.org/abs/1901.09847).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor, nn

from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Keeper
from fedcondense.flower.payloads import Weights
from fedcondense.flower.untrusted import untrusted_array
from fedcondense.identity import identity
from fedcondense.sets.format import Limits

__all__ = ["BITS", "Feedback", "Packed", "added", "pack_weights", "packed_bytes", "unpack_weights"]

BITS = 8
"""What a message's field ``bits`` says where weights travel like this."""

_MOST = 127
_ROUND = 8  # bytes of a kept error's round


@dataclass(frozen=True)
class Packed:
    """A network's weights, or what training changed in them, at eight bits: a field of a task, or its answer."""

    blob: bytes = b""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], network: nn.Module) -> Packed:
        """Round tensors of a network's names and shapes.

        Raises:
            SettingError: A value is not finite.
        """
        return cls(_pack(tensors, network))

    def weights(self, network: nn.Module) -> Weights:
        """Return the numbers, by the receiver's own network.

        Raises:
            UntrustedSetError: They are of another network, or hold a scale that is none or numbers that are not finite.
        """
        return _unpack(self.blob, network)

    def to_bytes(self) -> bytes:
        """Return what travels."""
        return self.blob

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = Limits()) -> Packed:
        """Take bytes of unknown origin; what they are is for `weights` to check.

        Raises:
            UntrustedSetError: They are too many.
        """
        if len(blob) > limits.nbytes:
            raise UntrustedSetError(f"weights of {len(blob)} bytes; allowed: {limits.nbytes}")
        return cls(bytes(blob))


def packed_bytes(network: nn.Module) -> int:
    """Return how long a network's vector is."""
    parameters = dict(network.named_parameters())
    return sum(4 + value.numel() if n in parameters else value.nbytes for n, value in network.state_dict().items())


def pack_weights(tensors: Mapping[str, Tensor], network: nn.Module) -> ArrayRecord:
    """Return tensors of a network's names and shapes as one Array ``file``.

    Raises:
        SettingError: A value is not finite.
    """
    return ArrayRecord({"file": Array(np.frombuffer(_pack(tensors, network), np.uint8))})


def _pack(tensors: Mapping[str, Tensor], network: nn.Module) -> bytes:
    parameters, pieces = dict(network.named_parameters()), list[bytes]()
    for name in network.state_dict():
        value = tensors[name].detach().cpu()
        if name not in parameters:
            pieces.append(value.contiguous().numpy().tobytes())
            continue
        scale = value.float().abs().max() / _MOST if value.numel() else torch.zeros(())
        if not bool(torch.isfinite(scale)):
            raise SettingError(
                f"{name!r} holds numbers that are not finite, which have no scale; train by shorter steps"
            )
        whole = (value.float() / scale).round().clamp(-_MOST, _MOST) if scale > 0 else torch.zeros_like(value)
        pieces += [scale.numpy().astype("<f4").tobytes(), whole.to(torch.int8).contiguous().numpy().tobytes()]
    return b"".join(pieces)


def unpack_weights(record: ArrayRecord, network: nn.Module) -> Weights:
    """Read what `pack_weights` made, of unknown origin, by the receiver's own network.

    Raises:
        UntrustedSetError: It is of another length, or holds a scale that is none or numbers that are not finite.
    """
    if set(record) != {"file"}:
        raise UntrustedSetError("weights at eight bits are one Array 'file'; this record holds others")
    blob = untrusted_array(record["file"], ("uint8",), packed_bytes(network))
    if blob.ndim != 1:
        raise UntrustedSetError(f"weights of {blob.ndim} dimensions; this network has one vector")
    return _unpack(blob.tobytes(), network)


def _unpack(blob: bytes, network: nn.Module) -> Weights:
    if len(blob) != (size := packed_bytes(network)):
        raise UntrustedSetError(f"weights of {len(blob)} bytes; this network has {size}")
    parameters, tensors, begin = dict(network.named_parameters()), dict[str, Tensor](), 0
    for name, like in network.state_dict().items():
        is_rounded = name in parameters
        end = begin + (4 + like.numel() if is_rounded else like.nbytes)
        piece = bytearray(blob[begin:end])
        if is_rounded:
            scale = float(np.frombuffer(piece[:4], "<f4")[0])
            if not 0 <= scale <= 1e30:  # no nan; what it multiplies stays finite
                raise UntrustedSetError(f"{name!r} has a scale of {scale:g}; needed: a finite number from 0")
            value = torch.frombuffer(piece, dtype=torch.int8, offset=4).float() * scale if like.numel() else like.cpu()
        else:
            value = torch.frombuffer(piece, dtype=like.dtype) if like.numel() else like.cpu()
        tensors[name] = value.reshape(like.shape).to(like.dtype)
        if like.is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            raise UntrustedSetError(f"weights: {name!r} holds numbers that are not finite")
        begin = end
    return Weights(tensors)


def added(weights: Mapping[str, Tensor], change: Weights, network: nn.Module) -> Weights:
    """Return weights after a change of the parameters; buffers are taken as they came."""
    parameters = dict(network.named_parameters())
    return Weights({n: weights[n] + v if n in parameters else v for n, v in change.tensors.items()})


class Feedback:
    """What rounding took from a site's last change, kept by the site for its next one.

    The errors of its last two rounds are kept, so that a round that is asked again finds the one that it began with. A
    node without a place for them, or that forgot, goes on without: its changes are rounded, no more.

    Args:
        kept: Of the node; None: nothing is kept.
        run: Whatever the run follows from: another run's errors are not its own.
        number: The round's, from 1.
    """

    def __init__(self, kept: Keeper | None, run: object, number: int) -> None:
        name = hashlib.sha256(identity(run).encode()).hexdigest()[:24]
        self._kept, self._number = kept, number
        self._names = [f"train-error.{name}.{k}" for k in range(2)]
        self._next = self._names[0]

    def before(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the error of the latest round before this one, by parameter; none in the first."""
        found: dict[str, tuple[int, bytes]] = {}
        for name in self._names:
            blob = None if self._kept is None else self._kept.get(name)
            if blob is not None:
                found[name] = (int.from_bytes(blob[:_ROUND], "little"), blob[_ROUND:])
        earlier = {name: entry for name, entry in found.items() if entry[0] < self._number}
        if not earlier:
            return {}
        latest = max(earlier, key=lambda name: earlier[name][0])
        self._next = self._names[1 - self._names.index(latest)]
        parameters = {name: value.detach() for name, value in network.named_parameters()}
        try:
            blob = earlier[latest][1]
            error = Weights.from_bytes(blob, Limits(nbytes=len(blob))).matching(parameters, "this network")
        except UntrustedSetError:  # of an older release, say
            return {}
        return dict(error.tensors)

    def keep(self, error: Mapping[str, Tensor]) -> None:
        """Keep this round's error."""
        if self._kept is not None:
            self._kept.put(self._next, self._number.to_bytes(_ROUND, "little") + Weights(error).to_bytes())
