"""Where ImageNet-1k and its shifts lie below the data root, in their makers' layouts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from carft_core.data.base import DataFolder

SHIFTS = ("v2", "r", "a", "sketch", "objectnet")
"""Those that CAR-FT is reported on."""
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = range(1, 6)
WNIDS = "<wnid>/<image>"
_ROOTS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")


def _in_imagenet(part: str, images: int) -> DataFolder:
    names = tuple(f"{root}/{part}" for root in _ROOTS)
    return DataFolder(names, WNIDS, "https://www.image-net.org/download.php", images)


FOLDERS: Mapping[str, DataFolder] = MappingProxyType(
    {
        "train": _in_imagenet("train", 1_281_167),
        "test": _in_imagenet("val", 50_000),
        "v2": DataFolder(
            ("imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),
            "<0 to 999>/<image>",
            "https://github.com/modestyachts/ImageNetV2",
            10_000,
        ),
        "r": DataFolder(("imagenet-r",), WNIDS, "https://github.com/hendrycks/imagenet-r", 30_000),
        "a": DataFolder(
            ("imagenet-a",), WNIDS, "https://github.com/hendrycks/natural-adv-examples", 7_500
        ),
        "sketch": DataFolder(
            ("sketch", "imagenet-sketch"),
            WNIDS,
            "https://github.com/HaohanWang/ImageNet-Sketch",
            50_889,
        ),
        "objectnet": DataFolder(
            ("objectnet-1.0/images",), "<object>/<image>", "https://objectnet.dev", 18_574
        ),
        "c": DataFolder(
            ("imagenet-c", "ImageNet-C"),
            "<corruption>/<1 to 5>/<wnid>/<image>",
            "https://github.com/hendrycks/robustness",
            50_000 * len(CORRUPTIONS) * len(SEVERITIES),
        ),
    }
)
"""Sources of the counts: the ILSVRC 2012 development kit's readme; for the shifts the sizes in
datacomp's `tasklist.yml`, where ObjectNet's is that of the 113 classes."""


def corrupted() -> Mapping[str, str]:
    """ImageNet-C's shifts and the folder of each below its own: `c-fog-3` in `fog/3`.

    The four corruptions outside of the benchmark's mean are `c_extra-spatter-3` and so on.
    """
    kinds = {"c": CORRUPTIONS, "c_extra": EXTRA_CORRUPTIONS}
    return {
        f"{kind}-{corruption}-{severity}": f"{corruption}/{severity}"
        for kind, corruptions in kinds.items()
        for corruption in corruptions
        for severity in SEVERITIES
    }


def folder_of(shift: str) -> DataFolder:
    """The folder of one shift, ImageNet-C's by corruption and severity."""
    below = corrupted().get(shift)
    if below is None:
        return FOLDERS[shift]
    whole = FOLDERS["c"]
    names = tuple(f"{name}/{below}" for name in whole.names)
    return DataFolder(names, WNIDS, whole.origin, FOLDERS["test"].images)
