from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedcondense.condensing import condense
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, SettingError
from fedcondense.networks import ConvNet
from fedcondense.parametrizations import Pixels
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import Evaluation, evaluate, evaluate_as_recorded, train_on
from fedcondense.training.fit import Fit

TINY = partial(ConvNet, width=8, depth=2)
QUICK = Fit(steps=15, batch=16)
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits")


def patterns(labels: list[int]) -> Tensor:
    """One bright row a class, which any network learns at once."""
    images = torch.zeros(len(labels), *SHAPE, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, label] = 255
    return images


def real(labels: list[int], names: tuple[str, ...]) -> Data:
    return Data(patterns([ord(names[k]) - ord("a") for k in labels]), torch.tensor(labels), spec(names))


def spec(names: tuple[str, ...]) -> Spec:
    return Spec("toy", SHAPE, names, (0.1,), (0.3,), ())


def synthetic(labels: list[int], names: tuple[str, ...], counts: tuple[int, ...] = ()) -> SyntheticSet:
    """An image shows the pattern of its class's name, whatever its label."""
    images = patterns([ord(names[k]) - ord("a") for k in labels])
    record = Record("toy", SHAPE, names, (0.1,), (0.3,), counts=counts)
    return SyntheticSet([Part({"images": images}, torch.tensor(labels, dtype=torch.uint8), Pixels(), record)])


