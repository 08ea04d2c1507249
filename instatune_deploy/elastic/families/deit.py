"""DeiT (Touvron et al., 2020), as `transformers.models.deit` builds it: ViT's layers."""

from dataclasses import replace

from instatune_deploy.elastic.families import vit

AXIS_MAP = replace(vit.AXIS_MAP, model_type="deit", extra_tokens=2)  # class and distillation token
