from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fedcondense.condensing import condense
from fedcondense.data.images import Data, DataSet
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, SettingError
from fedcondense.memory import Memory
from fedcondense.memory.stored import count_stored
from fedcondense.networks import ConvNet, build
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate
from fedcondense.training.fit import Fit, fit
from fedcondense.training.labels import relabel

TINY = partial(ConvNet, width=8, depth=2)
SHORT = Fit(steps=12)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def tiles(digits: DataSet) -> SyntheticSet:
    return select(digits.train, 2, "half-resolution", seed=0)


def taught(synthetic: SyntheticSet, data: Data, **settings: Any) -> SyntheticSet:
    return relabel(synthetic, data, **{"network": TINY, "recipe": SHORT, **settings})


def naive(synthetic: SyntheticSet, data: Data, k: int, temperature: float) -> Tensor:
    """What the k-th teacher says, one image after another."""
    seed = child_seed(0, "teacher", k)
    network = build(TINY, data.spec.shape, len(data.spec.classes), seed)
    batch = data.batch(torch.randperm(len(data), generator=stream(seed, "images"))[: 12 * 64])
    fit(network, batch.images, batch.targets, SHORT, seed=seed, operations=data.spec.operations)
    network.eval()
    with torch.no_grad():
        return torch.cat([(network(image[None]) / temperature).softmax(1) for image in synthetic.decode().images])


@pytest.mark.parametrize(("teachers", "share", "temperature"), [(1, 0.5, 2.0), (2, 0.25, 1.0), (1, 1.0, 3.0)])
def test_labels_are_mixed_with_the_mean_of_what_teachers_say(
    digits: DataSet, tiles: SyntheticSet, teachers: int, share: float, temperature: float
) -> None:
    found = taught(tiles, digits.train, teachers=teachers, share=share, temperature=temperature)
    said = sum(naive(tiles, digits.train, k, temperature) for k in range(teachers)) / teachers
    expected = (1 - share) * tiles.decode().targets + share * said
    torch.testing.assert_close(found.decode().targets, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.decode().images, tiles.decode().images)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_every_way_of_storing_images_keeps_a_label_for_each_decoded_one(name: str, digits: DataSet) -> None:
    made = condense(digits.train, 4, "dm", name, network=TINY, steps=2)
    found = taught(made, digits.train)
    assert found.parts[0].targets.shape == (len(made), 10)
    again = SyntheticSet.from_bytes(found.to_bytes())
    torch.testing.assert_close(again.decode().targets, found.decode().targets, rtol=0, atol=0)
    assert torch.equal(again.decode().images, made.decode().images)
    extra = found.nbytes - made.nbytes - 2 * 10 * len(made) + made.parts[0].targets.nbytes
    assert 0 <= extra < 200  # the record says by whom
    assert found.counts().sum() == len(made)


def test_stored_images_keep_their_class_in_a_memory(digits: DataSet, tiles: SyntheticSet) -> None:
    found = taught(tiles, digits.train, share=0.4)
    assert torch.equal(found.parts[0].labels(), tiles.parts[0].labels())
    assert count_stored([found]) == count_stored([tiles])


def test_a_part_without_images_has_no_labels(tiles: SyntheticSet) -> None:
    (part,) = tiles.parts
    empty = replace(
        part, codes={name: code[:0] for name, code in part.codes.items()}, targets=torch.zeros(0, 10).half()
    )
    assert empty.labels().shape == (0,)


class Taught:
    """Half-resolution images whose labels are a teacher's alone: some classes may be left with none."""

    per_image = 4

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        return taught(select(data, ipc, "half-resolution", seed=seed), data, share=1.0, recipe=Fit(steps=1))


def test_a_memory_of_relabelled_sets_is_condensed_again(digits: DataSet) -> None:
    memory = Memory(10, Taught(), update="recondense")
    for begin in (0, 300):
        index = torch.arange(begin, begin + 300)
        memory.add(Data(digits.train.images[index], digits.train.labels[index], digits.train.spec))
    assert memory.sets


