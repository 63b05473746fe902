"""A memory as bytes: how many, the file that they make, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedcondense.condensing.meaning import meaning
from fedcondense.errors import SettingError
from fedcondense.files import write_file
from fedcondense.memory.contents import Contents
from fedcondense.memory.file import MemoryState, dump_memory, parse_memory, read_memory
from fedcondense.memory.gathering import Gathered
from fedcondense.memory.stored import count_stored
from fedcondense.sets.codecs import RAW

__all__ = ["Kept"]

_USUAL = {"codec": RAW, "real_codec": RAW, "balance": "class"}  # a file leaves these out


class Kept(Contents):
    """Contents as they are kept; a `Memory` without what changes it."""

    minimum: int
    gathered: Gathered
    changes: int
    beside: int
    note: Mapping[str, Any]

    def __repr__(self) -> str:
        stored = sum(count_stored([*self.sets, *([] if self.real is None else [self.real])]).values())
        return f"{type(self).__name__}({stored} stored images of {len(self.names)} groups in {self.nbytes:,} bytes)"

    @property
    def nbytes(self) -> int:
        """The bytes of all that persists: the length of the file that `save` writes; 0 while there is nothing."""
        return len(self.to_bytes()) if self.names else 0

    @property
    def total_bytes(self) -> int:
        """What `max_bytes` bounds: `nbytes`, and what is kept beside each decoded image (`refit`)."""
        synthetic = self.synthetic if self.beside else None
        return self.nbytes + (0 if synthetic is None else self.beside * len(synthetic))

    def to_bytes(self) -> bytes:
        """Return the bytes of the file: a synthetic set's, with this memory's settings beside the set's record."""
        stored = self.all_stored()
        if stored is None:
            raise SettingError("an empty memory; train on an experience before saving it")
        return dump_memory(stored, self.settings(), self.added, self.seen, self.note)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the memory as one safetensors file that opens as a synthetic set too; return its path."""
        return write_file(path, self.to_bytes(), overwrite)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote, for a memory of the same settings.

        Raises:
            UntrustedSetError: The file is no memory, or damaged.
            ResumeError: It was written with other settings.
        """
        self._take_over(read_memory(path, self.settings()))

    def from_bytes(self, blob: bytes) -> None:
        """Take over what `to_bytes` gave; as `load`."""
        self._take_over(parse_memory(blob, self.settings()))

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("sets", "real", "waiting")}
        return state | {"blob": self.to_bytes() if self.names else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        blob = state.pop("blob")
        state = {
            "max_bytes": None,
            "changes": 0,
            "beside": 0,
            "gathered": Gathered(),
            **_USUAL,
        } | state  # older checkpoints have none
        vars(self).update(state, sets=[], real=None, waiting={})
        self.gathered = replace(self.gathered, since=time.monotonic())  # another process has another clock
        if blob is not None:
            self.from_bytes(blob)
        self.changes = state["changes"]

    def settings(self) -> dict[str, Any]:
        """Return what a resumed memory must share: plain values, the maker by its settings and code."""
        keys = ["images", "groups", "update", "real_fraction", "minimum", "seed"]
        keys += ["max_bytes"] if self.max_bytes is not None else []
        keys += [key for key, usual in _USUAL.items() if getattr(self, key) != usual]
        return {key: getattr(self, key) for key in keys} | {"make": meaning(self.make)}

    def _take_over(self, state: MemoryState) -> None:
        vars(self).update(state._asdict(), gathered=replace(self.gathered, pieces=()), changes=self.changes + 1)
