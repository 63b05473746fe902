from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training import DER
from torch import Tensor, nn

from fedcondense.avalanche import CondensedBuffer, CondensedBufferWithLogits, CondensedDER
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.memory import Condenser, Selector

NAIVE = 0.2
RANDOM = Selector("random")
Accuracy = Callable[[Any, Data], float]


def told(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)  # type: ignore[no-any-return]


def samples(buffer: CondensedBuffer) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels and logits."""
    images, labels, _, logits = zip(*buffer.buffer, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.stack(logits)


def by_image(buffer: CondensedBuffer) -> dict[bytes, Tensor]:
    images, _, logits = samples(buffer)
    return {image.numpy().tobytes(): row for image, row in zip(images, logits, strict=True)}


class Random(nn.Module):
    """A strategy's part that a buffer reads: a model with random weights, and a device."""

    def __init__(self, seed: int, outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
        self.device = "cpu"


class TestDER:
    def test_stock_der_remembers_with_a_condensed_buffer(self, streams: Any, setting: Any, accuracy: Accuracy) -> None:
        buffer = CondensedBufferWithLogits(100, condenser=Condenser("dm", "pixels", steps=20))
        strategy = DER(**setting()(mem_size=buffer.max_size))
        strategy.storage_policy = buffer
        for experience in streams.with_tasks().train_stream:
            strategy.train(experience)
            assert buffer.logits is not None
            assert 96 <= len(buffer.logits) == len(buffer.buffer) <= 100
        assert accuracy(strategy, streams.test) > 2 * NAIVE


class TestLogits:
    def test_they_are_what_the_model_says_of_the_images(self, few: Any, setting: Any) -> None:
        strategy = CondensedDER(storage_policy=CondensedBufferWithLogits(20, condenser=RANDOM), **setting(classes=4)())
        strategy.train(few.with_tasks(1).train_stream[0])
        images, _, logits = samples(strategy.storage_policy)
        torch.testing.assert_close(logits, told(strategy.model, images), rtol=2e-3, atol=2e-3)  # half precision

    def test_an_image_keeps_its_own_as_long_as_it_is_stored(self, few: Any) -> None:
        """Real images stay the same when their class is cut, so they show whose logits they have."""
        first, second = few.with_tasks(2).train_stream
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0), first)
        before = by_image(buffer)
        buffer.post_adapt(Random(1), second)
        after = by_image(buffer)
        kept = before.keys() & after.keys()
        assert len(kept) == 10
        assert all(torch.equal(before[image], after[image]) for image in kept)
        images, labels, logits = samples(buffer)
        new = labels >= 2
        torch.testing.assert_close(logits[new], told(Random(1).model, images[new]), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(logits[~new], told(Random(0).model, images[~new]), rtol=2e-3, atol=2e-3)

    def test_what_is_condensed_again_is_asked_again(self, few: Any) -> None:
        first, second = few.with_tasks(2).train_stream
        buffer = CondensedBufferWithLogits(32, condenser=Condenser("dm", steps=1))
        buffer.post_adapt(Random(0), first)
        buffer.post_adapt(Random(1), second)  # the share shrinks: all are new
        images, _, logits = samples(buffer)
        torch.testing.assert_close(logits, told(Random(1).model, images), rtol=2e-3, atol=2e-3)

    def test_groups_that_stay_keep_theirs_while_others_are_condensed(self, few: Any) -> None:
        first, second = few.with_tasks(2).train_stream
        condenser = Condenser("dm", steps=1)
        buffer = CondensedBufferWithLogits(32, condenser=condenser, adaptive_size=False, total_num_groups=4)
        buffer.post_adapt(Random(0), first)
        buffer.post_adapt(Random(1), second)
        images, labels, logits = samples(buffer)
        for new, seed in ((labels < 2, 0), (labels >= 2, 1)):
            torch.testing.assert_close(logits[new], told(Random(seed).model, images[new]), rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("update", ["recondense", "reservoir", "append"])
    def test_resizing_cuts_or_renews_them_with_the_images(self, update: str, few: Any) -> None:
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM, update=update, real_fraction=0.3)
        for experience in few.with_tasks(2).train_stream:
            buffer.post_adapt(Random(0), experience)
        before = by_image(buffer)
        buffer.resize(Random(0), 8)
        after = by_image(buffer)
        assert len(buffer.buffer) == 8
        assert all(torch.equal(before[image], after[image]) for image in after)

    def test_resizing_needs_a_model(self, few: Any) -> None:
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0), few.with_tasks(1).train_stream[0])
        with pytest.raises(SettingError, match="a resize without a strategy; give the one whose model"):
            buffer.resize(None, 8)
        assert buffer.max_size == len(buffer.buffer) == 20
        with pytest.raises(SettingError, match=r"cannot hold 4 groups; give it 4 or more"):
            buffer.resize(Random(0), 3)
        assert len(samples(buffer)[2]) == 20

    def test_outputs_that_a_head_did_not_have_are_zero(self, few: Any) -> None:
        first, second = few.with_tasks(2).train_stream
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0, outputs=2), first)
        assert samples(buffer)[2].shape == (20, 2)
        buffer.post_adapt(Random(1, outputs=4), second)
        _, labels, logits = samples(buffer)
        assert logits.shape == (20, 4)
        assert not logits[labels < 2, 2:].any()
        assert logits[labels >= 2].abs().sum(1).min() > 0

    def test_each_module_s_mode_is_put_back(self, few: Any) -> None:
        agent = Random(0)
        agent.model.insert(1, nn.Dropout(0.9))
        agent.model.train()
        agent.model[1].eval()
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(agent, few.with_tasks(1).train_stream[0])
        assert [module.training for module in agent.model.modules()] == [True, True, False, True]

    def test_they_are_two_bytes_an_output_and_image_and_counted(self, few: Any, tmp_path: Path) -> None:
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0), few.with_tasks(1).train_stream[0])
        assert buffer.logits is not None
        assert buffer.logits.dtype == torch.float16
        assert buffer.nbytes == buffer.save(tmp_path / "buffer").stat().st_size + 2 * 20 * 4

    def test_a_loaded_buffer_asks_for_a_model(self, few: Any, tmp_path: Path) -> None:
        first, second = few.with_tasks(2).train_stream
        buffer, other = (CondensedBufferWithLogits(20, condenser=RANDOM) for _ in range(2))
        buffer.post_adapt(Random(0), first)
        other.load(buffer.save(tmp_path / "buffer"))
        with pytest.raises(SettingError, match=r"without logits, as a file has none; call take_logits\(strategy\)"):
            _ = other.buffer
        other.take_logits(Random(0))
        assert by_image(other).keys() == by_image(buffer).keys()
        torch.testing.assert_close(samples(other)[2], samples(buffer)[2])
        other.load(tmp_path / "buffer")
        other.post_adapt(Random(1), second)  # as does the next experience
        assert len(samples(other)[2]) == 20


