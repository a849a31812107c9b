"""The teacher: the frozen zero-shot CLIP that a run starts from and is compared with."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import PIL
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.data import Split, Transform
from carft_sweep.carft_core.data.bank import Bank
from carft_sweep.carft_core.data.loader import BatchRange, BatchSource, EpochPlan, Loader, RankPlan
from carft_sweep.carft_core.files import digest_of, user_cache, write_cache
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.prompts import (
    TemplateSet,
    class_weights,
    context_weights,
    text_features,
    zero_shot_head,
)
from carft_sweep.carft_core.models.weights import read_tensor
from carft_sweep.carft_core.training.numerics import (
    Precision,
    arithmetic,
    autocast,
    one_attention_path,
    to_device,
)
from carft_sweep.carft_core.training.ranks import current_ranks

VIEWS_REVISION = 1
"""Raised by hand when equal images get other views."""
LIBRARIES = (torch.__version__, version("torchvision"), PIL.__version__)
"""What views are made with; torchvision is not imported for its version, which takes a second."""
FEATURES_REVISION = 1
"""Raised by hand when equal weights give other features of an image."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A CLIP as the zero-shot classifier of a task, with the task's data; it never changes."""

    clip: OpenedClip
    """The whole CLIP with its text tower, on the CPU."""
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    """`train`, and by metric name what is measured: `id/val`, `ood/<shift>`, ..."""
    digests: Mapping[str, str]
    """By split: sha256 of its data, with the digest of a user's own code that makes its views."""
    transform: Transform
    classes: TemplateSet
    contexts: TemplateSet
    w_raw: Tensor
    """[K, C, d] unit-norm text features of each class template and class, on the CPU."""
    w_cls: Tensor
    """[C, d] unit-norm rows, on the device."""
    w_ctx: Tensor
    """[K', d] unit-norm rows, one a context, on the device."""
    classifier: ImageClassifier
    """Image tower and head `scale * w_cls`: frozen, in evaluation mode, on the device."""
    device: torch.device
    precision: Precision = "fp32"
    deterministic: bool = False
    convolutional: bool = False
    """Whether the tower convolves; see `training.numerics.arithmetic`."""
    compiled: bool = False
    """Whether the towers are to be compiled for the steps of training."""
    batch_size: int = 256
    """How many images a batch of fixed views has."""
    workers: int = 0

    @property
    def scale(self) -> float:
        """CLIP's frozen logit scale, such as 100."""
        return self.clip.logit_scale

    def new_classifier(self) -> ImageClassifier:
        """Return a trainable copy of the zero-shot classifier, on the teacher's device."""
        classifier = copy.deepcopy(self.classifier)
        for name, parameter in classifier.named_parameters():
            parameter.requires_grad_(name not in self.clip.fixed)
        return classifier

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which PyTorch computes as the run's config says; see
        `training.numerics.arithmetic`."""
        return arithmetic(
            self.device,
            self.precision,
            deterministic=self.deterministic,
            convolutional=self.convolutional,
        )

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Return unit-norm features [B, d] of normalised views [B, 3, S, S]."""
        return self.classifier.features(images)

    @torch.no_grad()
    def text_features(self, tokens: Tensor) -> Tensor:
        """Return unit-norm float32 features [N, d] on the device of tokens [N, L]."""
        out: Tensor = self._text_tower.encode_text(to_device(tokens, self.device))  # type: ignore[operator]
        return F.normalize(out.float(), dim=-1)

    @functools.cached_property
    def _text_tower(self) -> nn.Module:
        """The CLIP without its image tower, on the device."""
        return self.clip.text_tower(self.device)

    def context_log_probs(self, features: Tensor, scale: float | None = None) -> Tensor:
        """Return the log-probabilities [B, K'] of the K' contexts (prompts without a class) for
        unit-norm features [B, d], in fp32: log_softmax(scale * f w_ctx'); None: CLIP's scale."""
        scale = self.scale if scale is None else scale
        with torch.autocast(features.device.type, enabled=False):
            return F.log_softmax(scale * features.float() @ self.w_ctx.T, dim=1)

    def features(self, name: str) -> Tensor:
        """Return unit-norm features [N, d] on the CPU of the fixed views of a split, `train` or a
        metric name such as `id/val`; stored in the user's cache. Raises RequestError for an
        unusable image."""
        (features,) = self.encode([self.classifier], name)
        return features.cpu()

    def cached_features(self, name: str) -> Tensor | None:
        """Return a split's features from the cache; None if a rank's file is missing or damaged."""
        features = read_tensor(self._cache_file(name), "features")
        if features is not None and len(features) != len(self.splits[name]):
            features = None
        return features if current_ranks().all(features is not None) else None

    def cache_features(self, name: str, features: Tensor) -> None:
        """Store the features [N, d] of a split in the cache, on rank 0."""
        if not current_ranks().is_main:
            return
        tensors = {"features": features.contiguous()}
        write_cache(self._cache_file(name), lambda file: save_file(tensors, str(file)))

    def _cache_file(self, name: str) -> Path:
        place = [*self._views_key(name), self.device.type, self.precision]
        digest = digest_of([FEATURES_REVISION, self.clip.digest, *place])
        return user_cache() / "image_features" / f"{digest}.safetensors"

    def training_views(self, seed: int, *plan: object) -> list[object]:
        """Return the plain data that decides the training views of a run's batches, as a cache key;
        `plan` decides which images a batch has."""
        split = self.splits["train"]
        rows = b"" if split.rows is None else split.rows.tobytes()
        drawn = [repr(self.transform.augmentation), hashlib.sha256(rows).hexdigest(), seed, *plan]
        return [*self._views_key("train"), *drawn]

    def training_features(self, micro_batch: int | None, views: Sequence[object]) -> list[object]:
        """Return the plain data that decides the teacher's features of training views, as a cache
        key; `views` is the key of these views (`training_views`).

        The last bits depend on which images a batch has, on threads and kernels. With all these in
        the key, stored features of one process equal those that another would compute, to the bit
        on one kind of processor.
        """
        bits = torch.get_num_threads() if self.device.type == "cpu" else self.deterministic
        own = [FEATURES_REVISION, self.clip.digest, self.device.type, self.precision]
        own += ["compiled"] if self.compiled else []
        return [*own, bits, micro_batch, *views]

    def _views_key(self, name: str) -> list[object]:
        """Return the plain data that decides the fixed views of a split. `Source.state` is in it,
        since a digest may be over names and sizes alone."""
        split = self.splits[name]
        own = [self.digests[name], split.digest_of_ids, split.source.state, repr(self.transform)]
        return [VIEWS_REVISION, *own, *LIBRARIES]

    @functools.cached_property
    def loader(self) -> Loader:
        """The loader of the splits, for training and for evaluation; `with` blocks of it may be
        nested, and the outermost ends its workers."""
        return Loader(
            self.splits,
            transform=self.transform,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def encode(self, classifiers: Sequence[Classifier], name: str) -> list[Tensor]:
        """Return, for each classifier, the features [N, d] of a split's fixed views, on the device.
        Each image is read once, whatever the number of classifiers, and by one of the ranks; the
        teacher's own features are kept in the user's cache. Raises RequestError for an unusable
        image."""
        wants_own = self.classifier in classifiers
        own = self.cached_features(name) if wants_own else None
        features: dict[Classifier, Tensor] = {}
        if own is not None:
            features[self.classifier] = own.to(self.device)
        passing = [each for each in dict.fromkeys(classifiers) if each not in features]
        if passing:
            features |= zip(passing, self._encode_images(passing, name), strict=True)
        if wants_own and own is None:
            self.cache_features(name, features[self.classifier].cpu())
        return [features[classifier] for classifier in classifiers]

    def _encode_images(self, classifiers: Sequence[Classifier], name: str) -> list[Tensor]:
        """Return the features of each classifier, in one pass over the images of a split."""
        parts: list[list[Tensor]] = [[] for _ in classifiers]
        with self.arithmetic(), torch.inference_mode(), contextlib.ExitStack() as modes:
            if self.compiled:  # not for the last batch of every split
                modes.enter_context(torch.compiler.set_stance("force_eager"))
            for classifier in classifiers:
                modes.enter_context(evaluating(classifier))
            for images in self.views(name):
                for classifier, features in zip(classifiers, parts, strict=True):
                    with autocast(self.device, self.precision):
                        features.append(classifier.features(images))
        count = len(self.splits[name])
        return [current_ranks().gather(torch.cat(features), count) for features in parts]

    def views(self, name: str) -> Iterator[Tensor]:
        """Yield this rank's fixed views of a split, normalised, on the device, in batches."""
        with self.loader as loader:
            for batch in loader.steps(*self.part(name)):
                yield to_views(batch.images, self.transform, self.device)

    def part(self, name: str) -> BatchRange:
        """Return what this rank loads to encode a split without augmentation: the source of its
        batches, and the numbers of those batches."""
        world = current_ranks()
        passes = EpochPlan(len(self.splits[name]), self.batch_size * world.size)
        if world.size > 1:
            return BatchSource(name, RankPlan(passes, world), None), range(passes.steps)
        return BatchSource(name, passes, None, self._bank_of(name, passes)), range(passes.steps)

    def _bank_of(self, name: str, plan: EpochPlan) -> Bank | None:
        """Return the bank of a split's fixed views, in one file; None if its digest is unknown."""
        if name not in self.digests:
            return None
        side = self.transform.size
        return Bank(
            "views",
            self._views_key(name),
            steps=plan.steps,
            per_epoch=plan.steps,
            like=torch.empty(min(plan.batch_size, plan.count), 3, side, side, dtype=torch.uint8),
        )


def to_views(images: Tensor, transform: Transform, device: torch.device) -> Tensor:
    """Return uint8 images [B, 3, S, S] as input of the tower on the device: float32, normalised."""
    views = transform.normalise(to_device(images, device))
    return views.contiguous(memory_format=torch.channels_last)


def open_teacher(
    clip: OpenedClip,
    class_names: Sequence[str],
    splits: Mapping[str, Split],
    digests: Mapping[str, str],
    *,
    transform: Transform,
    classes: TemplateSet,
    contexts: TemplateSet,
    device: torch.device,
    precision: Precision = "fp32",
    deterministic: bool = False,
    compiled: bool = False,
    batch_size: int = 256,
    workers: int = 0,
) -> Teacher:
    """Open a task's teacher on a device. Raises RequestError for a prompt that CLIP cannot read."""
    one_attention_path()
    w_raw = text_features(clip, classes, class_names, device=device)
    same = contexts.templates == classes.templates
    of_contexts = w_raw if same else text_features(clip, contexts, class_names, device=device)
    w_ctx = context_weights(of_contexts)
    w_cls = class_weights(w_raw)
    visual, head = copy.deepcopy(clip.image_tower), zero_shot_head(clip.logit_scale, w_cls)
    classifier = on_device(ImageClassifier(visual, head), device)
    return Teacher(
        clip=clip,
        class_names=tuple(class_names),
        splits=splits,
        digests=digests,
        transform=transform,
        classes=classes,
        contexts=contexts,
        w_raw=w_raw,
        w_cls=w_cls.to(device),
        w_ctx=w_ctx.to(device),
        classifier=classifier.requires_grad_(False).eval(),
        device=device,
        precision=precision,
        deterministic=deterministic,
        convolutional=is_convolutional(classifier.visual),
        compiled=compiled,
        batch_size=batch_size,
        workers=workers,
    )


def is_convolutional(tower: nn.Module) -> bool:
    """Return whether an image tower has several convolutions; a ViT has one, to cut patches."""
    return sum(isinstance(module, nn.Conv2d) for module in tower.modules()) > 1


M = TypeVar("M", bound=nn.Module)


def on_device(module: M, device: torch.device) -> M:
    """Return the module on the device in channels_last, in which convolutions are faster on every
    device, and equal up to rounding."""
    # Not in the stubs of `to`.
    module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the context, set evaluation mode; then restore each submodule's own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
