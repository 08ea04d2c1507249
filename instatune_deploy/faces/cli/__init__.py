"""The command line: one file a verb."""

from instatune_deploy.faces.cli import (  # noqa: F401
    bench,
    doctor,
    export,
    finetune,
    fleet,
    init,
    package,
    profile,
    run,
    search,
    select,
    serve,
    targets,
    verify,
)
from instatune_deploy.faces.cli.app import app, main

__all__ = ["app", "main"]
