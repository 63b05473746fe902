"""What `experiments/structure.py` measures, on a tree whose numbers are known, and the limits that this tree keeps."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "experiments" / "structure.py"
MOST_LINES = 300

TREE = {
    "__init__.py": "",
    "ground.py": "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
    "    from fedcondense.upper.shelf import Book\n",
    "upper/__init__.py": "",
    "upper/shelf.py": "from fedcondense.upper.table import leg\nfrom fedcondense import ground\nclass Book: ...\n",
    "upper/table.py": "from fedcondense.upper.shelf import Book\nleg = 1\n",
    "lower/__init__.py": "from . import stairs\n",
    "lower/stairs.py": "def climb():\n    from fedcondense.upper.shelf import Book\n    return Book\n",
    "upper/clock.py": "from fedcondense.lower import hands\n",
    "lower/hands.py": "def read():\n    import fedcondense.upper.clock\n",
    "upper/lamp.py": "import fedcondense.lower.stairs\nimport json\n\n\nclass Lamp:\n"
    "    def light(self, a, b, c, d, e, f, g, h, i, j, *, k=1): ...\n"
    "    def dim(self, a, b, c, d, e, f, g, h, i, j, *rest, **more): ...\n",
}


@pytest.fixture(scope="module")
def structure() -> Any:
    """Return the script as a module: its folder is no package."""
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["structure"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name, text in TREE.items():
        path = root / "fedcondense" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


class TestMeasure:
    def test_a_circle_is_found_by_its_modules(self, structure: Any, tree: Path) -> None:
        assert structure.measure(tree).circles == [["fedcondense.upper.shelf", "fedcondense.upper.table"]]

    def test_imports_inside_functions_close_circles_that_importing_does_not(self, structure: Any, tree: Path) -> None:
        measured = structure.measure(tree)
        hidden = ["fedcondense.lower.hands", "fedcondense.upper.clock"]
        assert measured.circles_with_calls == [hidden, *measured.circles]

    def test_imports_inside_functions_close_circles_of_rooms(self, structure: Any, tree: Path) -> None:
        """lower reaches upper in a function alone; upper reaches lower when it is imported."""
        measured = structure.measure(tree)
        assert measured.room_circles == [["lower", "upper"]]
        assert measured.room_arrows == {
            "fedcondense": [],
            "ground": [],
            "lower": ["upper"],
            "upper": ["ground", "lower"],
        }

    def test_imports_for_types_are_no_arrows(self, structure: Any, tree: Path) -> None:
        """Shelf imports table and ground, table shelf, lower its stairs, stairs shelf, lamp stairs, clock and hands
        each other; ground a type."""
        measured = structure.measure(tree)
        assert (measured.arrows, measured.type_arrows) == (8, 1)
        assert not [one for one in measured.circles_with_calls if "fedcondense.ground" in one]

    def test_self_and_stars_do_not_count_as_arguments(self, structure: Any, tree: Path) -> None:
        assert structure.measure(tree).many_arguments == ["fedcondense/upper/lamp.py:Lamp.light:11"]

    def test_lines_are_those_of_the_files(self, structure: Any, tree: Path) -> None:
        numbers = structure.measure(tree).numbers()
        assert (numbers["modules"], numbers["largest module"]) == (10, 7)
        assert numbers["median lines of a module"] == 2.0

    def test_a_circle_is_all_that_reach_each_other_and_no_node_alone(self, structure: Any) -> None:
        arrows = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}}
        assert structure.circles(arrows) == [["a", "b", "c"]]
        assert structure.circles({"a": {"b"}, "b": set()}) == []

    def test_relative_imports_are_followed(self, structure: Any) -> None:
        import ast

        known = ["p", "p.q", "p.q.r", "p.s"]
        tree = ast.parse("from . import r\nfrom ..s import thing\nfrom .. import s\n")
        found = {one.target for one in structure.imports(tree, "p.q.t", known, is_package=False)}
        assert found == {"p.q.r", "p.s"}

    def test_a_folder_without_the_package_is_refused(self, structure: Any, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="holds no Python files; give the root of a checkout"):
            structure.measure(tmp_path)


def test_two_checkouts_stand_side_by_side_and_json_holds_the_names(tree: Path, tmp_path: Path) -> None:
    written = tmp_path / "structure.json"
    command = [sys.executable, str(SCRIPT), str(tree), str(ROOT), "--json", str(written)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads(written.read_text())
    (line,) = [line.split() for line in ended.stdout.splitlines() if line.startswith("largest module")]
    assert line[-2:] == ["7", str(content[str(ROOT)]["largest module"])]
    assert content[str(tree)]["circles"] == [["fedcondense.upper.shelf", "fedcondense.upper.table"]]


class TestThisTree:
    def test_no_module_has_more_than_300_lines(self, structure: Any) -> None:
        lines = structure.measure(ROOT).lines
        assert not {name for name, n in lines.items() if n > MOST_LINES}

    def test_no_imports_make_a_circle_those_inside_functions_counted(self, structure: Any) -> None:
        measured = structure.measure(ROOT)
        assert measured.circles_with_calls == []
        assert measured.room_circles == []
