"""Sizes of a checkout: lines per module, long signatures, import circles, arrows among modules and rooms.

    python experiments/structure.py                        # this checkout
    python experiments/structure.py OLD NEW                # before and after, for example two `git worktree`s
    python experiments/structure.py --json structure.json  # all of it, with the names, beside what is printed

A room is a folder of the package, or a module that lies beside the folders. An arrow is an import of one module by
another, counted once; imports inside functions count, since they run, and those under `TYPE_CHECKING` are counted
apart, since they do not. A circle is a set of modules of which each reaches all others along arrows. That importing a
module also runs the `__init__` of its folder makes no arrow between modules; circles among rooms show where it matters.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

PACKAGE = "fedcondense"
MOST_ARGUMENTS = 10
Arrows = dict[str, set[str]]


class Import(NamedTuple):
    """One module that another names; `when` is ``"import"``, ``"call"`` (inside a function) or ``"types"``."""

    target: str
    when: str


@dataclass(frozen=True)
class Structure:
    """What is measured of one checkout.

    Args:
        lines: Of each module.
        many_arguments: ``file:function:count`` of each function with more than `MOST_ARGUMENTS`, without `self`.
        circles: Of modules, by imports that run when a module is imported.
        circles_with_calls: The same, with imports inside functions.
        room_circles: Of rooms, with imports inside functions.
        arrows: How many there are among modules.
        type_arrows: How many more there are for types alone.
        room_arrows: From each room to those that it imports.
    """

    lines: dict[str, int]
    many_arguments: list[str]
    circles: list[list[str]]
    circles_with_calls: list[list[str]]
    room_circles: list[list[str]]
    arrows: int
    type_arrows: int
    room_arrows: dict[str, list[str]]

    def numbers(self) -> dict[str, int | float]:
        """Return what fits in a table."""
        return {
            "modules": len(self.lines),
            "lines": sum(self.lines.values()),
            "median lines of a module": statistics.median(self.lines.values()),
            "largest module": max(self.lines.values()),
            "modules above 300 lines": sum(n > 300 for n in self.lines.values()),
            f"functions with more than {MOST_ARGUMENTS} arguments": len(self.many_arguments),
            "import circles": len(self.circles),
            "import circles, functions counted": len(self.circles_with_calls),
            "circles of rooms": len(self.room_circles),
            "arrows among modules": self.arrows,
            "arrows for types alone": self.type_arrows,
            "rooms": len(self.room_arrows),
            "arrows among rooms": sum(map(len, self.room_arrows.values())),
        }


def measure(root: Path, package: str = PACKAGE) -> Structure:
    """Measure the package that lies in a checkout's root; nothing of it is imported or run."""
    files = {_module(path, root): path for path in sorted((root / package).rglob("*.py"))}
    if not files:
        raise SystemExit(f"{root / package} holds no Python files; give the root of a checkout")
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    found = {
        name: set(imports(tree, name, files, is_package=files[name].name == "__init__.py"))
        for name, tree in trees.items()
    }
    at_import = _arrows(found, ("import",))
    running = _arrows(found, ("import", "call"))
    every = _arrows(found, ("import", "call", "types"))
    rooms: Arrows = {room(name): set() for name in files}
    for name, targets in running.items():
        rooms[room(name)] |= {room(target) for target in targets} - {room(name)}
    many = [
        f"{files[name].relative_to(root).as_posix()}:{function}:{count}"
        for name, tree in trees.items()
        for function, count in signatures(tree)
        if count > MOST_ARGUMENTS
    ]
    return Structure(
        lines={name: len(text.splitlines()) for name, text in texts.items()},
        many_arguments=many,
        circles=circles(at_import),
        circles_with_calls=circles(running),
        room_circles=circles(rooms),
        arrows=sum(map(len, running.values())),
        type_arrows=sum(len(every[name] - running[name]) for name in every),
        room_arrows={name: sorted(targets) for name, targets in sorted(rooms.items())},
    )


def room(module: str) -> str:
    """Return the room that a module lies in: the part after the package, or the package itself.

    >>> room("fedcondense.sets.zoo"), room("fedcondense.contract"), room("fedcondense")
    ('sets', 'contract', 'fedcondense')
    """
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imports(tree: ast.Module, name: str, known: Iterable[str], *, is_package: bool) -> Iterator[Import]:
    """Yield what a module imports of the modules that are known; itself and names from elsewhere are passed over."""
    modules = set(known)
    base = name if is_package else name.rpartition(".")[0]
    for node, when in _statements(tree.body, "import"):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = base.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            whole = [f"{source}.{alias.name}" for alias in node.names]
            targets = [one if one in modules else source for one in whole]
        yield from (Import(target, when) for target in targets if target in modules and target != name)


def _statements(body: Iterable[ast.AST], when: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield every node below, with when it runs."""
    for node in body:
        yield node, when
        inner = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else when
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            yield from _statements(node.body, "types")
            yield from _statements(node.orelse, when)
        else:
            yield from _statements(ast.iter_child_nodes(node), "types" if when == "types" else inner)


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def signatures(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each function's name, inside its classes and functions, and its number of arguments."""

    def walk(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args
                names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                bound = in_class and names[:1] in (["self"], ["cls"])
                yield f"{prefix}{child.name}", len(names) - bound
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", True)
            else:
                yield from walk(child, prefix, in_class)

    yield from walk(tree, "", False)


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of more than one node that reach each other (Tarjan's strongly connected components), sorted."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            start = stack.index(node)
            if len(stack) - start > 1:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return sorted(found)


def _arrows(found: Mapping[str, set[Import]], when: tuple[str, ...]) -> Arrows:
    return {name: {one.target for one in imported if one.when in when} for name, imported in found.items()}


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def table(measured: Mapping[str, Structure]) -> str:
    """Return the numbers of one checkout or several side by side, and the names behind those of the last."""
    columns = [one.numbers() for one in measured.values()]
    lines = [["", *measured], *([key, *(f"{column[key]:g}" for column in columns)] for key in columns[0])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    last = list(measured.values())[-1]
    large = sorted(((n, name) for name, n in last.lines.items()), reverse=True)[:5]
    text += ["", *(f"{n:5} lines  {name}" for n, name in large), *(f"arguments  {one}" for one in last.many_arguments)]
    for title, sets in (("circle", last.circles_with_calls), ("circle of rooms", last.room_circles)):
        text += [f"{title}  {' <-> '.join(one)}" for one in sets]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="FOLDER", help="roots of checkouts; default: this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
    chosen = parser.parse_args()
    roots = chosen.roots or [Path(__file__).resolve().parents[1]]
    measured = {str(path): measure(path) for path in roots}
    print(table(measured))
    if chosen.json is not None:
        content = {name: {**one.numbers(), **asdict(one)} for name, one in measured.items()}
        chosen.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
