from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Answer, Node, Site
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.strategies.closed_head import (
    SHARPNESS,
    Head,
    balanced,
    check_head,
    counts_of,
    head_dims,
    too_few,
    with_head,
)
from fedcondense.flower.strategies.factors import STRENGTHS, factored, least_squares, products_of
from fedcondense.flower.strategies.features import features_of
from fedcondense.networks import build
from fedcondense.parametrizations import Pixels
from fedcondense.sets.synthetic import Part, Record, SyntheticSet
from fedcondense.training.fit import accuracy

NETWORK = "convnet2-w16"
NODE = Node("client-0", Caps.none())


def network_for(train: Data) -> nn.Module:
    return build(NETWORK, train.spec.shape, len(train.spec.classes), 3)


def task_for(train: Data, dims: int = 0) -> Head:
    model = network_for(train)
    packed = Packed.of(model.state_dict(), model)
    return Head(packed, train.spec.classes, train.spec.mean, train.spec.std, NETWORK, 5, dims)


def answers_of(train: Data, parts: Sequence[Tensor], task: Head) -> list[Answer[Sums]]:
    found = []
    for place, index in enumerate(parts):
        sums = task.prepare(Own(train.subset(index)), NODE._replace(place=place)).run()
        found.append(Answer(Site(f"client-{place}", str(place)), sums, len(index)))
    return found


def solved(train: Data, parts: Sequence[Tensor], dims: int = 0) -> nn.Module:
    task, model = task_for(train, dims), network_for(train)
    weights = with_head(network_for(train), task, answers_of(train, parts, task))
    return weights.load_into(model).eval()


@pytest.mark.parametrize("dims", [0, 60])
def test_division_does_not_matter(train: Data, test: Data, held: Partition, dims: int) -> None:
    skewed, together = solved(train, held, dims), solved(train, [torch.arange(len(train))], dims)
    assert accuracy(skewed, test)[0] == pytest.approx(accuracy(together, test)[0], abs=1)
    assert accuracy(skewed, test)[0] > accuracy(network_for(train), test)[0] + 50


def test_it_is_least_squares_on_the_networks_features(train: Data) -> None:
    model = solved(train, [torch.arange(len(train))])
    features = features_of(train, task_weights(train), 0)
    rows = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    targets = nn.functional.one_hot(train.labels, 10).double()
    gram = rows.T @ rows
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    scores = rows @ torch.linalg.solve(gram, rows.T @ targets)
    with torch.no_grad():
        logits = model(train.batch(torch.arange(len(train))).images) / SHARPNESS
    difference = logits.double() - (scores - scores.mean(1, keepdim=True))
    assert float(difference.abs().mean()) < 0.03  # of scores from 0 to 1: what eight bits take


def task_weights(train: Data) -> nn.Module:
    """Return the network as eight bits leave it."""
    model = network_for(train)
    return task_for(train).weights.weights(model).load_into(model)


def test_few_records_get_a_ridge_that_fits_them(train: Data, test: Data) -> None:
    few = train.subset(torch.arange(50))  # fewer than the network has features
    task, model = task_for(train), network_for(train)
    answers = answers_of(few, [torch.arange(50)], task)
    chosen = with_head(model, task, answers).load_into(model).eval()
    found = accuracy(chosen, test)[0]
    with torch.no_grad():
        features = features_of(test, task_weights(train), 0).double()
    bare = least_squares(
        [products_of(one.payload, 1 + features.shape[1], 10, "int8-deflated") for one in answers], 1e-7
    )
    said = (torch.cat([features, torch.ones(len(features), 1)], 1) @ bare).argmax(1)
    assert found > 100 * float((said == test.labels).double().mean()) + 5


def test_the_ridge_is_that_of_generalised_cross_validation() -> None:
    draws = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.randn(30, 12, generator=draws), torch.ones(30, 1)], 1).double()
    labels = nn.functional.one_hot(torch.randint(3, (30,), generator=draws), 3).double()
    gram, products = rows.T @ rows, rows.T @ labels

    def validated(strength: float) -> float:
        ridge = strength * gram.diagonal().mean() * torch.eye(13, dtype=torch.float64)
        hat = rows @ torch.linalg.solve(gram + ridge, rows.T)
        return float((labels - hat @ labels).square().sum() / (1 - hat.trace() / 30) ** 2)

    best = min(STRENGTHS, key=validated)
    assert best > STRENGTHS[0]  # it is a choice
    torch.testing.assert_close(least_squares([(gram, products)], None), least_squares([(gram, products)], best))


