"""The layers of an image tower: open_clip's ViT and ModifiedResNet, and a trunk of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.classifier import tower_outputs

STEMS = ("ln_pre", "stem", "norm_pre", "patch_embed", "avgpool")
"""What layer comes before the blocks; of those that a tower has, the first."""
BLOCKS = ("resblocks", "stages", "blocks", "layers")
"""What lists of blocks are called."""
RESNET = ("layer1", "layer2", "layer3", "layer4")
"""The stages of one of CLIP's own ResNets, which are in no list."""
SEQUENCES = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class TowerLayers:
    """The layers that images pass one after another in an image tower."""

    visual: nn.Module
    stem: nn.Module
    """Its output is the first block's input."""
    blocks: tuple[nn.Module, ...]
    """The residual blocks of a ViT; the stages of a convolutional network."""

    def quarters(self) -> list[nn.Module]:
        """Return the stem, and the last block of each quarter of the blocks."""
        count = len(self.blocks)
        ends = sorted({max(1, count * quarter // 4) for quarter in (1, 2, 3, 4)})
        return [self.stem, *(self.blocks[end - 1] for end in ends)]

    def outputs(self, images: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, list[Tensor]]:
        """Return the tower's float32 outputs [B, d] of images, and those of some of its layers,
        each as float32 tokens [B, T, C].

        A compiled tower is computed as it is written: a graph does not show its layers.
        """
        seen: dict[nn.Module, Tensor] = {}

        def keep(layer: nn.Module, _: object, output: Tensor) -> None:
            seen[layer] = output

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            outputs = tower_outputs(self.visual.forward, images)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, [self._tokens(seen[layer]) for layer in layers]

    def _tokens(self, output: Tensor) -> Tensor:
        if output.ndim == 4:
            trunk = getattr(self.visual, "trunk", None)
            channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
            output = (output if channels_last else output.permute(0, 2, 3, 1)).flatten(1, 2)
        return output.float()


def layers_of(visual: nn.Module) -> TowerLayers:
    """Return the layers of one of open_clip's image towers.

    Raises RequestError for an architecture that calls its layers otherwise.
    """
    parts = dict(visual.named_children())
    parts |= dict(parts.get("trunk", nn.Module()).named_children())
    parts |= dict(parts.get("transformer", nn.Module()).named_children())
    stems = [parts[name] for name in STEMS if name in parts]
    lists = [part for name in BLOCKS if isinstance(part := parts.get(name), SEQUENCES)]
    blocks = [*lists[0]] if lists else [parts[name] for name in RESNET if name in parts]
    if not stems or not blocks:
        raise RequestError(
            f"model.name: the layers of its image tower ({type(visual).__name__}) are not known, "
            "and the algorithm compares them; choose a ViT, a ResNet or a ConvNeXt"
        )
    return TowerLayers(visual, stems[0], tuple(blocks))
