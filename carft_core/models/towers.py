"""The layers of an image tower: open_clip's ViT and ModifiedResNet, and a trunk of timm's."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.classifier import tower_outputs

STEMS = ("ln_pre", "stem", "norm_pre", "patch_embed", "avgpool")
"""Names of the layer before the blocks; of those that a tower has, the first counts."""
BLOCKS = ("resblocks", "stages", "blocks", "layers")
"""Names of a tower's list of blocks; the first that it has counts."""
RESNET = ("layer1", "layer2", "layer3", "layer4")
"""The stages of one of CLIP's own ResNets, which are in no list."""
PROJECTIONS = (
    *("proj", "attnpool.c_proj", "head.proj"),
    *("text_projection", "text.text_projection", "text.proj"),
)
"""What the projections of image towers are called, and those of text towers within a CLIP."""


def stem_and_blocks(visual: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """Return the stem of one of open_clip's image towers, and its blocks in order: a ViT's residual
    blocks, or a convolutional network's stages. Raises RequestError for an architecture that calls
    its layers otherwise."""
    parts = dict(visual.named_children())
    for within in ("trunk", "transformer"):
        parts |= dict(parts.get(within, nn.Module()).named_children())
    stem = next((parts[name] for name in STEMS if name in parts), None)
    listed = next((parts[name] for name in BLOCKS if name in parts), nn.Module())
    blocks = [*listed.children()] or [parts[name] for name in RESNET if name in parts]
    if stem is None or not blocks:
        raise RequestError(
            f"model.name: the layers of its image tower ({type(visual).__name__}) are not known, "
            "and the method needs them; choose a ViT, a ResNet or a ConvNeXt"
        )
    return stem, blocks


def quarters(visual: nn.Module) -> list[nn.Module]:
    """Return layers of one of open_clip's image towers: the stem, and the last block of each
    quarter of the blocks. Raises RequestError as `stem_and_blocks` does."""
    stem, blocks = stem_and_blocks(visual)
    ends = sorted({max(1, len(blocks) * quarter // 4) for quarter in (1, 2, 3, 4)})
    return [stem, *(blocks[end - 1] for end in ends)]


def projection(tower: nn.Module) -> Tensor:
    """Return the matrix [width, d] by which an image tower, or a CLIP's text tower, maps into the
    space that both share: with x the outputs before it, x W is the feature. Raises RequestError for
    an architecture without one, or that calls it otherwise."""
    for path in PROJECTIONS:
        with contextlib.suppress(AttributeError):
            found = operator.attrgetter(path)(tower)
            if isinstance(found, nn.Linear):
                return found.weight.T
            if isinstance(found, Tensor):
                return found
    raise RequestError(
        f"model.name: the projection of {type(tower).__name__} is not known, and the algorithm "
        "needs it; choose a ViT, a ResNet or a ConvNeXt of CLIP's own shape"
    )


def residual_blocks(tower: nn.Module) -> list[Any]:
    """Return open_clip's blocks of attention and MLP of a ViT, or of the text tower in a CLIP.
    Raises RequestError for a tower without such blocks."""
    for path in ("transformer.resblocks", "text.transformer.resblocks"):
        with contextlib.suppress(AttributeError):
            blocks = [*operator.attrgetter(path)(tower)]
            if all(hasattr(block, "ls_2") for block in blocks):
                return blocks
    raise RequestError(
        f"model.name: {type(tower).__name__} has no blocks of attention and MLP as open_clip's ViT "
        "has, which the algorithm changes; choose a ViT such as ViT-B-16"
    )


def outputs_by_depth(visual: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the tower's float32 outputs [B, d] of images, and those of its `quarters`, each as
    float32 tokens [B, T, C].

    A compiled tower is run uncompiled, since the outputs of a graph's layers are not seen.
    """
    layers = quarters(visual)
    seen: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: object, output: Tensor) -> None:
        seen[layer] = output

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(keep))
        outputs = tower_outputs(visual.forward, images)
    channels_last = getattr(getattr(visual, "trunk", None), "output_fmt", "NCHW") == "NHWC"
    return outputs, [_tokens(seen[layer], channels_last=channels_last) for layer in layers]


def attention_layers(visual: nn.Module) -> list[nn.MultiheadAttention]:
    """Return the self-attention of the blocks of open_clip's own ViT, which has a class token.
    Raises RequestError for another architecture."""
    layers = [getattr(block, "attn", None) for block in stem_and_blocks(visual)[1]]
    known = [layer for layer in layers if isinstance(layer, nn.MultiheadAttention)]
    if len(known) < len(layers) or not hasattr(visual, "class_embedding"):
        raise RequestError(
            f"model.name: the attention of its image tower ({type(visual).__name__}) is not known, "
            "and the method needs it; choose a ViT of open_clip's own, such as ViT-B-32"
        )
    return known


@contextlib.contextmanager
def attention_maps(visual: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that gets the attention map [B, heads, T, T] of each block of a ViT in turn when
    images pass through it within the context. The tower's outputs are computed from these maps, so
    that they have gradients. Raises RequestError as `attention_layers` does."""
    maps: list[Tensor] = []

    def attend(layer: nn.MultiheadAttention, inputs: tuple[Tensor, ...], _: object) -> object:
        heads = F.linear(inputs[0], layer.in_proj_weight, layer.in_proj_bias)
        query, key, value = heads.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        maps.append(torch.softmax(query @ key.mT / layer.head_dim**0.5, dim=-1))
        return layer.out_proj((maps[-1] @ value).transpose(1, 2).flatten(2)), None

    with contextlib.ExitStack() as hooks:
        for layer in attention_layers(visual):
            hooks.enter_context(layer.register_forward_hook(attend))
        yield maps


def _tokens(output: Tensor, *, channels_last: bool) -> Tensor:
    if output.ndim == 4:
        output = (output if channels_last else output.permute(0, 2, 3, 1)).flatten(1, 2)
    return output.float()
