"""Whatever a set is made of, it is refused by one line when it is made or saved, or comes back from its file equal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense.data.images import Data, Spec
from fedcondense.errors import FedcondenseError, SettingError
from fedcondense.parametrizations import PARAMETRIZATIONS, Pixels
from fedcondense.plain import hidden
from fedcondense.sets.coded import Coded
from fedcondense.sets.format import Limits, dump
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

SPEC = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
PART = Part({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, torch.zeros(2, dtype=torch.uint8), Pixels(), None)  # type: ignore[arg-type]
RECORD = Record("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.text("a\n\0\u202e\ud800é\u0301", max_size=3),
    st.binary(max_size=2),
    st.integers(0, 9).map(np.int32),
    st.integers(0, 9).map(torch.tensor),
    st.floats(width=32).map(np.float32),
)
NESTED = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2)
    ),
    max_leaves=5,
)
FIELDS = [*Record.__dataclass_fields__]
OFTEN = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def equal(one: SyntheticSet, other: SyntheticSet) -> bool:
    for a, b in zip(one.parts, other.parts, strict=True):
        if (a.record, a.parametrization, set(a.codes)) != (b.record, b.parametrization, set(b.codes)):
            return False
        if not all(torch.equal(a.codes[name], b.codes[name]) for name in a.codes):
            return False
        if isinstance(a.codes, Coded) and not (isinstance(b.codes, Coded) and a.codes.stored == b.codes.stored):
            return False
        if a.targets.dtype != b.targets.dtype or not torch.equal(a.targets, b.targets):
            return False
    return one.evaluation == other.evaluation


def holds(make: Any) -> None:
    """Make, write and read a set: equal, or refused by one printable line before it is read."""
    try:
        made = make()
        blob = made.to_bytes()
    except FedcondenseError as refused:
        reason = str(refused)
    else:
        reason = ""
    assert hidden(reason) is None
    if reason:
        return
    again = SyntheticSet.from_bytes(blob)
    assert equal(made, again)
    assert again.to_bytes() == blob


@OFTEN
@given(st.dictionaries(st.sampled_from(FIELDS), NESTED, min_size=1, max_size=2))
def test_any_record(changes: dict[str, Any]) -> None:
    holds(lambda: SyntheticSet([replace(PART, record=RECORD)]).with_record(**changes))


@OFTEN
@given(
    st.dictionaries(
        st.sampled_from(["accuracy", "seeds", "recipe", "network", "weighted", "x"]) | st.text(max_size=3),
        NESTED,
        max_size=3,
    )
)
def test_any_evaluation(evaluation: dict[str, Any]) -> None:
    holds(lambda: SyntheticSet([replace(PART, record=RECORD)]).with_evaluation(evaluation))


@OFTEN
@given(st.sampled_from(["name", "shape", "classes", "mean", "std", "operations"]), NESTED, NESTED)
def test_any_spec_and_seed(name: str, value: Any, seed: Any) -> None:
    def make() -> SyntheticSet:
        spec = replace(SPEC, **{name: value})
        data = Data(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1, 2, 2]), spec)
        return select(data, 1, "random", seed=seed)

    holds(make)


@OFTEN
@given(NESTED)
def test_any_setting(value: Any) -> None:
    @dataclass(frozen=True)
    class Mine(Pixels):
        record: Any = 0  # a name that a part's description has, too
        storage: ClassVar[Any] = Pixels.storage

    PARAMETRIZATIONS["mine"] = Mine
    try:
        holds(lambda: SyntheticSet([replace(PART, record=RECORD, parametrization=Mine(value))]))
    finally:
        del PARAMETRIZATIONS["mine"]


CODECS = [
    *("bits-1", "bits-2-class", "bits-3-patch", "bits-4", "bits-5-patch", "bits-6", "palette-2", "palette-13"),
    *("jpeg-1", "jpeg-60", "jpeg-100", "webp-1", "webp-60"),
]


@settings(OFTEN, max_examples=60)
@given(
    st.sampled_from(CODECS),
    st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 20), st.integers(1, 20)),
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.sampled_from([None, "top-1", "top-2", "top-3", "top-9"]),
    st.integers(0, 255),
)
def test_any_codec(codec: str, shape: tuple[int, int, int], labels: list[int], soft: str | None, noise: int) -> None:
    def make() -> SyntheticSet:
        draw = torch.Generator().manual_seed(len(labels))
        images = torch.randint(0, noise + 1, (len(labels), *shape), generator=draw, dtype=torch.uint8)
        targets = torch.tensor(labels, dtype=torch.uint8)
        if soft:
            targets = torch.rand(len(labels), 3, generator=draw).softmax(1).half()
        channels = ((0.5,) * shape[0], (0.25,) * shape[0])
        record = Record("toy", shape, ("a", "b", "c"), *channels)
        return SyntheticSet([Part({"images": images}, targets, Pixels(), record)]).recode(codec, labels=soft)

    holds(make)


def test_settings_that_do_not_come_back_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Derived(Pixels):
        mode: str = "plain"
        shadow: int = field(init=False, default=3)

    @dataclass(frozen=True)
    class Named(Pixels):
        storage: ClassVar[Any] = {"images": torch.uint8, "targets": torch.uint8}

    monkeypatch.setitem(PARAMETRIZATIONS, "derived", Derived)
    monkeypatch.setitem(PARAMETRIZATIONS, "named", Named)
    with pytest.raises(SettingError, match=r"derived cannot be made again from its settings: .*shadow"):
        SyntheticSet([replace(PART, record=RECORD, parametrization=Derived())]).to_bytes()
    codes = {"images": PART.codes["images"], "targets": PART.targets}
    with pytest.raises(SettingError, match="Named has codes called 'targets'"):
        SyntheticSet([Part(codes, PART.targets, Named(), RECORD)]).to_bytes()


def test_what_is_beside_a_set_has_to_be_json() -> None:
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(SettingError, match="a set whose header cannot be written"):
            dump([replace(PART, record=RECORD)], None, memory={"note": value})


def test_a_file_that_load_refuses_is_not_written(tmp_path: Path) -> None:
    joined = SyntheticSet.join([SyntheticSet([replace(PART, record=RECORD)])] * 3)
    with pytest.raises(SettingError, match=r"s: not written, since it could not be loaded: the header lists .* than 2"):
        joined.save(tmp_path / "s", limits=Limits(parts=2))
    assert not list(tmp_path.iterdir())
    assert len(SyntheticSet.load(joined.save(tmp_path / "s")).parts) == 3


def test_names_of_classes_are_written_once_and_parts_say_which_they_have() -> None:
    names = tuple(f"a rather long name {k:03d}" for k in range(100))
    whole = SyntheticSet([replace(PART, record=replace(RECORD, classes=names))])
    some = SyntheticSet([replace(PART, record=replace(RECORD, classes=(names[3], names[99], "another")))])
    joined = SyntheticSet.join([whole, whole, some] * 20)
    blob = joined.to_bytes()
    assert blob.count(names[3].encode()) == 1
    assert equal(joined, SyntheticSet.from_bytes(blob))
    assert SyntheticSet.from_bytes(blob).classes == (*names, "another")
    assert (len(blob) - len(whole.to_bytes())) / 59 < 650
