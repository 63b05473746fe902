from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.randomness import Drawn, child_seed, draw_seed, stream


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


def dropped(**settings: Any) -> Tensor:
    return F.dropout(torch.ones(20, **settings))


ONES = torch.ones(1, 2, 4, 4)
DRAWS: dict[str, Callable[[], Any]] = {
    "rand": lambda: torch.rand(5),
    "randn": lambda: torch.randn(5),
    "rand_like": lambda: torch.rand_like(torch.ones(3)),
    "randn_like": lambda: torch.randn_like(torch.ones(3)),
    "randint": lambda: torch.randint(9, (4,)),
    "randint from": lambda: torch.randint(2, 9, (4,)),
    "randint_like": lambda: torch.randint_like(torch.ones(4), 9),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal of means": lambda: torch.normal(torch.zeros(3), 1.0),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)),
    "multinomial": lambda: torch.multinomial(torch.ones(5), 3),
    "exponential": lambda: torch.empty(3).exponential_(),
    "dropout": dropped,
    "dropout with gradients": lambda: dropped(requires_grad=True),
    "alpha dropout": lambda: F.alpha_dropout(torch.ones(20), training=True),
    "rrelu": lambda: F.rrelu(-torch.ones(5), training=True),
    "gumbel": lambda: F.gumbel_softmax(torch.ones(4)),
    "attention": lambda: F.scaled_dot_product_attention(ONES, ONES, ONES, dropout_p=0.5),
    "recurrent": lambda: nn.LSTM(3, 4, 2, dropout=0.5)(torch.ones(2, 5, 3))[0],
    "pooling": lambda: nn.FractionalMaxPool2d(2, output_size=3)(torch.arange(64.0).view(1, 1, 8, 8)),
    "gamma": lambda: torch.distributions.Gamma(2.0, 1.0).sample((3,)),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(3, 3)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(3, 3)),
    "low rank": lambda: torch.pca_lowrank(torch.arange(60.0).view(20, 3).sin(), q=2)[1],
}


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(sorted(DRAWS)), min_size=1, max_size=5),
    st.integers(0, 2**63 - 1),
    st.sampled_from([nullcontext, torch.no_grad, torch.inference_mode]),
)
def test_drawn_gives_the_numbers_of_a_global_seed_and_leaves_the_global_generator_alone(
    names: list[str], seed: int, mode: Callable[[], Any]
) -> None:
    with mode():
        torch.manual_seed(seed)
        expected = [DRAWS[name]() for name in names]
        before = torch.get_rng_state()
        with Drawn(seed):
            found = [DRAWS[name]() for name in names]
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_generator_that_is_given_is_taken() -> None:
    with Drawn(1):
        found = torch.rand(3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(found, torch.rand(3, generator=torch.Generator().manual_seed(2)))
