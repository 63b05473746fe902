from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.checked_grid import CheckedGrid, averageable
from fedcondense.flower.eight_bits import Feedback, added, pack_weights, packed_bytes, unpack_weights
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.kept import Kept
from fedcondense.networks import build
from fedcondense.randomness import stream

NETWORK = "convnet1-w16-batch"  # its batch norm has buffers, one of them whole numbers


def network(seed: int = 0) -> nn.Module:
    return build(NETWORK, (1, 8, 8), 3, seed)


def changed(record: ArrayRecord, at: int, *bytes_: int) -> ArrayRecord:
    """Return a packed record with other bytes at a place."""
    blob = record["file"].numpy().copy()
    blob[at : at + len(bytes_)] = bytes_
    return ArrayRecord({"file": Array(blob)})


class TestPacked:
    def test_a_value_comes_back_within_half_a_step_of_its_tensor_and_buffers_exactly(self) -> None:
        model = network(1)
        state, read = model.state_dict(), unpack_weights(pack_weights(model.state_dict(), model), network())
        parameters = dict(model.named_parameters())
        assert list(read.tensors) == list(state)
        for name, value in state.items():
            half = float(value.abs().max()) / 254 if name in parameters else 0.0
            torch.testing.assert_close(read.tensors[name], value, rtol=0, atol=half * 1.0001)
            assert read.tensors[name].dtype == value.dtype

    def test_it_takes_a_byte_per_value_and_four_per_tensor(self) -> None:
        model = network()
        values = sum(p.numel() + 4 for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
        assert packed_bytes(model) == values == len(pack_weights(model.state_dict(), model)["file"].numpy())

    def test_what_was_rounded_once_is_not_rounded_again(self) -> None:
        model = network(2)
        once = unpack_weights(pack_weights(model.state_dict(), model), model)
        twice = unpack_weights(pack_weights(once.tensors, model), model)
        for name, value in once.tensors.items():
            torch.testing.assert_close(twice.tensors[name], value, rtol=1e-6, atol=0)

    def test_a_tensor_of_zeros_has_a_scale_of_zero(self) -> None:
        model = network()
        zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        assert not any(value.any() for value in unpack_weights(pack_weights(zeros, model), model).tensors.values())

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_are_not_sent(self, value: float) -> None:
        model = network()
        name = next(name for name, _ in model.named_parameters())
        with pytest.raises(SettingError, match="not finite, which have no scale"):
            pack_weights({**model.state_dict(), name: torch.full_like(model.state_dict()[name], value)}, model)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 1e31])
    def test_a_scale_that_is_none_is_refused(self, scale: float) -> None:
        record = pack_weights(network().state_dict(), network())
        with pytest.raises(UntrustedSetError, match=r"has a scale of .*; needed: a finite number from 0"):
            unpack_weights(changed(record, 0, *np.float32(scale).tobytes()), network())

    def test_a_buffer_that_is_not_finite_is_refused(self) -> None:
        model = network()
        name = next(name for name, value in model.named_buffers() if value.is_floating_point())
        state = {**model.state_dict(), name: torch.full_like(model.state_dict()[name], float("nan"))}
        with pytest.raises(UntrustedSetError, match="holds numbers that are not finite"):
            unpack_weights(pack_weights(state, model), model)

    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            (ArrayRecord({"weights": Array(np.zeros(3, np.uint8))}), "are one Array 'file'"),
            (ArrayRecord(dict(network().state_dict())), "are one Array 'file'"),
            (ArrayRecord({"file": Array(np.zeros(3, np.uint8))}), "weights of 3 bytes; this network has"),
            (ArrayRecord({"file": Array(np.zeros((1, packed_bytes(network())), np.uint8))}), "this network has"),
            (ArrayRecord({"file": Array(np.zeros(100_000, np.uint8))}), "bytes; allowed"),
            (ArrayRecord({"file": Array(np.zeros(3, np.float32))}), "dtype float32; allowed: uint8"),
        ],
    )
    def test_other_records_are_refused(self, record: ArrayRecord, reason: str) -> None:
        with pytest.raises(UntrustedSetError, match=reason):
            unpack_weights(record, network())


