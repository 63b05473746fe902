from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import condense, estimate, prepare, run
from fedcondense.condensing.holders import FixedSums, Own, Summed, add_up, sums
from fedcondense.contract import Draw, Holder, NetworkFactory, Objective, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.data.loading import load_data
from fedcondense.data.partitions import partition
from fedcondense.errors import DataError, ResumeError, SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.characteristic import CharacteristicFunction
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Pool, TrainedPool

TINY = partial(ConvNet, width=8, depth=2)
DM, WAVES = DistributionMatching(), CharacteristicFunction(count=16)


def toy(counts: Sequence[int] = (20, 15, 12), seed: int = 0) -> Data:
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(counts), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(3).repeat_interleave(torch.tensor(counts)), spec)


def pool(spec: Spec, size: int, seed: int = 5, norm: str = "instance") -> Pool:
    """Return the pool that sites and server share by its seed."""
    network = partial(ConvNet, width=8, depth=2, norm=norm)
    make: NetworkFactory = lambda seed: build(network, spec.shape, len(spec.classes), seed)  # noqa: E731
    return Pool(make, spec.operations, len(spec.classes), size, seed)


def summed(objective: Objective, sites: Sequence[Data], size: int = 2, seed: int = 5) -> Summed:
    """Return a server's holder of sums that each site made by itself."""
    spec = sites[0].spec
    entries = [{n: sums(objective, pool(spec, size, seed).entry(n), site) for n in range(size)} for site in sites]
    return Summed(spec, objective, seed, entries)


def bytes_of(synthetic: SyntheticSet) -> bytes:
    return synthetic.with_record(seconds=0.0).to_bytes()


class Bare:
    """What the protocol promises, word by word, and nothing beside it."""

    def __init__(self, kept: Data, shown: bool) -> None:
        self._kept = kept
        self.spec, self.counts, self.device = kept.spec, kept.counts, kept.device
        self.fingerprint, self.data = kept.fingerprint, kept if shown else None

    def observe(self, objective: Objective, draw: Draw) -> Any:
        return Own(self._kept).observe(objective, draw)


class TestAnyHolder:
    @pytest.mark.parametrize("shown", [True, False])
    def test_a_budget_needs_no_record_to_be_shown(self, shown: bool) -> None:
        made = condense(Bare(toy(), shown), "1200 B", "dm", network=TINY, steps=2)
        assert made.nbytes <= 1200
        assert made.parts[0].codec.startswith("bits-")

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_who_keeps_to_the_protocol_serves_as_the_owner_does(self, objective: str) -> None:
        holder: Holder = Bare(toy(), shown=True)
        settings: dict[str, Any] = {"network": TINY, "steps": 3}
        made = condense(holder, 2, objective, **settings)
        assert bytes_of(made) == bytes_of(condense(toy(), 2, objective, **settings))

    @pytest.mark.parametrize("objective", [n for n in OBJECTIVES if n not in ("idc", "mtt", "mtt-recompute", "tesla")])
    def test_who_shows_no_record_serves_too_and_the_start_is_grey(self, objective: str) -> None:
        settings: dict[str, Any] = {"network": TINY, "steps": 3}
        made = condense(Bare(toy((9, 0, 4)), shown=False), 2, objective, **settings)
        assert made.record.start == "grey"
        assert made.record.counts == (9, 0, 4)
        assert bytes_of(made) == bytes_of(condense(toy((9, 0, 4)), 2, objective, start="grey", **settings))

    @pytest.mark.parametrize("objective", ["idc", "mtt"])
    def test_networks_that_need_records_are_refused(self, objective: str) -> None:
        with pytest.raises(SettingError, match="trained on the real data, which their holder keeps"):
            condense(Bare(toy(), shown=False), 1, objective, network=TINY, steps=2)

    @pytest.mark.parametrize("start", ["real", "gaussian"])
    def test_a_start_that_is_made_of_records_is_refused(self, start: str) -> None:
        with pytest.raises(SettingError, match=f"start '{start}' is made of records, .*; take grey or noise"):
            condense(Bare(toy(), shown=False), 1, network=TINY, start=start)

    def test_another_device_than_the_holder_s_is_refused(self) -> None:
        with pytest.raises(SettingError, match=r"device 'cuda', but .* answers on cpu; leave the device out"):
            prepare(Bare(toy(), shown=True), 1, "dm", "pixels", network=TINY, device="cuda")

    def test_an_estimate_takes_it_and_a_checkpoint_is_of_it(self, tmp_path: Any) -> None:
        kept = Checkpoint(tmp_path / "c")
        loop = prepare(Bare(toy(), shown=False), 1, "dm", "pixels", network=TINY, steps=2)
        assert estimate(loop).decoded == 3
        run(loop, checkpoint=kept)
        with pytest.raises(ResumeError, match="data was"):
            condense(toy(seed=1), 1, "dm", network=TINY, steps=2, checkpoint=replace(kept, resume=True))

    def test_observing_makes_no_graph(self) -> None:
        @dataclass(frozen=True)
        class Scaled(Objective):
            def observe(self, draw: Draw, data: Data) -> Any:
                return data.batch().images.sum() * draw.network

            def loss(self, draw: Draw, observed: Any, synthetic: Synthetic) -> Tensor:
                return synthetic.images.sum()

        weight = torch.ones((), requires_grad=True)
        assert not Own(toy()).observe(Scaled(), Draw(weight, None, 0)).requires_grad  # type: ignore[arg-type]


