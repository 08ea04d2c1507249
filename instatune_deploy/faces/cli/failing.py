"""The one place that turns what went wrong into a line: its cause, and what to do next; and into an exit code."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from instatune_deploy.errors import InstatuneError, did_you_mean

_COMMAND = "instatune-deploy"
#: Exit code of what was interrupted, as shells have it.
STOPPED = 130


def explain(error: BaseException) -> tuple[str, int]:
    """A line for the user and the exit code, for anything that a verb or the parser of the command line raised."""
    if isinstance(error, InstatuneError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # the parser's own, of typer or of click, which both have
        return _misuse(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "stopped; the same command goes on from here", STOPPED
    if isinstance(error, OSError):
        return _system(error), 1
    if (refused := re.search(r"\(os error (\d+)\)", str(error))) is not None:
        # Libraries in Rust, such as safetensors, have errors of their own for what the system refuses.
        return _system(OSError(int(refused[1]), os.strerror(int(refused[1])))), 1
    if "inline_container" in str(error) and "Reader" not in str(error):
        # PyTorch's writer of archives does not pass on what the system said.
        return _system(OSError(errno.ENOSPC, "PyTorch could not write a whole file, as when no space is left")), 1
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return (
            "memory ran out: lower finetune.batch_size (and raise finetune.gradient_accumulation as much), or set "
            "finetune.gradient_checkpointing: true",
            1,
        )
    if isinstance(error, ImportError):
        return f"{_in_a_line(error)}: `{_COMMAND} doctor` says which packages are missing", 1
    return (
        f"{type(error).__name__}: {_in_a_line(error)}: this should not happen; `{_COMMAND} --debug` before the verb shows "
        "where, for a bug report",
        1,
    )


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "it says nothing"


def _system(error: OSError) -> str:
    """What the system refused."""
    what = f"{error.filename or 'system'}: {error.strerror or _in_a_line(error)}"
    if error.errno == errno.ENOSPC:
        return f"{what}: free some, then call the same command again, which goes on; `{_COMMAND} run RECIPE --dry-run` says how much a run needs"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}: name a place that you may write to, or change its permissions"
    return what


def _misuse(error: Any) -> str:
    """What the parser of the command line refused, with what was meant, or where to read how."""
    context = getattr(error, "ctx", None)
    said = error.format_message().strip().rstrip(".")
    helped = f"`{context.command_path if context is not None else _COMMAND} --help` shows how"
    command: Any = getattr(context, "command", None)
    if getattr(error, "option_name", None) and said.startswith("No such option"):
        known = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
        return f"no such option {error.option_name!r}{_near(error.option_name, known) or f'; {helped}'}"
    unknown = re.match(r"No such command ['\"]?([^'\"]*)['\"]?", said)
    if unknown is not None:
        return f"no such verb {unknown[1]!r}{did_you_mean(unknown[1], getattr(command, 'commands', {}))}"
    return f"{said[:1].lower()}{said[1:]}; {helped}"


def _near(name: str, known: list[str]) -> str:
    """`did_you_mean`, without the list of all there are."""
    found = did_you_mean(name, known)
    return found if found.startswith("; did you mean") else ""
