from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms import Normalize

from fedcondense.avalanche.stream import Layout, Range, as_dataset, read


class TestRange:
    def test_of_normalised_images_is_what_normalize_makes_of_black_and_white(self) -> None:
        mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 0.3)
        both = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
        low, high = Normalize(mean, std)(both).flatten(1)
        found = Range.normalised(mean, std)
        torch.testing.assert_close(torch.tensor(found.low), low)
        torch.testing.assert_close(torch.tensor(found.high), high)

    def test_every_byte_survives_the_way_to_the_stream_and_back(self) -> None:
        span = Range((-0.5, 0.0), (2.5, 1.0))
        every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 2, 1, 1)
        assert torch.equal(span.to_bytes(span.to_stream(every.float() / 255)), every)

    def test_of_images_is_their_range_by_channel_and_a_flat_channel_has_one_too(self) -> None:
        images = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 3.0)]).unsqueeze(0)
        images[0, 0, 0, 0] = -1
        span = Range.of(images)
        assert span.low == (-1.0, 3.0)
        assert span.high[0] == 0.0
        assert span.high[1] > 3.0

    def test_only_what_is_clipped_by_more_than_half_a_step_is_outside(self) -> None:
        span = Range((0.0,), (1.0,))
        values = torch.tensor([0.0, 1.0, 1 + 0.4 / 255, 1 + 0.6 / 255, -0.6 / 255, 0.5, 0.2, 0.3]).view(1, 1, 2, 4)
        assert span.share_outside(values) == 2 / 8


@pytest.mark.parametrize("tasks", [True, False])
@pytest.mark.parametrize("tensors", [True, False])
def test_what_is_written_as_a_data_set_is_read_as_it_was(tasks: bool, tensors: bool) -> None:
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, numbers = torch.tensor([1, 0, 2, 1, 1]), torch.tensor([0, 0, 1, 1, 1])
    found = read(as_dataset(lambda k: images[k], labels, numbers, Layout(tasks, tensors)))
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.tasks, numbers if tasks else torch.zeros(5, dtype=torch.int64))
    assert found.layout == Layout(tasks, tensors)


def test_reading_leaves_the_global_generator_alone(few: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    read(few.with_tasks(2).train_stream[0].dataset)
    assert torch.equal(torch.get_rng_state(), before)
