"""`instatune-deploy init`: a commented recipe for a model and a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, app, emit, progress


def _column(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(help=f"Column of {what}; default: found out.")
    return option


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="Model directory or hub name.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Rows: a parquet, CSV or JSON-lines file, a directory of them, of images or of datasets.save_to_disk, or a hub "
            "dataset (name, name@config)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    task: Annotated[str | None, typer.Option(help="Such as text-classification; default: found out.")] = None,
    text: Annotated[str | None, _column("the text")] = None,
    text_pair: Annotated[str | None, _column("the second text of pairs")] = None,
    image: Annotated[str | None, _column("the image")] = None,
    label: Annotated[str | None, _column("the class or number")] = None,
    tokens: Annotated[str | None, _column("the words")] = None,
    tags: Annotated[str | None, _column("the words' tags")] = None,
    question: Annotated[str | None, _column("the question")] = None,
    context: Annotated[str | None, _column("the context")] = None,
    answers: Annotated[str | None, _column("the answers")] = None,
    report: Annotated[
        str | None, typer.Option(help="Rows that only the confirmation reads; default: found out.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="A target, once or several times; default: what this machine serves best.")
    ] = None,
    latency_budget: Annotated[
        list[str] | None, typer.Option(help="Such as 8ms, or 50% of the full network's; once or several times.")
    ] = None,
    estimate: Annotated[bool, typer.Option(help="Measure for some seconds what a run should take.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a commented recipe for a model and a dataset: task, columns, splits, sequence length, space and targets.

    It asks nothing that it can find out; what it cannot is one line that names the option to say it.

    Example: instatune-deploy init ./my-model train.parquet
    """
    if output.exists() and not force:
        raise UsageError(f"{output} exists already; name another file with --output, or replace it with --force")
    named = {
        "text": text, "text_pair": text_pair, "image": image, "label": label, "tokens": tokens, "tags": tags,
        "question": question, "context": context, "answers": answers,
    }  # fmt: skip

    from instatune_deploy.drafting import Wishes, draft_recipe
    from instatune_deploy.workspace import write_text

    wishes = Wishes(
        task, {key: column for key, column in named.items() if column is not None}, report, target or (),
        latency_budget or ("50%",),
    )  # fmt: skip
    found = draft_recipe(model, data, wishes, output, estimate=estimate, report=progress())
    write_text(output, found.text)
    if as_json:
        plan = None if found.plan is None else found.plan.to_dict()
        emit({"recipe": str(output), "content": found.recipe.model_dump(), "plan": plan})
        return
    typer.echo(found.text, nl=False)
    typer.echo(f"written to {output}; next: instatune-deploy run {output} --dry-run", err=True)
