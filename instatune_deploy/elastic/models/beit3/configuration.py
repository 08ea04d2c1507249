"""`Beit3Config`: the sizes of a BEiT-3 network."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from instatune_deploy.errors import UsageError


class Beit3Config(PretrainedConfig):
    """The sizes of a BEiT-3 network; the defaults are the base size's at 224x224 pixels.

    Args:
        image_size, patch_size: sides of an image and of its patches, in pixels.
        max_position_embeddings: rows of the table of text positions, which are counted from 2.
        hidden_act: activation of the MLPs, by transformers' name.
        drop_path_rate: share of samples for which the last layer's branches are left out in training; those of the layers
            below it less, in proportion to their depth.
        use_language: whether there are text embeddings and language experts; without them the network reads images only.
        normalize_output: whether a norm follows the last layer, as in pre-training; the heads for images and for questions
            have their own instead.

    Raises:
        UsageError: patches do not fill the image, or heads the hidden size.
    """

    model_type = "beit3"

    def __init__(
        self, vocab_size: int = 64010, hidden_size: int = 768, num_hidden_layers: int = 12, num_attention_heads: int = 12,
        intermediate_size: int = 3072, image_size: int = 224, patch_size: int = 16, num_channels: int = 3,
        max_position_embeddings: int = 1024, hidden_act: str = "gelu", hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0, drop_path_rate: float = 0.0, initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5, pad_token_id: int = 1, use_language: bool = True, normalize_output: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(pad_token_id=pad_token_id, **options)
        if image_size % patch_size:
            raise UsageError(f"image size {image_size} is not a multiple of the patch size {patch_size}")
        if hidden_size % num_attention_heads:
            raise UsageError(
                f"hidden size {hidden_size} is not a multiple of the {num_attention_heads} attention heads"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.max_position_embeddings = max_position_embeddings
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_language = use_language
        self.normalize_output = normalize_output

    @property
    def image_tokens(self) -> int:
        """Tokens of an image: its patches and one for the whole."""
        return int((self.image_size // self.patch_size) ** 2 + 1)
