from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError
from fedcondense.flower.comparison.bench import Bench
from fedcondense.flower.comparison.result import FederationProgress
from fedcondense.flower.comparison.rows import ROWS, Runner, row_of
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.one_shot import Condense, OneShot
from fedcondense.networks import build
from fedcondense.randomness import child_seed, stream
from fedcondense.training.fit import Fit, accuracy, fit_on


@pytest.mark.parametrize("name", [*STRATEGIES, *ROWS])
def test_every_strategy_and_default_row_has_a_name(name: str) -> None:
    row = row_of(name)
    assert row.name == name
    assert row.entry is STRATEGIES[row.strategy]
    assert row.about["rounds"] == row.rounds >= 1


@pytest.mark.parametrize(
    ("name", "strategy", "rounds"),
    [
        ("fedavg-7", "fedavg", 7),
        ("iterative-2", "iterative", 2),
        ("fedavg", "fedavg", 20),
        ("fedavg-8bit-5", "fedavg-8bit", 5),
    ],
)
def test_what_starts_from_weights_takes_a_number_of_rounds(name: str, strategy: str, rounds: int) -> None:
    row = row_of(name)
    assert (row.strategy, row.rounds) == (strategy, rounds)
    assert row.about["label"].endswith(f", {rounds} rounds")


@pytest.mark.parametrize(
    "name",
    [
        "fedavg-0",
        "fedavg-x",
        "fedavg-",
        "one-shot-2",
        "ridge-1",
        "fedavg--1",
        "",
        "feature-statistics-equal-bytes",
        "ridge-webp-20",
    ],
)
def test_other_names_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(SettingError, match=r"no row is called .* NAME-N are N rounds of what starts from weights"):
        row_of(name)


@pytest.mark.parametrize(
    ("name", "strategy", "codec"),
    [
        ("random-real-webp-20", "random-real", "webp-20"),
        ("one-shot-bits-2-patch", "one-shot", "bits-2-patch"),
        ("half-resolution-real-raw", "half-resolution-real", "raw"),
    ],
)
def test_what_sends_images_takes_a_codec(name: str, strategy: str, codec: str) -> None:
    row = row_of(name)
    assert (row.strategy, row.codec, row.rounds) == (strategy, codec, 1)
    assert row.about["label"].endswith(f", {codec}")
    assert row.about["travels"].endswith(f" as {codec}")


def test_a_codec_that_cannot_be_is_refused_by_its_name() -> None:
    with pytest.raises(SettingError, match="quality"):
        row_of("random-real-webp-200")
    with pytest.raises(SettingError, match="bits a value"):
        row_of("one-shot-bits-9")


def test_each_site_alone_is_a_row_without_a_message(train: Data, test: Data, held: Partition) -> None:
    """The networks are those that sites compare with when they evaluate: each by a seed of its own."""
    row = row_of("local-only")
    assert row.about == {
        "label": "each site alone, mean over sites",
        "travels": "nothing",
        "seen": "nobody sees anything",
        "rounds": 1,
    }
    least = int(train.labels[torch.as_tensor(held[0])].bincount(minlength=10).min()) + 2
    told: list[FederationProgress] = []
    bench = Bench(train, test, held, "convnet1-w16", 5, (5,), Fit(steps=5), min_records=least, progress=told.append)
    ran = Runner(bench, Condense()).run(row)
    assert (ran.strategy, ran.joined, len(ran.arrays)) == (None, None, 0)
    expected = []
    for place, index in enumerate(held):
        data = train.subset(index)
        data = data.subset((data.counts >= least)[data.labels])
        seed = child_seed(5, "client", place, "alone")
        network = build("convnet1-w16", train.spec.shape, 10, child_seed(seed, "network"))
        fit_on(network, data, Fit(steps=5), seed=seed, operations=data.spec.operations)
        expected.append(accuracy(network, test)[0])
    assert ran.row["accuracy"] == pytest.approx(sum(expected) / 3)
    assert ran.row["accuracy_worst"] == pytest.approx(min(expected))
    assert ran.row["sites"] == [pytest.approx(percent, abs=1e-3) for percent in expected]
    assert (ran.row["bytes_up"], ran.row["bytes_down"], ran.row["clients"]) == (0, 0, 3)
    counts = test.counts.tolist()
    mean = sum(n * value for n, value in zip(counts, ran.row["per_class"], strict=True)) / len(test)
    assert mean == pytest.approx(ran.row["accuracy"], abs=0.01)
    assert [at.detail for at in told] == [f"training {k} of 3, one per client" for k in (1, 2, 3)]


def test_a_site_alone_without_enough_records_is_left_out(train: Data, test: Data, held: Partition) -> None:
    few = train.subset(train.per_class(4, stream(0)))
    parts = (torch.arange(3), torch.arange(len(few)))
    bench = Bench(few, test, parts, "convnet1-w16", recipe=Fit(steps=1), min_records=4)
    assert Runner(bench, Condense()).run(row_of("local-only")).row["clients"] == 1
    with pytest.raises(SettingError, match="local-only: no client has 5 records of a class"):
        Runner(replace(bench, min_records=5), Condense()).run(row_of("local-only"))


def test_two_rows_of_ridge_differ_in_what_they_say() -> None:
    assert row_of("ridge").about["label"] == "ridge"
    assert row_of("ridge-equal-bytes").about["label"] == "ridge, equal bytes"
    about = row_of("ridge-8bit-equal-bytes").about
    assert about["label"] == "ridge, 8 bits, equal bytes"
    assert about["travels"] == "sums of few random features, as a factor at 8 bits"


def test_a_strategy_is_made_with_what_the_bench_says(
    train: Data, test: Data, held: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[ServerSide] = []

    def make(side: ServerSide) -> OneShot:
        sides.append(side)
        return OneShot(side.fit, side.limits, task=side.settings, **side.asked)

    monkeypatch.setitem(STRATEGIES, "noted", replace(STRATEGIES["one-shot"], make=make))
    bench = Bench(train, test, held, "convnet1-w16", 5, (5,), Fit(steps=3))
    ran = Runner(bench, Condense(1, "dm", steps=1, seed=9)).run(row_of("noted"))
    assert ran.joined is not None
    for side in sides:
        assert side.settings == Condense(1, "dm", steps=1, seed=5, network="convnet1-w16")
        assert (side.recipe, side.spec, side.network, side.seed) == (Fit(steps=3), test.spec, "convnet1-w16", 5)
        assert side.test is test
        assert side.limits.classes == train.spec.classes
        assert side.asked == {"min_train_nodes": 3, "min_available_nodes": 3}
