"""A join of joins: edge servers hand in the unions of their sites, and the union of those is that of all sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.data.images import Data
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.files_run import FileRounds
from fedcondense.flower.inbox import Inbox
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.screens import SCREENS
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

SITES = ("a", "b", "c", "d")
Pool = dict[tuple[str, int, int], SyntheticSet]


@pytest.fixture(scope="module")
def pool(train: Data) -> Pool:
    """Return sets by site, round and kind: of all classes, of the first five, of the others in a codec."""
    kinds = [range(10), range(5), range(5, 10)]
    found = {}
    for place, site in enumerate(SITES):
        own = train.subset(torch.arange(350 * place, 350 * place + 350))
        for number in range(2):
            for kind, classes in enumerate(kinds):
                part = own.subset(torch.isin(own.labels, torch.tensor(list(classes))).nonzero().flatten())
                made = select(part, 1, "random", seed=10 * place + number)
                found[site, number, kind] = made.recode("bits-4") if kind == 2 else made
    return found


def joined(
    calls: Sequence[Mapping[str, SyntheticSet]], limits: ReplyLimits = ReplyLimits(), screen: str = ""
) -> list[State]:
    """Return the states of a federation by files after each call in which something came."""
    rounds, states = FileRounds(limits, SCREENS[screen] if screen else None), []
    for sets in calls:
        sites = [Site(name, name, number) for number, name in enumerate(sorted(sets))]
        inbox = Inbox(sites, limits, kept=rounds.state.sets)
        for site in sites:
            inbox.answers[site.node] = Answer(site, sets[site.name], 1, 1.0, sets[site.name].nbytes)
        if sets:
            state, _ = rounds.receive(rounds.state.round + 1, "answer", rounds.state, inbox)
            rounds.state = state.but(round=rounds.state.round + 1)
        states.append(rounds.state)
    return states


def by_edges(
    calls: Sequence[Mapping[str, SyntheticSet]],
    edges: Mapping[str, Sequence[str]],
    limits: ReplyLimits = ReplyLimits(),
    screen: str = "",
) -> State:
    """Return what whoever joins the unions of edge servers has, each of which hands in the file that it wrote."""
    up: list[dict[str, SyntheticSet]] = [{} for _ in calls]
    for edge, sites in edges.items():
        own = [{site: one for site, one in sets.items() if site in sites} for sets in calls]
        for number, state in enumerate(joined(own, limits, screen)):
            if own[number] and state.joined is not None:
                up[number][edge] = SyntheticSet.from_bytes(state.joined.to_bytes())
    return joined(up, limits)[-1]


def content(state: State, known: bool = True) -> Counter[tuple[object, ...]]:
    """Return images, labels and what they stand for, whatever their order."""
    assert state.joined is not None
    found: Counter[tuple[object, ...]] = Counter()
    for part in state.joined.parts:
        said = dict(zip(part.record.classes, part.record.counts, strict=True))
        images = SyntheticSet([part]).decode().images if known else part.decode().images
        for image, label in zip(images, part.labels().tolist(), strict=True):
            name = part.record.classes[label]
            found[image.numpy().tobytes(), name, said[name], part.codec] += 1
    return found


@given(
    kinds=st.lists(st.lists(st.integers(-1, 2), min_size=4, max_size=4), min_size=2, max_size=2),
    places=st.lists(st.sets(st.integers(0, 1), min_size=1), min_size=4, max_size=4),
)
@settings(max_examples=12, deadline=None)
def test_it_is_the_flat_join_over_two_rounds_with_sites_in_one_branch_or_in_two(
    pool: Pool, train: Data, kinds: list[list[int]], places: list[set[int]]
) -> None:
    """Sites come, stay away (-1) or send other classes than before; some hand in the same file to both edges."""
    calls = [
        {site: pool[site, number, kind] for site, kind in zip(SITES, row, strict=True) if kind >= 0}
        for number, row in enumerate(kinds)
    ]
    if not any(calls):
        return
    edges = {f"edge-{k}": [site for site, of in zip(SITES, places, strict=True) if k in of] for k in (0, 1)}
    limits = ReplyLimits.of(train.spec)
    assert content(by_edges(calls, edges, limits)) == content(joined(calls, limits)[-1])


def test_where_edges_follow_the_order_of_names_what_is_trained_on_is_bit_equal(pool: Pool, train: Data) -> None:
    calls = [{site: pool[site, 0, 0] for site in SITES}, {"b": pool["b", 1, 1], "c": pool["c", 1, 2]}]
    limits = ReplyLimits.of(train.spec)
    flat = joined(calls, limits)[-1].joined
    top = by_edges(calls, {"edge-0": ["a", "b"], "edge-1": ["b", "c", "d"]}, limits).joined
    assert flat is not None
    assert top is not None
    assert top.to_bytes() == flat.to_bytes()


def test_without_known_data_the_scale_is_the_median_of_edges_and_not_of_sites(pool: Pool) -> None:
    """What a join of joins cannot keep: name the data, and the scale is theirs in every join."""
    sets = {site: pool[site, 0, 0].with_record(std=(0.1 * (k + 1),)) for k, site in enumerate(SITES)}
    flat = joined([sets])[-1].joined
    top = by_edges([sets], {"edge-0": ["a"], "edge-1": ["b"], "edge-2": ["c", "d"]}).joined
    assert flat is not None
    assert top is not None
    assert flat.record.std == pytest.approx((0.3,))
    assert top.record.std == pytest.approx((0.2,))


def test_a_site_that_renews_its_set_at_one_of_two_edges_counts_twice(pool: Pool) -> None:
    """What cannot be seen: the old set and the new one are other bytes. Hand in at one edge, or at both."""
    first, second = {"a": pool["a", 0, 0], "b": pool["b", 0, 0]}, {"b": pool["b", 1, 0]}
    both = by_edges([first, second], {"edge-0": ["a", "b"], "edge-1": ["b"]})
    left, right = joined([first, second])[-1], joined([{"b": pool["b", 0, 0]}])[-1]
    assert left.joined is not None
    assert right.joined is not None
    one_sided = joined([{"edge-0": left.joined, "edge-1": right.joined}])[-1]
    assert content(both, known=False) == content(left, known=False)
    assert sum(content(one_sided, known=False).values()) == 30


class TestScreens:
    """They judge sites where sites are: at the edges, each among its own."""

    def test_sound_sets_pass_at_edges_as_they_do_flat(self, pool: Pool, train: Data) -> None:
        calls, limits = [{site: pool[site, 0, 0] for site in SITES}], ReplyLimits.of(train.spec)
        top = by_edges(calls, {"edge-0": ["a", "b"], "edge-1": ["c", "d"]}, limits, "share")
        assert content(top) == content(joined(calls, limits, "share")[-1])

    def test_an_edge_of_two_judges_nothing_and_a_flat_join_cuts(self, pool: Pool, train: Data) -> None:
        greedy = select(train, 8, "random", seed=99)
        calls = [{"a": pool["a", 0, 0], "b": pool["b", 0, 0], "c": pool["c", 0, 0], "d": greedy}]
        flat = joined(calls, screen="share")[-1]
        top = by_edges(calls, {"edge-0": ["a", "b"], "edge-1": ["c", "d"]}, screen="share")
        assert (len(flat.sets["d"]), sum(map(len, top.sets.values()))) == (20, 110)

    def test_above_edges_a_large_edge_looks_like_a_greedy_site(self, pool: Pool, train: Data) -> None:
        sets = {
            "edge-0": SyntheticSet.join([pool[site, number, 0] for site in ("a", "b") for number in range(2)]),
            "edge-1": pool["c", 0, 0],
            "edge-2": pool["d", 0, 0],
        }
        assert len(joined([sets], screen="share")[-1].sets["edge-0"]) == 20