def test_all_layers_but_the_last_stay(train: Data, held: Partition) -> None:
    before, after = task_weights(train).state_dict(), solved(train, held).state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert changed == ["classifier.weight", "classifier.bias"]


def test_a_class_that_nobody_has_is_never_the_answer(train: Data, test: Data) -> None:
    few = train.subset(train.labels != 4)
    task = task_for(train)
    weights = with_head(network_for(train), task, answers_of(few, [torch.arange(len(few))], task))
    model = weights.load_into(network_for(train)).eval()
    with torch.no_grad():
        found = model(test.batch(torch.arange(len(test))).images).argmax(1)
    assert not bool((found == 4).any())
    assert len(found.unique()) == 9


@pytest.mark.parametrize("dims", [0, 30])
@pytest.mark.parametrize("records", [400, 20])
def test_no_more_is_sent_than_the_cost_says(train: Data, dims: int, records: int) -> None:
    job = task_for(train, dims).prepare(Own(train.subset(torch.arange(records))), NODE)
    sent = sum(value.nbytes for value in job.run().tensors.values())
    assert 0.5 * job.cost.nbytes < sent <= job.cost.nbytes  # deflated
    assert job.cost.networks == (NETWORK,)


@pytest.mark.parametrize("nbytes", [500, 2000])
def test_dimensions_fill_the_bytes(train: Data, nbytes: int) -> None:
    dims = head_dims(network_for(train), 10, nbytes)
    costs = [0.8 * task_for(train, d).prepare(Own(train), NODE).cost.nbytes for d in (dims, dims + 1)]
    assert costs[0] <= nbytes < costs[1]


def test_no_more_dimensions_than_the_network_has(train: Data) -> None:
    last = network_for(train).classifier
    assert isinstance(last, nn.Linear)
    assert head_dims(network_for(train), 10, 10_000_000) == last.in_features


def test_without_bytes_it_takes_about_as_many_as_weights(train: Data) -> None:
    model = network_for(train)
    dims = head_dims(model, 10, 0)
    cost = task_for(train, dims).prepare(Own(train), NODE).cost
    weights = len(Packed.of(model.state_dict(), model).blob)
    assert 0.9 * weights < cost.nbytes <= weights / 0.8


def test_features_are_of_full_precision_under_a_callers_autocast(train: Data) -> None:
    job = task_for(train, 20).prepare(Own(train.subset(torch.arange(100))), NODE)
    plain = job.run().tensors
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = job.run().tensors
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value, rtol=0, atol=0)


def test_a_network_without_a_last_linear_layer_is_refused() -> None:
    with pytest.raises(SettingError, match=r"has no last nn\.Linear with a bias.* head = "):
        head_dims(nn.Sequential(nn.Conv2d(1, 2, 3)), 10, 1000)


def named(sets: Sequence[tuple[int, ...]]) -> dict[str, SyntheticSet]:
    """Return a set per site, made of so many records of the classes a and b."""
    found = {}
    for k, counts in enumerate(sets):
        record = Record("any", (1, 4, 4), ("a", "b"), (0.5,), (0.5,), counts=counts, method="any")
        images = {"images": torch.zeros(2, 1, 4, 4)}
        found[f"site-{k}"] = SyntheticSet([Part(images, torch.tensor([0, 1]), Pixels(), record)])
    return found


