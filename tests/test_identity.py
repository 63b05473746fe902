"""What a value is, as text: equal for what computes the same, in this process and another."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcondense.identity import identity

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def same_kind(a: Any, b: Any) -> bool:
    """Whether two values are equal and of equal types throughout: 1, 1.0 and True are three things."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_kind(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_kind, a, b))
    return repr(a) == repr(b)


@given(PLAIN, PLAIN)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_plain_values_have_one_text_if_and_only_if_they_are_the_same(a: Any, b: Any) -> None:
    assert (identity(a) == identity(b)) == same_kind(a, b)
    assert "\n" not in identity(a)


def compiled(text: str, **known: Any) -> Any:
    """Return `made` of a piece of source, compiled anew."""
    space: dict[str, Any] = {"__name__": "a_users_module", "torch": torch, "nn": nn, **known}
    sys.modules["a_users_module"] = types.ModuleType("a_users_module")  # dataclasses look their module up
    exec(compile(text, "/somewhere/theirs.py", "exec"), space)
    return space["made"]


ONE = "def made(x, y=1):\n    return x + y\n"


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n\n" + ONE,
        "def made(x, y=1):\n    'A docstring.'\n    return x + y\n",
        "def made(x, y=1): return x + y\n",
    ],
)
def test_what_does_not_change_a_function(same: str) -> None:
    assert identity(compiled(same)).split("@") == identity(compiled(ONE)).split("@")


IN = {
    "a module": "made = {0}",
    "a default": "def made(x={0}): return x",
    "a function": "def made(x): return x + {0}",
    "a lambda in a lambda": "made = lambda: (lambda: {0})",
    "a set that code asks": "made = lambda s: s in {{'a', {0}}}",
    "a global": "K = {0}\ndef made(x): return x * K",
    "a global in a list": "K = [{0}]\nmade = lambda x: x * K[0]",
    "another function": "def h(x): return {0}\ndef made(x): return h(x)",
    "a closure": "def f(k):\n    return lambda x: x + k\nmade = f({0})",
    "a class": "class made:\n    a = {0}",
    "a method": "class made:\n    def f(self): return {0}",
    "a static method": "class made:\n    @staticmethod\n    def f(): return {0}",
    "a property": "class made:\n    @property\n    def f(self): return {0}",
    "a base": "class B:\n    k = {0}\nclass made(B): pass",
    "an installed class's heir": "class made(nn.Linear):\n    def forward(self, x): return {0}",
    "a class made by a call": "from collections.abc import Sized\nmade = type('S', (Sized,), {{'f': lambda s: {0}}})",
    "an object": "class C:\n    def __init__(self, k): self.k = k\nmade = C({0})",
    "a callable object": "class C:\n    def __call__(self): return {0}\nmade = C()",
    "a bound method": "class C:\n    def f(self): return {0}\nmade = C().f",
    "a slot": "class C:\n    __slots__ = ('k',)\nmade = C(); made.k = {0}",
    "a partial's argument": "from functools import partial\nmade = partial(lambda x, k: x, k={0})",
    "a partial's function": "from functools import partial\nmade = partial(lambda x: {0})",
    "what is cached": "from functools import lru_cache\n@lru_cache\ndef made(x): return {0}",
    "what is wrapped": "from functools import wraps\ndef f(): return {0}\n@wraps(f)\ndef made(): return f()",
    "a getter": "from operator import itemgetter\nmade = itemgetter({0})",
    "a tensor": "made = torch.full((2,), {0})",
    "a tensor in a dict": "made = {{'w': torch.full((2,), {0})}}",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass made:\n    k: int = {0}",
    "a dataclass's method": "from dataclasses import dataclass\n@dataclass\nclass made:\n    def f(self): return {0}",
    "an enum": "from enum import Enum\nmade = Enum('made', {{'A': {0}}}).A",
}
"""Where a number may stand that changes what is computed."""


@pytest.mark.parametrize("text", IN.values(), ids=list(IN))
@given(numbers=st.lists(st.integers(2, 10**6), min_size=2, max_size=2, unique=True))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_what_changes_it(text: str, numbers: list[int]) -> None:
    first, second = (text.format(number) for number in numbers)
    assert identity(compiled(first)) == identity(compiled(first))
    assert identity(compiled(second)) == identity(compiled(second))
    assert identity(compiled(first)) != identity(compiled(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ONE, ONE.replace("x + y", "x - y")),
        (ONE, ONE.replace("x, y=1", "x, *, y=1")),
        ("made = lambda s, k: s", "made = lambda s, k: k"),
        ("made = lambda s: s.relu()", "made = lambda s: s.tanh()"),
        ("made = torch.zeros(2)", "made = torch.zeros(2).half()"),
        ("made = torch.zeros(2)", "made = torch.zeros(2, 1)"),
        ("made = nn.ReLU", "made = nn.Tanh"),
        ("made = lambda: torch.relu", "made = lambda: torch.tanh"),
    ],
)
def test_other_code_is_another(first: str, second: str) -> None:
    assert identity(compiled(first)) != identity(compiled(second))


