"""The working copy of a buffer: decoded once per update, shared, and within the bytes that it may take."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from fedcondense.avalanche import CondensedBuffer, CondensedReplay, buffer
from fedcondense.avalanche.decoded import decode
from fedcondense.avalanche.sampling import Sampler
from fedcondense.errors import SettingError
from fedcondense.memory import Selector

CPU = torch.device("cpu")


def filled(bench: Any, method: str = "half-resolution", **more: Any) -> CondensedBuffer:
    made = CondensedBuffer(80, condenser=Selector(method), **more)
    for experience in bench.train_stream:
        made.post_adapt(None, experience)
    return made


def test_it_is_decoded_once_an_experience_whoever_reads_it(few: Any, setting: Any) -> None:
    held = CondensedBuffer(20, condenser=Selector("random"))
    strategy = CondensedReplay(storage_policy=held, **setting(4)())
    with mock.patch.object(buffer, "decode", wraps=decode) as counted:
        for number, experience in enumerate(few.with_tasks(2).train_stream, 1):
            strategy.train(experience)
            list(held.buffer)
            assert held.buffer_groups
            assert counted.call_count == number


@pytest.mark.parametrize("method", ["random", "half-resolution"])
def test_in_eight_bits_images_differ_by_half_a_step_at_most(method: str, few: Any) -> None:
    """Those that are stored in 8 bits are exactly the same; those that are enlarged are rounded."""
    whole = filled(few.with_tasks(2), method)
    images = whole.working.images if whole.working else torch.empty(0)
    small = filled(few.with_tasks(2), method, working_bytes=images.numel())
    assert small.working is not None
    assert small.working.images.dtype == torch.uint8
    assert small.working.images.nbytes == images.nbytes // 4
    limit = 0.0 if method == "random" else 1 / 510 + 1e-6
    for mine, other in ((small.decoded, whole.decoded), (Sampler(small, CPU, False, 0).draw(99),) * 2):
        assert mine is not None
        assert other is not None
        assert float((mine.images - other.images).abs().max()) <= limit
    for mine, other in zip(small.buffer, whole.buffer, strict=True):
        assert mine[1:] == other[1:]
        assert float((mine[0] - other[0]).abs().max()) <= limit


def test_more_than_it_may_take_is_refused_with_what_would_do(few: Any) -> None:
    made = filled(few.with_tasks(2), working_bytes=80 * 64 - 1)
    with pytest.raises(SettingError, match=r"take 5120 bytes in 8 bits, working_bytes is 5119; allow more"):
        len(made.buffer)


@pytest.mark.parametrize("method", ["random", "half-resolution"])
def test_decoding_in_pieces_gives_what_decoding_at_once_gives(
    method: str, few: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(few.with_tasks(2), method)
    assert made.memory.synthetic is not None
    assert made.range is not None
    whole = made.memory.synthetic.pixels()
    monkeypatch.setattr("fedcondense.avalanche.decoded._AT_ONCE", 3000)
    found = decode(made.memory, made.range, 1 << 20)
    assert found is not None
    assert torch.equal(found.images, made.range.to_stream(whole.images))
    assert torch.equal(found.targets, whole.targets)


def test_a_copy_is_the_callers_own(few: Any) -> None:
    made = filled(few.with_tasks(2), "random")
    for taken in (made.decoded, Sampler(made, CPU, False, 0).draw(5)):
        assert taken is not None
        taken.images.zero_()
    made.buffer[0][0].zero_()
    assert made.decoded is not None
    assert float(made.decoded.images.amax((1, 2, 3)).min()) > 0
