"""A refused run ends in one line in Flower's log; what is a bug keeps its traceback."""

from __future__ import annotations

import logging

import pytest

from fedcondense.errors import ResumeError
from fedcondense.flower.asking import NotConnectedError
from fedcondense.flower.refusing import tell_in_one_line
from fedcondense.flower.rounds import AggregationError


@pytest.mark.parametrize("kind", [ResumeError, AggregationError, NotConnectedError, KeyError])
def test_what_we_say_is_one_line_and_what_we_do_not_know_keeps_its_traceback(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    tell_in_one_line()
    tell_in_one_line()
    log = logging.getLogger("flwr")
    assert sum("in_one_line" in str(one) for one in log.filters) == 1
    try:
        raise kind("give another output")
    except Exception as error:  # as Flower does around a server app
        log.error("%s raised an exception", "ServerApp", exc_info=error)
    (record,) = caplog.records
    assert (record.exc_info is None) == (kind is not KeyError)
    if kind is not KeyError:
        assert record.getMessage() == "ServerApp raised an exception: give another output"
    assert not issubclass(NotConnectedError, KeyError)
    assert issubclass(NotConnectedError, TimeoutError)