class TestGone:
    def test_logits_of_images_that_are_gone_are_none(self, few: Any) -> None:
        first, second = few.with_tasks(2).train_stream
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        changes: list[Callable[[], None]] = [
            lambda: buffer.update_from_dataset(second.dataset),
            lambda: buffer.memory.resize(12),
            lambda: CondensedBuffer.resize(buffer, None, 8),
        ]
        buffer.post_adapt(Random(0), first)
        for change in changes:
            change()
            assert buffer.logits is None
            with pytest.raises(SettingError, match=r"call take_logits\(strategy\) first"):
                _ = buffer.buffer
            buffer.take_logits(Random(0))
            images, _, logits = samples(buffer)
            torch.testing.assert_close(logits, told(Random(0).model, images), rtol=2e-3, atol=2e-3)

    def test_a_copy_of_the_logits_is_handed_out(self, few: Any) -> None:
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0), few.with_tasks(1).train_stream[0])
        before = buffer.logits
        assert before is not None
        assert buffer.logits is not None
        buffer.logits.zero_()
        for *_, row in buffer.buffer:
            row.zero_()
        assert torch.equal(buffer.logits, before)
        assert samples(buffer)[2].abs().max() > 0

    def test_a_pickled_buffer_keeps_them(self, few: Any) -> None:
        buffer = CondensedBufferWithLogits(20, condenser=RANDOM)
        buffer.post_adapt(Random(0), few.with_tasks(1).train_stream[0])
        again = pickle.loads(pickle.dumps(buffer))
        assert torch.equal(samples(again)[2], samples(buffer)[2])


@pytest.mark.parametrize("max_bytes", [1800, 4000])
@pytest.mark.parametrize("update", ["recondense", "reservoir", "append"])
def test_bytes_bound_file_and_logits_together(max_bytes: int, update: str, few: Any) -> None:
    """Heads that grow take more bytes for the same images."""
    told_bytes: dict[str, Any] = {"max_bytes": max_bytes, "shape": (1, 8, 8), "update": update}
    buffer = CondensedBufferWithLogits(condenser=Selector("half-resolution"), **told_bytes)
    for outputs, experience in zip((2, 6), few.with_tasks(2).train_stream, strict=True):
        buffer.post_adapt(Random(0, outputs), experience)
        assert buffer.logits is not None
        assert buffer.nbytes == buffer.memory.nbytes + 2 * buffer.logits.numel() <= max_bytes
    buffer.take_logits(Random(0, 12))
    assert buffer.nbytes <= max_bytes
    buffer.resize(Random(0, 12), 24)
    assert buffer.nbytes <= max_bytes
    assert len(buffer.buffer) <= 24
