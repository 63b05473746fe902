from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.flower.contract import Site
from fedcondense.flower.sites import is_name, is_set_name, names_of, natural, set_name, site_and_round, unnamed

HOSTILE = ["", "../x", "..", ".", ".hidden", "a/b", "a\\b", "a b", "ü", "a\n", "a\0", "-rf", "_", "x" * 65, "st.mary."]


def named(*claims: str) -> list[str]:
    """Return what nodes 1, 2, ... are called that claim these names and are registered by none."""
    sites = [unnamed(node + 1) for node in range(len(claims))]
    names = names_of(sites, {node + 1: claim for node, claim in enumerate(claims)})
    return [names[site.node].name for site in sites]


class TestNames:
    @pytest.mark.parametrize("text", ["a", "0", "St.Marys-ward_3", "x" * 64])
    def test_letters_digits_and_three_marks_name_a_site(self, text: str) -> None:
        assert is_name(text)
        assert named(text) == [text]

    @pytest.mark.parametrize("text", HOSTILE)
    def test_what_could_be_a_path_or_is_too_long_is_no_name_and_gives_way_to_the_node(self, text: str) -> None:
        assert not is_name(text)
        assert named(text) == ["node-1"]
        assert unnamed(7, SimpleNamespace(name=text, public_key=b"")) == Site("", "7", 7)

    def test_a_name_that_several_claim_belongs_to_none_of_them(self) -> None:
        assert named("a", "b", "a", "a") == ["a-1", "b", "a-3", "a-4"]

    def test_a_claim_of_a_name_that_a_node_would_get_is_no_other_nodes(self) -> None:
        assert named("a", "a", "a-2") == ["a-1", "a-2-2", "a-2"]

    def test_names_that_differ_in_case_alone_are_one(self) -> None:
        """They would be one file on some systems."""
        assert named("ward", "Ward", "other") == ["ward-1", "Ward-2", "other"]

    def test_a_long_name_leaves_room_for_its_node(self) -> None:
        assert named("x" * 64, "x" * 64) == ["x" * 40 + "-1", "x" * 40 + "-2"]

    def test_who_is_left_out_takes_no_name_from_who_is_not(self) -> None:
        sites = [unnamed(1), unnamed(2)]
        names = names_of(sites, {1: "ward", 2: "ward"}, doubtful={1})
        assert {node: site.name for node, site in names.items()} == {1: "ward-1", 2: "ward"}

    @pytest.mark.parametrize("key", ["7", "8"])
    def test_what_somebody_had_in_an_earlier_round_stays_with_that_key(self, key: str) -> None:
        """Whether or not that site is asked in this round: kept sets go by names."""
        names = names_of([unnamed(3), unnamed(8)], {3: "ward", 8: "other"}, before={key: "ward"})
        had = {"7": {3: "ward-3", 8: "other"}, "8": {3: "ward-3", 8: "ward"}}
        assert {node: site.name for node, site in names.items()} == had[key]

    def test_registered_names_go_before_claims_whatever_the_node(self) -> None:
        registered = unnamed(9, SimpleNamespace(name="ward", public_key=b"\x01\xff"))
        assert registered == Site("ward", "01ff", 9)
        names = names_of([unnamed(1), registered], {1: "ward", 9: "other"})
        assert {node: site.name for node, site in names.items()} == {9: "ward", 1: "ward-1"}
        assert names[9].key == "01ff"

    def test_nodes_that_say_nothing_are_called_by_their_ids(self) -> None:
        assert names_of([unnamed(5), unnamed(4)], {}) == {5: Site("node-5", "5", 5), 4: Site("node-4", "4", 4)}

    def test_a_claim_of_another_nodes_id_takes_nothing_from_it_but_the_name(self) -> None:
        assert named("node-2", "") == ["node-2", "node-2-2"]

    @given(st.lists(st.text(max_size=70) | st.sampled_from(["a", "A", "a-2", "x" * 64, "node-1"]), max_size=8))
    def test_every_site_has_a_sound_name_of_its_own(self, claims: list[str]) -> None:
        names = named(*claims)
        assert all(map(is_name, names))
        assert len({name.casefold() for name in names}) == len(claims)


class TestOrder:
    def test_numbers_count_as_numbers(self) -> None:
        names = ["client-10", "client-9", "client-1", "b", "2", "10", "client-9-2"]
        assert sorted(names, key=natural) == ["2", "10", "b", "client-1", "client-9", "client-9-2", "client-10"]

    @given(st.lists(st.text()))
    def test_any_names_can_be_sorted(self, names: list[str]) -> None:
        assert sorted(sorted(names, key=natural)) == sorted(names)


class TestSetNames:
    @pytest.mark.parametrize("server_round", [1, 2, 30])
    def test_a_name_says_whose_set_it_is_and_of_which_round(self, server_round: int) -> None:
        name = set_name("st.mary-9", server_round)
        assert site_and_round(name) == ("st.mary-9", server_round)
        assert is_set_name(name)

    @pytest.mark.parametrize("text", [*HOSTILE, "a+", "a+b", "a+-2", "a+2+3", "a+1234567890", "../a+2", "a+/../b"])
    def test_nothing_else_names_a_file_of_a_set(self, text: str) -> None:
        assert not is_set_name(text) or is_name(text)
        assert "+" not in text or not is_set_name(text)
