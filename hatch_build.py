"""The page that a package index shows: README.md, whose picture and pages lie in the repository, without links to them.

An index has the text alone, and no address of the repository is known to point to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_ELSEWHERE = r"(?!https?:|#)"
_NOTE = "Pages that are named here without a link are in the source distribution.\n"


class ReadmeHook(MetadataHookInterface):
    """Fills in `readme`, which pyproject.toml leaves to it."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the text of the page."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_an_index(text)}


def for_an_index(text: str) -> str:
    """Return Markdown without pictures that lie beside it, and with the words alone of links to what does."""
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)  # code stays
    for place in range(0, len(pieces), 2):
        prose = re.sub(rf"^!\[[^\]]*\]\({_ELSEWHERE}[^)]*\)\n+", "", pieces[place], flags=re.M)
        pieces[place] = re.sub(rf"(?<!!)\[([^\]]+)\]\({_ELSEWHERE}[^)\s]+\)", r"\1", prose)
    return f"{''.join(pieces).rstrip()}\n\n{_NOTE}"
