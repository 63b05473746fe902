"""How a memory takes in new images of a group and makes room for other groups: three values, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["UPDATES", "Update", "waited_enough"]


@dataclass(frozen=True)
class Update:
    """One way to update a memory.

    Args:
        condenses_stored: A group's set is made of its stored and its new images together, and made again when the
            share of a group shrinks. Nothing is left out.
        mixes: The stored images of a group stay beside the set of its new ones, each side by how many records it
            stands for.
        renames: Each addition is a group of its own, named ``group#addition``.
    """

    condenses_stored: bool = False
    mixes: bool = False
    renames: bool = False

    def leaves_out_images(self, groups: int | None) -> bool:
        """Say whether stored images are left out, where the number of groups is given or None."""
        return self.mixes or (self.renames and groups is None)

    def group(self, name: str, addition: int) -> str:
        """Return the group that data of a name belong to."""
        return f"{name}#{addition}" if self.renames else name


UPDATES: dict[str, Update] = {
    "recondense": Update(condenses_stored=True),
    "reservoir": Update(mixes=True),
    "append": Update(renames=True),
}


def waited_enough(sizes: Mapping[str, int], minimum: int, most: int) -> list[str]:
    """Return the groups with at least `minimum` images, and the largest others until at most `most` images wait."""
    ready = [name for name, n in sizes.items() if n >= minimum]
    rest = {name: n for name, n in sizes.items() if n < minimum}
    while rest and sum(rest.values()) > most:
        ready.append(max(rest, key=lambda name: rest[name]))
        del rest[ready[-1]]
    return ready
