from __future__ import annotations

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score

from fedcondense.errors import SettingError
from fedcondense.training.scores import scores_of, wilson

LABELS = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
PROBABILITIES = (NOISE + 1.5 * torch.nn.functional.one_hot(LABELS, 3)).softmax(1)
NAMES = ("ash", "elm", "oak")


def test_scores_agree_with_scikit_learn() -> None:
    found, called = scores_of(PROBABILITIES, LABELS, NAMES), PROBABILITIES.argmax(1)
    assert found.confusion == tuple(map(tuple, confusion_matrix(LABELS, called).tolist()))
    assert found.balanced_accuracy == pytest.approx(100 * balanced_accuracy_score(LABELS, called))
    areas = roc_auc_score(LABELS, PROBABILITIES.double().numpy(), multi_class="ovr", average=None)
    assert [one.auroc for one in found.classes] == pytest.approx(list(areas))


def test_sensitivity_is_of_the_class_and_specificity_of_the_others() -> None:
    """Two of three are found, and one of two others is taken for it."""
    sure = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    ash = scores_of(sure, torch.tensor([0, 0, 0, 1, 1]), ("ash", "elm")).classes[0]
    assert (ash.records, ash.specificity) == (3, 50.0)
    assert ash.sensitivity == pytest.approx(200 / 3)
    assert ash.auroc == pytest.approx(5 / 6)


def test_calibration_is_how_far_confidence_is_off() -> None:
    """Ten of one confidence of which so many are right; and ten that are sure and wrong."""
    modest = torch.tensor([[0.7, 0.3]] * 10)
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert scores_of(modest, labels, ("a", "b")).calibration_error == pytest.approx(0, abs=1e-4)
    sure = torch.tensor([[1.0, 0.0]] * 10)
    assert scores_of(sure, torch.ones(10, dtype=torch.int64), ("a", "b")).calibration_error == pytest.approx(100)


def test_a_class_that_does_not_occur_is_not_said_to_be_wrong() -> None:
    found = scores_of(PROBABILITIES, torch.zeros(200, dtype=torch.int64), NAMES)
    assert found.classes[1].sensitivity is None
    assert found.classes[1].auroc is None
    assert found.classes[0].specificity is None
    assert found.balanced_accuracy == found.classes[0].sensitivity


def test_intervals_hold_near_the_ends() -> None:
    assert wilson(0, 20)[0] == pytest.approx(0, abs=1e-9)
    assert wilson(20, 20) == pytest.approx((83.9, 100), abs=0.1)
    assert wilson(0, 0) == (0.0, 100.0)


def test_what_does_not_fit_is_refused() -> None:
    for probabilities, labels in ((PROBABILITIES[:, :2], LABELS), (PROBABILITIES[:0], LABELS[:0])):
        with pytest.raises(SettingError, match=r"needed: \(N, K\)"):
            scores_of(probabilities, labels, NAMES)
