from __future__ import annotations

import pytest

from fedcondense.avalanche.splits import check_split
from fedcondense.errors import DataError, SettingError

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


@pytest.mark.parametrize("experiences", [1, 2, 3, 6])
def test_divisors_of_the_number_of_classes_are_taken(experiences: int) -> None:
    check_split("animals", CLASSES, [5] * 6, [1] * 6, experiences)


@pytest.mark.parametrize("experiences", [0, -1, 4, 7, 2.0])
def test_others_are_refused_with_those_that_there_are(experiences: int) -> None:
    with pytest.raises(SettingError, match=f"animals: {experiences} experiences for 6 classes; .* 6: 1, 2, 3, 6"):
        check_split("animals", CLASSES, [5] * 6, [1] * 6, experiences)


@pytest.mark.parametrize(("train", "test", "use"), [(0, 1, "to learn from"), (5, 0, "to test on")])
def test_a_class_without_images_in_one_of_the_parts_is_named(train: int, test: int, use: str) -> None:
    with pytest.raises(DataError, match=rf"animals: 2 of 6 classes have no images {use} \(bee, fox\); needed: some"):
        check_split("animals", CLASSES, [5, train, 5, 5, 5, train], [1, test, 1, 1, 1, test], 3)
