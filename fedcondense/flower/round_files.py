"""The files of a run's rounds: ``0001.state``, what a strategy kept after one; ``0001.answers``, what had come back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedcondense.errors import ResumeError
from fedcondense.files import write_file
from fedcondense.flower.answers_file import dump_answers
from fedcondense.flower.contract import State
from fedcondense.flower.inbox import Inbox
from fedcondense.flower.state_file import dump_state, load_state

__all__ = ["RoundFiles"]

_KEPT = 2  # states: the last, and the one before it, beside the first


@dataclass(frozen=True)
class RoundFiles:
    """What rounds leave.

    Args:
        path: The folder; it is made when something is written.
    """

    path: Path

    def write_state(self, state: State) -> Path:
        """Write what a strategy keeps after a round; of earlier rounds the last and the first stay."""
        path = write_file(self.path / f"{state.round:04d}.state", dump_state(state), overwrite=True)
        for old in self._states()[1:-_KEPT]:
            old.unlink()
        return path

    def read_state(self) -> State:
        """Return the state of the last finished round; an empty one if there is none.

        Raises:
            ResumeError: It is damaged.
        """
        found = self._states()
        return load_state(found[-1].read_bytes(), str(found[-1])) if found else State()

    def read_state_before(self, server_round: int) -> State | None:
        """Return the last state that is here of a round before another; None: there is none.

        Raises:
            ResumeError: It is damaged.
        """
        found = [path for path in self._states() if int(path.stem) < server_round]
        return load_state(found[-1].read_bytes(), str(found[-1])) if found else None

    def drop_states(self, after: int) -> None:
        """Delete the states of the rounds after one, the last first."""
        for path in reversed(self._states()):
            if int(path.stem) > after:
                path.unlink()

    def write_answers(self, server_round: int, inbox: Inbox) -> Path:
        """Write what came back in a round, as it arrived."""
        return write_file(self._answers(server_round), dump_answers(inbox), overwrite=True)

    def answered(self) -> list[int]:
        """Return the rounds of which answers are here."""
        return sorted(int(path.stem) for path in self.path.glob("[0-9]*.answers"))

    def read_answers(self, server_round: int) -> tuple[bytes, str]:
        """Return what `write_answers` wrote, for `load_answers`, and what to call it.

        Raises:
            ResumeError: It is not there.
        """
        path = self._answers(server_round)
        if not path.exists():
            raise ResumeError(f"{path} is not there, which holds what sites answered; run it anew in another folder")
        return path.read_bytes(), str(path)

    def _states(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*.state"))

    def _answers(self, server_round: int) -> Path:
        return self.path / f"{server_round:04d}.answers"
