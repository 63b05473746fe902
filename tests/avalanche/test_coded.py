"""A buffer of coded real images in stock plugins and ours; condensed buffers with codecs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import GDumbPlugin, ReplayPlugin

from fedcondense.avalanche import CodedBuffer, CondensedBuffer, CondensedGDumb
from fedcondense.errors import SettingError
from fedcondense.memory import Condenser
from fedcondense.sets.synthetic import SyntheticSet

QUICK = Condenser("dm", network="convnet1-w16", steps=2)


def fill(buffer: CondensedBuffer, bench: Any) -> CondensedBuffer:
    for experience in bench.train_stream:
        buffer.post_adapt(None, experience)
    return buffer


@pytest.mark.parametrize("stream", ["with_tasks", "without_tasks"])
def test_the_stock_replay_plugin_takes_it(stream: str, few: Any, setting: Any, accuracy: Any) -> None:
    buffer = CodedBuffer(max_bytes=4000, codec="jpeg-40")
    strategy = Naive(plugins=[ReplayPlugin(buffer.max_size, storage_policy=buffer)], **setting(4)())
    for experience in getattr(few, stream)(2).train_stream:
        strategy.train(experience)
        assert 3000 < buffer.nbytes <= 4000
    assert set(buffer.buffer_groups) == {0, 1, 2, 3}
    assert accuracy(strategy, few.test) > 0.6  # chance is 0.25, and 0.5 what forgets


def test_gdumb_stock_and_ours_train_on_it_alone(few: Any, setting: Any, accuracy: Any) -> None:
    for ours in (True, False):
        buffer = CodedBuffer(max_bytes=4000, codec="jpeg-40")
        if ours:
            strategy: Any = CondensedGDumb(storage_policy=buffer, **setting(4)(train_epochs=20))
        else:
            plugin = GDumbPlugin(buffer.max_size)
            plugin.storage_policy = buffer
            strategy = Naive(plugins=[plugin], **setting(4)(train_epochs=20))
        for experience in few.with_tasks(2).train_stream:
            strategy.train(experience)
        assert accuracy(strategy, few.test) > 0.8


def test_images_are_near_those_of_the_stream_and_more_than_plain_ones(few: Any) -> None:
    buffer = fill(CodedBuffer(max_bytes=4000, codec="jpeg-60"), few.with_tasks(2))
    images = torch.stack([sample[0] for sample in buffer.buffer])
    assert len(images) > 4000 / 64
    real = few.pixels(few.train)
    error = (images.unsqueeze(1) - real.unsqueeze(0)).square().flatten(2).mean(2).amin(1)
    assert float(error.max()) < 0.01


@pytest.mark.parametrize("codec", ["bits-2", "jpeg-30"])
def test_a_condensed_buffer_with_a_codec_stays_within_its_bytes(codec: str, few: Any) -> None:
    buffer = CondensedBuffer(max_bytes=4000, condenser=QUICK, codec=codec, real_fraction=0.4, real_codec="jpeg-30")
    for experience in few.with_tasks(2).train_stream:
        buffer.post_adapt(None, experience)
        assert buffer.nbytes <= 4000
    assert buffer.memory.synthetic is not None
    assert {part.codec for part in buffer.memory.synthetic.parts} == {codec, "jpeg-30"}
    assert len(buffer.buffer) == len(buffer.memory.synthetic)


def test_it_is_saved_pickled_and_loaded_with_the_same_bytes(few: Any, tmp_path: Path) -> None:
    buffer = fill(CodedBuffer(max_bytes=3000, codec="jpeg-40"), few.with_tasks(2))
    path = buffer.save(tmp_path / "memory")
    assert path.stat().st_size == buffer.nbytes <= 3000
    other = CodedBuffer(max_bytes=3000, codec="jpeg-40")
    other.load(path)
    again = pickle.loads(pickle.dumps(buffer))
    for one in (other, again):
        assert one.memory.to_bytes() == buffer.memory.to_bytes()
        assert one.decoded is not None
        assert buffer.decoded is not None
        assert torch.equal(one.decoded.images, buffer.decoded.images)
    assert {part.codec for part in SyntheticSet.load(path).parts} == {"jpeg-40"}


def test_an_online_stream_stays_within_the_bytes(few: Any) -> None:
    buffer = CodedBuffer(max_bytes=3000, codec="bits-2", balance="reservoir")
    pixels, labels = few.pixels(few.train), few.train.labels
    for rows in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).chunk(12):
        buffer.update_from_dataset(few.plain(pixels[rows], labels[rows]))
        assert buffer.nbytes <= 3000
    assert len(buffer.buffer) > 3000 / 64
    assert sum(buffer.memory.seen.values()) == len(labels)


class TestRefused:
    @pytest.mark.parametrize(
        ("told", "needed"),
        [
            (
                {"max_bytes": 3000, "real_fraction": 0.5},
                "real_fraction of a CodedBuffer, which holds real images alone",
            ),
            ({"max_bytes": 3000, "condenser": QUICK}, "condenser of a CodedBuffer"),
            ({"max_bytes": 3000, "codec": "webp-20"}, "webp-20 leaves out whole classes alone: choose jpeg-10"),
            ({"max_bytes": 3000, "codec": "jpeg-0"}, "jpeg of quality 0; needed: a whole number from 1 to 100"),
            ({"codec": "jpeg-10"}, "max_size None and max_bytes None; give one of them"),
        ],
    )
    def test_settings_that_cannot_work(self, told: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            CodedBuffer(**told)

    def test_bytes_that_hold_nothing(self) -> None:
        with pytest.raises(SettingError, match=r"200 bytes; needed: \d+ at least"):
            CodedBuffer(max_bytes=200, shape=(1, 8, 8))
