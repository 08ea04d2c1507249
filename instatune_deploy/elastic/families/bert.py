"""BERT (Devlin et al., 2018), as `transformers.models.bert` builds it."""

from instatune_deploy.elastic.axes import AxisMap, columns, rows

AXIS_MAP = AxisMap(
    model_type="bert",
    layers="encoder.layer",
    heads=(
        *rows("attention.self.query", "attention.self.key", "attention.self.value"),
        *columns("attention.output.dense"),
    ),
    ffn=(*rows("intermediate.dense"), *columns("output.dense")),
    head_counts=("attention.self.num_attention_heads",),
    head_widths=("attention.self.all_head_size",),
    attention="attention",
    keys_values=("attention.self.key", "attention.self.value"),
    inputs="text",
    token_types=True,
)