class Linear(nn.Module):
    """Softmax regression from zero, so that nothing of a seed is in it but the order of batches."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor, layer: str = "embedding") -> Tensor:
        return self(images) if layer == "logits" else images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(images.flatten(1))
        return out


PLAIN = Fit(steps=40, batch=64, lr=0.05, augment=False)


class TestClasses:
    def test_they_are_matched_by_name_not_by_place(self) -> None:
        made = synthetic([0, 1, 2], ("c", "a", "b"))
        result = evaluate(made, real([0, 1, 2], ("a", "b", "c")), network=Linear, recipe=PLAIN, seeds=[0])
        assert result.accuracy == 100

    def test_a_class_that_the_test_lacks_is_left_out_of_training(self) -> None:
        made = synthetic([0, 1, 2], ("c", "d", "b"))
        module = train_on(made, real([0, 1], ("b", "c")), network=Linear, recipe=PLAIN)
        assert module(made.decode().images).shape == (3, 2)
        result = evaluate(made, real([0, 1], ("b", "c")), network=Linear, recipe=PLAIN, seeds=[0])
        assert result.per_class == (100, 100)

    def test_the_union_of_joined_sets_covers_what_none_of_them_does(self) -> None:
        joined = SyntheticSet.join([synthetic([0, 1], ("a", "b")), synthetic([0, 1], ("c", "d"))])
        result = evaluate(joined, real([0, 1, 2, 3], ("d", "c", "b", "a")), network=Linear, recipe=PLAIN, seeds=[0])
        assert result.accuracy == 100

    def test_a_class_without_test_images_is_nan_and_counts_nothing(self) -> None:
        made = synthetic([0, 1], ("a", "b", "c"))
        result = evaluate(made, real([0, 0, 1], ("a", "b", "c")), network=Linear, recipe=PLAIN, seeds=[0])
        assert result.per_class[:2] == (100, 100)
        assert result.per_class[2] != result.per_class[2]
        assert result.accuracy == 100

    def test_what_data_come_as_is_taken_and_of_a_name_the_test_split(self, digits: DataSet) -> None:
        few = select(digits.train, 1)
        found = {
            evaluate(few, test, recipe=Fit(steps=2), seeds=[0]).accuracies
            for test in (digits.test, "digits", (digits.test.images, digits.test.labels))
        }
        assert len(found) == 1

    def test_no_class_in_common_is_refused(self) -> None:
        with pytest.raises(SettingError, match=r"no class of the set \(g, h, \.\.\.\) is one of the data's"):
            evaluate(synthetic([0], ("g", "h")), real([0], ("a", "b")))

    def test_another_shape_is_refused(self, digits: DataSet) -> None:
        data = Data(torch.zeros(1, 1, 16, 16).byte(), torch.zeros(1).long(), replace(spec(("a",)), shape=(1, 16, 16)))
        with pytest.raises(SettingError, match=r"the set has images of \(1, 8, 8\), the data of \(1, 16, 16\)"):
            evaluate(synthetic([0], ("a",)), data)


class TestWeights:
    def test_weighted_training_is_training_on_copies(self) -> None:
        """a stands for three times the records of b: the same as three images of a, full batches, plain descent."""
        plain = Fit(10, 64, 0.05, 0.0, 0.0, schedule="constant", augment=False)
        like = real([0, 1], ("a", "b"))
        weighted = train_on(synthetic([0, 1], ("a", "b"), (30, 10)), like, network=Linear, recipe=plain, weighted=True)
        copies = synthetic([0, 0, 0, 1], ("a", "b"))
        by_hand = train_on(copies, like, network=Linear, recipe=plain)
        equal = train_on(synthetic([0, 1], ("a", "b"), (30, 10)), like, network=Linear, recipe=plain)
        torch.testing.assert_close(weighted.head.weight, by_hand.head.weight)  # type: ignore[union-attr]
        assert not torch.allclose(weighted.head.weight, equal.head.weight)  # type: ignore[union-attr, arg-type]

    def test_sets_are_not_weighted_unless_told(self) -> None:
        one = synthetic([0, 1], ("a", "b"), (5, 7))
        like = real([0, 1], ("a", "b"))
        settings: dict[str, Any] = {"network": Linear, "recipe": Fit(0), "seeds": [0]}
        assert not evaluate(one, like, **settings).weighted
        assert not evaluate(SyntheticSet.join([one, one]), like, **settings).weighted
        assert evaluate(one, like, weighted=True, **settings).weighted


class TestEvaluation:
    def test_mean_deviation_and_what_is_recorded(self, digits: DataSet) -> None:
        made = select(digits.train, 1)
        result = evaluate(made, digits.test, network="convnet2-w32", recipe=QUICK, seeds=(3, 5))
        assert result.accuracy == pytest.approx(statistics.fmean(result.accuracies))
        assert result.accuracy_std == pytest.approx(statistics.stdev(result.accuracies))
        assert len(set(result.accuracies)) == 2
        given = json.loads(json.dumps(result.to_dict()))
        assert given["seeds"] == [3, 5]
        assert given["network"] == "convnet2-w32"
        assert Fit(**given["recipe"]) == QUICK
        assert given["accuracies"] == [round(a, 3) for a in result.accuracies]
        assert given["test"] == f"digits, {len(digits.test)} images"

    def test_one_network_has_no_deviation(self) -> None:
        result = Evaluation((50.0,), (50.0,), "x", Fit(), (0,), False, "x", 0.0)
        assert result.accuracy_std == 0

    def test_per_class_and_accuracy_agree(self, digits: DataSet) -> None:
        result = evaluate(select(digits.train, 2), digits.test, network=TINY, recipe=QUICK, seeds=(0, 1))
        by_class = sum(p * n for p, n in zip(result.per_class, digits.test.counts.tolist(), strict=True))
        assert by_class / len(digits.test) == pytest.approx(result.accuracy, rel=1e-5)

    def test_equal_seeds_give_equal_numbers_in_any_company(self, digits: DataSet) -> None:
        made = select(digits.train, 1)
        together = evaluate(made, digits.test, network=TINY, recipe=QUICK, seeds=(0, 1, 2)).accuracies
        alone = evaluate(made, digits.test, network=TINY, recipe=QUICK, seeds=(2,)).accuracies
        assert together[2:] == alone

    def test_progress_runs_over_all_networks(self) -> None:
        seen: list[tuple[int, int]] = []
        evaluate(
            synthetic([0, 1], ("a", "b")),
            real([0, 1], ("a", "b")),
            network=Linear,
            recipe=Fit(3),
            seeds=(0, 1),
            progress=lambda step, steps: seen.append((step, steps)),
        )
        assert seen == [(k, 6) for k in range(1, 7)]

    def test_no_seeds_are_refused(self) -> None:
        with pytest.raises(SettingError, match="no seeds; give one per network"):
            evaluate(synthetic([0], ("a",)), real([0], ("a",)), seeds=())

    @pytest.mark.parametrize(
        "seeds", [3, "01", b"01", {0, 1}, {0: 1}, None, list, np.eye(2, dtype=int), [0.5], [True], [-1], [2**63]]
    )
    def test_what_is_no_row_of_seeds_is_refused(self, seeds: Any) -> None:
        with pytest.raises(SettingError, match=r"^seeds? .*; needed: a "):
            evaluate(synthetic([0], ("a",)), real([0], ("a",)), seeds=seeds)

    def test_a_condensed_set_is_worth_more_than_its_start(self, digits: DataSet) -> None:
        """And both more than a guess: the whole of the core at work."""
        recipe = Fit(steps=60, batch=16)
        start, made = (condense(digits.train, 1, network=TINY, steps=steps) for steps in (0, 60))
        before, after = (
            evaluate(s, digits.test, network=TINY, recipe=recipe, seeds=(0, 1)).accuracy for s in (start, made)
        )
        assert after > before > 15


class TestAsRecorded:
    NEW_PROCESS = """
