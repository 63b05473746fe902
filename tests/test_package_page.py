"""What a package index shows: the README without pictures and links that lead nowhere from there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling")  # builds the package; the tests need it for nothing else
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_lies_beside_the_page_is_named_and_not_linked(build: Any) -> None:
    text = "# A\n\n![b](c.png)\n\n[d](e.md#f), [g](https://h), [i](#j)\n\n```python\nk[0](l)\n```\n"
    assert build.for_an_index(text).startswith("# A\n\nd, [g](https://h), [i](#j)\n\n```python\nk[0](l)\n```\n\nPages")


def test_no_link_of_the_readme_leads_nowhere(build: Any) -> None:
    readme = (ROOT / "README.md").read_text()
    page = build.for_an_index(readme)
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)]*)\)", prose)
    assert targets
    assert all(target.startswith(("https://", "http://", "#")) for target in targets)
    assert page.count("```") == readme.count("```")


def test_the_package_has_that_page(build: Any) -> None:
    metadata: dict[str, Any] = {}
    build.ReadmeHook(str(ROOT), {}).update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    assert metadata["readme"]["text"] == build.for_an_index((ROOT / "README.md").read_text())