@pytest.mark.parametrize(
    "text",
    [
        "seen = []\ndef made(x): seen.append(x)",
        "seen = {}\ndef made(x): seen[x] = 1",
        "seen = 0\ndef made(x):\n    global seen\n    seen += 1",
        "def f():\n    seen = set()\n    return lambda x: seen.add(x)\nmade = f()",
        "def f():\n    seen = 0\n    def g(x):\n        nonlocal seen\n        seen = x\n    return g\nmade = f()",
        "class made:\n    seen = []\n    def __init__(self, x): made.seen.append(x)",
        "class made:\n    seen = {}\n    def __init__(self, x): self.seen[x] = 1",
    ],
)
def test_what_code_counts_or_caches_makes_it_no_other(text: str) -> None:
    one = compiled(text)
    before = identity(one)
    one(3)
    assert identity(one) == before


@dataclass(frozen=True)
class Told:
    """A dataclass of one's own."""

    width: int = 3
    make: Callable[..., Any] = nn.ReLU
    seen: list[int] = field(default_factory=list, compare=False)

    @cached_property
    def cache(self) -> int:
        return 7


def test_dataclasses_are_their_fields_that_count() -> None:
    told = Told(seen=[1])
    assert told.cache == 7
    assert identity(told) == identity(Told()) != identity(Told(4))
    assert identity(Told(make=nn.Tanh)) != identity(Told())


def test_networks_are_their_weights_wherever_they_were_used() -> None:
    torch.manual_seed(0)
    network, other = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)) for _ in range(2))
    before = identity(network)
    assert before != identity(other)
    other.load_state_dict(network.state_dict())
    assert identity(other.eval()) == before
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1
    assert identity(network) != before


def test_values_that_hold_themselves_or_are_met_twice_end() -> None:
    loop: list[Any] = [1]
    loop.append(loop)

    def itself(n: int) -> int:
        return itself(n - 1) if n else 0

    @lru_cache
    def kept(x: int) -> int:
        return kept(x - 1) if x else 1

    assert identity(loop) == "[1, <1 up>]"
    values: list[Any] = [itself, kept, (itself, itself), [[]] * 3]
    for value in values:
        assert identity(value) == identity(value)
    deep: Any = 0
    for _ in range(10_000):
        deep = [deep]
    assert len(identity(deep)) < 1000


def test_numpy_counts_as_python_and_sets_have_no_order() -> None:
    assert identity((np.int64(3), np.float64(0.5), np.bool_(True))) == identity((3, 0.5, True))
    assert identity({"b", "a", "c"}) == identity({"c", "b", "a"})
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    assert identity(partial(max, a=1, b=2)) == identity(partial(max, b=2, a=1))
    assert identity(np.zeros(2)) != identity(np.zeros(2, np.float32))


def test_what_is_installed_goes_by_its_name_and_nothing_by_its_address() -> None:
    assert identity(nn.Linear) == "Linear"
    assert identity(torch.relu).endswith("relu")
    assert identity(os.path.join) == "posixpath.join"
    for value in (object(), open, Path("a"), torch.Generator(), torch.float16, sys, lambda: 0, Told(), iter([])):
        assert "0x" not in identity(value)


SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from functools import partial
from dataclasses import dataclass
import theirs
from fedcondense.identity import identity
@dataclass
class Mine:
    names: frozenset = frozenset("abcdef")
    def f(self): return {"x", "y", "z"}
def late():
    import theirs
    return theirs.Net
torch.manual_seed(0)
net = lambda s, k: theirs.Net(s, k) if s in {"p", "q", "r"} else theirs
print(identity([net, partial(theirs.Net, width=2), Mine(), Mine().f, torch.nn.Linear(2, 2), theirs, late, set("xyz")]))
"""


def test_it_is_the_same_in_another_process_and_another_if_an_imported_file_is(tmp_path: Path) -> None:
    (tmp_path / "deeper.py").write_text("SCALE = 1\n")
    (tmp_path / "theirs.py").write_text("import deeper\nclass Net:\n    def f(self): return deeper.SCALE\n")

    def printed(seed: int) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first = printed(1)
    assert printed(2) == first
    (tmp_path / "deeper.py").write_text("SCALE = 2\n")
    assert printed(1) != first


def test_what_indexes_or_has_an_add_of_its_own_is_no_container_that_code_changes() -> None:
    def told(key: Any) -> tuple[str, ...]:
        def by_index(x: Any) -> Any:
            x[:, key] = 0
            return x

        def by_sum(x: Any) -> Any:
            return key.add(x)

        def by_place(x: Any) -> Any:
            x[len(x) - 1 + key] = 1
            return x

        return identity(by_index), identity(by_sum), identity(by_place)

    first, second = told(torch.zeros(3)), told(torch.ones(3))
    assert not set(first) & set(second)
    assert told(torch.ones(3)) == second


def test_what_code_counts_is_not_part_of_it() -> None:
    seen: list[int] = []
    counts = {"calls": 0}

    def counting(x: int) -> int:
        seen.append(x)
        counts["calls"] += 1
        return x

    before = identity(counting)
    counting(3)
    assert (seen, counts) == ([3], {"calls": 1})
    assert identity(counting) == before
