"""The command line: one file a verb."""

from instatune_deploy.faces.cli import bench, export, finetune, fleet, package, profile, run, search, select, serve, targets, verify  # noqa: F401
from instatune_deploy.faces.cli.app import app, main

__all__ = ["app", "main"]
