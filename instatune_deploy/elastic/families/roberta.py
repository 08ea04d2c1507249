"""RoBERTa (Liu et al., 2019), as `transformers.models.roberta` builds it: BERT's layers, other positions."""

from dataclasses import replace

from instatune_deploy.elastic.families import bert

AXIS_MAP = replace(bert.AXIS_MAP, model_type="roberta", token_types=False, positions_after_padding=True)
