"""`elastic_trainer`: for scripts that have a `transformers.Trainer` of their own."""

from __future__ import annotations

import copy
import inspect
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.utils.generic import find_labels

from instatune_deploy.elastic.importance import SCORERS, layer_drop_order, sort_by_importance
from instatune_deploy.elastic.pretrained import space_for
from instatune_deploy.elastic.supernet import Supernet, save_supernet
from instatune_deploy.elastic.trainer import ElasticTrainer
from instatune_deploy.elastic.training import drawer_of, loss_of, rates_of
from instatune_deploy.values.recipe import FinetuneSection


def elastic_trainer(
    model: PreTrainedModel, *, space: str | dict[str, Any] = "paper", teacher: PreTrainedModel | None = None,
    finetune: str | dict[str, Any] = "best", tokens: int = 128, **trainer_arguments: Any,
) -> StandardElasticTrainer:  # fmt: skip
    """A trainer that takes the place of ``Trainer(model=model, ...)`` and fine-tunes the model's sub-networks with it
    (InstaTune, arXiv 2308.15609, Eq. 1): `train`, `evaluate` and `predict` are Trainer's, of the full network; `save_model`
    writes the super-network, and `supernet.extract(architecture)` gives a sub-network.

    Heads, neurons and layers are sorted by their importance in `model` first, so it should be fine-tuned, or at least have
    its task head trained.

    Args:
        space: a preset's name, or choices: ``{"depths": [...], "heads": [...], "ffn": [...]}``.
        teacher: the strong teacher T, a fine-tuned full model; None: sub-networks learn from the full network.
        finetune: a preset, or what differs from it; of it count the loss, sampling, importance and rates by part. How long
            and at which rate is trained is what `args` says.
        tokens: of a text, for the multiply-accumulates by which sizes are drawn.
        **trainer_arguments: `transformers.Trainer`'s own.

    Raises:
        FamilyError: the model cannot be elastic.
        SpaceError: the space does not fit it.
    """
    given = {"preset": finetune} if isinstance(finetune, str) else dict(finetune)
    settings = FinetuneSection.model_validate({"gamma": "off" if teacher is None else "on", **given})
    supernet = Supernet(model, space_for(model.config, space))
    plain = Trainer(model=model, **trainer_arguments)
    # On a copy: Trainer may have moved the model to a device, and scoring makes gradients.
    size = max(1, settings.importance_rows // plain.args.train_batch_size)
    batches = [_moved(batch, model) for batch in islice(plain.get_train_dataloader(), size)]
    judged = Supernet(copy.deepcopy(model), supernet.space)
    if settings.importance != "none":
        sort_by_importance(supernet, SCORERS[settings.importance](judged, batches))
    if settings.layer_order == "importance":
        order = layer_drop_order(judged, batches, report=lambda line: None)
        supernet = Supernet(model, supernet.space.with_drop_order(order))
    drawer = drawer_of(settings, supernet.space, supernet.shape(tokens), seed=plain.args.seed)
    return StandardElasticTrainer(
        supernet, loss_of(settings), drawer, teacher, rates=rates_of(settings), **trainer_arguments
    )


def _moved(batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


class StandardElasticTrainer(ElasticTrainer):
    """An `ElasticTrainer` whose data, evaluation and saving are as a script expects of its model; see `elastic_trainer`."""

    def __init__(self, supernet: Supernet, *arguments: Any, **options: Any) -> None:
        super().__init__(supernet, *arguments, **options)
        if self.args.label_names is None:
            self.label_names = find_labels(type(supernet.model))

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            parameters = inspect.signature(self.supernet.model.forward).parameters
            self._signature_columns = [*parameters, *{"label", "label_ids", *self.label_names}]  # type: ignore[assignment]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """While training that of Eq. 1; evaluated is the full network, by its own loss."""
        if torch.is_grad_enabled():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        output = self._run(model, inputs, None).output
        return (output.loss, output) if return_outputs else output.loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Trainer's own, of the full network. Rows without labels have no loss, and Trainer asks the model itself."""

        def full(**batch: Tensor) -> Any:
            return self._run(model, batch, None).output

        labelled = all(inputs.get(name) is not None for name in self.label_names)
        return super().prediction_step(model if labelled else cast("nn.Module", full), inputs, *arguments, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The super-network, as Hugging Face writes a model, with its search space beside it; what processes its inputs, too."""
        if _internal_call:  # a checkpoint, which a training goes on from
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            directory = Path(output_dir or str(self.args.output_dir))
            directory.mkdir(parents=True, exist_ok=True)
            save_supernet(self.supernet, directory)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(directory)
