from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import fedcondense.flower.ledger
from fedcondense.errors import OutputError, ResumeError, SettingError
from fedcondense.flower.ledger import Allowance, Charge, Ledger

NOTHING = Charge(questions=0)
ONE = Charge(images={"cat": 10}, decoded={"cat": 40}, nbytes=7000, epsilon=0.5)
WIDE = Allowance(10**6, 10**6, 10**6, 10**9, 1e6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger"


def head(path: Path) -> Path:
    return path.with_name(f".{path.name}.head")


def charged(path: Path, times: int = 3) -> Ledger:
    ledger = Ledger.open(path, WIDE)
    for k in range(times):
        ledger.charge(f"condense for run {k}", ONE)
    return ledger


@pytest.mark.parametrize("kept", [True, False], ids=["in a file", "in memory"])
class TestCounting:
    @pytest.fixture
    def where(self, kept: bool, path: Path) -> Path | None:
        return path if kept else None

    def test_charges_add_up_class_by_class(self, where: Path | None) -> None:
        ledger = Ledger.open(where, WIDE)
        assert ledger.spent() == NOTHING
        ledger.charge("a", ONE)
        ledger.charge("b", Charge(2, images={"cat": 1, "dog": 2}, nbytes=1, epsilon=0.25))
        assert ledger.spent() == Charge(3, {"cat": 11, "dog": 2}, {"cat": 40}, 7001, 0.75)

    @pytest.mark.parametrize(
        ("limit", "text"),
        [
            ({"life_questions": 2}, "questions 2 [+] 1, allowed 2"),
            ({"life_images": 29}, "stored images of 'cat' 20 [+] 10, allowed 29"),
            ({"life_decoded": 119}, "decoded images of 'cat' 80 [+] 40, allowed 119"),
            ({"life_bytes": 20_999}, "bytes 14000 [+] 7000, allowed 20999"),
            ({"life_epsilon": 1.25}, "epsilon 1.0 [+] 0.5, allowed 1.25"),
        ],
    )
    def test_what_would_exceed_any_limit_is_refused_in_one_line_and_not_counted(
        self, where: Path | None, limit: dict[str, int], text: str
    ) -> None:
        ledger = Ledger.open(where, replace(WIDE, **limit))
        ledger.charge("a", ONE)
        ledger.charge("b", ONE)
        with pytest.raises(SettingError, match=text) as refused:
            ledger.charge("c", ONE)
        assert "\n" not in str(refused.value)
        assert ledger.spent() == ONE + ONE

    def test_the_last_of_a_limit_is_given_and_what_takes_none_of_it_passes(self, where: Path | None) -> None:
        ledger = Ledger.open(where, replace(WIDE, life_images=10))
        ledger.charge("a", ONE)
        ledger.charge("b", Charge(images={"dog": 10, "cat": 0}))
        assert ledger.spent().images == {"cat": 10, "dog": 10}

    def test_many_classes_are_refused_by_the_first_and_their_number(self, where: Path | None) -> None:
        with pytest.raises(SettingError, match=r"of 'c0' 0 [+] 301, allowed 300 and of 9 more classes") as refused:
            Ledger.open(where, Allowance()).charge("a", Charge(images={f"c{k}": 301 for k in range(10)}))
        assert len(str(refused.value)) < 400


class TestDefaults:
    """What the docstring of `Allowance` says that its numbers are for."""

    def ask(self, ledger: Ledger, times: int, classes: int = 10) -> None:
        images = {str(c): 10 for c in range(classes)}
        for _ in range(times):
            ledger.charge("condense", Charge(images=images, decoded=dict.fromkeys(images, 40), nbytes=7150))

    def test_twenty_rounds_at_ten_images_and_ten_one_shot_runs_fit(self) -> None:
        ledger = Ledger.open(None, Allowance())
        self.ask(ledger, 20)
        self.ask(ledger, 10)

    def test_the_thirty_first_of_two_hundred_questions_is_refused(self) -> None:
        ledger = Ledger.open(None, Allowance())
        with pytest.raises(SettingError, match="life-images"):
            self.ask(ledger, 200)
        assert ledger.spent().questions == 30
        assert ledger.spent().nbytes < 1_430_000 / 6

    def test_questions_that_carry_nothing_end_too(self) -> None:
        ledger = Ledger.open(None, Allowance())
        for _ in range(100):
            ledger.charge("statistics", Charge())
        with pytest.raises(SettingError, match=r"questions 100 [+] 1, allowed 100"):
            ledger.charge("statistics", Charge())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Charge(-1),
        lambda: Charge(images={"cat": -1}),
        lambda: Charge(decoded={"cat": 1.5}),  # type: ignore[dict-item]
        lambda: Charge(images={3: 1}),  # type: ignore[dict-item]
        lambda: Charge(nbytes=True),
        lambda: Charge(epsilon=float("nan")),
        lambda: Charge(epsilon=float("inf")),
        lambda: Charge(epsilon=-0.1),
    ],
)
def test_a_charge_that_would_give_allowance_back_cannot_be_made(wrong: Callable[[], Charge]) -> None:
    with pytest.raises(SettingError, match="needed: whole numbers from 0"):
        wrong()


