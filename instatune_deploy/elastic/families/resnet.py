"""ResNet (He et al., 2015), as `transformers.models.resnet` builds it: layers of two convolutions, or bottlenecks of three.

Elastic is what stands between a layer's first and last convolution; what the layers add to is as wide as ever.
"""

from instatune_deploy.elastic.axes import AxisMap, Dimension, filters

AXIS_MAP = AxisMap(
    model_type="resnet",
    layers="encoder.stages.*.layers",
    inputs="image",
    filters=Dimension(
        "filters",
        (
            filters("layer.0.convolution", "layer.0.normalization", "layer.1.convolution"),
            filters("layer.1.convolution", "layer.1.normalization", "layer.2.convolution"),  # of a bottleneck
        ),
        "hidden_sizes",
        fewer=("layer_type", "bottleneck", 4),
    ),
    depth="depths",
    embeddings="embedder",
    channels=("embedding_size", "hidden_sizes"),
    traits=("layer_type", "downsample_in_first_stage", "downsample_in_bottleneck"),
    additive=False,
)
