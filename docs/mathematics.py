"""Formulas of docstrings, which are in reStructuredText, as the pages' Markdown has them."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Mathematics(griffe.Extension):
    """Turn ``.. math::`` and the role of the same name into dollars."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = dollars(obj.docstring.value)


def dollars(text: str) -> str:
    """Return a docstring with formulas between dollars."""
    text = re.sub(r"\\[bB]ig(?=[\\(){}|])", "", text)  # sizes, which MathML chooses itself
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)

    def block(match: re.Match[str]) -> str:
        return f"$$\n{' '.join(match[1].split())}\n$$\n"

    return re.sub(r"^\.\. math::[ \n]+((?:.+\n?)+?)(?=\n|\Z)", block, text, flags=re.MULTILINE)
