"""BEiT-3 with the heads of its release: for classes of images, and for answers to questions about images."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from instatune_deploy.elastic.models.beit3.configuration import Beit3Config
from instatune_deploy.elastic.models.beit3.modeling import Beit3Model, Beit3PreTrainedModel
from instatune_deploy.errors import UsageError


class Beit3ForImageClassification(Beit3PreTrainedModel):
    """A class for each image, from the mean of its patches.

    There are no language experts, whatever `config` says: they would never run. Those of a checkpoint are left out.
    """

    _keys_to_ignore_on_load_unexpected: Any = [r"\.B\.", r"text_embed\.", r"encoder\.layer_norm\."]  # noqa: RUF012  as the base class has it

    def __init__(self, config: Beit3Config) -> None:
        config = _changed(config, use_language=False, normalize_output=False)
        super().__init__(config)
        self.beit3 = Beit3Model(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, output_hidden_states: bool = False,
        return_dict: bool = True, **options: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:  # fmt: skip
        """Logits of shape (samples, classes).

        Args:
            pixel_values: shape (samples, channels, height, width).
            labels: class indices of shape (samples,), for a loss.

        Raises:
            UsageError: the images are of another size than the model's.
        """
        found = self.beit3(pixel_values=pixel_values, output_hidden_states=output_hidden_states)
        logits = self.head(self.fc_norm(found.last_hidden_state[:, 1:].mean(dim=1)))
        loss: Any = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return output if return_dict else output.to_tuple()


class Beit3Pooler(nn.Module):
    """The state of the first token, once more transformed."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """Shape (samples, hidden size) of states of shape (samples, tokens, hidden size)."""
        found: Tensor = self.dense(self.norm(states[:, 0])).tanh()
        return found


class Beit3ForVisualQuestionAnswering(Beit3PreTrainedModel):
    """One of a fixed set of answers to each question about an image."""

    _keys_to_ignore_on_load_unexpected: Any = [r"encoder\.layer_norm\."]  # noqa: RUF012  as the base class has it

    def __init__(self, config: Beit3Config) -> None:
        config = _changed(config, use_language=True, normalize_output=False)
        super().__init__(config)
        size = config.hidden_size
        self.beit3 = Beit3Model(config)
        self.pooler = Beit3Pooler(config)
        # The release's names: of a list whose third member was an activation.
        self.head = nn.ModuleDict(
            {"0": nn.Linear(size, 2 * size), "1": nn.LayerNorm(2 * size), "3": nn.Linear(2 * size, config.num_labels)}
        )
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, output_hidden_states: bool = False, return_dict: bool = True, **options: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:  # fmt: skip
        """Logits of shape (samples, answers).

        Args:
            input_ids: token ids of the questions, shape (samples, text tokens); `attention_mask`: of the same shape.
            pixel_values: shape (samples, channels, height, width).
            labels: for a loss, answers' indices of shape (samples,), or how right each is, 0..1, of shape (samples, answers).

        Raises:
            UsageError: questions or images are missing, or do not fit the model.
        """
        if input_ids is None or pixel_values is None:
            missing = "input_ids" if input_ids is None else "pixel_values"
            raise UsageError(f"{missing} are missing: a question about an image needs both, the question and the image")
        found = self.beit3(input_ids, pixel_values, attention_mask, output_hidden_states=output_hidden_states)
        wide = self.head["1"](self.head["0"](self.pooler(found.last_hidden_state)))
        logits = self.head["3"](F.gelu(wide))
        loss: Any = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return output if return_dict else output.to_tuple()


def _changed(config: Beit3Config, **changes: bool) -> Beit3Config:
    """A copy of `config` with other values."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config