DIVISIONS: dict[str, Any] = {
    "one site": None,
    "five alike": ("iid", 5, {}),
    "ten skewed": ("dirichlet", 10, {"alpha": 0.1}),
}


class TestSummed:
    @pytest.mark.parametrize("ipc", [1, 10])
    @pytest.mark.parametrize("objective", [DM, DistributionMatching(layer="logits", relative=True), WAVES], ids=repr)
    def test_a_set_is_the_same_to_the_bit_whatever_the_division(self, objective: Objective, ipc: int) -> None:
        train, made = load_data("digits").train, dict[str, bytes]()
        for name, rule in DIVISIONS.items():
            sites = [train]
            if rule is not None:
                kind, number, more = rule
                sites = [train.subset(index) for index in partition(train, number, kind, seed=1, **more)]
            holder = summed(objective, sites)
            loop = prepare(holder, ipc, objective, "pixels", network=TINY, source=pool(train.spec, 2), steps=4)
            made[name] = bytes_of(run(loop)) + loop.codes["images"].detach().numpy().tobytes()  # before rounding, too
        assert len(set(made.values())) == 1, {name: hash(blob) for name, blob in made.items()}

    def test_sums_are_those_of_the_objective_up_to_rounding(self) -> None:
        for objective in (DM, WAVES):
            entry = pool(toy().spec, 1).entry(0)
            exact = Own(toy()).observe(objective, entry)
            found = summed(objective, [toy()], size=1).observe(objective, entry)
            for a, b in zip(exact, found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_each_record_is_rounded_by_itself(self) -> None:
        """By hand, from features of one record at a time."""
        data, entry = toy((5, 0, 3)), pool(toy().spec, 1).entry(0)
        expected = torch.zeros(3, 8 * 2 * 2, dtype=torch.int64)
        for k, label in enumerate(data.labels.tolist()):
            rows = DM.rows(entry, data.batch(torch.tensor([k])))
            expected[label] += (rows[0].double() * 2**24).round().long()
        found = sums(DM, entry, data)
        assert (found.sums - expected).abs().max() <= 5 * 64  # a batch of another shape: other last bits
        assert found.counts.tolist() == [5, 0, 3]
        alone = add_up(sums(DM, entry, data.subset(torch.tensor([k]))) for k in range(8))
        assert torch.equal(found.sums, alone.sums)

    def test_where_a_record_s_features_depend_on_its_place_it_is_taken_alone(self) -> None:
        class Placed(nn.Module):
            """A kernel that computes the first images of a batch a little differently."""

            def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
                return images.flatten(1) * (1 + 1e-6 * torch.arange(len(images), 0, -1).unsqueeze(1))

        entry = pool(toy().spec, 1).entry(0)._replace(network=Placed())
        whole = sums(DM, entry, toy())
        parts = add_up(sums(DM, entry, toy().subset(index)) for index in torch.randperm(47).split(9))
        assert torch.equal(whole.sums, parts.sums)

    def test_a_caller_s_autocast_has_no_say(self) -> None:
        entry = pool(toy().spec, 1).entry(0)
        with torch.autocast("cpu", torch.bfloat16):
            inside = sums(DM, entry, toy())
        assert torch.equal(inside.sums, sums(DM, entry, toy()).sums)

    def test_an_empty_site_adds_nothing(self) -> None:
        entry = pool(toy().spec, 1).entry(0)
        nothing = sums(DM, entry, toy((0, 0, 0)))
        assert nothing.counts.tolist() == [0, 0, 0]
        assert torch.equal(add_up([nothing, sums(DM, entry, toy())]).sums, sums(DM, entry, toy()).sums)

    @pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.keeps != "sums"])
    def test_objectives_that_keep_more_are_refused_by_name(self, name: str) -> None:
        keeps = OBJECTIVES[name].keeps
        message = f"{name} keeps {keeps} of the real data, not class sums; those that do: dm, ncfm"
        holder = summed(DM, [toy()])
        for ask in (
            lambda: holder.observe(OBJECTIVES[name], pool(toy().spec, 2).entry(0)),
            lambda: sums(OBJECTIVES[name], pool(toy().spec, 2).entry(0), toy()),
        ):
            with pytest.raises(SettingError, match=f"^{re.escape(message)}$"):
                ask()

    def test_batch_norm_is_refused(self) -> None:
        with pytest.raises(SettingError, match="batch norm makes a record's features depend on the records beside it"):
            sums(DM, pool(toy().spec, 1, norm="batch").entry(0), toy())

    def test_another_pool_is_refused_with_the_one_to_take(self) -> None:
        holder = summed(DM, [toy()])
        for source in (pool(toy().spec, 2, seed=6), pool(toy().spec, 3)):
            with pytest.raises(SettingError, match=r"condense with source=Pool\(\.\.\., size=2, seed=5\)"):
                condense(holder, 1, DM, network=TINY, source=source, steps=9)

    def test_another_objective_is_refused(self) -> None:
        with pytest.raises(SettingError, match="sums of dm, asked for ncfm; take the former"):
            summed(DM, [toy()]).observe(OBJECTIVES["ncfm"], pool(toy().spec, 2).entry(0))

    def test_it_shows_no_record(self) -> None:
        holder = summed(DM, [toy()])
        assert holder.data is None
        source = TrainedPool(lambda seed: build(TINY, (1, 8, 8), 3, seed), (), 3, 2, 5)
        with pytest.raises(SettingError, match="trained on the real data, which their holder keeps"):
            condense(holder, 1, DM, network=TINY, source=source, steps=2)

    def test_its_fingerprint_follows_the_sums_and_not_the_division(self) -> None:
        parts = [toy().subset(index) for index in torch.randperm(47).split(10)]
        assert summed(DM, parts).fingerprint == summed(DM, [toy()]).fingerprint
        assert summed(DM, parts[1:]).fingerprint != summed(DM, [toy()]).fingerprint

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda sites: [], "sums of entries ; needed: of each site those of entries 0, 1, ... of one pool"),
            (lambda sites: [sites[0], {0: sites[0][0]}], r"sums of entries \[0, 1\]; \[0\]; needed"),
            (lambda sites: [{0: sites[0][0], 2: sites[0][1]}], r"sums of entries \[0, 2\]; needed"),
            (lambda sites: [{0: sites[0][0], 1: sums_of(1, 2, 3)}], "a site's sums are of different records"),
            (
                lambda sites: [*sites, dict.fromkeys((0, 1), sums_of(1, 1))],
                r"sums of shapes \(3, 32\), \(2, 32\); needed",
            ),
        ],
    )
    def test_sums_that_do_not_fit_each_other_are_refused(self, change: Any, message: str) -> None:
        entries = {n: sums(DM, pool(toy().spec, 2).entry(n), toy()) for n in range(2)}
        with pytest.raises(DataError, match=message):
            Summed(toy().spec, DM, 5, change([entries]))


