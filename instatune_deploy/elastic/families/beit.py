"""BEiT (Bao et al., 2021), as `transformers.models.beit` builds it: ViT's layers, with a bias for each relative position."""

from dataclasses import replace

from instatune_deploy.elastic.axes import one_column_a_head
from instatune_deploy.elastic.families import vit

AXIS_MAP = replace(
    vit.AXIS_MAP,
    model_type="beit",
    keys_values=(),  # the biases are of all positions
    heads=(
        *vit.AXIS_MAP.heads,
        *one_column_a_head("attention.attention.relative_position_bias.relative_position_bias_table"),
    ),
    refused=(
        (
            "use_shared_relative_position_bias",
            "one table would hold a column for each head of all layers, but layers keep different heads",
        ),
    ),
)
