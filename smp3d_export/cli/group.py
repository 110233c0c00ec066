"""The command's first word: a job, or an architecture for the main job. Typos name the nearest; Tab completes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.cli.help import MAIN, PROGRAM, arguments, overview, path, show, usage
from smp3d_export.cli.outcome import fail
from smp3d_export.errors import UsageError, nearest, unknown

HELP = ("-h", "--help")

# The base class of parsing errors. Where Typer keeps its copy of Click differs between versions.
ParsingError = cast("type[Exception]", typer.BadParameter.__mro__[1])


def spelling(option: str) -> str:
    """One name for both spellings of an option: --optimise and --optimize, --normalise and --normalize."""
    return f"{option.removesuffix('ise')}ize" if option.endswith("ise") else option


SETTINGS = {"help_option_names": HELP, "token_normalize_func": spelling}


class Job(TyperCommand):
    """One job."""

    def get_help_option(self, ctx: Any) -> Any:
        option: Any = super().get_help_option(ctx)
        option.help, option.rich_help_panel = "Show this help.", "Output"
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show(self, self.get_params(ctx))


class MainJob(Job):
    """The job that needs no word. Its help also lists the other jobs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # options may have come before the first word
            check_word(ctx.params["arch"], ctx.find_root().command.commands)
        return rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        show(self, self.get_params(ctx), ctx.find_root().command.commands)


class Jobs(TyperGroup):
    """The command itself: `smp3d-export ARCH ENCODER` is `smp3d-export export ARCH ENCODER`."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command. A parsing error becomes one line, like every other error."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        words = extra.get("args", args[0] if args else None)
        given = {"as_json": "--json" in (sys.argv[1:] if words is None else words)}
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except typer.Abort:
            code = 1
        except (UsageError, ParsingError) as error:
            message = str(error) if isinstance(error, UsageError) else in_words(error)
            try:
                fail(message, UsageError.exit_code, given)
            except typer.Exit as end:
                code = end.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            overview(self.commands)
            ctx.exit(0)
        if args and args[0] == "help":
            args = [*args[1:], HELP[0]]
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0] not in self.commands and args[0].partition("=")[0] not in own:
            if not args[0].startswith("-") and not ctx.resilient_parsing:
                check_word(args[0], self.commands)
            args = [MAIN, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete jobs, and whatever the main job can begin with: architectures, or options."""
        found = super().shell_complete(ctx, incomplete)
        main: Any = self.commands[MAIN]
        with main.make_context(MAIN, [], parent=ctx, resilient_parsing=True) as context:
            first = main if incomplete.startswith("-") else arguments(main)[0]
            found += first.shell_complete(context, incomplete)
        return list({item.value: item for item in found}.values())

    def format_help(self, ctx: Any, formatter: Any) -> None:
        main: Any = self.commands[MAIN]
        with main.make_context(MAIN, [], parent=ctx, resilient_parsing=True) as context:
            main.format_help(context, formatter)


def check_word(word: str, jobs: Mapping[str, Any]) -> None:
    """Refuse a first word that is neither a job nor an architecture.

    Raises:
        UsageError: it names the nearest of both.
    """
    if word.lower() in (name.lower() for name in ARCHITECTURES):
        return
    names = [name for name, job in jobs.items() if not job.hidden]
    if word in names:
        raise UsageError(f"{word} is a job; it comes first: {PROGRAM} {word}")
    if Path(word).exists():
        raise UsageError(f"{word!r} is a file or a folder: use {PROGRAM} from {word}")
    near_jobs, near = nearest(word, names, 0.6), nearest(word, ARCHITECTURES, 0.6)
    hints = [f"Nearest job: {', '.join(near_jobs)}."] if near_jobs else []
    if near:
        hints.append(f"Nearest architecture: {', '.join(near)}.")
    if not hints:
        hints.append(f"Jobs: {', '.join(names)}.")
    if not near_jobs:
        hints.append(f"All architectures: {PROGRAM} list architectures")
    raise UsageError(f"there is no architecture or job {word!r}. {' '.join(hints)}")


def in_words(error: Any) -> str:
    """A parsing error in one line: what is wrong, and what would be right if that is known."""
    context = getattr(error, "ctx", None)
    job = context.command if context is not None and isinstance(context.command, Job) else None
    more = f"{path(job) if job else PROGRAM} --help"
    if context is not None and hasattr(error, "possibilities"):
        known = [name for param in context.command.get_params(context) for name in param.opts if name[:2] == "--"]
        return str(unknown("option", error.option_name, known, more))
    if job is not None and hasattr(error, "param_type"):
        return f"{error.param.metavar} is missing: {usage(job)}"
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}. See {more}"
