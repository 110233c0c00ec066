"""How a job ends: reports are written, a table or a one-line error is printed, and an exit code is set."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console

from smp3d_export.cli import parsing
from smp3d_export.errors import BUG, Smp3dExportError, UsageError
from smp3d_export.report import Destination, Failure, Result

if TYPE_CHECKING:
    from smp3d_export.validators.verdict import Report

# Packages that a device may lack if it runs nothing that needs them. pip and Python use the same names for them.
INSTALLED = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "safetensors", "huggingface_hub")
EXIT_UNAVAILABLE = 3
EXIT_INTERRUPTED = 130


def reporting(job: Callable[..., None]) -> Callable[..., None]:
    """Turn an error into one line on stderr, or JSON on stdout with `as_json`, and an exit code."""

    @functools.wraps(job)
    def run(*args: Any, **kwargs: Any) -> None:
        debug = kwargs["debug"]
        try:
            job(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            fail("interrupted; no unfinished artifact is left behind", EXIT_INTERRUPTED, kwargs)
        except Smp3dExportError as error:
            if debug:
                traceback.print_exc()
            fail(str(error), error.exit_code, kwargs)
        except Exception as error:  # noqa: BLE001  the last resort, so that no traceback reaches a user
            if debug:
                traceback.print_exc()
            if isinstance(error, ModuleNotFoundError) and error.name in INSTALLED:
                fail(f"{error.name} is not installed: pip install {error.name}", EXIT_UNAVAILABLE, kwargs)
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"{BUG}: {text}", 1, kwargs)

    return run


def fail(message: str, code: int, given: Mapping[str, Any]) -> NoReturn:
    """Print an error, write it to the reports that the job was given, and exit."""
    failure = Failure(message, code)
    if given.get("as_json"):
        Destination("json", None).write(failure)
    with contextlib.suppress(UsageError):  # a report that cannot be written may be the error itself
        for destination in parsing.reports(given.get("report")):
            destination.write(failure)
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, highlight=False)
    raise typer.Exit(code)


def print_tracebacks(report: Report, debug: bool) -> None:
    """With `--debug`, print the tracebacks of the errors in a report."""
    for verdict in report.verdicts if debug else ():
        if verdict.error is not None:
            traceback.print_exception(verdict.error)


def deliver(result: Result, reports: Sequence[Destination], as_json: bool, show: Callable[[Console], None]) -> NoReturn:
    """Write the reports, print the result as a table or as JSON, and exit with its code."""
    for destination in reports:
        destination.write(result)
    if as_json:
        Destination("json", None).write(result)
    else:
        Console(stderr=True).print()
        show(Console())
    raise typer.Exit(result.exit_code)
