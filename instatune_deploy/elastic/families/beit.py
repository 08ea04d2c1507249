"""BEiT (Bao et al., 2021), as `transformers.models.beit` builds it."""

from instatune_deploy.elastic.axes import AxisMap, columns, one_column_a_head, rows

AXIS_MAP = AxisMap(
    model_type="beit",
    layers="encoder.layer",
    heads=(
        *rows("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        *one_column_a_head("attention.attention.relative_position_bias.relative_position_bias_table"),
        *columns("attention.output.dense"),
    ),
    ffn=(*rows("intermediate.dense"), *columns("output.dense")),
    head_counts=("attention.attention.num_attention_heads",),
    head_widths=("attention.attention.all_head_size",),
    attention="attention",
    inputs="image",
    extra_tokens=1,
    refused=(
        (
            "use_shared_relative_position_bias",
            "one table would hold a column for each head of all layers, but layers keep different heads",
        ),
    ),
)
