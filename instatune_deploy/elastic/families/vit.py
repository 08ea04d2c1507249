"""Vision Transformer (Dosovitskiy et al., 2020), as `transformers.models.vit` builds it."""

from instatune_deploy.elastic.axes import AxisMap, columns, rows

AXIS_MAP = AxisMap(
    model_type="vit",
    layers="encoder.layer",
    heads=(
        *rows("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        *columns("attention.output.dense"),
    ),
    ffn=(*rows("intermediate.dense"), *columns("output.dense")),
    head_counts=("attention.attention.num_attention_heads",),
    head_widths=("attention.attention.all_head_size",),
    attention="attention",
    keys_values=("attention.attention.key", "attention.attention.value"),
    inputs="image",
    extra_tokens=1,
)
