"""BEiT-3 (Wang et al., 2022): one network for images, texts and both, in the layout of the released checkpoints."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVisualQuestionAnswering,
)

from instatune_deploy.elastic.models.beit3.configuration import Beit3Config
from instatune_deploy.elastic.models.beit3.heads import Beit3ForImageClassification, Beit3ForVisualQuestionAnswering
from instatune_deploy.elastic.models.beit3.modeling import Beit3Model, Beit3PreTrainedModel

AutoConfig.register(Beit3Config.model_type, Beit3Config)
AutoModel.register(Beit3Config, Beit3Model)
AutoModelForImageClassification.register(Beit3Config, Beit3ForImageClassification)
AutoModelForVisualQuestionAnswering.register(Beit3Config, Beit3ForVisualQuestionAnswering)

__all__ = [
    "Beit3Config",
    "Beit3ForImageClassification",
    "Beit3ForVisualQuestionAnswering",
    "Beit3Model",
    "Beit3PreTrainedModel",
]
