"""A recipe: what to make of which model, for which targets and budgets. Written by people in YAML, checked here."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml

from instatune_deploy.errors import RecipeError, UsageError, did_you_mean
from instatune_deploy.values.budget import Budget, Limit
from instatune_deploy.values.documents import parse_yaml
from instatune_deploy.values.evaluations import MIN_EVALUATIONS
from instatune_deploy.values.faults import first_fault
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.objectives import DEFAULT, Objectives, parse_objectives
from instatune_deploy.values.presets import AUTO
from instatune_deploy.values.target import is_file_name

Task = Literal[
    "text-classification", "text-regression", "token-classification", "question-answering", "image-classification",
    "visual-question-answering",
]  # fmt: skip
Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "entity_f1", "exact_match", "answer_f1"]
#: The metrics that fit each task, its default first; `data.metrics` says what each of them is.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "text-classification": ("accuracy", "f1", "matthews"),
    "text-regression": ("pearson", "spearman"),
    "token-classification": ("entity_f1", "accuracy", "f1"),
    "question-answering": ("answer_f1", "exact_match"),
    "image-classification": ("accuracy", "f1", "matthews"),
    "visual-question-answering": ("accuracy", "f1", "matthews"),
}
PositiveInt = Annotated[int, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]


class Section(pydantic.BaseModel):
    """Base of all parts of a recipe: an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Where the rows are, and the names of their columns.

    `train` and `report` are parquet, CSV or JSON-lines files, directories that `datasets.save_to_disk` wrote, folders
    of images, or names of hub datasets (``name:split`` or ``name/config:split``). The last `search_rows` rows of `train`
    (shuffled by `seed` first, unless `shuffle` is off) become the search split; `report` is the split that no stage
    but the confirmation reads. Where it is missing, `report_rows` more rows of `train` are kept aside for it.

    `text`, and for pairs of texts `text_pair`, go with text classification and regression, `image` with images; `label` is a
    class, as a whole number or a name, or the number that regression predicts. Visual question answering has an `image`, its
    question as `text`, and the answer, one of a fixed set, as `label`. For token classification, `tokens` holds a
    list of words and `tags` a list as long of classes. For question answering, as in SQuAD, `question` and `context` are
    texts, and `answers` is ``{text: [...], answer_start: [...]}``, where an answer begins at that character of the context.

    Texts are cut to `sequence_length` tokens, special ones included; of a pair the longer one is cut first. A context that
    is too long is read in windows of which two neighbours share `doc_stride` tokens.
    """

    train: str
    report: str | None = None
    text: str = "text"
    text_pair: str | None = None
    image: str = "image"
    label: str = "label"
    tokens: str = "tokens"
    tags: str = "tags"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    search_rows: PositiveInt = 1000
    report_rows: PositiveInt = 1000
    shuffle: bool = True
    sequence_length: PositiveInt = 128
    doc_stride: Annotated[int, pydantic.Field(ge=0)] = 64


class SpaceSection(Section):
    """The choices: numbers of layers, of heads a layer, of MLP neurons a layer.

    `heads` and `ffn` are one list for every layer, or a list of lists, one for each layer of the full network.
    """

    depths: list[PositiveInt]
    heads: list[PositiveInt] | list[list[PositiveInt]]
    ffn: list[PositiveInt] | list[list[PositiveInt]]

    @pydantic.field_validator("heads", "ffn", mode="before")
    @classmethod
    def _one_list_or_one_a_layer(cls, given: Any) -> Any:
        nested = [isinstance(entry, list) for entry in given] if isinstance(given, list) else []
        if any(nested) and not all(nested):
            raise ValueError("expected numbers for every layer alike or a list for each layer, found both")
        kind: Any = list[list[PositiveInt]] if any(nested) else list[PositiveInt]
        return pydantic.TypeAdapter(kind).validate_python(given)  # here, for a union's errors name each of its kinds


class TrainingSection(Section):
    """One training: passes over the data, samples a step, peak learning rate of a linear schedule with warm-up.

    `bf16` computes in bfloat16 where that is safe (autocast), on GPUs and on CPUs that have it; with
    `gradient_checkpointing` layers are computed again in the backward pass instead of being kept: less memory, more time.
    `compile_layers` runs them by `torch.compile`, which needs minutes first and a C++ compiler or a GPU's Triton.
    """

    epochs: Annotated[float, pydantic.Field(gt=0)] = 3
    batch_size: PositiveInt = 32
    gradient_accumulation: PositiveInt = 1
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-5
    warmup_ratio: Fraction = 0.1
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.01
    bf16: bool = False
    gradient_checkpointing: bool = False
    compile_layers: bool = False


PRESETS = Path(__file__).parents[1] / "presets"


class FinetuneSection(TrainingSection):
    """The elastic fine-tuning, InstaTune's Eq. 1: a preset (``paper``, ``best``) and what differs from it.

    Every key has its value in the preset's file; those given beside `preset` take its place. Each ingredient is one key:

    - the loss: `alpha`, `gamma` (teacher ``off``, ``on`` or in the ``first_epochs``, `gamma_epochs` of them),
      `temperature`, `divergence` (``kl`` or AlphaNet's ``alpha``), `hidden_weight` and `attention_weight` (distances of
      hidden states and of attention outputs from the teacher's)
    - what is trained beside the full network: `subnetworks` a step, drawn by `sampling` (``uniform``, ``sandwich``, by
      ``macs``, around the ``front``; the larger `size_power`, the more small ones) from a space that grows for `widen_epochs`
    - where it starts: from the `teacher` (a training of its own; null: the model given is fine-tuned already) or the
      pre-trained weights (`start`), with heads and neurons sorted by `importance` (``first_order``, ``fisher`` or
      ``none``) and layers dropped by `layer_order` (``importance`` or ``last_first``), scored on `importance_rows` rows
    - how it is trained: `ema_decay` (0: no moving mean of the weights), `head_rate` (factor of the task head's learning
      rate), `layer_decay` (of each layer's rate against the one above), `dropout` (null: the model's own), `augment` (the
      share of each batch that is changed at random: texts to runs of their tokens, images moved and mirrored; from those
      a network learns by the teacher alone)
    - where its losses are shown beside the terminal: `report_to`, some of ``tensorboard`` (event files in the run's
      ``logs``), ``mlflow``, ``wandb``, as Trainer has them, with their own settings in the environment
    """

    preset: str
    alpha: Fraction
    gamma: Literal["off", "on", "first_epochs"]
    gamma_epochs: Annotated[float, pydantic.Field(gt=0)]
    temperature: Annotated[float, pydantic.Field(gt=0)]
    divergence: Literal["kl", "alpha"]
    hidden_weight: Annotated[float, pydantic.Field(ge=0)]
    attention_weight: Annotated[float, pydantic.Field(ge=0)]
    subnetworks: PositiveInt
    sampling: Literal["uniform", "sandwich", "macs", "front"]
    size_power: Annotated[float, pydantic.Field(ge=0)]
    widen_epochs: Annotated[float, pydantic.Field(ge=0)]
    teacher: TrainingSection | None
    start: Literal["teacher", "pretrained"]
    importance: Literal["none", "first_order", "fisher"]
    importance_rows: PositiveInt
    layer_order: Literal["importance", "last_first"]
    ema_decay: Annotated[float, pydantic.Field(ge=0, lt=1)]
    head_rate: Annotated[float, pydantic.Field(gt=0)]
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)]
    dropout: Annotated[float, pydantic.Field(ge=0, lt=1)] | None
    augment: Fraction
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]]

    @pydantic.model_validator(mode="before")
    @classmethod
    def _on_top_of_the_preset(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"preset": given}
        if not isinstance(given, dict):
            return given
        name = given.get("preset", DEFAULT_PRESET)
        merged = {**read_preset(name), **given, "preset": name}
        if merged.get("compile_layers") and merged.get("attention_weight"):
            raise ValueError("compile_layers does not go with attention_weight, which looks into layers")
        if merged.get("augment") and merged.get("gamma") != "on":
            raise ValueError("augment needs a teacher to judge what is changed: set gamma: on")
        teacher = given.get("teacher")
        if isinstance(teacher, dict):
            merged["teacher"] = {**(read_preset(name)["teacher"] or {}), **teacher}
        return merged

    def that_matter(self) -> dict[str, Any]:
        """The keys that decide what comes out of the training."""
        return self.model_dump(exclude={"preset", "report_to"})

    @property
    def needs_teacher(self) -> bool:
        """Whether the fine-tuned full model is used for anything."""
        scored = self.importance != "none" or self.layer_order == "importance"
        return self.gamma != "off" or self.start == "teacher" or scored


DEFAULT_PRESET = "best"


def preset_names() -> list[str]:
    """The fine-tuning presets there are."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: object) -> dict[str, Any]:
    """Every key of a fine-tuning preset with its value.

    Raises:
        ValueError: there is none of that name; names the nearest.
    """
    if name not in preset_names():
        raise ValueError(f"unknown fine-tuning preset {name!r}{did_you_mean(str(name), preset_names())}")
    return copy.deepcopy(_preset(str(name)))


@functools.cache
def _preset(name: str) -> dict[str, Any]:
    """A preset, read once: YAML's reader takes longer for it than all else takes for a recipe."""
    data: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


class SearchSection(Section):
    """The search.

    `objectives` are two or three of ``metric`` (or the task's metric by its name), ``macs``, ``parameters``, ``size`` of the
    file, ``latency``, ``memory``, and ``latency@TARGET:DEPLOYMENT`` for the latency in another place; `limits`, such as
    ``size<=30MB``, ``latency<=50%`` of the full network's, ``metric>=0.88`` or ``loss<=0.5`` points against the full
    network, hold for every network of a front. Size and memory are estimates.

    ``warm_start + rounds * batch`` sub-networks are evaluated, or, where they are given, `evaluations` or what `minutes`
    allow; less where the front has not grown in `patience` rounds (0: however long). `deployed` of them are exported and
    evaluated in each other precision that the targets have, which says what that costs the rest (0: none are, and
    precisions are taken to cost nothing until a network is confirmed). Between rounds an
    `inner` genetic search of `population` x `generations` runs on predictions. Other methods than ``linas`` are there to compare it with.
    """

    method: Literal["linas", "nsga2", "evolution", "random"] = "linas"
    inner: Literal["nsga2", "nsga3"] = "nsga2"
    objectives: list[str] = ["metric", "macs", "latency"]
    limits: list[str] = []
    warm_start: Annotated[int, pydantic.Field(ge=MIN_EVALUATIONS)] = 30
    rounds: PositiveInt = 7
    batch: PositiveInt = 10
    population: PositiveInt = 100
    generations: PositiveInt = 30
    evaluations: Annotated[int, pydantic.Field(ge=MIN_EVALUATIONS)] | None = None
    minutes: Annotated[float, pydantic.Field(gt=0)] | None = None
    patience: Annotated[int, pydantic.Field(ge=0)] = 3
    deployed: Annotated[int, pydantic.Field(ge=0)] = 6

    def goals(self, metric: str) -> tuple[Objectives, tuple[Limit, ...]]:
        """What is searched for: objectives and limits; `metric` is the task's.

        Raises:
            UsageError: one is unknown, they repeat or contradict each other.
        """
        limits = tuple(sorted((Limit.parse(text, metric=metric) for text in self.limits), key=Limit.order))
        limited = [limit.objective for limit in limits]
        for objective in limited:
            if limited.count(objective) > 1:
                raise UsageError(f"limits repeat: {objective} is limited twice")
        constrained = any(objective.kind == "metric" for objective in limited)
        return parse_objectives(self.objectives, metric=metric, constrained=constrained), limits


class ProfileSection(Section):
    """The latency tables of a run.

    `seconds` of measuring the probes of a deployment at most, `spare_probes` beyond those that a table needs, and
    `heldout` networks held out of the fit to measure its error, which take half as long again; `confirm_seconds` at most
    to measure an exported file beside the full network. A busy machine is waited out for `wait_seconds` at most. With
    `foreign_tables`, a table of another machine or runtime version will do where there is none of this one.
    """

    heldout: PositiveInt = 12
    seconds: Annotated[float, pydantic.Field(gt=0)] = 60
    spare_probes: Annotated[int, pydantic.Field(ge=0)] = 1
    confirm_seconds: Annotated[float, pydantic.Field(gt=0)] = 30
    wait_seconds: Annotated[float, pydantic.Field(ge=0)] = 30
    foreign_tables: bool = False


def _default_metric(given: dict[str, Any]) -> Metric:
    """The first metric of the task; `given` lacks a task that was wrong itself."""
    return METRICS[given["task"]][0] if "task" in given else "accuracy"


class Recipe(Section):
    """The whole recipe.

    `model` is a directory or hub name; with `reset_head` its task head is replaced by a new one, as for a task of other
    classes. `metric` is what the search makes large, by default the first of the task's (see `METRICS`). `space` is a
    preset's name, ``paper`` (the one of the model's family), ``auto`` (proposed from the importance of each layer's parts
    and the targets' latencies, and written to ``space.yaml`` with the reasons) or choices. `targets` maps each target to its latency budgets:
    ms (``8`` or ``8ms``), or a share (``50%``) of the full network's measured latency on its fastest deployment there.
    A budget may limit more than that, and say what is preferred among networks that keep it: ``8ms, size<=30MB`` or
    ``loss<=0.5, smallest`` (see `values.budget`). Latencies are of `percentile`. An int8 file may be at most `max_drop` points
    below the fp32 one on the search split (null: whatever it is): what it is most sensitive in stays fp32 until it is.
    What is selected is tuned alone for `tune_epochs` passes over the training rows before it is exported and measured, and
    keeps the super-network's weights where it did better with them on the search split (0: it keeps them).
    """

    name: str = "run"
    model: str
    reset_head: bool = False
    task: Task
    metric: Metric = pydantic.Field(default_factory=_default_metric)
    data: DataSection
    space: str | SpaceSection = "paper"
    finetune: FinetuneSection = pydantic.Field(default_factory=lambda: FinetuneSection.model_validate({}))
    search: SearchSection = SearchSection()
    profile: ProfileSection = ProfileSection()
    targets: dict[str, list[str | float]]
    percentile: Literal["p50", "p90", "p99"] = "p50"
    max_drop: Annotated[float, pydantic.Field(ge=0)] | None = None
    tune_epochs: Annotated[float, pydantic.Field(ge=0)] = 0
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0  # as NumPy takes them

    @pydantic.field_validator("metric")
    @classmethod
    def _metric_fits_the_task(cls, metric: Metric, info: pydantic.ValidationInfo) -> Metric:
        task = info.data.get("task")  # missing where it was wrong itself
        if task is not None and metric not in METRICS[task]:
            raise ValueError(f"{metric} does not fit {task}, which takes {' or '.join(METRICS[task])}")
        return metric

    @pydantic.field_validator("space", mode="before")
    @classmethod
    def _name_or_choices(cls, space: Any) -> Any:
        if not isinstance(space, (str, dict, SpaceSection)):
            raise ValueError("expected a preset's name, auto, or depths, heads and ffn")
        return space if isinstance(space, str) else SpaceSection.model_validate(space)  # errors name one kind alone

    @pydantic.model_validator(mode="after")
    def _auto_has_what_it_goes_by(self) -> Recipe:
        finetune = self.finetune
        if self.space == AUTO and (finetune.importance == "none" or finetune.layer_order != "importance"):
            raise ValueError(
                f"space: auto goes by importance, but finetune says importance: {finetune.importance}, layer_order: "
                f"{finetune.layer_order}; it takes first_order or fisher, and importance"
            )
        if self.space == AUTO and self.reset_head and finetune.teacher is None:
            raise ValueError(
                "space: auto scores a fine-tuned model: with reset_head, finetune.teacher must not be null"
            )
        return self

    @pydantic.field_validator("data")
    @classmethod
    def _pairs_fit_the_task(cls, data: DataSection, info: pydantic.ValidationInfo) -> DataSection:
        task = info.data.get("task")
        if data.text_pair is not None and task not in (None, "text-classification", "text-regression"):
            raise ValueError(f"text_pair goes with text-classification and text-regression, not with {task}")
        return data

    @pydantic.field_validator("finetune")
    @classmethod
    def _augmenting_fits_the_task(cls, finetune: FinetuneSection, info: pydantic.ValidationInfo) -> FinetuneSection:
        task = info.data.get("task")
        if finetune.augment and task not in (None, "text-classification", "image-classification"):
            raise ValueError(f"augment goes with text-classification and image-classification, not with {task}")
        return finetune

    @pydantic.field_validator("search")
    @classmethod
    def _objectives_are_some(cls, search: SearchSection, info: pydantic.ValidationInfo) -> SearchSection:
        with _as_value_error():
            search.goals(info.data.get("metric", "metric"))
        return search

    @pydantic.field_validator("targets")
    @classmethod
    def _targets_have_budgets(
        cls, targets: dict[str, list[str | float]], info: pydantic.ValidationInfo
    ) -> dict[str, list[str | float]]:
        if not targets or any(not budgets for budgets in targets.values()):
            raise ValueError("name at least one target, each with at least one budget")
        with _as_value_error():
            for budgets in targets.values():
                for budget in budgets:
                    Budget.parse(budget, metric=info.data.get("metric", "metric"))
        return targets

    @property
    def sources(self) -> dict[str, str | None]:
        """Where the model and the data are, by the keys that say so: paths or names on a hub; None: the key says nothing."""
        return {"model": self.model, "data.train": self.data.train, "data.report": self.data.report}

    def located(self) -> Recipe:
        """This recipe, with paths of what lies on this machine that hold wherever it is read."""

        def absolute(source: str) -> str:
            return os.path.abspath(source) if os.path.exists(source) else source

        rows = {key: absolute(path) for key in ("train", "report") if (path := getattr(self.data, key)) is not None}
        targets = {
            absolute(name) if is_file_name(name) else name: budgets for name, budgets in self.targets.items()
        }  # fmt: skip
        data = self.data.model_copy(update=rows)
        return self.model_copy(update={"model": absolute(self.model), "data": data, "targets": targets})

    def changed(self, **changes: Any) -> Recipe:
        """This recipe, with those of the changes to its keys that are not None."""
        return self.model_copy(update={key: value for key, value in changes.items() if value is not None})

    def with_foreign_tables(self, wanted: bool) -> Recipe:
        """This recipe, with foreign latency tables allowed where that is wanted; what it says itself holds otherwise."""
        if not wanted:
            return self
        return self.model_copy(update={"profile": self.profile.model_copy(update={"foreign_tables": True})})

    def front_file(self, target: str) -> str:
        """Where a run keeps the front of a target, relative to its directory; those of unusual objectives or limits have names of
        their own."""
        objectives, limits = self.search.goals(self.metric)
        wanted = [str(objective) for objective in objectives], [str(limit) for limit in limits]
        special = "" if objectives == DEFAULT and not limits else f"-{content_key(wanted)[:8]}"
        return f"fronts/{target}-{self.percentile}{special}.json"


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What pydantic takes for a field's fault, from what the values themselves raise."""
    try:
        yield
    except UsageError as error:
        raise ValueError(str(error)) from None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; paths in it that start with ``./`` or ``../`` are relative to the file.

    Raises:
        RecipeError: it is unreadable, or a key is missing, unknown (names the nearest) or of the wrong form.
    """
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; `instatune-deploy init MODEL DATA` drafts a recipe") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def parse_recipe(text: str, path: Path) -> Recipe:
    """The recipe that YAML says; `path` is where it stands or shall stand.

    Raises:
        RecipeError: see `read_recipe`.
    """
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected keys such as model, task, data and targets")
    recipe = check_recipe(data, str(path))
    sources = {"train": recipe.data.train, "report": recipe.data.report}
    located = {key: relative_to(path, value) for key, value in sources.items() if value is not None}
    data_section = recipe.data.model_copy(update=located)
    return recipe.model_copy(update={"model": relative_to(path, recipe.model), "data": data_section})


def relative_to(file: Path, value: str) -> str:
    """A path as `file` has it: what starts with ``./`` or ``../`` is relative to that file, all else stays as it is."""
    return os.path.normpath(file.resolve().parent / value) if value.startswith(("./", "../")) else value


def check_recipe(data: dict[str, Any], where: str) -> Recipe:
    """The recipe with these keys.

    Args:
        where: what an error says that they stand in.

    Raises:
        RecipeError: a key is missing, unknown (names the nearest) or of the wrong form.
    """
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{where}: {explain_fault(error, Recipe)}") from None


def explain_fault(error: pydantic.ValidationError, whole: type[Section]) -> str:
    """The first fault of what should be a `whole`, in one line, with the nearest key where one is unknown."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] != "extra_forbidden":
        return first_fault(error)
    section: Any = whole
    for part in path[:-1]:
        if part in getattr(section, "model_fields", {}):
            kinds = [
                section.model_fields[part].annotation,
                *getattr(section.model_fields[part].annotation, "__args__", ()),
            ]
            section = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), section)
    return f"unknown key {'.'.join(path)!r}{did_you_mean(path[-1], section.model_fields)}"