class TestFile:
    def test_another_process_finds_what_was_charged(self, path: Path) -> None:
        charged(path, 2)
        assert Ledger.open(path, WIDE).spent() == ONE + ONE

    def test_it_is_its_owners_alone_even_if_it_was_open(self, path: Path) -> None:
        charged(path)
        assert {p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {0o600}
        assert path.parent.stat().st_mode & 0o777 == 0o700
        path.chmod(0o644)
        Ledger.open(path, WIDE)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_a_requester_cannot_write_lines_of_its_own(self, path: Path) -> None:
        Ledger.open(path, WIDE).charge('x\n", "questions": 0 \u2028 \ud800' + "y" * 10_000, ONE)
        assert path.read_bytes().count(b"\n") == 1
        assert path.stat().st_size < 2000
        assert Ledger.open(path, WIDE).spent() == ONE

    def test_any_mapping_of_counts_is_written_as_what_it_is(self, path: Path) -> None:
        ledger = Ledger.open(path, WIDE)
        ledger.charge("a", Charge(images=Counter({"cat": 3})))
        ledger.charge("b", Charge(images=MappingProxyType({"cat": 4})))
        assert ledger.spent().images == {"cat": 7}

    def test_an_allowance_that_was_lowered_below_what_was_spent_refuses_only_more_of_it(self, path: Path) -> None:
        charged(path, 2)
        ledger = Ledger.open(path, Allowance(2, 10, 10, 10, 0.1))
        ledger.charge("a", Charge(questions=0, images={"cat": 0, "dog": 10}))
        with pytest.raises(SettingError, match="stored images of 'cat'"):
            ledger.charge("b", Charge(questions=0, images={"cat": 1}))

    def test_a_link_is_not_followed(self, path: Path, tmp_path: Path) -> None:
        path.parent.mkdir()
        (tmp_path / "elsewhere").touch()
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="needed: a plain file"):
            Ledger.open(path, WIDE)
        assert not (tmp_path / "elsewhere").read_bytes()

    def test_it_is_on_the_disk_before_the_work(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ledger, order = charged(path, 1), list[str]()

        def noted(name: str) -> Callable[..., Any]:
            function = getattr(os, name)

            def act(*arguments: Any) -> Any:
                order.append(name)
                return function(*arguments)

            return act

        for name in ("write", "fsync"):
            monkeypatch.setattr(os, name, noted(name))
        ledger.charge("a", ONE)
        assert order[:2] == ["write", "fsync"]  # the line; the head and its folder follow
        assert order.count("fsync") == 3


class TestDamage:
    """Refused in one line that says how to look; the file stays as it was found, and never counts from zero."""

    def refused(self, path: Path, match: str) -> None:
        before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
        for act in (lambda: Ledger.open(path, WIDE), lambda: Ledger(path, WIDE).charge("a", ONE)):
            with pytest.raises(ResumeError, match=match) as refusal:
                act()
            assert str(path) in str(refusal.value)
            assert "look at it" in str(refusal.value)
            assert "\n" not in str(refusal.value)
        assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before

    def test_every_byte_counts(self, path: Path) -> None:
        charged(path, 2)
        blob = path.read_bytes()
        for k in range(0, len(blob), 7):
            path.write_bytes(blob[:k] + bytes([blob[k] ^ 1]) + blob[k + 1 :])
            with pytest.raises(ResumeError):
                Ledger.open(path, WIDE)
        path.write_bytes(blob)
        assert Ledger.open(path, WIDE).spent() == ONE + ONE

    @pytest.mark.parametrize("length", [0, 1, 100, -2])
    def test_a_file_that_was_cut_is_refused(self, path: Path, length: int) -> None:
        charged(path)
        path.write_bytes(path.read_bytes()[:length])
        self.refused(path, "lines that follow from each other, of 3 that were written")

    def test_a_file_that_was_cut_between_lines_is_refused(self, path: Path) -> None:
        charged(path)
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        self.refused(path, "has 2 lines that follow from each other, of 3 that were written")

    def test_lines_that_were_exchanged_or_taken_out_are_refused(self, path: Path) -> None:
        charged(path)
        a, b, c = path.read_bytes().splitlines(keepends=True)
        for lines in ((b, a, c), (a, c), (b, c), (a, a, b, c), (a, c, b)):
            path.write_bytes(b"".join(lines))
            with pytest.raises(ResumeError):
                Ledger.open(path, WIDE)

    def test_a_file_that_is_missing_though_it_was_there_is_refused(self, path: Path) -> None:
        charged(path)
        path.unlink()
        self.refused(path, "is missing, though .ledger.head beside it says that it was there")

    def test_a_head_that_is_missing_or_damaged_is_refused(self, path: Path) -> None:
        charged(path)
        head(path).write_bytes(b"3 beef")
        self.refused(path, "of 3 that were written")
        head(path).write_bytes(b"\xff")
        self.refused(path, "beside it is damaged")
        head(path).unlink()
        self.refused(path, "beside it is missing")

    def test_the_ledger_of_another_node_is_refused(self, path: Path, tmp_path: Path) -> None:
        charged(path)
        Ledger.open(tmp_path / "other", WIDE).charge("the other's", ONE)
        charged(tmp_path / "other", 4)
        path.write_bytes((tmp_path / "other").read_bytes())
        self.refused(path, "has 5 lines")


class TestCrash:
    def torn(self, path: Path, length: int) -> None:
        """As if a process died after `length` bytes of its line."""
        before, was = path.read_bytes(), head(path).read_bytes()
        Ledger.open(path, WIDE).charge("the one that died", ONE)
        line = path.read_bytes()[len(before) :]
        path.write_bytes(before + line[:length])
        head(path).write_bytes(was)

    @pytest.mark.parametrize("length", [1, 64, 65, 90, -2])
    def test_a_torn_line_counts_as_a_question_and_the_file_grows_on(self, path: Path, length: int) -> None:
        charged(path, 2)
        self.torn(path, length)
        ledger = Ledger.open(path, WIDE)
        assert ledger.spent() == ONE + ONE + Charge()
        cut = path.read_bytes()
        ledger.charge("next", ONE)
        assert path.read_bytes().startswith(cut)  # nothing is ever cut off
        assert Ledger.open(path, WIDE).spent() == ONE + ONE + ONE + Charge()

    def test_torn_lines_in_a_row_count_each(self, path: Path) -> None:
        charged(path, 1)
        self.torn(path, 70)
        self.torn(path, 95)
        ledger = charged(path, 2)
        self.torn(path, 3)
        assert ledger.spent() == ONE + ONE + ONE + Charge(3)

    def test_a_torn_first_line_counts(self, path: Path) -> None:
        charged(path, 0)
        self.torn(path, 80)
        assert charged(path, 1).spent() == ONE + Charge()

    @pytest.mark.parametrize("length", [-1, 10_000], ids=["without its newline", "whole"])
    def test_a_whole_line_whose_head_was_not_written_counts_in_full(self, path: Path, length: int) -> None:
        charged(path, 1)
        self.torn(path, length)
        assert Ledger.open(path, WIDE).spent() == ONE + ONE
        assert charged(path, 1).spent() == ONE + ONE + ONE

    def test_a_crash_before_the_first_head_begins_again(self, path: Path) -> None:
        path.parent.mkdir()
        path.touch()
        assert charged(path, 1).spent() == ONE

    def test_a_crash_that_uses_the_last_question_up_leaves_none(self, path: Path) -> None:
        charged(path, 1)
        self.torn(path, 50)
        with pytest.raises(SettingError, match=r"questions 2 [+] 1, allowed 2"):
            Ledger.open(path, replace(WIDE, life_questions=2)).charge("a", ONE)

    def test_a_process_that_is_killed_at_any_time_has_counted_what_it_was_told(self, path: Path) -> None:
        """SIGKILL a process that charges without end: what `charge` returned for is in the file, at most one more."""
        script = (
            "import sys; from pathlib import Path; from fedcondense.flower.ledger import *\n"
            "ledger = Ledger.open(Path(sys.argv[1]), Allowance(*[10**9] * 5))\n"
            "while True: ledger.charge('a', Charge()); print('.', end='', flush=True)\n"
        )
        charged_before = 0
        for told in (1, 5, 12):
            with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                seen = len(process.stdout.read(told))
                process.send_signal(signal.SIGKILL)
                seen += len(process.stdout.read())
            after = Ledger.open(path, WIDE).spent().questions - charged_before
            assert seen <= after <= seen + 1
            charged_before += after


def take(path: Path, allowed: int, start: Barrier, got: int) -> None:
    """Charge until refused; the exit code says how often it was allowed."""
    check = fedcondense.flower.ledger._check

    def slow_check(spent: Charge, charge: Charge, allowance: Allowance) -> None:
        check(spent, charge, allowance)
        time.sleep(0.005)  # between the look and the count, where another process would look

    fedcondense.flower.ledger._check = slow_check
    ledger = Ledger.open(path, replace(WIDE, life_questions=allowed))
    start.wait()
    try:
        while True:
            ledger.charge("a", Charge())
            got += 1
    except SettingError:
        os._exit(got)


@pytest.mark.parametrize("allowed", [1, 30])
def test_processes_that_race_take_each_question_once(path: Path, allowed: int) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=take, args=(path, allowed, start, 0)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sum(process.exitcode or 0 for process in processes) == allowed
    assert Ledger.open(path, WIDE).spent() == Charge(allowed)


def test_processes_that_begin_one_file_together_agree(path: Path) -> None:
    """None finds the head of another without the file: whoever begins makes the file first."""
    context = multiprocessing.get_context("fork")
    for k in range(5):
        start, where = context.Barrier(4), path.with_name(f"ledger{k}")
        processes = [context.Process(target=begin, args=(where, start)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert Ledger.open(where, WIDE).spent() == Charge(4)


def begin(path: Path, start: Barrier) -> None:
    start.wait()
    Ledger.open(path, WIDE).charge("a", Charge())
