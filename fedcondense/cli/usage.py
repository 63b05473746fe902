"""How a command line that cannot be read is refused: one line on stderr and exit code 2, as any other error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from fedcondense.cli.terminal import note
from fedcondense.cli.values import Refused

__all__ = ["Command", "Commands"]

# Of click, which typer imports or has inside, as its version has it; of all its errors typer gives us one.
_UsageError: Any = typer.BadParameter.__mro__[1]
_AnyError: Any = _UsageError.__mro__[1]


_OLD_WORDS = {"--networks": "--seeds", "--test": "--data"}  # read where a command has the new one alone


class Command(TyperCommand):
    """A command that says so where an option is given twice and the last alone counts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; of an option that is given more than once the last counts, as everywhere."""
        if any("--format" in option.opts for option in self.params):
            args = ["--format=json" if text == "--json" else text for text in args]
        known = {name for parameter in self.params for name in parameter.opts}
        args = [_renamed(text, known) for text in args]
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(p for p in order if isinstance(p, TyperOption)).items():
            if times > 1 and not (option.multiple or option.is_flag):
                note(f"{option.opts[-1]} is given {times} times; the last one counts")
        return super().parse_args(ctx, args)


def _renamed(text: str, known: set[str]) -> str:
    """Return an argument with the option's word of today in the place of an old one."""
    word, equals, value = text.partition("=")
    new = _OLD_WORDS.get(word)
    return text if new is None or word in known or new not in known else f"{new}{equals}{value}"


class Commands(TyperGroup):
    """The root: what click says of a command line in several lines is one line here."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command, and end the process with its exit code."""
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except _AnyError as error:
            if not standalone_mode:
                raise
            _say(error)
            code = error.exit_code
        except typer.Abort:
            if not standalone_mode:
                raise
            note("aborted")
            code = 1
        if standalone_mode:
            raise SystemExit(code)
        return code

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, and refuse empty ones: no option of ours takes an empty value."""
        for place, text in enumerate(args):
            blank = not text.partition("=")[2].strip() if text.startswith("--") and "=" in text else not text.strip()
            if blank:
                before = args[place - 1] if place and args[place - 1].startswith("-") else "an argument"
                name = text.partition("=")[0] if text.strip() else before
                raise _UsageError(f"{name} is empty, as an unset variable leaves it; give a value", ctx)
            if "\0" in text:
                raise _UsageError(f"{text[:60]!r} holds a zero byte, which no name or path has", ctx)
        return super().parse_args(ctx, args)


def _say(error: Any) -> None:
    """Write what is wrong in one line, with the help that says more; the whole help where nothing was given."""
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        error.show()
        return
    said, option = error.message, getattr(error, "param", None)
    if isinstance(option, TyperOption | TyperArgument):
        name = option.opts[-1] if isinstance(option, TyperOption) else option.metavar or str(option.name).upper()
        if kind == "MissingParameter":
            said = f"{name} is missing"
        else:
            said = f"{name} {said}" if isinstance(error, Refused) else f"{name}: {said}"
    context = getattr(error, "ctx", None)
    help_of = f"; see: {context.command_path} --help" if context is not None else ""
    note(f"error: {said.strip().rstrip('.')}{help_of}")
