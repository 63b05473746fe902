from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fedcondense.condensing import condense
from fedcondense.data.images import Data
from fedcondense.data.partitions import partition
from fedcondense.errors import SettingError
from fedcondense.flower.agreement import NOT_ENOUGH, Agreement, Means
from fedcondense.flower.contract import Answer, Known, Screen, Site, Verdict
from fedcondense.flower.screens import SCREENS, All, Share, check_screens, screen_of, screened, weighed
from fedcondense.sets.parts import Part
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def four_each(train: Data) -> SyntheticSet:
    return select(train, 4, "random", seed=0)


def counts(synthetic: SyntheticSet | None) -> dict[str, int]:
    assert synthetic is not None
    return {name: n for name, n in zip(synthetic.classes, synthetic.counts().tolist(), strict=True) if n}


ALL = {str(k): 4 for k in range(10)}


class TestWeighed:
    @pytest.mark.parametrize(("weight", "left"), [(1.0, 4), (0.75, 3), (0.51, 3), (0.5, 2), (0.01, 1), (0.0, 0)])
    def test_a_class_keeps_its_share_rounded_up(self, four_each: SyntheticSet, weight: float, left: int) -> None:
        found = counts(weighed(four_each, {"3": Verdict(weight)}))
        assert found == {name: n for name, n in {**ALL, "3": left}.items() if n}

    def test_what_is_left_are_the_first_images_as_they_were(self, four_each: SyntheticSet) -> None:
        left = weighed(four_each, {"3": Verdict(0.5)})
        assert left is not None
        before, after = four_each.pixels(), left.pixels()
        of_3 = [pixels.images[pixels.targets[:, 3] > 0] for pixels in (before, after)]
        torch.testing.assert_close(of_3[1], of_3[0][:2], rtol=0, atol=0)

    def test_several_classes_are_judged_at_once(self, four_each: SyntheticSet) -> None:
        found = counts(weighed(four_each, {"0": Verdict(0), "1": Verdict(0.5, "odd"), "2": Verdict(1)}))
        assert found == {**{name: 4 for name in ALL if name != "0"}, "1": 2}

    def test_nothing_is_left_when_all_is_left_out(self, four_each: SyntheticSet) -> None:
        assert weighed(four_each, dict.fromkeys(four_each.classes, Verdict(0))) is None

    def test_a_class_that_the_set_lacks_changes_nothing(self, four_each: SyntheticSet) -> None:
        assert counts(weighed(four_each, {"11": Verdict(0)})) == ALL

    def test_shares_count_over_all_parts(self, four_each: SyntheticSet) -> None:
        """Two parts of four images are eight, and a quarter of eight is two, whichever part they are from."""
        both = SyntheticSet.join([four_each, four_each.with_record(classes=four_each.classes)])
        assert counts(weighed(both, {"3": Verdict(0.25)})) == {**dict.fromkeys(ALL, 8), "3": 2}

    def test_a_set_of_shared_codes_is_left_out_as_a_whole(self, train: Data) -> None:
        shared = condense(train, 4, "dm", "bases", seed=0, steps=1, start="gaussian")
        assert weighed(shared, {"3": Verdict(0.5)}) is None
        assert weighed(shared, {"3": Verdict(0)}) is None

    def test_other_class_names_are_none_of_this_sets(self, four_each: SyntheticSet) -> None:
        renamed = four_each.with_record(classes=tuple("abcdefghij"))
        assert counts(weighed(renamed, {"3": Verdict(0), "d": Verdict(0.5)}))["d"] == 2

    def test_claims_of_records_are_cut_as_images_are(self, four_each: SyntheticSet) -> None:
        left = weighed(four_each, {"3": Verdict(0.5), "4": Verdict(0)})
        assert left is not None
        before, after = four_each.record, left.record
        claimed = dict(zip(before.classes, before.counts, strict=True))
        assert after.counts[after.classes.index("3")] == -(-claimed["3"] // 2)
        assert after.counts[after.classes.index("5")] == claimed["5"]


def answers(sets: list[SyntheticSet]) -> list[Answer[SyntheticSet]]:
    return [Answer(Site(f"site-{k}", f"{k}", k), one) for k, one in enumerate(sets)]


def relabelled(one: SyntheticSet, label: Callable[[int], int]) -> SyntheticSet:
    """Return a set with other labels."""
    parts = []
    for part in one.parts:
        targets = torch.tensor([label(int(old)) for old in part.targets], dtype=part.targets.dtype)
        parts.append(Part(part.codes, targets, part.parametrization, part.record))
    return SyntheticSet(parts)


def shifted(one: SyntheticSet) -> SyntheticSet:
    return relabelled(one, lambda label: (label + 1) % 10)


def out(verdicts: Mapping[tuple[Site, str], Verdict]) -> set[tuple[int, str]]:
    return {(site.node, name) for (site, name), verdict in verdicts.items() if verdict.weight < 1}


@pytest.fixture(scope="module")
def ten(train: Data) -> list[SyntheticSet]:
    """Ten honest sites of a skewed division; real images stand for their sets."""
    held = partition(train, 10, "dirichlet", alpha=0.3, seed=3)
    return [select(train.subset(index), 8, "random", seed=k) for k, index in enumerate(held.indices)]


class TestScreens:
    @pytest.mark.parametrize("names", [*SCREENS, "all"])
    def test_honest_sites_stay_whole(self, names: str, ten: list[SyntheticSet]) -> None:
        screen = screen_of(names)
        assert screen is not None
        assert not out(screen(answers(ten), Known()))

    @pytest.mark.parametrize("bad", [1, 3])
    @pytest.mark.parametrize("screen", [Agreement(), All(tuple(SCREENS.values()))])
    def test_sites_that_shift_their_labels_are_left_out_and_no_others(
        self, screen: Screen, bad: int, ten: list[SyntheticSet]
    ) -> None:
        sent = [shifted(one) if k < bad else one for k, one in enumerate(ten)]
        found = screened(screen, answers(sent), Known())
        assert {site.node for site in found.gone} == set(range(bad))
        assert {answer.site.node for answer in found.answers} == set(range(bad, 10))
        assert all("otherwise" in why for why in found.gone.values())
        assert found.cut["site-0"].to_bytes() == sent[0].to_bytes()

    def test_verdicts_follow_from_what_is_sent_and_not_from_its_order(self, ten: list[SyntheticSet]) -> None:
        sent = answers([shifted(ten[0]), *ten[1:]])
        forth, back = (Agreement()(some, Known()) for some in (sent, sent[::-1]))
        assert forth == back

    def test_a_class_that_one_site_holds_cannot_be_told(self, ten: list[SyntheticSet]) -> None:
        only = [one.restrict({str(k) for k in range(9)}) if k else one for k, one in enumerate(ten)]
        sent = answers([one for one in only if one is not None])
        assert "9" in sent[0].payload.classes
        for screen in (Agreement(), Means()):
            assert screen(sent, Known())[sent[0].site, "9"] == Verdict(1.0, NOT_ENOUGH)

    def test_one_site_alone_is_not_judged(self, ten: list[SyntheticSet]) -> None:
        for screen in SCREENS.values():
            verdicts = screen(answers(ten[:1]), Known())
            assert {(verdict.weight, verdict.why) for verdict in verdicts.values()} == {(1.0, NOT_ENOUGH)}

    def test_where_most_sites_would_go_nobody_does(self, ten: list[SyntheticSet]) -> None:
        sent = [relabelled(one, lambda label, k=k: (label + k) % 10) for k, one in enumerate(ten)]  # type: ignore[misc]
        assert not out(Agreement()(answers(sent), Known()))

    def test_noise_under_one_label_is_far_from_the_means_of_others(self, train: Data) -> None:
        sets = [select(train, 8, "random", seed=k) for k in range(5)]
        (part,) = sets[0].parts
        images, of_3 = part.codes["images"].clone(), part.targets == 3
        images[of_3] = 255 * (torch.rand(images[of_3].shape, generator=torch.Generator().manual_seed(0)) > 0.5).byte()
        odd = SyntheticSet([replace(part, codes={"images": images})])
        assert out(Means()(answers([odd, *sets[1:]]), Known())) == {(0, "3")}

    def test_ten_times_as_many_images_count_twice(self, ten: list[SyntheticSet]) -> None:
        sent = answers([SyntheticSet.join([ten[0]] * 10), *ten[1:]])
        found = screened(Share(), sent, Known())
        most = max(found.answers[0].payload.counts().tolist())
        assert most == 16
        assert [answer.payload for answer in found.answers[1:]] == ten[1:]

    def test_what_is_left_of_a_set_is_shown_apart_from_what_went(self, ten: list[SyntheticSet]) -> None:
        def no_2(answers: object, known: Known) -> dict[tuple[Site, str], Verdict]:
            return {(Site("site-4", "4", 4), "2"): Verdict(0.0, "odd")}

        found = screened(no_2, answers(ten), Known())
        assert not found.gone
        assert counts(found.cut["site-4"]).keys() == {"2"}
        assert "2" not in counts(found.answers[4].payload)


class TestNames:
    def test_nothing_is_screened_unless_it_is_asked_for(self) -> None:
        assert screen_of("") is None
        check_screens("", object())

    def test_several_are_applied_in_one_order(self) -> None:
        assert screen_of("means, share") == All((SCREENS["share"], SCREENS["means"])) == screen_of("share,means")
        assert screen_of("all") == All(tuple(SCREENS.values()))

    def test_a_name_that_is_none_is_refused(self) -> None:
        with pytest.raises(SettingError, match="did you mean 'agreement'"):
            screen_of("agrement")

    def test_a_strategy_that_would_pass_over_them_is_refused(self) -> None:
        with pytest.raises(SettingError, match="SimpleNamespace combines no synthetic sets"):
            check_screens("all", SimpleNamespace(screen=None))
