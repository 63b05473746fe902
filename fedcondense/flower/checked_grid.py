"""A grid that leaves out answers which Flower's own strategies would trust: weights and their counts are checked first.

It counts those who failed: an accuracy without them is another one. Flower's averages turn the whole numbers of a batch
norm into floats, which no node would take: they go to the strategies as floats and come out whole.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from torch import Tensor, nn

from fedcondense.errors import UntrustedSetError
from fedcondense.flower.around import GridAround
from fedcondense.flower.contract import State
from fedcondense.flower.eight_bits import added, pack_weights, unpack_weights
from fedcondense.flower.history import Tally
from fedcondense.flower.inbox import GONE
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import is_gone
from fedcondense.flower.serialised import bytes_of_each, message_bytes
from fedcondense.flower.untrusted import safe_text, untrusted_array
from fedcondense.flower.wire import NO_DATA, WIRE, About, own_version

__all__ = ["CheckedGrid", "averageable", "floats_of", "numbers_in", "settled", "weights_in"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_LARGEST = 2**40  # records that a site may claim
_PERCENT = ("accuracy", "macro-accuracy")


def weights_in(record: ArrayRecord, network: nn.Module) -> Weights:
    """Read weights of unknown origin: names, shapes and dtypes must be those of the receiver's own network.

    Raises:
        UntrustedSetError: They are not, or hold numbers that are not finite.
    """
    like = network.state_dict()
    if set(record) != set(like):
        odd = ", ".join(map(repr, sorted(set(record) ^ set(like))[:3]))
        raise UntrustedSetError(f"weights of other names than those of this network: {odd[:120]}")
    tensors = {}
    for name, value in like.items():
        array = untrusted_array(record[name], (str(value.dtype).removeprefix("torch."),), value.nbytes)
        tensors[name] = torch.from_numpy(array.copy())
        if value.is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            raise UntrustedSetError(f"weights: {name!r} holds numbers that are not finite")
    return Weights(tensors).matching(like, "this network")


def averageable(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return weights as Flower's strategies can average them: whole numbers, such as batch counts, as float32."""
    return ArrayRecord({name: value if value.is_floating_point() else value.float() for name, value in state.items()})


def settled(arrays: ArrayRecord, network: nn.Module) -> Weights:
    """Return averaged weights in a network's own dtypes; what it has whole is rounded."""
    like, averaged = network.state_dict(), arrays.to_torch_state_dict()
    tensors = {}
    for name, value in averaged.items():
        dtype = like[name].dtype if name in like else value.dtype
        is_rounded = value.is_floating_point() and not dtype.is_floating_point
        tensors[name] = (value.round() if is_rounded else value).to(dtype)
    return Weights(tensors)


def numbers_in(content: RecordDict, beside: tuple[str, ...] = ("arrays",)) -> frozenset[str]:
    """Check the numbers of an answer, and return their names.

    Args:
        content: The answer's.
        beside: What it holds beside them: weights, or nothing where it is an evaluation.

    Raises:
        UntrustedSetError: Some are not finite, or the count of records, by which sites are weighed, is none.
    """
    if set(content) != {*beside, "metrics"} or set(content.metric_records) != {"metrics"}:
        needed = "the weights 'arrays' and the numbers 'metrics'" if beside else "the numbers 'metrics'"
        raise UntrustedSetError(f"holds other records than {needed}")
    numbers = dict(content.metric_records["metrics"])
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers.values()):
        raise UntrustedSetError("'metrics' holds what is no finite number")
    count = numbers.get("num-examples")
    if not isinstance(count, int) or not 1 <= count <= _LARGEST:
        raise UntrustedSetError(f"num-examples is no whole number from 1 to {_LARGEST}")
    shares = floats_of(content.metric_records["metrics"])
    if odd := [name for name in _PERCENT if not 0 <= shares.get(name, 0.0) <= 100]:
        raise UntrustedSetError(f"{odd[0]} is no percentage, from 0 to 100")
    return frozenset(numbers)