class TestBalance:
    def test_weights_make_classes_count_alike(self) -> None:
        counts = counts_of(named([(30, 10), (30, 0)]), ("b", "c", "a"))
        assert counts.tolist() == [10, 0, 60]
        assert balanced(counts, 1.0) == pytest.approx((3.5, 1, 35 / 60))
        assert balanced(counts, 0.0) == (1, 1, 1)

    def test_parts_of_a_set_are_of_the_same_records(self) -> None:
        one = named([(30, 10)])["site-0"]
        assert counts_of({"site-0": SyntheticSet.join([one, one])}, ("a", "b")).tolist() == [30, 10]

    def test_records_that_weigh_twice_are_as_good_as_two(self, train: Data) -> None:
        few = train.subset(torch.arange(200))
        (twos,) = torch.where(few.labels == 2)
        twice = few.subset(torch.cat([torch.arange(200), twos]))
        task, balance = task_for(train), tuple(2.0 if c == 2 else 1.0 for c in range(10))
        model = network_for(train)
        weighed, doubled = (
            with_head(model, one, answers_of(data, [torch.arange(len(data))], one)).tensors["classifier.weight"]
            for one, data in ((replace(task, balance=balance), few), (task, twice))
        )
        plain = with_head(model, task, answers_of(few, [torch.arange(200)], task)).tensors["classifier.weight"]
        assert float((weighed - doubled).norm()) < 0.2 * float((weighed - plain).norm())

    @pytest.mark.parametrize("balance", [(1.0,) * 9, (1.0,) * 9 + (0.0,), (1.0,) * 9 + (1e5,)])
    def test_other_weights_are_refused_at_the_node(self, train: Data, balance: tuple[float, ...]) -> None:
        with pytest.raises(SettingError, match="balance needs 10 numbers above 0"):
            replace(task_for(train), balance=balance).prepare(Own(train), NODE)

    @pytest.mark.parametrize(
        ("answered", "why"),
        [
            ({"site-0": (10, 10)}, "those who answered hold 20 of 60 records, and two thirds are needed"),
            ({"site-0": (10, 10), "site-1": (20, 0)}, ""),
            ({"site-1": (20, 0), "site-2": (20, 0)}, "nobody who answered holds 'b'"),
            ({"site-0": (10, 10), "late": (60, 0)}, ""),  # came after the first round: 80 of 120 records
            ({"site-1": (20, 0), "late": (50, 20)}, ""),
            ({"site-1": (20, 0), "late": (70, 0)}, "nobody who answered holds 'b'"),
        ],
    )
    def test_two_thirds_of_the_records_and_all_classes_are_enough(
        self, answered: dict[str, tuple[int, int]], why: str, train: Data
    ) -> None:
        task = replace(task_for(train, 6), classes=("a", "b"))
        sets = named([(10, 10), (20, 0), (20, 0)])
        answers = [Answer(Site(name), sums_of(counts, 7), sum(counts)) for name, counts in answered.items()]
        assert too_few(sets, answers, task, network_for(train)) == why


def sums_of(counts: tuple[int, int], size: int) -> Sums:
    """Return the factor of features that are random, for so many records of two classes."""
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    rows = torch.randn(len(labels), size - 1, generator=torch.Generator().manual_seed(0))
    features = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    return factored(features, torch.nn.functional.one_hot(labels, 2).float(), "int8-deflated")


class TestCheck:
    def test_other_dimensions_are_refused(self, train: Data) -> None:
        (answer,) = answers_of(train, [torch.arange(300)], task_for(train, 20))
        check_head(answer.payload, network_for(train), 10, 20)
        for dims in (0, 19, 21):
            with pytest.raises(UntrustedSetError):
                check_head(answer.payload, network_for(train), 10, dims)

    def test_scales_beyond_all_bounds_are_refused(self, train: Data) -> None:
        (answer,) = answers_of(train, [torch.arange(300)], task_for(train, 20))
        tensors = dict(answer.payload.tensors)
        for wrong in (-1.0, 1e31):
            odd = Sums({**tensors, "scales": tensors["scales"] * 0 + wrong})
            with pytest.raises(UntrustedSetError, match="scales of a factor"):
                check_head(odd, network_for(train), 10, 20)

    def test_weights_of_another_network_are_refused_at_the_node(self, train: Data) -> None:
        other = build("convnet1-w16", train.spec.shape, 10, 0)
        task = replace(task_for(train), weights=Packed.of(Weights.of(other).tensors, other))
        with pytest.raises(UntrustedSetError, match="weights of"):
            task.prepare(Own(train), NODE)
