"""Every option of every command, as the app itself lists them, with values that cannot work: one line, code 2."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from fedcondense.cli import app
from fedcondense.cli.values import Listed, Number, Whole

BAD_NUMBERS = ("nan", "inf", "-inf", "-1", "1e400", "10s", "5MB", "1,5", "abc", "9" * 30, "0x10", "1" * 5000)
BLANK = ("", " ", "\t", "a\0b")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(group, TyperGroup):
        yield path, group
        return
    for name, command in group.commands.items():
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
OPTIONS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, TyperOption) and not option.is_flag and option.name != "help"
]
DISTINCT = [(p, o) for p, o in OPTIONS if p[0] != "sweep" or p[1] == "table"]  # the sweeps share their options


def reader(option: TyperOption) -> Any:
    """Return what reads an option's text; None: one of typer's own types."""
    return getattr(option.type, "func", None)


NUMERIC = [(path, option) for path, option in OPTIONS if isinstance(reader(option), Whole | Number)]
LISTS = [(path, option) for path, option in OPTIONS if isinstance(reader(option), Listed)]


def typed(path: tuple[str, ...], option: TyperOption, value: str) -> list[str]:
    """Return a command line that has what it needs, and a value for one option."""
    words = list(path)
    for other in COMMANDS[path].params:
        if isinstance(other, TyperArgument) and other.required:
            words.append("nowhere")
        elif other.required and other is not option:
            words += [other.opts[-1], "nowhere/out"]
    return [*words, option.opts[-1], value]


def test_no_option_takes_just_any_number() -> None:
    plain = [(p, o.name) for p, o in OPTIONS if reader(o) is None and o.type.name in ("integer", "float")]
    assert plain == []
    assert len(NUMERIC) > 50


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_numbers_that_cannot_be_are_refused_before_anything_is_read_or_written(cli: Any, here: Path) -> None:
    values = itertools.cycle(BAD_NUMBERS)
    for path, option in NUMERIC:
        for value in itertools.islice(values, 1 if path[0] == "sweep" else 2):  # each type meets all
            if value == "9" * 30 and isinstance(reader(option), Number) and reader(option).most > 1e30:
                continue
            said = cli.refused(*typed(path, option, value))
            assert said.startswith(f"error: {option.opts[-1]} "), (path, value, said)
            assert "needed: a" in said
    assert list(here.iterdir()) == []


def test_a_blank_value_is_an_unset_variable(cli: Any, here: Path) -> None:
    values = itertools.cycle(BLANK)
    for number, (path, option) in enumerate(DISTINCT):
        value = next(values)
        *words, name, value = typed(path, option, value)
        said = cli.refused(*words, *((name, value) if number % 3 else (f"{name}={value}",)))
        assert "zero byte" in said if "\0" in value else f"{name} is empty" in said, (path, said)
    assert list(here.iterdir()) == []


def test_lists_with_empty_items_are_refused(cli: Any, here: Path) -> None:
    values = itertools.cycle((",", "a,,b", ",a", "a, ,b"))
    for path, option in LISTS:
        said = cli.refused(*typed(path, option, next(values)))
        assert "needed: a list by commas" in said, (path, said)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("condense", "digits"), "--output is missing"),
        (("condense",), "DATA is missing"),
        (("condense", "digits", "--outputs", "a"), "No such option"),
        (("plan", "digits", "--format", "xml"), "--format: 'xml' is not one of"),
        (("condens",), "No such command"),
        (("plan", "digits", "more"), "unexpected extra argument"),
        (("plan", "digits", "--ipc"), "--ipc"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(cli: Any, words: tuple[str, ...], says: str) -> None:
    said = cli.refused(*words)
    assert says in said
    assert "--help" in said or says == "--ipc"  # of which click keeps no command


def test_of_an_option_given_twice_the_last_counts_and_that_is_said(cli: Any, here: Path) -> None:
    ended = cli.run("plan", "nowhere", "--ipc", 1, "--ipc", 0)
    assert ended.exit_code == 2
    assert ended.stderr.splitlines()[0].startswith(("--ipc is given 2 times", "error: --ipc 0"))


OUTPUTS = [
    (path, option)
    for path, option in OPTIONS
    if option.name == "output" and path[0] not in ("sweep", "federate", "join", "export", "node")
]


@pytest.mark.parametrize(
    "odd", [".", "..", "here/..", "file/out", "/dev/null", "/dev/full", "x" * 250, "a.pt", "taken"]
)
def test_outputs_that_cannot_be_are_refused_and_leave_what_is_there(cli: Any, here: Path, odd: str) -> None:
    (here / "here").mkdir()
    (here / "file").write_text("precious")
    (here / "taken").write_text("precious")
    for path, option in OUTPUTS:
        cli.refused(*typed(path, option, odd), *(() if odd == "taken" else ("--overwrite",)))
    assert {p.name for p in here.iterdir()} == {"here", "file", "taken"}
    assert (here / "file").read_text() == (here / "taken").read_text() == "precious"
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("command", ["federate", "join", "sweep table"])
@pytest.mark.parametrize("theirs", ["work", "table.md", "out.png"])
def test_a_folder_with_somebody_s_own_files_of_our_names_is_refused(
    cli: Any, here: Path, command: str, theirs: str
) -> None:
    (here / theirs).write_text("precious")
    folder = here / "new.png" if theirs == "out.png" else here
    if (command, theirs) in (("federate", "table.md"), ("join", "table.md"), ("sweep table", "work")):
        pytest.skip("not one of its names")
    more = ("--manifest", "nowhere.toml") if command == "join" else ()
    cli.refused(*command.split(), "nonsense", *more, "--output", folder)
    assert (here / theirs).read_text() == "precious"


def test_a_file_that_is_no_run_s_result_is_not_deleted(cli: Any, here: Path) -> None:
    (here / "result.json").write_text('{"mine": 1}')
    assert "no run's" in cli.refused("federate", "digits", "--overwrite", "--output", here)
    assert (here / "result.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("device", ["meta", "cpu:1", "CPU", "cuda:99", "xla", "gpu", "cuda:-1", "cpu cuda"])
def test_a_device_that_does_not_compute(cli: Any, here: Path, device: str) -> None:
    said = cli.refused("condense", "digits", "--output", "a.safetensors", "--device", device)
    assert f"device {device!r} cannot be used" in said


def test_threads_that_would_end_the_process(cli: Any) -> None:
    assert "--threads 100000; needed: a whole number from 1 to" in cli.refused("plan", "digits", "--threads", 100_000)


def test_old_words_are_read_as_those_of_today(cli: Any, here: Path) -> None:
    table = ("sweep", "table", "digits", "--output", "sweep")
    assert cli.refused(*table, "--networks", "0").startswith("error: --seeds 0; needed:")
    assert cli.refused(*table, "--networks=0").startswith("error: --seeds 0; needed:")
    export = ("export", "nowhere.safetensors", "--output", "arrays.npz")
    assert cli.refused(*export, "--test", "digits") == cli.refused(*export, "--data", "digits")
    assert "No such option" in cli.refused("plan", "digits", "--networks", "3")
    for name, command in COMMANDS.items():
        words = {word for option in command.params if isinstance(option, TyperOption) for word in option.opts}
        assert not words & {"--networks", "--test"}, name
