"""DeBERTa-v2 and v3 (He et al., 2020, 2021), as `transformers.models.deberta_v2` builds them."""

from instatune_deploy.elastic.axes import AxisMap, PositionTable, columns, rows

AXIS_MAP = AxisMap(
    model_type="deberta-v2",
    layers="encoder.layer",
    heads=(
        *rows("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        # Projections of relative positions, where they are not those of queries and keys (share_att_key).
        *rows("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        *columns("attention.output.dense"),
    ),
    ffn=(*rows("intermediate.dense"), *columns("output.dense")),
    head_counts=("attention.self.num_attention_heads",),
    head_widths=("attention.self.all_head_size",),
    attention="attention",
    inputs="text",
    token_types=True,
    position_table=PositionTable(
        "encoder.rel_embeddings.weight", listed_in="attention.self.pos_att_type", products=("c2p", "p2c")
    ),
    refused=(("conv_kernel_size", "its convolution belongs to the first layer, which a sub-network may lack"),),
)
