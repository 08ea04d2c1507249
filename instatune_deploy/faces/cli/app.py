"""What every verb shares: the app, progress lines, JSON output, and errors as one line with an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instatune_deploy import __version__
from instatune_deploy.elastic.processes import is_main_process
from instatune_deploy.errors import MissingExtraError, UsageError
from instatune_deploy.faces.cli.failing import STOPPED, explain
from instatune_deploy.workspace import check_run, is_run

if TYPE_CHECKING:
    from instatune_deploy.faces.cli.bars import Lines

app = typer.Typer(
    name="instatune-deploy",
    help="A pre-trained transformer goes in; for each device with a latency budget the most accurate network that "
    "really meets it comes out, ready to serve.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout; all else goes to stderr.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done, do nothing.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory; default: this directory, or the only one in ./runs.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Evaluate on a Ray cluster and measure targets on the nodes that offer them: auto, or the HOST:PORT of its head.",
    ),
]
#: Options of every verb.
_FLAGS = ("--debug", "--quiet")
_quiet = False
_lines: Lines | None = None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"instatune-deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results and errors alone, no progress.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of every verb."""
    global _quiet
    _quiet = quiet


def progress() -> Lines:
    """What prints lines to stderr with the seconds since now, with bars on a terminal; see `bars.Lines`."""
    from rich.console import Console

    from instatune_deploy.faces.cli.bars import Lines

    global _lines
    # Of several processes that train together one speaks.
    _lines = Lines(Console(stderr=True, quiet=_quiet or not is_main_process()))
    return _lines


def end_progress() -> None:
    """Remove what is drawn on the terminal, before a result is printed."""
    if _lines is not None:
        _lines.close()


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object to stdout."""
    end_progress()
    typer.echo(json.dumps(data, indent=1))


def find_run(given: Path | None) -> Path:
    """The run directory meant: the one given, this directory, or the only one in ``./runs``.

    Raises:
        UsageError: there is none, or several.
    """
    if given is not None:
        check_run(given)
        return given
    if is_run(Path()):
        return Path()
    runs = sorted(path for path in Path("runs").glob("*") if is_run(path))
    if len(runs) != 1:
        found = ", ".join(map(str, runs)) or "none"
        raise UsageError(f"which run? give --run DIR (runs here: {found})")
    return runs[0]


def missing_for_pages() -> MissingExtraError | None:
    """What HTML pages are made with and is not installed; None: all is there."""
    missing = [package for package in ("plotly", "jinja2") if find_spec(package) is None]
    return MissingExtraError(missing[0], "report") if missing else None


def quiet_libraries() -> None:
    """Keep the libraries' chatter off the terminal; errors still reach it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def main() -> None:
    """The console script: run the verb; whatever goes wrong is one line and an exit code."""
    quiet_libraries()
    # They are the program's, and may stand anywhere.
    words = sys.argv[1:]
    flags = [word for word in words if word in _FLAGS]
    try:
        code = app(
            [*flags, *(word for word in words if word not in _FLAGS)], prog_name=app.info.name, standalone_mode=False
        )
    except SystemExit:
        raise
    except BaseException as error:
        end_progress()
        if type(error).__name__ == "NoArgsIsHelpError":  # the parser's, which is the help
            typer.echo(str(error.args[0]) if error.args else "", err=True)
            sys.exit(2)
        if "--debug" in flags:
            traceback.print_exc()
        line, code = explain(error)
        typer.echo(f"error: {line}" if code != STOPPED else line, err=True)
        sys.exit(code)
    end_progress()
    if code == STOPPED:
        typer.echo(explain(KeyboardInterrupt())[0], err=True)
    sys.exit(code if isinstance(code, int) else 0)
