from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asking
from fedcondense.flower.caps import Caps
from fedcondense.flower.ledger import Allowance
from fedcondense.flower.node_config import NodeConfig
from fedcondense.flower.server import ServerSettings
from fedcondense.flower.settings import check, keys_of, later, number, read, read_all, said
from fedcondense.flower.strategies import STRATEGIES, TASKS

KINDS: dict[str, type] = {
    **{f"task {name}": kind for name, kind in TASKS.items()},
    **{f"strategy {name}": type(entry.settings) for name, entry in STRATEGIES.items()},
    **{kind.__name__: kind for kind in (NodeConfig, Caps, Allowance, ServerSettings, Asking)},
}
MAY_BE_NEGATIVE = {"grace", "partition-id", "fraction-evaluate"}  # "until the timeout", refused by place_of, "as usual"


def wrong_values(hint: Any, bounds: Mapping[str, Any], key: str) -> Iterator[Any]:
    """Yield values that a field of this type must not take."""
    yield [None]
    yield {"a": 1}
    if hint is bool:
        yield from (1, 0, "true", 1.0, None)
    elif hint is str:
        yield from (3, True, ["a"], "x" * 201, "a\nb", "a\x1b[31m", None)
    elif get_origin(hint) is tuple:
        yield from ("abc", 3, ["a", 3], [math.nan], ["x" * 201] if get_args(hint)[0] is str else ["x"], None)
        yield from ([3],) if get_args(hint)[0] is str else ([True],)
    elif hint in (int, float):
        yield from ("3", "", True, False, [3], math.nan, None, 2**62, -(2**62))
        if hint is int:
            yield from (2.5, 3.0, math.inf)
        if key not in MAY_BE_NEGATIVE:
            yield from (-1, -math.inf)
        if (most := bounds.get("most", math.inf)) < math.inf:
            yield most + 1
    elif set(get_args(hint)) == {bool, str}:
        yield from (3, 1.0, ["a"], "x" * 201, "a\nb", None)
    else:
        yield from ("text", 3, None) if type(None) not in get_args(hint) else ("text", True)


CASES = [pytest.param(kind, key, id=f"{name} {key}") for name, kind in sorted(KINDS.items()) for key in keys_of(kind)]


class TestEveryField:
    @pytest.mark.parametrize(("kind", "key"), CASES)
    def test_a_value_of_another_type_or_out_of_bounds_is_refused_in_one_line_that_names_the_key(
        self, kind: type, key: str
    ) -> None:
        item = keys_of(kind)[key]
        hint = get_type_hints(kind)[item.name]
        for value in wrong_values(hint, item.metadata, key):
            with pytest.raises(SettingError) as refused:
                read(kind, {key: value}, "here", kind())
            assert str(refused.value).startswith(f"here: {key} = "), value
            assert "; needed: " in str(refused.value)
            assert "\n" not in str(refused.value)

    @pytest.mark.parametrize(("kind", "key"), CASES)
    def test_its_default_is_taken_and_read_as_itself(self, kind: type, key: str) -> None:
        name = keys_of(kind)[key].name
        value = getattr(kind(), name)
        if key != "partition-id":
            assert getattr(read(kind, {key: value}, "here"), name) == value
        hint = get_type_hints(kind)[name]
        assert type(value) in (hint, type(None), tuple, *get_args(hint))

    @pytest.mark.parametrize(("kind", "key"), CASES)
    def test_a_misspelt_key_names_the_closest(self, kind: type, key: str) -> None:
        with pytest.raises(SettingError, match=f"no setting is called '{key}{key[-1]}'; did you mean '{key}'"):
            read(kind, {key + key[-1]: 1}, "here")

    @pytest.mark.parametrize(("kind", "key"), CASES)
    def test_a_whole_number_is_taken_for_a_number(self, kind: type, key: str) -> None:
        """Flower turns ``timeout=150`` into an int."""
        name = keys_of(kind)[key].name
        if get_type_hints(kind)[name] is float:
            value = getattr(read(kind, {key: 1}, "here"), name)
            assert (value, type(value)) == (1.0, float)


@dataclass(frozen=True)
class Walk:
    """Settings of a test."""

    speed: float = number(1.0, 0)
    steps: int = number(5, 1, 9)
    endless: float = 1.0
    names: tuple[str, ...] = ()
    pause: float | None = None


@dataclass(frozen=True)
class Run:
    """Others, which share a key."""

    steps: int = number(7, 2)
    is_fast: bool = False


