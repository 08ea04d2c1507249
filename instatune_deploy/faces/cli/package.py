"""`instatune-deploy package`: an artifact as the model repository of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit


@app.command()
def package(
    artifact: Annotated[Path, typer.Argument(help="Directory that `run`, `select` or `export` wrote.")],
    server: Annotated[
        str, typer.Option("--for", help="triton, mlserver, ovms (OpenVINO Model Server), sentence-transformers; sbom.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Repository to write; must not exist.")],
    name: Annotated[str, typer.Option(help="Of the model in it.")] = "model",
    max_batch: Annotated[int, typer.Option(min=1, help="Samples that Triton or MLServer may put into one call.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Lay an artifact out as a model repository, with the sizes, types and threads it was measured with.

    MLServer runs it by our own runtime, which takes texts and images as well: install the extra `serve` where it runs.

    Sentence Transformers gets the network without its head, in fp32, and the mean over its tokens: embeddings for search if the
    network is still the pre-trained one, of the task if it was fine-tuned to one.

    `--for sbom` writes what it was made of instead: files, packages and inputs with their hashes, in CycloneDX's JSON.

    Example: instatune-deploy package my-artifact --for triton --out models --name sentiment
    """
    from instatune_deploy.repositories import write_repository

    write_repository(artifact, server, out, name=name, max_batch=max_batch)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    if as_json:
        emit({"repository": str(out), "server": server, "model": name, "files": files})
        return
    typer.echo(f"{out}: {', '.join(files)}")
