"""One set or part of a set, or one key, under two names counts once."""

from __future__ import annotations

import pytest

from fedcondense.data.images import Data
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.copies import part_digests, repeated, same_key
from fedcondense.flower.inbox import Inbox, ReplyLimits
from fedcondense.flower.payloads import Sums
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def sets(train: Data) -> list[SyntheticSet]:
    return [select(train, 1, "random", seed=seed) for seed in range(4)]


def inbox(sets: dict[str, SyntheticSet], kept: dict[str, SyntheticSet] | None = None) -> Inbox:
    """Return an inbox in which sites have answered with sets, in this order."""
    sites = [Site(name, name, 10 * k) for k, name in enumerate(sets)]
    found = Inbox(sites, ReplyLimits(), kept=kept)
    for site in sites:
        found.answers[site.node] = Answer(site, sets[site.name], 1, 1.0, 1000)
    return found


class TestPartDigests:
    def test_what_a_second_answer_of_one_node_differs_in_does_not_count(self, sets: list[SyntheticSet]) -> None:
        again = sets[0].with_record(seconds=99.0, mean=(0.1,), std=(0.2,))
        assert part_digests(again) == part_digests(sets[0])

    def test_images_labels_counts_seed_and_codec_do(self, sets: list[SyntheticSet]) -> None:
        one = sets[0]
        others = [
            sets[1],
            one.with_record(seed=99),
            one.with_record(counts=(1,) * 10),
            one.with_record(classes=tuple("abcdefghij")),
            one.recode("bits-4"),
        ]
        assert len({part_digests(other) for other in [one, *others]}) == 6

    def test_there_is_one_for_each_part_wherever_the_part_is(self, sets: list[SyntheticSet]) -> None:
        joined = SyntheticSet.join([sets[1], sets[0]])
        assert part_digests(joined) == (*part_digests(sets[1]), *part_digests(sets[0]))


class TestInbox:
    def test_of_two_sites_with_the_same_set_the_later_name_is_refused(self, sets: list[SyntheticSet]) -> None:
        found = inbox({"site-10": sets[0].with_record(seconds=3.0), "site-9": sets[0], "site-2": sets[1]})
        answers, (refusal,) = found.sorted()
        assert [answer.site.name for answer in answers] == ["site-2", "site-9"]
        assert (refusal.site.name, refusal.reason) == (
            "site-10",
            "the very images of site-9: each site sends its own",
        )
        assert found.usable() == 2

    def test_a_kept_set_is_nobody_elses_and_may_be_sent_again_by_its_own_site(self, sets: list[SyntheticSet]) -> None:
        kept = {"b": sets[0], "c": sets[1]}
        answers, (refusal,) = inbox({"a": sets[0], "c": sets[1]}, kept).sorted()
        assert [answer.site.name for answer in answers] == ["c"]
        assert "the very images of b" in refusal.reason

    def test_a_part_that_two_edge_servers_pass_on_counts_once(self, sets: list[SyntheticSet]) -> None:
        a, b, c, _ = sets
        found = inbox({"edge-1": SyntheticSet.join([a, b]), "edge-2": SyntheticSet.join([b, c])})
        answers, refused = found.sorted()
        assert refused == []
        flat = SyntheticSet.join([a, b, c])
        joined = SyntheticSet.join([answer.payload for answer in answers if isinstance(answer.payload, SyntheticSet)])
        assert joined.to_bytes() == flat.to_bytes()
        assert found.thinned() == {"edge-2": "1 of 2 parts are those of edge-1, and count once"}

    def test_a_set_may_move_to_another_edge_server_within_a_round(self, sets: list[SyntheticSet]) -> None:
        a, b, c, _ = sets
        kept = {"edge-1": SyntheticSet.join([a, b]), "edge-2": c}
        answers, refused = inbox({"edge-1": a, "edge-2": SyntheticSet.join([b, c])}, kept).sorted()
        assert [len(answer.payload.parts) for answer in answers if isinstance(answer.payload, SyntheticSet)] == [1, 2]
        assert refused == []

    def test_sums_of_equal_data_are_equal_and_no_copies(self) -> None:
        found = Inbox([Site("a", "1", 1), Site("b", "2", 2)], ReplyLimits())
        for site in found.sites:
            found.answers[site.node] = Answer(site, Sums({}))
        assert len(found.sorted()[0]) == 2

    def test_one_key_at_two_nodes_counts_once(self, sets: list[SyntheticSet]) -> None:
        found = Inbox([Site("b", "aa", 1), Site("a", "aa", 2), Site("c", "cc", 3)], ReplyLimits())
        for site, one in zip(found.sites, sets, strict=False):
            found.answers[site.node] = Answer(site, one)
        answers, (refusal,) = found.sorted()
        assert [answer.site.node for answer in answers] == [2, 3]
        assert refusal.reason == "node 1 has the key of a at node 2: counts once"

    def test_what_is_forgotten_was_never_there(self, sets: list[SyntheticSet]) -> None:
        """The names of others follow too: what two claim, neither gets, and then one does."""
        found, fewer = (Inbox([Site("", f"{n}", n) for n in (1, 2, 3)], ReplyLimits()) for _ in range(2))
        for node, claim in ((1, "a"), (2, "a"), (3, "b")):
            found.answers[node], found.claims[node] = Answer(found.sites[node - 1], sets[node]), claim
        assert [answer.site.name for answer in found.sorted()[0]] == ["a-1", "a-2", "b"]
        for node, claim in ((2, "a"), (3, "b")):
            fewer.answers[node], fewer.claims[node] = found.answers[node], claim
        found.forget("1")
        assert found.sorted()[0] == fewer.sorted()[0]
        assert [(r.site.name, r.reason) for r in found.sorted()[1]] == [("node-1", "forgotten")]


def test_nothing_is_repeated_among_sets_of_ones_own(sets: list[SyntheticSet]) -> None:
    sites = {k: Site(f"s{k}", f"{k}", k) for k in range(4)}
    by_node = dict(enumerate(sets))
    assert repeated(sites, by_node, {k: part_digests(one) for k, one in by_node.items()}, {}) == ({}, {}, {})
    assert same_key(list(sites.values())) == {}