class TestRead:
    def test_all_that_is_wrong_is_said_in_one_line(self) -> None:
        with pytest.raises(SettingError) as refused:
            read(Walk, {"speed": -1.0, "steps": 0, "stepps": 3, "names": "a"}, "the question")
        assert str(refused.value) == (
            "the question: speed = -1.0; needed: a number from 0; steps = 0; needed: a whole number from 1 to 9; "
            "names = 'a'; needed: a list, each str; no setting is called 'stepps'; did you mean 'steps'? all of them: "
            "endless, names, pause, speed, steps"
        )

    def test_what_is_missing_is_named(self) -> None:
        @dataclass(frozen=True)
        class Needy:
            first_name: str

        with pytest.raises(SettingError, match="here: first-name is missing"):
            read(Needy, {}, "here")

    def test_what_is_not_given_comes_from_the_base(self) -> None:
        assert read(Walk, {"steps": 2}, "here", Walk(3.0, 4)) == Walk(3.0, 2)

    def test_lists_become_tuples(self) -> None:
        assert read(Walk, {"names": ["a", "b"]}, "here").names == ("a", "b")

    def test_an_endless_number_passes_where_no_bound_says_otherwise(self) -> None:
        assert read(Walk, {"speed": math.inf}, "here").speed == math.inf
        with pytest.raises(SettingError, match=r"steps = inf"):
            read(Walk, {"steps": math.inf}, "here")

    def test_a_value_that_is_long_is_shortened(self) -> None:
        with pytest.raises(SettingError) as refused:
            read(Walk, {"steps": "x" * 10_000}, "here")
        assert len(str(refused.value)) < 200

    @given(
        st.dictionaries(
            st.sampled_from(["speed", "steps", "endless", "names", "pause", "other"]) | st.text(max_size=5),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
        )
    )
    def test_whatever_is_given_is_refused_in_a_line_or_gives_what_the_types_say(self, given: dict[str, Any]) -> None:
        try:
            walk = read(Walk, given, "here")
        except SettingError as refused:
            lines = str(refused).splitlines()
        else:
            lines = []
        if lines:
            assert len(lines) == 1
            return
        check(walk, "here")
        assert set(given) <= set(keys_of(Walk))
        assert type(walk.steps) is int
        assert 1 <= walk.steps <= 9
        assert type(walk.speed) is float
        assert walk.speed >= 0


class TestReadAll:
    def test_each_takes_what_it_knows(self) -> None:
        assert read_all((Walk(), Run()), {"steps": 3, "is-fast": True, "speed": 2}, "x") == (Walk(2.0, 3), Run(3, True))

    def test_a_fault_is_said_once_for_each_bound_and_what_none_knows_is_named(self) -> None:
        with pytest.raises(SettingError) as refused:
            read_all((Walk(), Run(), Run()), {"steps": 1, "spede": 2}, "x")
        assert str(refused.value) == (
            "x: steps = 1; needed: a whole number from 2; no setting is called 'spede'; did you mean 'speed'? "
            "all of them: endless, is-fast, names, pause, speed, steps"
        )


@dataclass(frozen=True)
class Newer:
    """Settings of which one came later."""

    steps: int = number(2, 1)
    codec: str = later("")
    budget: int = later(0, 0, 9)


class TestLater:
    def test_a_later_field_is_said_where_it_is_not_its_default(self) -> None:
        assert said(Newer()) == {"steps": 2}
        assert said(Newer(3, "bits-2")) == {"steps": 3, "codec": "bits-2"}

    def test_it_is_read_as_any_other(self) -> None:
        assert read(Newer, {"steps": 3}, "x") == Newer(3)
        assert read(Newer, {"budget": 9, "codec": "raw"}, "x") == Newer(2, "raw", 9)
        with pytest.raises(SettingError, match="budget = 10; needed: a whole number from 0 to 9"):
            read(Newer, {"budget": 10}, "x")


class TestCheck:
    def test_what_code_made_is_held_to_the_same_bounds(self) -> None:
        check(Walk(), "Walk")
        with pytest.raises(SettingError, match=r"Walk: speed = -1\.0; needed: a number from 0; steps = 2\.5"):
            check(Walk(speed=-1.0, steps=2.5), "Walk")  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", TASKS)
    def test_every_task_holds_its_own_defaults(self, name: str) -> None:
        check(TASKS[name](), name)
        for item in fields(TASKS[name]):  # type: ignore[arg-type]
            with pytest.raises(SettingError, match=item.name.replace("_", "-")):
                check(replace(TASKS[name](), **{item.name: object()}), name)  # type: ignore[type-var]
