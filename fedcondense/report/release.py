"""The release sheet of a site: one page on what left it, to whom, what protected it, and which code decided so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedcondense.files import write_file
from fedcondense.report.html import rendered

if TYPE_CHECKING:
    from fedcondense.flower.release import Released

__all__ = ["write_release"]

_MOST = 1000  # lines that a page shows


def write_release(path: Path, found: Released, version: str) -> Path:
    """Write the page; a file that is there is replaced. It holds no record.

    Args:
        path: Where.
        found: What left.
        version: Of fedcondense at the node.
    """
    page = rendered("release.html.j2", found=found, shown=found.answers[-_MOST:], version=version)
    return write_file(path, page.encode(errors="replace"), overwrite=True)
