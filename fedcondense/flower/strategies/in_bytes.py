"""What a server asks for in bytes: a codec, a budget, and the codecs that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedcondense.errors import SettingError
from fedcondense.flower.settings import later
from fedcondense.sets.codecs import CODECS, RAW, codec_named

__all__ = ["InBytes", "asked_in_bytes", "family_of"]


@dataclass(frozen=True, kw_only=True)
class InBytes:
    """Fields of a task that is answered with a set; nodes of before know none of them, and answer raw.

    Args:
        budget: Bytes that the reply may take, as Flower sends it; each node chooses images and bits by its own counts.
            0: as many images as `ipc` says.
        codec: How images are stored, by name; empty: raw, and under a budget as the node finds best.
        codecs: The families of codecs that the server reads, ``"bits"`` say; empty: raw sets alone.
    """

    budget: int = later(0, 0)
    codec: str = later("")
    codecs: tuple[str, ...] = later(())

    def checked_codec(self, usual: str = RAW) -> str:
        """Return the name of the codec that a node takes.

        Args:
            usual: Where the question names none and the server reads it.

        Raises:
            SettingError: No codec has the name that was asked for, or the server does not read it.
        """
        if not self.codec:
            return usual if family_of(usual) in (RAW, *self.codecs) else RAW
        codec_named(self.codec)
        if family_of(self.codec) not in (RAW, *self.codecs):
            reads = ", ".join((RAW, *self.codecs))
            raise SettingError(
                f"codec {self.codec!r} is asked for by a server that reads {reads}; needed: one of these, or codecs = "
                "what it reads"
            )
        return self.codec


def asked_in_bytes(task: Any, reads: Sequence[str] | None = None) -> Any:
    """Return a task that says which codecs the server reads, if it asks for one or names a budget.

    Args:
        task: Any; others than `InBytes` stay as they are.
        reads: Families in `CODECS`; None: all of them.
    """
    if not isinstance(task, InBytes) or not (task.codec or task.budget):
        return task
    return replace(task, codecs=tuple(CODECS if reads is None else reads))


def family_of(codec: str) -> str:
    """Return the word before the first hyphen, the name in `CODECS`."""
    return codec.partition("-")[0]
