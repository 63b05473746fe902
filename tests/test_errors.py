from __future__ import annotations

import pytest

from fedcondense import errors
from fedcondense.errors import FedcondenseError, MissingExtraError, SettingError, look_up, unknown


def test_look_up_returns_the_entry() -> None:
    assert look_up("colour", "red", {"red": 1, "green": 2}) == 1


def test_look_up_names_the_closest_and_all_entries() -> None:
    message = r"no colour is called 'gren'; did you mean 'green'\? all of them: green, red"
    with pytest.raises(SettingError, match=message):
        look_up("colour", "gren", {"red": 1, "green": 2})


def test_without_a_close_entry_there_is_no_hint() -> None:
    assert unknown("colour", "xyzzy", ["red"]) == "no colour is called 'xyzzy'; all of them: red"


def test_a_missing_extra_names_the_command() -> None:
    with pytest.raises(ImportError, match=r"flwr is not installed; run: pip install 'fedcondense\[flower\]'"):
        raise MissingExtraError("flwr", "flower")


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("SettingError", ValueError),
        ("DataError", ValueError),
        ("UntrustedSetError", ValueError),
        ("ResumeError", ValueError),
        ("OutputError", OSError),
        ("DivergenceError", RuntimeError),
        ("MissingExtraError", ImportError),
    ],
)
def test_every_error_has_one_root_and_the_builtin_that_users_expect(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, FedcondenseError)
    assert issubclass(kind, builtin)
    assert name in errors.__all__
