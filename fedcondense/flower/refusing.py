"""How a run that is refused ends: in one line, where Flower would print a traceback around it."""

from __future__ import annotations

import logging

from flwr.serverapp.exception import AggregationError

from fedcondense.errors import FedcondenseError

__all__ = ["tell_in_one_line"]

_SAID = (FedcondenseError, AggregationError)  # whose text says what to do; anything else is a bug


def tell_in_one_line() -> None:
    """Let Flower's log say of such an error what it says, without a traceback; it ends the app with its own code.

    Flower logs whatever a server app raises with its traceback, reports the run as failed, and exits. A filter of its
    logger is the one place on that way that is public. It stays, and does nothing else.
    """
    logging.getLogger("flwr").addFilter(_in_one_line)  # which takes one and the same filter once


def _in_one_line(record: logging.LogRecord) -> bool:
    if isinstance(record.exc_info, tuple) and isinstance(error := record.exc_info[1], _SAID):
        record.msg, record.args = "%s: %s", (record.getMessage(), error)
        record.exc_info = None
    return True
