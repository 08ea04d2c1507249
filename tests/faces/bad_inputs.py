"""What users get wrong: a table of wrong inputs, each with the exact line that it ends in and the exit code.

In a message ``HERE`` is the project's directory, ``CPU`` this machine's, and VERBS, FAMILIES and TASKS are all that there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.stages.export import export
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import Workspace
from tests.helpers import TARGET, write_image_model, write_project

NETWORK = Architecture.parse("2L[4-16 2-64]")


@dataclass(frozen=True)
class Case:
    """A wrong input: what is spoilt in the project first, the call, and what it must end in."""

    name: str
    call: str
    message: str
    code: int = 2
    spoil: Callable[[], object] | None = None


def write_everything(directory: Path) -> None:
    """A project with a model of images beside it, an artifact, and a run that was begun."""
    write_project(directory)
    (directory / "images").mkdir()
    write_image_model(directory / "images")
    run = directory / "runs" / "tiny"
    Workspace(run).begin()
    (run / "recipe.yaml").write_text((directory / "recipe.yaml").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(directory / "model")
    samples = synthetic_inputs(model.config, 16, 4, seed=0)
    export(
        Supernet(model, SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])).extract(NETWORK), NETWORK,
        Deployment("onnxruntime"), model_shape(model, 16),
        Processor(str(directory / "model"), "text-classification", 16), samples, [samples], directory / "artifact",
        target="cpu-test", metric="accuracy", predicted=None,
    )  # fmt: skip


# -- ways to spoil a project, from inside it ----------------------------------------------------------------------


def recipe(**changes: Any) -> Callable[[], None]:
    """Changes keys of the recipe; None takes one out."""

    def spoil() -> None:
        path = Path("recipe.yaml")
        changed = {**yaml.safe_load(path.read_text()), **changes}
        path.write_text(yaml.safe_dump({key: value for key, value in changed.items() if value is not None}))

    return spoil


def data(**changes: Any) -> Callable[[], None]:
    """Changes keys of the recipe's `data`."""
    return lambda: recipe(data={**yaml.safe_load(Path("recipe.yaml").read_text())["data"], **changes})()


def write(path: str, content: str | bytes) -> Callable[[], object]:
    """Writes a file."""
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def rows(path: str, **columns: list[Any]) -> Callable[[], object]:
    """Writes rows as parquet."""
    return lambda: Dataset.from_dict(columns).to_parquet(path)


def remove(path: str) -> Callable[[], None]:
    """Removes a file or folder."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def target(**changes: Any) -> Callable[[], object]:
    """Changes the project's target."""
    return write("targets/cpu-test.yaml", yaml.safe_dump({**TARGET, **changes}))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    """Changes the checkpoint."""

    def spoil() -> None:
        state = load_file("model/model.safetensors")
        change(state)
        save_file(state, "model/model.safetensors", metadata={"format": "pt"})

    return spoil


def manifest(**changes: Any) -> Callable[[], None]:
    """Changes the artifact's manifest."""

    def spoil() -> None:
        path = Path("artifact/instatune.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def flipped_byte() -> None:
    path = Path("artifact/model.onnx")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def gpt2() -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained("gpt2")
    recipe(model="./gpt2")()


def deberta() -> None:
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "model_type": "deberta"}))


def two_labels() -> None:
    Dataset.from_dict({"text": ["film"] * 30, "label": [0, 1] * 15, "target": [0, 1] * 15}).to_parquet("train.parquet")


def two_texts() -> None:
    texts = [f"film {number}" for number in range(30)]
    Dataset.from_dict({"one": texts, "two": texts, "label": [0, 1] * 15}).to_parquet("train.parquet")


def shards() -> None:
    Path("shards").mkdir()
    for number in range(2):
        Dataset.from_dict({"text": ["film"], "label": [0]}).to_parquet(f"shards/train-{number}.parquet")


def only_a_test_split() -> None:
    for split in ("test", "unsupervised"):
        Dataset.from_dict({"text": ["film"], "label": [0]}).save_to_disk(f"splits/{split}")
    write("splits/dataset_dict.json", json.dumps({"splits": ["test", "unsupervised"]}))()


