"""`fedcondense new-app`: a folder that `flwr run` takes, from those that come with the package."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from fedcondense.cli.terminal import Format, Output, command, emit, finish, note
from fedcondense.cli.usage import Command
from fedcondense.errors import OutputError, SettingError, unknown

_INSTALLED = Path(__file__).parents[1] / "apps"  # as a wheel holds them
_CHECKOUT = Path(__file__).parents[2] / "strategies"


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("new-app", cls=Command, epilog="Example: fedcondense new-app one-shot -o hospitals")(new_app)


@command
def new_app(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of the app; without one they are listed.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The folder to make; default: NAME.")] = None,
    form: Output = Format.text,
) -> None:
    """Write the Flower app of a strategy into a new folder, to change its settings there and give it to `flwr run`.

    JSON keys: `apps` (names), and with NAME `output` and `files`.
    """
    apps = apps_here()
    if name is None:
        if output is not None:
            raise SettingError(f"{output}: of which app? name one of {', '.join(apps)}")
        emit({"apps": list(apps)}, "\n".join(apps), form)
        return
    if name not in apps:
        raise SettingError(unknown("app", name, apps))
    target = Path(name) if output is None else output
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} is there already; name another folder by --output")
    try:
        shutil.copytree(apps[name], target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"), dirs_exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror or error}; name another folder by --output") from error
    files = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    emit({"apps": list(apps), "output": target, "files": files}, "\n".join(files), form)
    finish([target], None)
    run = shlex.join(["flwr", "run", str(target), "--stream"])
    if importlib.util.find_spec("ray") is None:
        note("without a SuperLink of your own, flwr run simulates with Ray, which is not installed")
        run = f"pip install 'flwr[simulation]' && {run}"
    note(f"next: {run}")


def apps_here() -> dict[str, Path]:
    """Return the folders of the apps, by name: those of the wheel, or of the checkout that is installed editably."""
    top = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
    return {path.parent.name: path.parent for path in sorted(top.glob("*/pyproject.toml"))}
