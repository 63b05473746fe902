from __future__ import annotations

from typing import Any

import pytest
import torch

from fedcondense.avalanche import CondensedBuffer
from fedcondense.avalanche.sampling import EpochLoader, Sampler
from fedcondense.errors import SettingError
from fedcondense.memory import Selector

RANDOM = Selector("random")
CPU = torch.device("cpu")


def filled(bench: Any, buffer: CondensedBuffer | None = None) -> CondensedBuffer:
    buffer = buffer or CondensedBuffer(20, condenser=RANDOM)
    for experience in bench.train_stream:
        buffer.post_adapt(None, experience)
    return buffer


def test_all_images_are_seen_before_one_is_seen_again(few: Any) -> None:
    sampler = Sampler(filled(few.with_tasks(2)), CPU, False, 0)
    batches = [sampler.draw(8) for _ in range(5)]
    seen = torch.cat([batch.images for batch in batches]).flatten(1)
    assert len(seen) == 40
    assert len(seen[:20].unique(dim=0)) == len(seen.unique(dim=0))
    assert all(torch.equal(batch.labels, batch.targets.argmax(1)) for batch in batches)


def test_a_batch_is_at_most_the_whole(few: Any) -> None:
    assert len(Sampler(filled(few.with_tasks(2)), CPU, False, 0).draw(500).images) == 20


def test_without_augmentation_images_are_the_buffer_s(few: Any) -> None:
    buffer = filled(few.with_tasks(2))
    stored = {sample[0].numpy().tobytes() for sample in buffer.buffer}
    assert {image.numpy().tobytes() for image in Sampler(buffer, CPU, False, 0).draw(20).images} == stored


def test_augmentation_follows_from_the_seed(few: Any) -> None:
    buffer, other = (
        filled(few.with_tasks(2)),
        filled(few.with_tasks(2), CondensedBuffer(20, condenser=RANDOM, seed=1)),
    )
    draws = [Sampler(buffer, CPU, True, 3).draw(20).images for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], Sampler(buffer, CPU, True, 4).draw(20).images)
    assert not torch.equal(draws[0], Sampler(other, CPU, True, 3).draw(20).images)


def test_augmentation_keeps_labels_and_fills_with_the_mean(few: Any) -> None:
    """Of black images on a stream whose mean is grey, a cut-out is grey."""
    images = torch.cat([torch.zeros(8, 1, 8, 8), torch.ones(8, 1, 8, 8)])
    buffer = CondensedBuffer(16, condenser=RANDOM, operations=("cutout",))
    buffer.update_from_dataset(few.plain(images, [0] * 8 + [1] * 8))
    batch = Sampler(buffer, CPU, True, 0).draw(16)
    values = batch.images.round(decimals=4).unique().tolist()
    assert values == pytest.approx([0, 0.5, 1], abs=1e-3)
    assert torch.equal(batch.labels, (batch.images.amax((1, 2, 3)) > 0.9).long())


def test_no_operations_change_nothing(few: Any) -> None:
    buffer = filled(few.with_tasks(2), CondensedBuffer(20, condenser=RANDOM, operations=()))
    pair = [Sampler(buffer, CPU, augment, 0).draw(20).images for augment in (True, False)]
    assert torch.equal(*pair)


def test_an_epoch_is_every_image_once_in_batches_like_the_stream_s(few: Any) -> None:
    for stream in ("with_tasks", "without_tasks"):
        bench = getattr(few, stream)(2)
        sampler = Sampler(filled(bench), CPU, False, 0)
        loader = EpochLoader(sampler, 6, tasks=stream == "with_tasks")
        batches = list(loader)
        assert len(batches) == len(loader) == 4
        assert [len(batch[0]) for batch in batches] == [6, 6, 6, 2]
        assert {len(batch) for batch in batches} == {len(bench.train_stream[0].dataset[0])}
        whole = torch.cat([batch[0] for batch in batches]).flatten(1)
        assert len(whole.unique(dim=0)) == len(sampler.decoded.images.flatten(1).unique(dim=0))


def test_targets_are_spread_over_a_head_of_more_outputs_and_a_smaller_one_is_refused(few: Any) -> None:
    sampler = Sampler(filled(few.with_tasks(2)), CPU, False, 0)
    batch = sampler.draw(20)
    wide = sampler.wide_targets(batch.targets, 7)
    assert wide.shape == (20, 7)
    assert torch.equal(wide.argmax(1), batch.labels)
    assert torch.equal(wide.sum(1), torch.ones(20))
    with pytest.raises(SettingError, match="the buffer holds label 3, the model has 3 outputs; widen its head"):
        sampler.wide_targets(batch.targets, 3)