def test_the_classes_of_a_part_are_found_by_name(digits: DataSet) -> None:
    whole = select(digits.train, 1, seed=0)
    few = whole.restrict(["7", "2"])
    assert few is not None
    joined = SyntheticSet.join([few, whole])
    found = taught(joined, digits.train, share=1.0)
    names = found.classes
    said = naive(joined, digits.train, 0, 2.0)
    columns = [digits.train.spec.classes.index(name) for name in few.classes]
    alone = said[: len(few), columns]
    expected = alone / alone.sum(1, keepdim=True)
    kept = found.decode().targets[: len(few), [names.index(name) for name in few.classes]]
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-3)


def test_one_seed_gives_one_set_and_another_another(digits: DataSet, tiles: SyntheticSet) -> None:
    first, second, other = (taught(tiles, digits.train, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.parts[0].targets, second.parts[0].targets)
    assert not torch.equal(first.parts[0].targets, other.parts[0].targets)


def test_the_record_says_so_and_progress_counts_all_teachers(digits: DataSet, tiles: SyntheticSet) -> None:
    seen: list[tuple[int, int]] = []
    found = taught(tiles, digits.train, teachers=2, progress=lambda *now: seen.append(now))
    assert found.record.method.startswith("half-resolution, labels 0.5 by 2 ")
    assert found.record.method.endswith(" at temperature 2")
    assert found.record.seconds >= tiles.record.seconds
    assert seen == [(k + 1, 24) for k in range(24)]


def test_networks_learn_from_it(digits: DataSet, tiles: SyntheticSet) -> None:
    found = relabel(tiles, digits.train, network=TINY, recipe=Fit(steps=200))
    assert evaluate(found, digits.test, network=TINY, recipe=Fit(steps=200), seeds=[0]).accuracy > 30


def test_few_classes_and_a_low_temperature_still_give_probabilities(digits: DataSet) -> None:
    few = select(digits.train, 3, seed=0).restrict(["1", "8"])
    assert few is not None
    found = taught(few, digits.train, temperature=0.001)
    assert SyntheticSet.from_bytes(found.to_bytes()).decode().targets.sum(1).allclose(torch.ones(6), atol=1e-2)


def test_teachers_see_images_as_they_learned_to_whatever_the_sets_record_says(
    digits: DataSet, tiles: SyntheticSet
) -> None:
    otherwise = tiles.with_record(mean=(0.0,), std=(1.0,))
    found, expected = (taught(one, digits.train).parts[0].targets for one in (otherwise, tiles))
    assert torch.equal(found, expected)


def test_a_teacher_that_diverges_is_said_to(digits: DataSet, tiles: SyntheticSet) -> None:
    with pytest.raises(DivergenceError, match="a teacher diverged; try a smaller step size"):
        taught(tiles, digits.train, recipe=Fit(steps=30, lr=1e6))


@pytest.mark.parametrize("settings", [{"teachers": 0}, {"share": 0.0}, {"share": 1.1}, {"temperature": 0.0}])
def test_numbers_that_cannot_work(settings: dict[str, Any], digits: DataSet, tiles: SyntheticSet) -> None:
    with pytest.raises(SettingError, match="needed: 1 or more, a share above 0 and up to 1, a temperature above 0"):
        taught(tiles, digits.train, **settings)


def test_sets_that_these_data_cannot_teach(digits: DataSet, tiles: SyntheticSet) -> None:
    spec = digits.train.spec
    others = Data(digits.train.images, digits.train.labels, replace(spec, classes=tuple("abcdefghij")))
    with pytest.raises(SettingError, match=r"lacks 10 classes \(0, 1, 2, 3, 4\)"):
        taught(tiles, others)
    wide = Data(digits.train.images.repeat(1, 1, 2, 2), digits.train.labels, replace(spec, shape=(1, 16, 16)))
    with pytest.raises(SettingError, match="relabel with data of the set's shape"):
        taught(tiles, wide)
    with pytest.raises(SettingError, match="promises privacy"):
        taught(tiles.with_record(privacy={"epsilon": 1.0}), digits.train)
