from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split

from fedcondense.data.given import as_data
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.items import from_dataset
from fedcondense.data.loading import load_data
from fedcondense.data.vocabulary import texts, warn_of_alike
from fedcondense.errors import DataError

WORDS = ("ant", "bee", "cow", "dog", "eel", "fox")


class Named(Dataset[tuple[Any, int]]):
    """Flat images whose level says which word theirs is, whatever the label."""

    def __init__(self, words: Any, draws: list[int], **more: Any) -> None:
        self.words, self.draws = list(words), draws
        self.classes: Any = self.words
        for name, value in more.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        label = self.draws[i]
        image = np.full((8, 8), 10 + WORDS.index(self.words[label]), np.uint8)
        transform = getattr(self, "target_transform", None)
        return image, label if transform is None else transform(label)


class Around(Dataset[Any]):
    """Somebody's own data set around another."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[i]


def is_matched(data: Data) -> bool:
    """Say whether each image has the name that its level stands for."""
    return all(
        data.spec.classes[label] == WORDS[level - 10]
        for label, level in zip(data.labels.tolist(), data.images[:, 0, 0, 0].tolist(), strict=True)
    )


leaves = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True).flatmap(
    lambda words: st.lists(st.integers(0, len(words) - 1), min_size=1, max_size=5).map(
        lambda draws: Named(words, draws)
    )
)


def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(inner, st.randoms(use_true_random=False)).map(
            lambda given: Subset(given[0], given[1].choices(range(len(given[0])), k=4))
        ),
        inner.map(lambda one: random_split(one, [len(one)], torch.Generator().manual_seed(0))[0]),
        st.lists(inner, min_size=1, max_size=3).map(ConcatDataset),
        inner.map(lambda one: Subset(Around(one), range(len(one))) if isinstance(one, Named) else one),
    )


@given(dataset=st.recursive(leaves, around, max_leaves=5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_labels_are_matched_by_name_through_any_nesting(dataset: Any) -> None:
    data = from_dataset(dataset)
    assert is_matched(data)
    assert len(set(data.spec.classes)) == len(data.spec.classes)


@given(train=st.permutations(WORDS), count=st.integers(1, 6), test=st.permutations(WORDS))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_pair_is_matched_by_name_or_refused(train: list[str], count: int, test: list[str]) -> None:
    pair = (Named(train[:count], [k % count for k in range(6)]), Named(test, [0, 1, 2]))
    if set(test[:3]) <= set(train[:count]):
        held = load_data(pair)
        assert is_matched(held.train)
        assert is_matched(held.test)
        assert held.test.spec == held.train.spec
    else:
        with pytest.raises(DataError, match="is none of the classes that are known"):
            load_data(pair)


def test_a_class_that_the_test_part_only_lists_is_no_matter() -> None:
    held = load_data((Named(WORDS[:2], [0, 1]), Named(("zoo", *WORDS[:2]), [1, 2])))
    assert is_matched(held.test)


def test_parts_that_are_data_already_are_matched_by_name() -> None:
    train, test = from_dataset(Named(WORDS, [0, 1])), from_dataset(Named(WORDS[::-1], [5, 4]))
    held = load_data(DataSet(train, test))
    assert held.test.spec.classes == WORDS
    assert is_matched(held.test)
    same = DataSet(train, train)
    assert load_data(same) is same


class TestTargetTransforms:
    def test_move_the_names_with_the_labels(self) -> None:
        data = from_dataset(Named(WORDS[:3], [0, 1, 2], target_transform=lambda label: torch.tensor(2 - label)))
        assert data.spec.classes == ("cow", "bee", "ant")
        assert is_matched(data)
        assert is_matched(from_dataset(Named(WORDS[:3], [0, 1, 2], target_transform=lambda label: label + 10)))

    @pytest.mark.parametrize(
        ("transform", "says"),
        [
            (lambda label: label // 2, "is that of 'ant' and 'bee'"),
            (lambda label: float(label), "needed: a whole number"),
            (lambda label: [0][label], "raised IndexError"),
        ],
    )
    def test_that_leave_no_name_for_a_label_are_refused_unless_names_are_given(self, transform: Any, says: str) -> None:
        held = Named(WORDS[:3], [0, 0], target_transform=transform)
        with pytest.raises(DataError, match=rf"target_transform of label \d.*{says}.*give classes="):
            from_dataset(held)
        if says.startswith("is that"):
            assert from_dataset(held, classes=["small", "large"]).spec.classes == ("small", "large")


class TestClassesAndIndex:
    def test_an_index_alone_names_labels(self) -> None:
        held = Named(WORDS[:2], [0, 1, 1], classes=None, class_to_idx={"bee": 1, "ant": 0})
        assert is_matched(from_dataset(held))

    def test_synonyms_are_one_name(self) -> None:
        index = {"ant": 0, "emmet": 0, "bee": 1}
        held = Named(WORDS[:2], [0, 1], classes=[("ant", "emmet"), ("bee",)], class_to_idx=index)
        assert from_dataset(held).spec.classes == ("ant, emmet", "bee")

    def test_dicts_are_read_in_both_directions(self) -> None:
        for classes in ({"ant": 0, "bee": 1}, {1: "bee", 0: "ant"}):
            assert is_matched(from_dataset(Named(WORDS[:2], [1, 0], classes=classes)))

    def test_those_that_disagree_are_refused(self) -> None:
        held = Named(WORDS[:2], [0, 1], class_to_idx={"ant": 1, "bee": 0})
        with pytest.raises(DataError, match="label 1 is 'bee' and 'ant', by the data set's classes and class_to_idx"):
            from_dataset(held)
        assert from_dataset(held, classes=["ant", "bee"]).labels.tolist() == [0, 1]
        merged = Named(WORDS[:2], [0], classes=None, class_to_idx={"ant": 0, "bee": 0})
        with pytest.raises(DataError, match="label 0 is 'ant' and 'bee'"):
            from_dataset(merged)

    @pytest.mark.parametrize("classes", ["ab", 2, {"a", "b"}, lambda: ["a"]])
    def test_what_is_no_list_of_names_is_refused(self, classes: Any) -> None:
        with pytest.raises(DataError, match="needed: a list of names, or give classes="):
            from_dataset(Named(WORDS[:2], [0, 1], classes=classes))

    @pytest.mark.parametrize("classes", [np.array(["ant", "bee"]), np.array([b"ant", b"bee"]), (b"ant", "bee")])
    def test_bytes_and_numpys_texts_are_names(self, classes: Any) -> None:
        assert is_matched(from_dataset(Named(WORDS[:2], [0, 1], classes=classes)))

    def test_a_label_without_a_name_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"label 1 has no name; the data set names 1 classes \(ant\)"):
            from_dataset(Named(WORDS[:2], [0, 1], classes=["ant"]))


class TestJoined:
    def test_given_names_decide_which_label_is_which(self) -> None:
        joined: Any = ConcatDataset([Named(WORDS[:2], [0, 1]), Named(WORDS[2:4], [0, 1])])
        data = from_dataset(joined, classes=WORDS[::-1])
        assert data.spec.classes == WORDS[::-1]
        assert is_matched(data)

    def test_named_and_nameless_ones_do_not_join(self) -> None:
        joined: Any = ConcatDataset([Named(WORDS[:2], [0, 1]), Named(WORDS[:2], [0, 1], classes=None)])
        with pytest.raises(DataError, match="some name their classes and others do not"):
            from_dataset(joined)

    def test_nameless_ones_go_by_their_numbers(self) -> None:
        joined: Any = ConcatDataset([Named(WORDS[:2], [0, 1], classes=None), Named(WORDS[:2], [1], classes=None)])
        assert from_dataset(joined).labels.tolist() == [0, 1, 1]

    def test_another_data_set_around_different_ones_is_refused(self) -> None:
        joined = Around(ConcatDataset([Named(WORDS[:2], [0]), Named(WORDS[2:4], [0])]))
        with pytest.raises(DataError, match="a Around around data sets of different classes; give it `classes`"):
            from_dataset(joined)


class Plain(Dataset[tuple[Any, int]]):
    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return np.full((8, 8), 50, np.uint8), i


ALIKE = [
    ("leaf-rust", "leaf_rust"),
    ("Cat", "cat"),
    ("cat ", "CAT"),
    ("ice cream", "icecream"),
    ("\ufb01g", "fig"),
    ("STRASSE", "straße"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_spelling_alone_is_no_other_class_between_data_sets(one: str, other: str) -> None:
    with pytest.raises(DataError, match=r"differs? .*by case, spaces, hyphens or Unicode form alone"):
        load_data((Plain([one, "dog"]), Plain([other])))
    with pytest.raises(DataError, match="differ by case, spaces, hyphens or Unicode form alone"):
        from_dataset(ConcatDataset([Plain([one, "dog"]), Plain([other])]))
    both = from_dataset(ConcatDataset([Plain([one]), Plain([other])]), classes=[one, other])
    assert both.labels.tolist() == [0, 1]


def test_within_one_set_letters_may_differ_by_case(caplog: pytest.LogCaptureFixture) -> None:
    letters = [*"abcABC"]
    assert from_dataset(ConcatDataset([Plain(letters), Plain(["A", "a"])])).counts.tolist() == [2, 1, 1, 2, 1, 1]
    assert "'a' and 'A', 'b' and 'B', 'c' and 'C'" in caplog.text
    caplog.clear()
    warn_of_alike(WORDS, "toy")
    assert not caplog.records


def test_the_composed_form_is_the_name() -> None:
    assert texts(["e\u0301", "\u00e9", np.str_("a"), b"\xc3\xa9", np.int64(7)]) == ("é", "é", "a", "é", "7")
    assert load_data((Plain(["e\u0301"]), Plain(["\u00e9"]))).test.spec.classes == ("é",)
    for name in (b"\xff", 1.5, None, object()):
        with pytest.raises(DataError, match="class name"):
            texts([name])


def test_a_spec_of_other_names_is_refused_and_names_say_what_labels_are() -> None:
    spec = Spec("digits", (1, 8, 8), ("0", "1"), (0.5,), (0.5,))
    held = Plain(["0 - zero", "1 - one"])
    with pytest.raises(DataError, match=r"class '0 - zero' is none of .*\(0, 1\); .*give classes="):
        from_dataset(held, spec)
    assert from_dataset(held, spec, classes=spec.classes).spec == spec


@pytest.mark.parametrize(("labels", "said"), [([5, 6], "0, 1, 2"), ([0, 2], " 1, and"), ([0, 1], ""), ([0], "")])
def test_labels_without_names_that_leave_numbers_out_are_told_of(
    labels: list[int], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = as_data((np.zeros((4, 8, 8), np.uint8), np.array((labels * 4)[:4])))
    assert len(data.spec.classes) == max(labels) + 1
    assert len(caplog.messages) == bool(said)
    assert said in caplog.text
