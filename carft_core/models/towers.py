"""The layers of an image tower: open_clip's ViT and ModifiedResNet, and a trunk of timm's."""

from __future__ import annotations

from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.classifier import tower_outputs

STEMS = ("ln_pre", "stem", "norm_pre", "patch_embed", "avgpool")
"""What layer comes before the blocks; of those that a tower has, the first."""
BLOCKS = ("resblocks", "stages", "blocks", "layers")
"""What lists of blocks are called."""
RESNET = ("layer1", "layer2", "layer3", "layer4")
"""The stages of one of CLIP's own ResNets, which are in no list."""


def quarters(visual: nn.Module) -> list[nn.Module]:
    """Return layers of one of open_clip's image towers: the stem, and the last block of each
    quarter of the blocks, which are a ViT's residual blocks or a convolutional network's stages.

    Raises RequestError for an architecture that calls its layers otherwise.
    """
    parts = dict(visual.named_children())
    for within in ("trunk", "transformer"):
        parts |= dict(parts.get(within, nn.Module()).named_children())
    stem = next((parts[name] for name in STEMS if name in parts), None)
    listed = next((parts[name] for name in BLOCKS if name in parts), nn.Module())
    blocks = [*listed.children()] or [parts[name] for name in RESNET if name in parts]
    if stem is None or not blocks:
        raise RequestError(
            f"model.name: the layers of its image tower ({type(visual).__name__}) are not known, "
            "and the algorithm compares them; choose a ViT, a ResNet or a ConvNeXt"
        )
    ends = sorted({max(1, len(blocks) * quarter // 4) for quarter in (1, 2, 3, 4)})
    return [stem, *(blocks[end - 1] for end in ends)]


def outputs_by_depth(visual: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the tower's float32 outputs [B, d] of images, and those of its `quarters`, each as
    float32 tokens [B, T, C].

    A compiled tower is computed as it is written: a graph does not show its layers.
    """
    layers = quarters(visual)
    seen: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        seen[layer] = output

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        outputs = tower_outputs(visual.forward, images)
    finally:
        for hook in hooks:
            hook.remove()
    channels_last = getattr(getattr(visual, "trunk", None), "output_fmt", "NCHW") == "NHWC"
    return outputs, [_tokens(seen[layer], channels_last=channels_last) for layer in layers]


def _tokens(output: Tensor, *, channels_last: bool) -> Tensor:
    if output.ndim == 4:
        output = (output if channels_last else output.permute(0, 2, 3, 1)).flatten(1, 2)
    return output.float()
