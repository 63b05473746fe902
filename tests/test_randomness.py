from __future__ import annotations

import hashlib

import torch

from fedcondense.randomness import child_seed, draw_seed, stream


def test_a_child_seed_is_the_head_of_a_sha256() -> None:
    """So any machine and language finds the same."""
    digest = hashlib.sha256(b"7/real/3").digest()
    assert child_seed(7, "real", 3) == int.from_bytes(digest[:8], "big") // 2


def test_purposes_and_roots_do_not_collide() -> None:
    seeds = {child_seed(root, purpose, k) for root in range(5) for purpose in ("start", "draws") for k in range(20)}
    assert len(seeds) == 200
    assert child_seed(1) != child_seed(1, "")


def test_seeds_fit_a_signed_integer() -> None:
    assert all(0 <= child_seed(k) < 2**63 for k in range(200))
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_seed(generator) for _ in range(200)]
    assert all(0 <= seed < 2**62 for seed in drawn)
    assert len(set(drawn)) == 200


def test_equal_purposes_give_equal_streams_and_the_global_state_stays() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (torch.rand(9, generator=stream(3, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