import json, sys
import torch
torch.set_num_threads(1)
from fedcondense.data.loading import load_data
from fedcondense.training.evaluation import evaluate_as_recorded
from fedcondense.sets.synthetic import SyntheticSet
test = load_data("digits").test
for path in sys.argv[1:]:
    print(json.dumps(evaluate_as_recorded(SyntheticSet.load(path), test).accuracies))
"""

    def test_saved_loaded_in_a_new_process_and_evaluated_it_gives_the_identical_number(
        self, digits: DataSet, tmp_path: Path
    ) -> None:
        """A pixel set, tiles, and weighted parts of both."""
        pixels = condense(digits.train, 1, network="convnet2-w32", steps=2)
        tiles = condense(digits.train, 1, "dm", "multi-formation", network="convnet2-w32", steps=2)
        paths, expected = [], []
        for name, made in (("pixels", pixels), ("tiles", tiles), ("both", SyntheticSet.join([pixels, tiles]))):
            recipe = Fit(steps=12, batch=8, lr=0.02)
            result = evaluate(
                made, digits.test, network="convnet2-w32", recipe=recipe, seeds=(0, 4), weighted=name == "both"
            )
            paths.append(str(made.with_evaluation(result.to_dict()).save(tmp_path / name)))
            expected.append(list(result.accuracies))
        command = [sys.executable, "-c", self.NEW_PROCESS, *paths]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line) for line in done.stdout.splitlines()] == expected

    def test_a_set_without_an_evaluation_is_refused(self) -> None:
        with pytest.raises(SettingError, match="this set holds no evaluation; call `evaluate`"):
            evaluate_as_recorded(synthetic([0], ("a",)), real([0], ("a",)))

    @pytest.mark.parametrize(
        "change",
        [
            {"recipe": {"steps": "many"}},
            {"recipe": {"steps": 10**12}},
            {"recipe": {"steps": 10**6, "batch": 1}},
            {"recipe": {"steps": 0}, "seeds": [0] * 10**5},
            {"recipe": {"unknown": 1}},
            {"recipe": {"schedule": "cosine"}},
            {"recipe": 3},
            {"recipe": None},
            {"seeds": 3},
            {"seeds": ["x"]},
            {"seeds": []},
            {"network": "functools.partial(...)"},
        ],
    )
    def test_an_evaluation_that_cannot_be_repeated_is_refused(self, change: dict[str, Any]) -> None:
        result = Evaluation((50.0,), (50.0,), "convnet2-w32", Fit(1), (0,), False, "x", 0.0)
        plain = synthetic([0], ("a",))
        with pytest.raises(SettingError):
            evaluate_as_recorded(plain.with_evaluation(result.to_dict() | change), real([0], ("a",)))

    def test_a_field_that_is_missing_is_named(self) -> None:
        made = synthetic([0], ("a",)).with_evaluation({"accuracy": 50})
        with pytest.raises(SettingError, match=r"this set's evaluation cannot be repeated \('recipe'\)"):
            evaluate_as_recorded(made, real([0], ("a",)))


def test_a_network_that_left_the_finite_numbers_has_no_accuracy() -> None:
    train, test = load_data("digits")
    with pytest.raises(DivergenceError, match="outputs that are not finite after training; take a smaller step size"):
        evaluate(select(train, 1, "random"), test, network="mlp", recipe=Fit(steps=30, lr=1e9), seeds=[0])


def test_classes_that_the_set_lacks_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Two of four test images are of classes that the set has no image of, one of them without a name in it."""
    made = synthetic([0, 1], ("a", "b", "c"))
    result = evaluate(made, real([0, 1, 2, 3], ("a", "b", "c", "d")), network=Linear, recipe=PLAIN, seeds=[0])
    assert result.missing == ("c", "d")
    assert "no image of c, d in the set: networks do not learn these 2 classes, whose test images" in caplog.text
    caplog.clear()
    result = evaluate(made, real([0, 1], ("a", "b", "c")), network=Linear, recipe=PLAIN, seeds=[0])
    assert (result.accuracy, result.missing, caplog.text) == (100, (), "")
