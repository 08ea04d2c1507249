"""DistilBERT (Sanh et al., 2019), as `transformers.models.distilbert` builds it."""

from instatune_deploy.elastic.axes import AxisMap, columns, rows

AXIS_MAP = AxisMap(
    model_type="distilbert",
    layers="transformer.layer",
    heads=(*rows("attention.q_lin", "attention.k_lin", "attention.v_lin"), *columns("attention.out_lin")),
    ffn=(*rows("ffn.lin1"), *columns("ffn.lin2")),
    head_counts=("attention.n_heads",),
    head_widths=("attention.dim",),  # the head size is found as dim / n_heads
    attention="attention",
    keys_values=("attention.k_lin", "attention.v_lin"),
    inputs="text",
    ffn_size="hidden_dim",
)
