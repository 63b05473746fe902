from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from fedcondense.cli.signals import ended_by_signals
from fedcondense.cli.terminal import command


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of a terminal, whatever the tests were started from, which are there again afterwards."""
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == usual


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_each_ends_a_command_with_what_is_kept_and_its_own_code(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @command
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            pytest.fail("it went on")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the checkpoint is kept") from None

    with pytest.raises(typer.Exit) as ended:
        work()
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == "interrupted; the checkpoint is kept\n"


def test_what_is_ignored_or_handled_already_stays_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with ended_by_signals():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_another_thread_sets_no_handlers() -> None:
    seen = []

    def work() -> None:
        with ended_by_signals() as ending:
            seen.append((signal.getsignal(signal.SIGTERM), ending.code))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(600)
    assert seen == [(signal.SIG_DFL, 130)]
