"""The BEiT-3 network: blocks in which vision and language each have their own weights, and attend to both together.

Names of parameters are those of the released checkpoints: of every pair `A` is the vision expert, `B` the language expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from instatune_deploy.elastic.models.beit3.configuration import Beit3Config
from instatune_deploy.errors import UsageError

#: Rows of the tables of positions that stand before the first position, as in fairseq.
_RESERVED = 2


class Multiway(nn.Module):
    """Two modules of one kind: `A` for tokens of an image, `B` for those of a text.

    Args:
        make: makes either of them.
        use_language: whether there is a `B`.
    """

    def __init__(self, make: Callable[[], nn.Module], use_language: bool) -> None:
        super().__init__()
        self.A = make()
        self.B = make() if use_language else None

    def forward(self, states: Tensor, split: int | None) -> Tensor:
        """Each token's states as its own expert changes them.

        Args:
            states: shape (samples, tokens, entries).
            split: how many first tokens are an image's; None: all.
        """
        if split is None or self.B is None:
            found: Tensor = self.A(states)
        elif split == 0:
            found = self.B(states)
        else:
            found = torch.cat([self.A(states[:, :split]), self.B(states[:, split:])], dim=1)
        return found


class SubLayerNorm(nn.LayerNorm):
    """A LayerNorm of as many entries as its weight has, which are fewer in a sub-network than it was made with."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as the base class names it
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, self.eps)


class Beit3Attention(nn.Module):
    """Self-attention of all tokens, with a norm before the last projection."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        size, language = config.hidden_size, config.use_language
        self.head_size = size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Multiway(lambda: nn.Linear(size, size), language) for _ in range(4)
        )
        self.inner_attn_ln = Multiway(lambda: SubLayerNorm(size, config.layer_norm_eps), language)

    def forward(self, states: Tensor, mask: Tensor | None, split: int | None) -> Tensor:
        """What each token takes from the others, shape (samples, tokens, hidden size).

        Args:
            states: of the same shape.
            mask: shape (samples, 1, tokens, tokens), False for those that are not to be looked at; None: all are.
            split: see `Multiway`.
        """
        query, key, value = (
            projection(states, split).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        found = self.inner_attn_ln(found.transpose(1, 2).flatten(2), split)
        projected: Tensor = self.out_proj(found, split)
        return projected


class Beit3Mlp(nn.Module):
    """One expert's MLP, with a norm before the last projection."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.ffn_layernorm = SubLayerNorm(config.intermediate_size, config.layer_norm_eps)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """States of shape (samples, tokens, hidden size)."""
        found: Tensor = self.fc2(self.ffn_layernorm(self.activation(self.fc1(states))))
        return found