def sums_of(*counts: int) -> FixedSums:
    return FixedSums(torch.zeros(len(counts), 32, dtype=torch.int64), torch.tensor(counts))


class TestFixedPoint:
    @given(
        st.lists(st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), min_size=1, max_size=8), st.randoms()
    )
    def test_any_order_gives_the_same_bits(self, rows: list[list[int]], random: Any) -> None:
        pieces = [FixedSums(torch.tensor(row).view(3, 1), torch.ones(3, dtype=torch.int64)) for row in rows]
        whole = add_up(pieces)
        random.shuffle(pieces)
        half = len(pieces) // 2
        grouped = add_up([add_up(part) for part in (pieces[:half], pieces[half:]) if part])
        assert torch.equal(whole.sums, grouped.sums)
        assert whole.sums.flatten().tolist() == [sum(column) for column in zip(*rows, strict=True)]

    @pytest.mark.parametrize("value", [1e12, float("inf"), float("nan")])
    def test_features_that_would_overflow_are_refused(self, value: float) -> None:
        class Huge(nn.Module):
            def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
                return images.flatten(1) * 0 + value

        with pytest.raises(DataError, match=r"a feature of .* among 47 records; sums hold up to 5\.8\d*e\+09 for each"):
            sums(DM, pool(toy().spec, 1).entry(0)._replace(network=Huge()), toy())

    def test_sites_whose_sums_would_overflow_together_are_refused(self) -> None:
        large = FixedSums(torch.full((3, 1), -(2**61)), torch.ones(3, dtype=torch.int64))
        add_up([large, large])
        with pytest.raises(DataError, match="needed: at most"):
            add_up([large, large, large])


@pytest.mark.parametrize("kind", [tuple, list, Tensor, type(None)])
def test_what_holds_no_records_is_refused_by_its_kind(kind: type) -> None:
    pair = load_data("digits")
    nothing = {tuple: pair, list: list(pair), Tensor: pair.train.images, type(None): None}[kind]
    says = "a pair of Data" if kind is tuple else f"a {kind.__name__}"
    with pytest.raises((SettingError, DataError), match=f"{says}.*; needed: "):
        condense(nothing, 1, DM, network=TINY, steps=1)


def test_the_protocol_is_all_that_the_toolkit_s_holders_have_in_common() -> None:
    holders: Mapping[str, Holder] = {"own": Own(toy()), "summed": summed(DM, [toy()])}
    for holder in holders.values():
        assert holder.counts.tolist() == [20, 15, 12]
        assert holder.device.type == "cpu"
        assert holder.spec.classes == ("a", "b", "c")
        assert re.fullmatch(r"[0-9a-f]{16}", holder.fingerprint)
