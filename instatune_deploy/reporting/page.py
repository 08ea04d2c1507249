"""The pages: a run, or two side by side, rendered with everything they need inside."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from instatune_deploy import __version__
from instatune_deploy.reporting.drawings import draw
from instatune_deploy.reporting.figures import error_figure, hypervolume_figure, styles, training_figure
from instatune_deploy.reporting.fronts import front_view
from instatune_deploy.reporting.record import FoundHistory, RunRecord
from instatune_deploy.reporting.units import megabytes, shown, words
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.space import Architecture

_PAGE = Path(__file__).parent / "page"
#: What a page says made it: the mark by which one is told from other files.
GENERATOR = "instatune-deploy report"


@cache
def _environment() -> jinja2.Environment:
    """What compiles the templates, once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"shown": shown, "megabytes": megabytes, "words": words}
    return environment


def render(template: str, context: dict[str, Any]) -> str:
    """A page as HTML: `template` with `context`, whose `data` is for its scripts, if it has some."""
    # A page's own scripts and styles are no text of a run: they go in as they are.
    safe = {
        "css": _text("page.css"),
        "script": _text("figures.js") + _text("front.js"),
    }
    return _environment().get_template(template).render(
        **{name: Markup(text) for name, text in safe.items()}, plotly=_plotly,
        generator=GENERATOR, version=__version__, written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **context,
    )  # fmt: skip


def _plotly() -> Markup:
    """Megabytes of script, for the pages that have figures."""
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def run_page(record: RunRecord) -> str:
    """The page of a run."""
    histories = named_histories(record)
    searched = [(found.title, found) for found in record.fronts if found.rounds]
    figures = {f"training-{i}": training_figure([pair], rate=True) for i, pair in enumerate(histories)}
    if searched:
        figures["hypervolume"] = hypervolume_figure(searched)
    if record.selections or any(table.heldout for table in record.tables):
        figures["errors"] = error_figure(record.tables, record.selections)
    names = {c.deployment.name for found in record.fronts for c in found.front.candidates}
    data = {
        "figures": figures,
        "fronts": [front_view(record, found) for found in record.fronts],
        "deployments": [{"name": name, **style} for name, style in styles(sorted(names)).items()],
    }
    sections = {
        "front": ("Front", record.fronts), "selections": ("Selected", record.selections), "tables": ("Latency tables", record.tables),
        "training": ("Training", histories), "search": ("Search", searched or record.predictor or record.evaluations),
        "architectures": ("Architectures", _drawn(record)), "artifacts": ("Artifacts", record.artifacts),
        "environment": ("Environment", True),
    }  # fmt: skip
    context = {
        "record": record, "data": data, "histories": histories, "searched": searched,
        "headlines": _headlines(record), "sections": [(a, name) for a, (name, there) in sections.items() if there],
        "own_selections": [("", s) for s in record.selections], "own_tables": [("", t) for t in record.tables],
        "drawn": _drawn(record), "templates": _templates(record), "machines": machines(record), "versions": versions(record),
        "resume": resume_command(record), "recipe": (record.directory / "recipe.yaml").read_text(encoding="utf-8"),
        "verify": {a.directory: shlex.join(["instatune-deploy", "verify", str(record.directory / a.directory)]) for a in record.artifacts},
    }  # fmt: skip
    return render("run.html", context)


def named_histories(record: RunRecord) -> list[tuple[str, FoundHistory]]:
    """Trainings that have a point, in the order in which they are made."""
    order = ("full model", "super-network")

    def place(found: FoundHistory) -> int:
        return order.index(found.history.trained) if found.history.trained in order else len(order)

    histories = sorted((found for found in record.histories if found.history.points), key=place)
    return [
        (found.history.trained if found.history.trained in order else f"{found.history.trained}, tuned alone", found)
        for found in histories
    ]


def resume_command(record: RunRecord) -> str:
    """The command that makes what a run has not made yet."""
    words = ["instatune-deploy", "run", str(record.directory / "recipe.yaml"), "--out", str(record.directory)]
    return shlex.join(words)


def machines(record: RunRecord) -> list[tuple[Machine, list[str]]]:
    """The machines that measured latency tables, each with those it did; loads are left aside."""
    found: dict[tuple[Any, ...], tuple[Machine, list[str]]] = {}
    for table in record.tables:
        key = (table.machine.cpu_model, table.machine.logical_cpus, table.machine.accelerators)
        found.setdefault(key, (table.machine, []))[1].append(f"{table.target}/{table.deployment.name}")
    return list(found.values())


def versions(record: RunRecord) -> list[tuple[str, str]]:
    """Every package that made or measured something, with its version, or its versions where they differ."""
    found: dict[str, dict[str, None]] = {}
    for source in (*(a.manifest.versions for a in record.artifacts), *(t.versions for t in record.tables)):
        for name, version in source.items():
            found.setdefault(name, {})[version] = None
    return [(name, ", ".join(known)) for name, known in sorted(found.items())]


def _headlines(record: RunRecord) -> list[str]:
    """What was selected, a line each."""
    lines = []
    for s in record.selections:
        ratio = s.full_beside_ms / s.measured.percentile_ms(s.percentile)
        lost = 100 * (s.full.metric - s.measured.metric)
        against = f"{abs(lost):.2f} points {'below' if lost > 0 else 'above'}" if abs(lost) >= 0.005 else "as much as"
        lines.append(
            f"{s.budget} on {s.target}: measured {s.percentile} {shown(s.measured.percentile_ms(s.percentile))} ms, {ratio:.2f} "
            f"times as fast as the full network beside it on {s.deployment}; {record.recipe.metric} "
            f"{100 * s.measured.metric:.2f}%, {against} the full network, on "
            f"{s.measured.n} samples of the report split"
        )
    return lines


def _drawn(record: RunRecord) -> list[dict[str, Any]]:
    """Drawings of the full network and of what was selected."""
    full = record.full_architecture()
    entries = [] if full is None else [("full network", full)]
    entries += [(f"{s.budget} on {s.target}", Architecture.parse(s.architecture)) for s in record.selections]
    return [
        {"title": title, "architecture": str(network), "svg": _svg(record, network)}
        for title, network in entries
    ]  # fmt: skip


def _templates(record: RunRecord) -> list[dict[str, Any]]:
    """Drawings of all that can be pinned, one an architecture."""
    full = record.full_architecture()
    networks = [c.architecture for found in record.fronts for c in found.front.candidates]
    wanted: Sequence[Architecture] = [*([full] if full is not None else []), *networks]
    return [{"architecture": str(n), "svg": _svg(record, n)} for n in dict.fromkeys(wanted)]


def _svg(record: RunRecord, network: Architecture) -> Markup:
    return Markup(draw(network, record.full_architecture(), record.space))


def _text(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def is_page(path: Path) -> bool:
    """Whether a file is a page that was made here, to be replaced by a newer one."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return f'name="generator" content="{GENERATOR}"'.encode() in stream.read(2000)