RUN, DRY = "run recipe.yaml", "run recipe.yaml --dry-run"
NO_BIAS, MISSHAPEN = "bert.encoder.layer.2.output.dense.bias", "bert.encoder.layer.0.attention.self.key.weight"
TWO_LAYERS = {"depths": [2], "heads": [[2, 4], [2, 4]], "ffn": [16, 64]}


# -- the table ----------------------------------------------------------------------------------------------------

#: Of the command line.
CALLS = (
    Case("a verb that is none", "selct", "no such verb 'selct'; did you mean 'select' or 'search'?"),
    Case(
        "nothing like a verb",
        "zzz",
        "no such verb 'zzz'; known: VERBS",
    ),
    Case("a verb of targets", "targets lst", "no such verb 'lst'; did you mean 'list'?"),
    Case(
        "an option that is none",
        "bench artifact --secnds 3",
        "no such option '--secnds'; did you mean '--seconds' or '--seed' or '--json'?",
    ),
    Case(
        "an option of no verb",
        "run recipe.yaml --zzz",
        "no such option '--zzz'; `instatune-deploy run --help` shows how",
    ),
    Case("no recipe", "run", "missing argument 'recipe'; `instatune-deploy run --help` shows how"),
    Case(
        "no place to export to",
        "export --architecture full",
        "missing option '--out'; `instatune-deploy export --help` shows how",
    ),
    Case(
        "no number",
        "bench artifact --seconds abc",
        "invalid value for '--seconds': Input should be a valid number, unable to parse string as a number; `instatune-deploy bench --help` shows how",
    ),
    Case(
        "too small a number",
        "profile --target cpu-test --heldout 0",
        "invalid value for '--heldout': Input should be greater than or equal to 1; `instatune-deploy profile --help` shows how",
    ),
    Case(
        "a negative time",
        "doctor --seconds -1",
        "invalid value for '--seconds': Input should be greater than or equal to 0; `instatune-deploy doctor --help` shows how",
    ),
    Case(
        "one word too many",
        "run recipe.yaml more.yaml",
        "got unexpected extra argument(s) (more.yaml); `instatune-deploy run --help` shows how",
    ),
    Case(
        "an option without its value",
        "select --latency-budget",
        "option '--latency-budget' requires an argument; `instatune-deploy --help` shows how",
    ),
    Case(
        "no such recipe",
        "run nowhere.yaml",
        "nowhere.yaml: no such file; `instatune-deploy init MODEL DATA` drafts a recipe",
    ),
    Case("a directory as recipe", "run model", "model: Is a directory"),
    Case(
        "no such target",
        "profile --target cpu-avx51",
        "unknown target 'cpu-avx51'; did you mean 'cpu-avx512' or 'cpu-avx2' or 'cpu-avx512-vnni'?",
    ),
    Case(
        "more tokens than the model reads",
        "profile --target cpu-test --model ./model --sequence-length 17",
        "a sequence length of 17 will not do: the model reads at most 16 tokens",
    ),
    Case("no such target file", "profile --target my/target.yaml", "my/target.yaml: No such file or directory"),
    Case("no target", "profile", "which target? give --target NAME; `instatune-deploy targets list` names them"),
    Case(
        "no such model to profile",
        "profile --target cpu-test --model ./nowhere",
        "./nowhere: no model can be loaded: there is no such directory",
    ),
    Case(
        "no such space",
        "profile --target cpu-test --model model --space vit",
        "unknown space preset 'vit'; did you mean 'vit-base'?",
    ),
    Case(
        "both a kit and an import",
        "profile --target cpu-test --pack a.zip --import b.zip",
        "--pack and --import exclude each other: give one",
    ),
    Case(
        "an import for a target",
        "profile --import b.zip --target cpu-test",
        "--import takes no --target: the file says it itself",
    ),
    Case("no such results", "profile --import nowhere.zip", "nowhere.zip does not exist"),
    Case(
        "results that are no zip",
        "profile --import recipe.yaml",
        "recipe.yaml is damaged or not a zip file: File is not a zip file",
        code=1,
    ),
    Case("no such table", "profile --refit nowhere.json", "nowhere.json: there is no such latency table"),
    Case(
        "a table that is none",
        "profile --refit recipe.yaml",
        "recipe.yaml: not JSON: Expecting value: line 1 column 1 (char 0)",
    ),
    Case(
        "no budget", "select", "which budget? give --latency-budget 8ms, --size-budget 30MB, --max-loss 0.5 or others"
    ),
    Case(
        "no time",
        "select --latency-budget fast",
        "budget 'fast' is neither milliseconds such as 8ms nor a share such as 50%",
    ),
    Case(
        "no time at all",
        "select --latency-budget 0ms",
        "budget '0ms' is neither milliseconds such as 8ms nor a share such as 50%",
    ),
    Case(
        "no size", "select --size-budget 30ms", "budget '30ms' is neither a size such as 30MB nor a share such as 50%"
    ),
    Case("no points", "select --max-loss much", "budget 'much' is neither points such as 0.5 nor anything else"),
    Case("a limit twice", "select --max-loss 1 --min-metric 0.8", "budget 'metric>=0.8, loss<=1' limits metric twice"),
    Case(
        "no such preference",
        "select --max-loss 1 --prefer cheap",
        "unknown preference 'cheap'; known: best, fastest, smallest",
    ),
    Case(
        "no such percentile",
        "select --latency-budget 8ms --percentile p95",
        "unknown percentile 'p95'; known: p50, p90, p99",
    ),
    Case(
        "no such target to show",
        "targets show cpu-avx",
        "unknown target 'cpu-avx'; did you mean 'cpu-avx2' or 'cpu-amx' or 'cpu-avx512'?",
    ),
    Case("a length of a whole month", "serve artifact --hold soon", "--hold 'soon' is not written like 20ms"),
    Case(
        "no such server",
        "package artifact --for tritn --out repository",
        "unknown repository 'tritn'; did you mean 'triton'?",
    ),
    Case(
        "a place that is taken", "export --architecture full --out model", "model exists already; name a new directory"
    ),
    Case(
        "a recipe that is there",
        "init ./model train.parquet",
        "recipe.yaml exists already; name another file with --output, or replace it with --force",
    ),
    Case(
        "no such task",
        "init ./model train.parquet -o new.yaml --task text-clasification",
        "unknown task 'text-clasification'; did you mean 'text-classification' or 'token-classification' or 'image-classification'?",
    ),
    Case("no such rows", "init ./model ./nowhere.parquet -o new.yaml", "./nowhere.parquet: no such file or directory"),
    Case(
        "no such column",
        "init ./model train.parquet -o new.yaml --label lable",
        "train.parquet: has no column 'lable', which --label names; its columns: text, label",
    ),
    Case(
        "rows of no known kind",
        "init ./model recipe.yaml -o new.yaml",
        "recipe.yaml: is none of .csv, .json, .jsonl, .parquet, .tsv, a directory or a hub dataset",
    ),
    Case(
        "a folder without rows",
        "init ./model model -o new.yaml",
        "model: which of its parts is for training? found: 'config', 'special_tokens_map', 'tokenizer', 'tokenizer_config'; give the path of one as DATA",
    ),
    Case(
        "texts for a model of images",
        "init ./images train.parquet -o new.yaml",
        "train.parquet: holds texts, but the model reads images: name another model or other rows",
    ),
    Case(
        "no such model to draft for",
        "init ./nowhere train.parquet -o new.yaml",
        "./nowhere: no model can be loaded: there is no such directory",
    ),
    Case(
        "two labels",
        "init ./model train.parquet -o new.yaml",
        "train.parquet: which column is the label? it could be 'label' or 'target'; name it with --label",
        spoil=two_labels,
    ),
    Case(
        "two texts",
        "init ./model train.parquet -o new.yaml",
        "train.parquet: which column is the text? it could be 'one' or 'two'; name it with --text, and the second of a pair with --text-pair",
        spoil=two_texts,
    ),
    Case(
        "several files of a split",
        "init ./model shards -o new.yaml",
        "shards: train is in several files, train-0.parquet and train-1.parquet among them; a recipe names one: join them, as by datasets.load_dataset(...).save_to_disk(...)",
        spoil=shards,
    ),
    Case(
        "no split to train on",
        "init ./model splits -o new.yaml",
        "splits: which of its parts is for training? found: 'test', 'unsupervised'; give the path of one as DATA",
        spoil=only_a_test_split,
    ),
    Case(
        "a target that is not served",
        "init ./model train.parquet -o new.yaml --target cpu-test",
        "this machine serves no target: target cpu-test needs mmx512, which this machine (CPU) lacks",
        spoil=target(instruction_sets=["mmx512"]),
    ),
)
#: Of recipes.
RECIPES = (
    Case(
        "a key that is none",
        RUN,
        "recipe.yaml: unknown key 'finetun'; did you mean 'finetune'?",
        spoil=recipe(finetun={"epochs": 3}),
    ),
    Case(
        "a key of a part that is none",
        RUN,
        "recipe.yaml: unknown key 'search.round'; did you mean 'rounds'?",
        spoil=recipe(search={"round": 3}),
    ),
    Case(
        "no number in a recipe",
        RUN,
        "recipe.yaml: finetune.epochs: Input should be a valid number, unable to parse string as a number",
        spoil=recipe(finetune={"epochs": "many"}),
    ),
    Case(
        "a number below zero",
        RUN,
        "recipe.yaml: finetune.learning_rate: Input should be greater than 0",
        spoil=recipe(finetune={"learning_rate": -1}),
    ),
    Case(
        "too short a warm start",
        RUN,
        "recipe.yaml: search.warm_start: Input should be greater than or equal to 8",
        spoil=recipe(search={"warm_start": 4}),
    ),
    Case(
        "a space of one network",
        RUN,
        "space: holds the full network alone, so that there is nothing to choose from: give more depths or sizes",
        spoil=recipe(space={"depths": [3], "heads": [4], "ffn": [64]}),
    ),
    Case("no model in a recipe", RUN, "recipe.yaml: model: Field required", spoil=recipe(model=None)),
    Case("no targets in a recipe", RUN, "recipe.yaml: targets: Field required", spoil=recipe(targets=None)),
    Case(
        "a target without a budget",
        RUN,
        "recipe.yaml: targets: name at least one target, each with at least one budget",
        spoil=recipe(targets={"cpu-test": []}),
    ),
    Case(
        "a budget that is none",
        RUN,
        "recipe.yaml: targets: budget 'soon' is neither milliseconds such as 8ms nor a share such as 50%",
        spoil=recipe(targets={"cpu-test": ["soon"]}),
    ),
    Case(
        "an unknown task",
        RUN,
        "recipe.yaml: task: Input should be TASKS; did you mean 'text-classification' or 'token-classification' or 'image-classification'?",
        spoil=recipe(task="text-clasification"),
    ),
    Case(
        "a metric of another task",
        RUN,
        "recipe.yaml: metric: entity_f1 does not fit text-classification, which takes accuracy or f1 or matthews",
        spoil=recipe(metric="entity_f1"),
    ),
    Case(
        "an unknown fine-tuning",
        RUN,
        "recipe.yaml: finetune: unknown fine-tuning preset 'bst'; did you mean 'best'?",
        spoil=recipe(finetune="bst"),
    ),
    Case(
        "an unknown space",
        RUN,
        "unknown space preset 'bert-bse'; did you mean 'bert-base' or 'beit3-base' or 'vit-base'?",
        spoil=recipe(space="bert-bse"),
    ),
    Case(
        "a space that contradicts itself",
        RUN,
        "depth 4 is more than the 3 layers there are",
        spoil=recipe(space={"depths": [4], "heads": [2], "ffn": [64]}),
    ),
    Case(
        "a space wider than the model",
        RUN,
        "the space has 16 heads, but the model only 4",
        spoil=recipe(space={"depths": [3], "heads": [2, 16], "ffn": [64]}),
    ),
    Case(
        "lists for other layers",
        RUN,
        "heads are given for 2 layers, but the model has 3",
        spoil=recipe(space=TWO_LAYERS),
    ),
    Case(
        "lists and numbers",
        RUN,
        "recipe.yaml: space.heads: expected numbers for every layer alike or a list for each layer, found both",
        spoil=recipe(space={"depths": [3], "heads": [2, [4]], "ffn": [64]}),
    ),
    Case(
        "an unknown objective",
        RUN,
        "recipe.yaml: search: unknown objective 'latncy'; did you mean 'latency'?",
        spoil=recipe(search={"objectives": ["metric", "latncy"]}),
    ),
    Case(
        "objectives that repeat",
        RUN,
        "recipe.yaml: search: objectives repeat: metric and accuracy are the same",
        spoil=recipe(search={"objectives": ["metric", "macs", "accuracy"]}),
    ),
    Case(
        "a limit that is none",
        RUN,
        "recipe.yaml: search: budget '30ms' is neither a size such as 30MB nor a share such as 50%",
        spoil=recipe(search={"limits": ["size<=30ms"]}),
    ),
    Case(
        "a bare on",
        RUN,
        "recipe.yaml: finetune.gamma: Input should be 'off', 'on' or 'first_epochs'; YAML takes a bare on, off, yes or no for true or false: write it in quotes",
        spoil=write(
            "recipe.yaml",
            "model: ./model\ntask: text-classification\ndata: {train: ./train.parquet}\nfinetune: {gamma: on}\ntargets: {cpu-test: [50%]}\n",
        ),
    ),
    Case(
        "an unknown percentile",
        RUN,
        "recipe.yaml: percentile: Input should be 'p50', 'p90' or 'p99'",
        spoil=recipe(percentile="p95"),
    ),
    Case(
        "augmenting without a teacher",
        RUN,
        "recipe.yaml: finetune: augment needs a teacher to judge what is changed: set gamma: on",
        spoil=recipe(finetune={"augment": 0.5, "gamma": "off"}),
    ),
    Case(
        "pairs of images",
        RUN,
        "recipe.yaml: data: text_pair goes with text-classification and text-regression, not with image-classification",
        spoil=recipe(task="image-classification", data={"train": "./train.parquet", "text_pair": "b"}),
    ),
    Case(
        "a proposal without importance",
        RUN,
        "recipe.yaml: space: auto goes by importance, but finetune says importance: none, layer_order: importance; it takes first_order or fisher, and importance",
        spoil=recipe(space="auto", finetune={"importance": "none"}),
    ),
    Case(
        "no YAML",
        RUN,
        "recipe.yaml: not YAML: while parsing a flow node expected the node content, but found '<stream end>' in \"<unicode string>\", line 1, column 9: model: [ ^",
        spoil=write("recipe.yaml", "model: ["),
    ),
    Case(
        "no recipe in a file",
        RUN,
        "recipe.yaml: expected keys such as model, task, data and targets",
        spoil=write("recipe.yaml", "just words"),
    ),
    Case(
        "an empty recipe",
        RUN,
        "recipe.yaml: expected keys such as model, task, data and targets",
        spoil=write("recipe.yaml", ""),
    ),
    Case(
        "no text",
        RUN,
        "recipe.yaml: not YAML: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        spoil=write("recipe.yaml", b"\xff\xfe\x00"),
    ),
)
#: Of models, targets, tables.
MODELS = (
    Case(
        "a family without an axis map",
        RUN,
        "model family 'gpt2' has no axis map; supported families: FAMILIES",
        spoil=gpt2,
    ),
    Case(
        "a family like another",
        RUN,
        "model family 'deberta' has no axis map; did you mean 'deberta-v2' or 'bert' or 'roberta'?; supported families: FAMILIES",
        spoil=deberta,
    ),
    Case(
        "no such model",
        RUN,
        "HERE/nowhere: no model can be loaded: there is no such directory",
        spoil=recipe(model="./nowhere"),
    ),
    Case(
        "a model of images for texts",
        RUN,
        "HERE/images: a vit model cannot do text-classification",
        spoil=recipe(model="./images"),
    ),
    Case(
        "a tensor of another shape",
        RUN,
        "HERE/model: tensor bert.encoder.layer.0.attention.self.key.weight has shape (16, 32), expected (32, 32)",
        spoil=tensors(lambda state: state.update({MISSHAPEN: torch.zeros(16, 32)})),
    ),
    Case(
        "a tensor that is missing",
        RUN,
        "HERE/model: tensor bert.encoder.layer.2.output.dense.bias is missing, expected shape (32,)",
        spoil=tensors(lambda state: state.pop(NO_BIAS)),
    ),
    Case(
        "weights that are none",
        RUN,
        "HERE/model: its weights cannot be read: Error while deserializing header: header too small",
        spoil=write("model/model.safetensors", "weights"),
    ),
    Case(
        "no weights",
        RUN,
        "HERE/model: its weights cannot be read: Error no file named model.safetensors found in directory HERE/model.",
        spoil=remove("model/model.safetensors"),
    ),
    Case(
        "a config that is none",
        RUN,
        "HERE/model: no model can be loaded: It looks like the config file at 'HERE/model/config.json' is not a valid JSON file.",
        spoil=write("model/config.json", "{"),
    ),
    Case(
        "an unknown target",
        RUN,
        "unknown target 'cpu-avx215'; did you mean 'cpu-avx2' or 'cpu-avx512' or 'cpu-amx'?",
        spoil=recipe(targets={"cpu-avx215": ["8ms"]}),
    ),
    Case(
        "a target that this machine lacks",
        RUN,
        "target cpu-test needs mmx512, which this machine (CPU) lacks",
        spoil=target(instruction_sets=["mmx512"]),
    ),
    Case(
        "an unknown runtime",
        RUN,
        "targets/cpu-test.yaml: deployments.0.runtime: Input should be 'onnxruntime', 'openvino', 'torch' or 'fake'",
        spoil=target(deployments=[{"runtime": "tensorrt"}]),
    ),
    Case(
        "a precision that the runtime lacks",
        RUN,
        "targets/cpu-test.yaml: deployments.0: onnxruntime does not compute in bf16 on cpu; it does in fp32, int8",
        spoil=target(deployments=[{"runtime": "onnxruntime", "precision": "bf16"}]),
    ),
    Case(
        "a target without deployments",
        RUN,
        "targets/cpu-test.yaml: deployments must be at least one and distinct, found []",
        spoil=target(deployments=[]),
    ),
    Case(
        "a target that is no YAML",
        RUN,
        "targets/cpu-test.yaml: while parsing a flow node expected the node content, but found '<stream end>' in \"<unicode string>\", line 1, column 8: name: [ ^",
        spoil=write("targets/cpu-test.yaml", "name: ["),
    ),
    Case(
        "a damaged target to list",
        "targets list",
        "targets/cpu-test.yaml: description: Field required",
        spoil=write("targets/cpu-test.yaml", "name: x"),
    ),
)
#: Of datasets.
DATASETS = (
    Case("no such dataset", RUN, "HERE/train.parquet: no such file or directory", spoil=remove("train.parquet")),
    Case(
        "a dataset that is none",
        RUN,
        "HERE/train.parquet: cannot be read as a dataset: Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)",
        spoil=write("train.parquet", "rows"),
    ),
    Case("an empty dataset", RUN, "HERE/train.parquet: is empty", spoil=rows("train.parquet", text=[], label=[])),
    Case(
        "too few rows",
        RUN,
        "HERE/train.parquet: 50 rows are too few to keep 100 aside for the search and report splits",
        spoil=rows("train.parquet", text=["film"] * 50, label=[0, 1] * 25),
    ),
    Case(
        "a column that is not there",
        RUN,
        "HERE/train.parquet: has no column 'sentence'; its columns: text, label",
        spoil=data(text="sentence"),
    ),
    Case(
        "a label that is no class",
        RUN,
        "train split, row 2: label -7 is not one of the 2 training classes",
        spoil=rows("train.parquet", text=["film"] * 300, label=[0, 1, -7] * 100),
    ),
    Case(
        "a label of no training row",
        RUN,
        "report split, row 2: label 2 is not one of the 2 training classes",
        spoil=rows("report.parquet", text=["film"] * 3, label=[0, 1, 2]),
    ),
    Case(
        "more classes than the head has",
        RUN,
        "HERE/model: tensor classifier.bias has shape (2,), expected (3,); for a new head set reset_head: true",
        spoil=rows("train.parquet", text=["film"] * 300, label=[0, 1, 2] * 100),
    ),
    Case(
        "one class alone",
        RUN,
        "HERE/train.parquet: all 200 training rows have the same label",
        spoil=rows("train.parquet", text=["film"] * 300, label=[1] * 300),
    ),
    Case(
        "a number as a class",
        RUN,
        "HERE/train.parquet: column 'label' holds neither whole numbers nor class names",
        spoil=rows("train.parquet", text=["film"] * 300, label=[0.5, 1.0] * 150),
    ),
    Case(
        "a text that is none",
        RUN,
        "train split, row 1: text is None, not a text",
        spoil=rows("train.parquet", text=["film", None] * 150, label=[0, 1] * 150),
    ),
    Case("a folder of nothing", RUN, "HERE/runs: is empty", spoil=data(train="./runs")),
)
#: Of run directories and artifacts.
RUNS = (
    Case(
        "no run",
        "select --latency-budget 8ms --run model",
        "model is not a run directory: `instatune-deploy run` makes those",
    ),
    Case("no such run", "search --run nowhere", "nowhere is not a run directory: `instatune-deploy run` makes those"),
    Case(
        "a run without its recipe",
        "search",
        "runs/tiny: its recipe.yaml is gone; `instatune-deploy run RECIPE --out runs/tiny` writes it anew and reuses the rest",
        spoil=remove("runs/tiny/recipe.yaml"),
    ),
    Case(
        "a run with a damaged recipe",
        "search",
        "runs/tiny/recipe.yaml: not YAML: while parsing a flow node expected the node content, but found '<stream end>' in \"<unicode string>\", line 1, column 9: model: [ ^",
        spoil=write("runs/tiny/recipe.yaml", "model: ["),
    ),
    Case(
        "two runs",
        "search",
        "which run? give --run DIR (runs here: runs/second, runs/tiny)",
        spoil=lambda: shutil.copytree("runs/tiny", "runs/second"),
    ),
    Case("no runs", "search", "which run? give --run DIR (runs here: none)", spoil=remove("runs")),
    Case(
        "no front yet",
        "search --front",
        "no front of cpu-test was found yet: runs/tiny/fronts/cpu-test-p50.json is missing; call search without --front",
    ),
    Case(
        "a front that is none",
        "search --front",
        "runs/tiny/fronts/cpu-test-p50.json is damaged: JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); remove it, and the same command makes it anew",
        code=1,
        spoil=lambda: (Path("runs/tiny/fronts").mkdir(), write("runs/tiny/fronts/cpu-test-p50.json", "{")()),
    ),
    Case(
        "a front of another form",
        "search --front",
        "runs/tiny/fronts/cpu-test-p50.json is damaged: KeyError: 'front'; remove it, and the same command makes it anew",
        code=1,
        spoil=lambda: (Path("runs/tiny/fronts").mkdir(), write("runs/tiny/fronts/cpu-test-p50.json", "{}")()),
    ),
    Case(
        "a run into another folder",
        "run recipe.yaml --out model",
        "model holds other things than a run: name a new directory with --out",
    ),
    Case(
        "a run over its own recipe",
        "run recipe.yaml --out .",
        ". holds other things than a run: name a new directory with --out",
    ),
    Case(
        "a run into a file",
        "run recipe.yaml --out train.parquet",
        "train.parquet is a file: name a new directory with --out",
    ),
    Case(
        "an objective of a search",
        "search --objective metric --objective latncy",
        "unknown objective 'latncy'; did you mean 'latency'?",
    ),
    Case(
        "a limit of a search",
        "search --limit fast",
        "limit 'fast' is not written like latency<=8ms, size<=30MB, metric>=0.88 or loss<=0.5",
    ),
    Case(
        "a target of a search",
        "search --target cpu-tst",
        "unknown target 'cpu-tst'; did you mean 'cpu-test' or 'cpu-amx' or 'cpu-avx2'?",
    ),
    Case(
        "no artifact",
        "bench model",
        "model is not an artifact, for model/instatune.json is missing: `instatune-deploy select` and `export` make those",
        code=1,
    ),
    Case(
        "no such artifact",
        "verify nowhere",
        "nowhere is not an artifact, for nowhere/instatune.json is missing: `instatune-deploy select` and `export` make those",
        code=1,
    ),
    Case(
        "an artifact that is a file",
        "serve recipe.yaml",
        "recipe.yaml is not an artifact, for recipe.yaml/instatune.json is missing: `instatune-deploy select` and `export` make those",
        code=1,
    ),
    Case(
        "a manifest that is none",
        "bench artifact",
        "artifact/instatune.json: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        code=1,
        spoil=write("artifact/instatune.json", "{"),
    ),
    Case(
        "a manifest that lacks a field",
        "bench artifact",
        "artifact/instatune.json: architecture: Field required",
        code=1,
        spoil=write("artifact/instatune.json", "{}"),
    ),
    Case(
        "a manifest of another form",
        "verify artifact",
        "artifact/instatune.json: macs: Input should be a valid integer, unable to parse string as an integer",
        code=1,
        spoil=manifest(macs="many"),
    ),
    Case(
        "a file that is gone",
        "bench artifact",
        "artifact: missing or unexpected files: model.onnx",
        code=1,
        spoil=remove("artifact/model.onnx"),
    ),
    Case(
        "a file too many",
        "bench artifact",
        "artifact: missing or unexpected files: notes.txt",
        code=1,
        spoil=write("artifact/notes.txt", "mine"),
    ),
    Case(
        "a flipped byte",
        "bench artifact",
        "artifact/model.onnx: its SHA-256 differs from the manifest's; the file was changed",
        code=1,
        spoil=flipped_byte,
    ),
    Case(
        "a flipped byte to verify",
        "verify artifact",
        "artifact/model.onnx: its SHA-256 differs from the manifest's; the file was changed",
        code=1,
        spoil=flipped_byte,
    ),
    Case(
        "a flipped byte to pack",
        "package artifact --for triton --out repository",
        "artifact/model.onnx: its SHA-256 differs from the manifest's; the file was changed",
        code=1,
        spoil=flipped_byte,
    ),
    Case(
        "no such deployment",
        "bench artifact --deployment ort-fp3-1t",
        "unknown deployment 'ort-fp3-1t'; did you mean 'ort-fp32-1t' or 'ov-fp32-1t' or 'ov-bf16-1t'?",
    ),
    Case(
        "a deployment without its file",
        "bench artifact --deployment ort-int8-1t",
        "artifact has no model_int8.onnx, which ort-int8-1t runs; it has files for ort-fp32-1t, ov-bf16-1t, ov-fp32-1t",
    ),
    Case(
        "a text that is too long", "bench artifact --sequence-length 4000", "artifact reads at most 16 tokens, not 4000"
    ),
    Case(
        "an artifact to compare with that is none",
        "bench artifact --compare model",
        "model is not an artifact, for model/instatune.json is missing: `instatune-deploy select` and `export` make those",
        code=1,
    ),
)

CASES = (*CALLS, *RECIPES, *MODELS, *DATASETS, *RUNS)