class DropPath(nn.Module):
    """Leaves a branch out for a share of the samples in training (Huang et al., 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, states: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return states
        kept = torch.rand(states.shape[0], *[1] * (states.dim() - 1), device=states.device) >= self.rate
        return states * kept / (1 - self.rate)


class Beit3Layer(GradientCheckpointingLayer):
    """Attention and an MLP, each between a norm and a shortcut."""

    def __init__(self, config: Beit3Config, depth: int) -> None:
        super().__init__()
        size, language = config.hidden_size, config.use_language
        self.self_attn_layer_norm, self.final_layer_norm = (
            Multiway(lambda: nn.LayerNorm(size, config.layer_norm_eps), language) for _ in range(2)
        )
        self.self_attn = Beit3Attention(config)
        self.ffn = Multiway(lambda: Beit3Mlp(config), language)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(config.drop_path_rate * depth / max(1, config.num_hidden_layers - 1))

    def forward(self, states: Tensor, mask: Tensor | None = None, split: int | None = None) -> Tensor:
        """The states after this layer; see `Beit3Attention`."""
        attended = self.self_attn(self.self_attn_layer_norm(states, split), mask, split)
        states = states + self.drop_path(self.dropout(attended))
        changed = self.ffn(self.final_layer_norm(states, split), split)
        return states + self.drop_path(self.dropout(changed))


class Beit3VisionEmbedding(nn.Module):
    """Patches of an image, and a token for all of it before them."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.config = config
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)

    def forward(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Tensor:
        """Shape (samples, image tokens, hidden size) of pixels of shape (samples, channels, height, width); patches where
        `bool_masked_pos`, of shape (samples, patches), is true are replaced by one learned state.

        Raises:
            UsageError: the images are not of the size that the network is for.
        """
        found = self.proj(pixel_values).flatten(2).transpose(1, 2)
        if found.shape[1] != self.config.image_tokens - 1:
            wanted, (height, width) = self.config.image_size, pixel_values.shape[-2:]
            raise UsageError(f"images are {height}x{width} pixels, but the model reads {wanted}x{wanted}")
        if bool_masked_pos is not None:
            found = torch.where(bool_masked_pos.bool().unsqueeze(-1), self.mask_token.to(found.dtype), found)
        return torch.cat([self.cls_token.to(found.dtype).expand(found.shape[0], -1, -1), found], dim=1)


class Beit3Encoder(nn.Module):
    """Positions and layers."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        size = config.hidden_size
        tables = iter([config.image_tokens + _RESERVED, config.max_position_embeddings])
        self.embed_positions = Multiway(lambda: nn.Embedding(next(tables), size), config.use_language)
        self.layers = nn.ModuleList(Beit3Layer(config, depth) for depth in range(config.num_hidden_layers))
        self.layer_norm = (
            Multiway(lambda: nn.LayerNorm(size, config.layer_norm_eps), config.use_language)
            if config.normalize_output
            else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, expert: str, tokens: int) -> Tensor:
        """Embeddings of the first positions of an image, expert `A`, or of a text, `B`; shape (tokens, hidden size)."""
        table: Any = self.embed_positions.get_submodule(expert)
        weight: Tensor = table.weight
        return weight[_RESERVED : _RESERVED + tokens]


class Beit3PreTrainedModel(PreTrainedModel):
    """What all BEiT-3 models have in common: config, names, initial weights."""

    config_class = Beit3Config
    base_model_prefix = "beit3"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Beit3Layer"]  # noqa: RUF012  as the base class has it

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                nn.init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Beit3VisionEmbedding):
            for token in (module.mask_token, module.cls_token):
                nn.init.trunc_normal_(token, std=self.config.initializer_range)


class Beit3Model(Beit3PreTrainedModel):
    """BEiT-3 without a head: states of every token of an image, a text, or both, the image's first."""

    def __init__(self, config: Beit3Config) -> None:
        super().__init__(config)
        self.text_embed: nn.Module | None = None
        if config.use_language:
            self.text_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.vision_embed = Beit3VisionEmbedding(config)
        self.encoder = Beit3Encoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text's, or the image's where the network reads no texts."""
        return self.vision_embed if self.text_embed is None else self.text_embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text's."""
        self.text_embed = value

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None, output_hidden_states: bool = False, return_dict: bool = True,
        **options: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:  # fmt: skip
        """The last states, shape (samples, image tokens + text tokens, hidden size).

        Args:
            input_ids: token ids of texts, shape (samples, text tokens); `attention_mask`: of the same shape, 0 for padding.
            pixel_values: images, shape (samples, channels, height, width).
            bool_masked_pos: patches that are hidden, shape (samples, patches).
            output_hidden_states: whether to give those before the first layer and after each as well.

        Raises:
            UsageError: there is nothing to read, a text for a network without language experts, a text longer than the
                table of positions, or an image of another size.
        """
        states, split = self._embedded(input_ids, pixel_values, bool_masked_pos)
        mask = None
        if input_ids is not None and attention_mask is not None:
            seen = attention_mask.bool()
            if split:
                seen = torch.cat([seen.new_ones(seen.shape[0], split), seen], dim=1)
            states = states * seen.unsqueeze(-1).to(states.dtype)
            mask = seen[:, None, None, :].expand(-1, -1, seen.shape[1], -1)
        states = self.encoder.dropout(states)
        every = [states]
        for layer in self.encoder.layers:
            states = layer(states, mask, split)
            every.append(states)
        if self.encoder.layer_norm is not None:
            states = self.encoder.layer_norm(states, split)
        found = BaseModelOutput(last_hidden_state=states, hidden_states=tuple(every) if output_hidden_states else None)
        return found if return_dict else found.to_tuple()

    def _embedded(
        self, input_ids: Tensor | None, pixel_values: Tensor | None, bool_masked_pos: Tensor | None
    ) -> tuple[Tensor, int | None]:
        """Tokens with their positions, and where the experts change; see `Multiway`."""
        parts, split = [], None
        if pixel_values is not None:
            image = self.vision_embed(pixel_values, bool_masked_pos)
            parts.append(image + self.encoder.positions("A", image.shape[1]))
        if input_ids is not None:
            if self.text_embed is None:
                raise UsageError(
                    "this BEiT-3 model has no language experts (use_language: false): it reads images only"
                )
            most = self.config.max_position_embeddings - _RESERVED
            if input_ids.shape[1] > most:
                raise UsageError(f"a text has {input_ids.shape[1]} tokens, but the model has positions for {most}")
            split = parts[0].shape[1] if parts else 0
            parts.append(self.text_embed(input_ids) + self.encoder.positions("B", input_ids.shape[1]))
        if not parts:
            raise UsageError("a BEiT-3 model needs input_ids, pixel_values or both")
        return torch.cat(parts, dim=1), split
