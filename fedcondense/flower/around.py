"""A grid around another: what it does not do itself, the other does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["GridAround"]


class GridAround(Grid):
    """Pass everything on; derive from it and write `send_and_receive`, and what else is to differ.

    Args:
        grid: Reaches the nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        return self.grid.get_node_ids()

    def get_nodes(self) -> Iterable[Any]:
        """Return what is known of them."""
        return self.grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass them on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass them on."""
        return self.grid.pull_messages(message_ids)

    def set_run(self, run: Any) -> None:
        """Pass it on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the grid below."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Any:
        """Pass it on."""
        return self.grid.create_message(*args, **kwargs)