def floats_of(metrics: MetricRecord) -> dict[str, float]:
    """Return the numbers of a record by name; lists are left out."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


class CheckedGrid(GridAround):
    """A grid that leaves out replies whose weights are not sound, and counts who failed; Flower's own trust all.

    Args:
        grid: Reaches the nodes.
        network: The server's own, whose names, shapes and dtypes weights must have.
        failed: How many had failed before.
        bits: 0: weights travel as they are. 8: they and what sites change in them travel as
            `fedcondense.flower.eight_bits` packs them, and the strategy sees floats. It goes on from its own weights,
            so that what rounding takes on the way down adds up over no rounds.
    """

    def __init__(self, grid: Grid, network: nn.Module, failed: int = 0, bits: int = 0) -> None:
        super().__init__(grid)
        self.network, self.failed, self.bits = network, failed, bits
        self._weights = Weights({})  # that the strategy sent last, before rounding
        self.up, self.down, self.nodes = 0, 0, set[int]()  # bytes of messages, all rounds, and who was asked
        self.said: dict[int, dict[str, float]] = {}  # by node: what it says of the weights that were last evaluated
        self._tally: Tally | None = None  # of the round that runs

    @property
    def spent(self) -> dict[str, float]:
        """What the rounds so far took per site that was ever asked: bytes up and down."""
        everyone = max(1, len(self.nodes))
        return {"bytes-up": self.up / everyone, "bytes-down": self.down / everyone}

    def entry(self, server_round: int) -> dict[str, Any]:
        """End a round, and return what it took (`fedcondense.flower.history`)."""
        tally, self._tally = self._tally or Tally(), None
        return tally.entry(server_round, len(self.nodes))

    def stood(self) -> dict[str, Any]:
        """Return what a run that goes on has to know of the rounds before, as fields of a `State`."""
        numbers = {"spent/bytes-up": self.up, "spent/bytes-down": self.down, "failed": self.failed}
        return {"numbers": numbers, "sites": dict.fromkeys(map(str, sorted(self.nodes)), "")}

    def go_on(self, state: State) -> None:
        """Count on from what `stood` returned."""
        up, down, failed = (
            int(state.numbers.get(name, 0)) for name in ("spent/bytes-up", "spent/bytes-down", "failed")
        )
        self.up, self.down, self.failed, self.nodes = up, down, failed, set(map(int, state.sites))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Ask, and return the replies that are sound, errors included.

        Raises:
            AggregationError: Everybody with data failed.
        """
        sound, reasons, names = list[Message](), list[str](), Counter[frozenset[str]]()
        self._tally = tally = self._tally or Tally()
        asked = [self._settled(message) for message in messages]
        if asked and all(message.metadata.message_type == MessageType.EVALUATE for message in asked):
            return self._evaluated(asked, tally, timeout)
        for reply in tally.waits(lambda: list(self.grid.send_and_receive(asked, timeout=timeout))):
            node, nbytes = reply.metadata.src_node_id, message_bytes(reply)
            if is_gone(reply):
                reasons.append(GONE)
                continue
            self.up += nbytes
            tally.takes(node, nbytes)
            reason, weights = self._read(reply)
            if reason:
                tally.refused.add(node)
                reasons += [reason] * (reason != NO_DATA)
            else:
                names[numbers_in(reply.content)] += 1
                reply.content["arrays"] = averageable(weights.tensors)
                sound.append(reply)
        for message, nbytes in zip(asked, bytes_of_each(asked), strict=True):
            node = message.metadata.dst_node_id
            self.down += nbytes
            self.nodes.add(node)
            tally.sends(node, nbytes)
        if len(names) > 1:  # Flower would take none of them
            usual = names.most_common(1)[0][0]
            odd = [reply for reply in sound if numbers_in(reply.content) != usual]
            sound = [reply for reply in sound if numbers_in(reply.content) == usual]
            tally.refused |= {reply.metadata.src_node_id for reply in odd}
            reasons += ["'metrics' of other names than those of most sites"] * len(odd)
        if reasons:
            self.failed += len(reasons)
            text = safe_text(f"{len(reasons)} sites failed, {len(sound)} are left; {reasons[0]}")
            if not sound:
                raise AggregationError(text)
            _LOG.warning(text)
        return sound

    def _evaluated(self, asked: list[Message], tally: Tally, timeout: float | None) -> list[Message]:
        """Return the evaluations that are sound, with the numbers that all of them hold; the others fail no round."""
        sound, reasons = list[Message](), list[str]()
        up, down = 0, sum(message_bytes(message) for message in asked)
        for reply in tally.waits(lambda: list(self.grid.send_and_receive(asked, timeout=timeout))):
            up += message_bytes(reply)
            try:
                if reply.has_error():
                    reasons.append(safe_text(reply.error.reason or f"error {reply.error.code}"))
                    continue
                numbers_in(reply.content, ())
                sound.append(reply)
            except UntrustedSetError as broken:
                reasons.append(safe_text(str(broken)))
        self.up, self.down, tally.up, tally.down = self.up + up, self.down + down, tally.up + up, tally.down + down
        self.nodes.update(message.metadata.dst_node_id for message in asked)
        self.said = {reply.metadata.src_node_id: floats_of(reply.content.metric_records["metrics"]) for reply in sound}
        common = set.intersection(*map(set, self.said.values())) if sound else set()
        for reply in sound:
            metrics = reply.content.metric_records["metrics"]
            reply.content["metrics"] = MetricRecord({name: metrics[name] for name in metrics if name in common})
        if reasons:
            _LOG.warning(safe_text(f"{len(reasons)} sites do not evaluate, {len(sound)} do; {reasons[0]}"))
        return sound

    def _settled(self, message: Message) -> Message:
        """Send averages in the dtypes that nodes expect; one content serves all nodes, and is settled once."""
        _introduce(message)
        arrays, like = message.content.array_records.get("arrays"), self.network.state_dict()
        if arrays is None or (self.bits and set(arrays) == {"file"}):
            return message
        dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in like.items()}
        is_odd = any(dtypes.get(name) not in (None, array.dtype) for name, array in arrays.items())
        if self.bits:
            self._weights = settled(arrays, self.network)
            message.content["arrays"] = pack_weights(self._weights.tensors, self.network)
        elif is_odd:
            message.content["arrays"] = ArrayRecord(dict(settled(arrays, self.network).tensors))
        return message

    def _read(self, reply: Message) -> tuple[str, Weights]:
        """Return why a reply cannot be used, or nothing, and its weights."""
        if reply.has_error():
            reason = safe_text(reply.error.reason or f"error {reply.error.code}")
            return NO_DATA if reason.endswith(NO_DATA) else reason, Weights({})
        try:
            numbers_in(reply.content)
            arrays = reply.content["arrays"]
            if not isinstance(arrays, ArrayRecord):
                raise UntrustedSetError("'arrays' is no ArrayRecord")
            if self.bits:
                return "", added(self._weights.tensors, unpack_weights(arrays, self.network), self.network)
            return "", weights_in(arrays, self.network)
        except UntrustedSetError as broken:
            return safe_text(str(broken)), Weights({})


def _introduce(message: Message) -> None:
    """Say who asks, as tasks do: Flower's own messages have no place for it, and nodes of before pass it over."""
    content, kind = message.content, message.metadata.message_type
    if "about" not in content:  # one content serves all nodes
        number = content.config_records.get("config", ConfigRecord()).get("server-round", 1)
        content["about"] = About(WIRE, own_version(), kind, number if isinstance(number, int) else 1).record()
