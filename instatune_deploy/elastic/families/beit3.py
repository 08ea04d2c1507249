"""BEiT-3 (Wang et al., 2022), as `elastic.models.beit3` builds it: the experts of a block keep the same heads and neurons."""

from instatune_deploy.elastic.axes import AxisMap, columns, entries, rows

AXIS_MAP = AxisMap(
    model_type="beit3",
    layers="encoder.layers",
    heads=(
        *rows(*(f"self_attn.{name}.{expert}" for name in ("q_proj", "k_proj", "v_proj") for expert in "AB")),
        *entries("self_attn.inner_attn_ln.A", "self_attn.inner_attn_ln.B"),
        *columns("self_attn.out_proj.A", "self_attn.out_proj.B"),
    ),
    ffn=(
        *rows("ffn.A.fc1", "ffn.B.fc1"),
        *entries("ffn.A.ffn_layernorm", "ffn.B.ffn_layernorm"),
        *columns("ffn.A.fc2", "ffn.B.fc2"),
    ),
    head_counts=(),  # found by the width
    head_widths=(),
    attention="self_attn",
    additive=False,
    inputs="image",
    texts_too="use_language",
    positions_after_padding=True,  # from 2 on; the padding token is 1
    extra_tokens=1,
)