class TestFeedback:
    def test_over_rounds_what_arrives_is_what_was_meant_but_for_the_last_error(self) -> None:
        """Sum of sent = sum of meant - last error, whatever the rounds' changes; without feedback errors add up."""
        model, kept = network(), Kept(None, 1 << 20)
        names = [name for name, _ in model.named_parameters()]
        meant = {name: torch.zeros_like(model.state_dict()[name]) for name in names}
        arrived = {name: torch.zeros_like(model.state_dict()[name]) for name in names}
        error: dict[str, Tensor] = {}
        for number in range(1, 5):
            feedback = Feedback(kept, "a run", number)
            error, draws = feedback.before(model), stream(0, number)
            change = {name: torch.randn(meant[name].shape, generator=draws) for name in names}
            whole = {**model.state_dict(), **{name: change[name] + error.get(name, 0) for name in names}}
            sent = unpack_weights(pack_weights(whole, model), model).tensors
            error = {name: whole[name] - sent[name] for name in names}
            feedback.keep(error)
            meant = {name: meant[name] + change[name] for name in names}
            arrived = {name: arrived[name] + sent[name] for name in names}
        for name in names:
            torch.testing.assert_close(arrived[name] + error[name], meant[name], rtol=1e-5, atol=1e-5)

    def test_a_round_that_is_asked_again_begins_with_the_error_that_it_began_with(self) -> None:
        model, kept = network(), Kept(None, 1 << 20)
        for number in (1, 2, 3, 3, 5, 5):
            feedback = Feedback(kept, "a run", number)
            found = feedback.before(model)
            expected = {1: [], 2: [1.0], 3: [2.0], 5: [3.0]}[number]
            assert [float(value.flatten()[0]) for value in list(found.values())[:1]] == expected
            feedback.keep({name: torch.full_like(value, float(number)) for name, value in model.named_parameters()})

    def test_errors_of_another_run_another_network_or_none_are_passed_over(self) -> None:
        model, kept = network(), Kept(None, 1 << 20)
        Feedback(kept, "a run", 1).keep(dict(model.named_parameters()))
        assert Feedback(kept, "a run", 2).before(model)
        assert not Feedback(kept, "another", 2).before(model)
        assert not Feedback(kept, "a run", 2).before(build("convnet1-w32", (1, 8, 8), 3, 0))
        Feedback(None, "a run", 1).keep({})
        assert not Feedback(None, "a run", 2).before(model)


def test_a_change_is_added_to_parameters_and_buffers_are_taken() -> None:
    model, other = network(), network(1)
    after = added(model.state_dict(), unpack_weights(pack_weights(other.state_dict(), other), other), model).tensors
    sent = unpack_weights(pack_weights(other.state_dict(), other), other).tensors
    for name, value in model.state_dict().items():
        is_added = name in dict(model.named_parameters())
        torch.testing.assert_close(after[name], value + sent[name] if is_added else sent[name])


class TestGrid:
    """Flower's own FedAvg over a grid whose weights travel at eight bits."""

    def run(self, *answers: Any, bits: int = 8) -> tuple[Any, CheckedGrid, InProcessGrid]:
        """Ask nodes that answer with so large a change of every value, or as a function says; return what is left."""
        client = ClientApp()

        @client.train()
        def train(message: Message, context: Any) -> Message:
            answer = answers[int(context.node_config["partition-id"])]
            model = network()
            change = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
            for name, value in model.named_parameters():
                change[name] = torch.full_like(value, 0.0 if callable(answer) else answer)
            record = answer(message, model) if callable(answer) else pack_weights(change, model)
            content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 10})})
            return Message(content, reply_to=message)

        with task_identity():
            below = InProcessGrid(client, len(answers))
            grid = CheckedGrid(below, network(), bits=bits)
            strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=len(answers), min_available_nodes=len(answers))
            result = strategy.start(grid, averageable(network(5).state_dict()), num_rounds=2)
        return result.arrays.to_torch_state_dict(), grid, below

    def test_where_nobody_changes_anything_the_weights_stay_as_they_were_before_rounding(self) -> None:
        ended, _, _ = self.run(0.0, 0.0)
        for name, value in network(5).named_parameters():
            torch.testing.assert_close(ended[name], value.detach(), rtol=0, atol=0)

    def test_changes_are_averaged_round_by_round(self) -> None:
        ended, _, _ = self.run(0.25, 0.75)
        for name, value in network(5).named_parameters():
            torch.testing.assert_close(ended[name], value.detach() + 2 * 0.5, rtol=1e-6, atol=1e-6)

    def test_bytes_are_those_of_the_packed_messages_both_ways(self) -> None:
        _, grid, below = self.run(0.0, 0.0)
        assert grid.up == sum(traffic.up for traffic in below.traffic.values())
        assert grid.down == sum(traffic.down for traffic in below.traffic.values())
        plain = network().state_dict().values()
        assert grid.up / 4 < packed_bytes(network()) + 1500
        assert packed_bytes(network()) < 0.45 * sum(value.nbytes for value in plain)  # four times less but for buffers

    def test_what_is_no_change_of_this_network_is_left_out(self) -> None:
        def whole(message: Message, model: nn.Module) -> ArrayRecord:
            return ArrayRecord(dict(model.state_dict()))

        def infinite(message: Message, model: nn.Module) -> ArrayRecord:
            zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
            return changed(pack_weights(zeros, model), 0, *np.float32("inf").tobytes())

        ended, grid, _ = self.run(0.5, whole, infinite)
        assert grid.failed == 4
        for name, value in network(5).named_parameters():
            torch.testing.assert_close(ended[name], value.detach() + 1.0, rtol=1e-6, atol=1e-6)
