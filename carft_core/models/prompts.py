"""Prompts: template sets and class names become the text features of heads and contexts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import yaml
from pydantic import Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.config.fields import Section, explained
from carft_sweep.carft_core.config.registry import NAME
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.icon_shift import ICON_SHIFT, ICON_TEMPLATES
from carft_sweep.carft_core.data.listing import is_text
from carft_sweep.carft_core.errors import InvalidConfig, Problem, RequestError, dotted, unknown
from carft_sweep.carft_core.files import path_or_none, read_regular, user_cache, write_cache
from carft_sweep.carft_core.models.classifier import linear_head
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.weights import read_tensor
from carft_sweep.carft_core.training.numerics import arithmetic

OWN_FILES = Path(__file__).parents[1] / "templates"
SUFFIXES = (".txt", ".yaml", ".yml")
MAX_BYTES = 1_000_000
EXAMPLE = 'such as "a photo of a {}"'
TEXTS_PER_BATCH = 256
TEXT_REVISION = 2
"""Raised by hand when equal texts get other features."""
KNOWN_WORDS = "known_domain_words"
"""The context set of which a run leaves out the templates that name its held-out domain."""


@dataclass(frozen=True)
class TemplateSet:
    """Prompt templates, each with one `{}` for the class name. Raises InvalidConfig for the
    `mistakes` of templates, RequestError for an empty set."""

    name: str
    templates: tuple[str, ...]
    domains: tuple[str, ...] = ()
    """Domain words that the set stands for, beside those that its templates say: a comparison on
    such a domain is marked."""

    def __post_init__(self) -> None:
        if not self.templates:
            raise RequestError(f"template set {self.name} is empty")
        _refuse_mistakes(self.name, self.templates)

    @property
    def digest(self) -> str:
        """The sha256 over the templates in their order; name and domains change no feature."""
        return _sha256(list(self.templates))

    def texts(self, class_names: Sequence[str]) -> Iterator[str]:
        """Yield the K * C prompts, template by template."""
        for template in self.templates:
            for name in class_names:
                yield template.replace("{}", name)


class TemplateFile(Section):
    """A set of templates in a YAML file."""

    name: Annotated[str, Field(min_length=1)] | None = None
    """Left out, the file's name."""
    templates: tuple[str, ...]
    domains: tuple[str, ...] = ()


def mistakes(templates: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield (index, mistake) for templates that are not text with one `{}`, or repeat another."""
    first_at: dict[str, int] = {}
    for index, template in enumerate(templates):
        first = first_at.setdefault(template, index)
        count = template.count("{}")
        rest = template.replace("{}", "")
        if not template.strip():
            yield index, f"is empty; a template is a text with one {{}}, {EXAMPLE}"
        elif not is_text(template):
            yield index, f"{template!r} holds an impossible character"
        elif "{" in rest or "}" in rest:
            yield index, f"{template!r} has other braces; the class is written {{}}, {EXAMPLE}"
        elif count != 1:
            often = "no" if count == 0 else f"{count} times"
            yield index, f"{template!r} has {often} {{}}; it takes exactly one, {EXAMPLE}"
        elif first < index:
            yield index, f"{template!r} is in the set twice; each template counts once"


def read_template_file(path: Path) -> TemplateSet:
    """Return the set in a `.txt` file (blank lines and lines that begin with # are skipped) or a
    YAML mapping `{name?, templates, domains?}`. The name is by default the file's. Raises
    RequestError with all mistakes, each with its place."""
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path}: a file of templates ends in one of {', '.join(SUFFIXES)}")
    text, name, domains = _text(path), path.stem, tuple[str, ...]()
    if path.suffix == ".txt":
        lines = (line.strip() for line in text.splitlines())
        templates = tuple(line for line in lines if line and not line.startswith("#"))
    else:
        try:
            file = TemplateFile.model_validate(_yaml_fields(path, text))
        except ValidationError as error:
            raise InvalidConfig(
                Problem((f"{path}: {dotted(place)}",), message)
                for place, message in explained(error, TemplateFile)
            ) from None
        name, domains = file.name or name, file.domains
        templates = tuple(text.strip() for text in file.templates)
    if not templates:
        raise RequestError(f"{path} holds no template; one a line, {EXAMPLE}")
    _refuse_mistakes(f"{path}: templates", templates)
    return TemplateSet(name, templates, domains)


def _refuse_mistakes(where: str, templates: Sequence[str]) -> None:
    problems = [Problem((where, index), message) for index, message in mistakes(templates)]
    if problems:
        raise InvalidConfig(problems)


def _text(path: Path) -> str:
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise RequestError(f"{path.absolute()} cannot be read: {error.strerror or error}") from None


def _yaml_fields(path: Path, text: str) -> dict[str, object]:
    """Return a mapping of texts and lists from YAML, with its base schema, in which every scalar is
    text: numbers and dates of a few bytes may take any time to make, or be impossible."""
    try:
        fields = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        # PyYAML hands the number in "\UFFFFFFFF" or in a directive to Python without a check.
        raise RequestError(f"{path}: not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(fields, dict):
        raise RequestError(
            f"{path}: must be a mapping with `templates:`, a list of texts with one {{}} each"
        )
    return {key if isinstance(key, str) else "a list": value for key, value in fields.items()}


def _own_sets() -> Iterator[TemplateSet]:
    yield from (read_template_file(path) for path in sorted(OWN_FILES.iterdir()))
    yield TemplateSet("icon_shift", ICON_TEMPLATES, ICON_SHIFT.domains)
    words = read_template_file(OWN_FILES / "domain_words.yaml")
    yield replace(words, name=KNOWN_WORDS)


TEMPLATE_SETS: dict[str, TemplateSet] = {templates.name: templates for templates in _own_sets()}
"""The sets by name: those of the files in `templates/`, IconShift's, and what users register."""


def register_templates(templates: TemplateSet, *, again: bool = False) -> TemplateSet:
    """Register a set for `prompts.classes` and `prompts.contexts`; return the set. The same set may
    be registered again, and `again` lets a set replace an earlier one. Raises RequestError for the
    name of another set, or an invalid name."""
    name = templates.name
    if not NAME.fullmatch(name):
        raise RequestError(
            f"template set {name!r} cannot be registered: its name must be lower-case letters, "
            "digits and '_', beginning with a letter"
        )
    if not again and TEMPLATE_SETS.get(name, templates) != templates:
        raise RequestError(
            f"template set {name!r} cannot be registered: another set has this name; give it "
            "another"
        )
    TEMPLATE_SETS[name] = templates
    return templates


def template_set(name_or_path: str) -> TemplateSet:
    """Return a set by name, or a user's own file (`.txt`, `.yaml`). Raises RequestError for an
    unknown name and for each mistake in a file."""
    if name_or_path in TEMPLATE_SETS:
        return TEMPLATE_SETS[name_or_path]
    path = path_or_none(name_or_path)
    if path is not None or Path(name_or_path).suffix in SUFFIXES:
        return read_template_file(path or Path(name_or_path))
    raise RequestError(
        f"{unknown('template set', name_or_path, TEMPLATE_SETS)} Or give the path of a file "
        f"({', '.join(SUFFIXES)})."
    )


def context_set(name: str, data: DataConfig) -> TemplateSet:
    """Return the set that `prompts.contexts: <name>` means in a run on `data`: of KNOWN_WORDS only
    the templates that do not name the held-out domain. Raises RequestError for an unknown name, for
    each mistake in a file, and where every template names a domain that is held out."""
    templates, held_out = template_set(name), data.test_domain
    if name != KNOWN_WORDS or held_out is None or not named_domains(templates, [held_out]):
        return templates
    return without(templates, [held_out])


def without(templates: TemplateSet, words: Iterable[str]) -> TemplateSet:
    """Return the templates that mention none of the words, as a set whose name says so. Raises
    RequestError when none is left."""
    words = tuple(words)
    left = tuple(text for text in templates.templates if not _spoken(words, [text]))
    name = f"{templates.name} without {', '.join(words)}"
    if not left:
        raise RequestError(f"prompts.contexts: nothing is left of {name}")
    return TemplateSet(name, left, _spoken(templates.domains, left))


def named_domains(templates: TemplateSet, words: Iterable[str]) -> tuple[str, ...]:
    """Return those of `words` that the set declares as domains, or has in a template as whole
    words. `art_painting`, `art-painting` and `art painting` are the same."""
    words = tuple(words)
    declared = {_plain(word) for word in templates.domains}
    spoken = _spoken(words, templates.templates)
    return tuple(word for word in words if _plain(word) in declared or word in spoken)


def leaked_domains(contexts: TemplateSet, data: DataConfig, domains: Iterable[str]) -> list[str]:
    """Return the domains that the contexts name though tests are on them: the held-out one, or any
    of `domains` for a family that holds none out."""
    held_out = data.test_domain
    return sorted(named_domains(contexts, domains if held_out is None else [held_out]))


def _spoken(words: Iterable[str], templates: Iterable[str]) -> tuple[str, ...]:
    """Return the words that occur in a template as whole words."""
    text = " | ".join(_plain(template) for template in templates)
    return tuple(word for word in words if re.search(rf"\b{re.escape(_plain(word))}\b", text))


def _plain(text: str) -> str:
    return re.sub(r"[-_\s]+", " ", text).lower()


def text_features(
    clip: OpenedClip, templates: TemplateSet, class_names: Sequence[str], *, device: torch.device
) -> Tensor:
    """Return W_raw [K, C, d]: unit-norm float32 text features of each template and class, on the
    CPU.

    Encoded on `device`, in fp32 without TF32 whatever the run computes in: 1000 classes with 80
    templates are 80,000 prompts. The features are stored in the user's cache by the digest of all
    that they depend on; a damaged file is computed anew. Raises RequestError without a class, or
    when a prompt is longer than the model reads.
    """
    if not class_names:
        raise RequestError("prompts need at least one class name")
    shape = (len(templates.templates), len(class_names))
    key = _sha256(
        {
            "clip": clip.digest,
            "templates": list(templates.templates),
            "classes": list(class_names),
            # Devices round differently; what is kept must be what would be computed.
            "device": device.type,
            "revision": [TEXT_REVISION, version("open_clip_torch")],
        }
    )
    file = user_cache() / "text_features" / f"{key}.safetensors"
    stored = read_tensor(file, "w_raw")
    if stored is not None and stored.shape[:2] == shape:
        return stored
    w_raw = _encoded(clip, templates, class_names, device).view(*shape, -1)
    write_cache(file, lambda new: save_file({"w_raw": w_raw}, new))
    return w_raw


def class_weights(w_raw: Tensor) -> Tensor:
    """Return W_cls [C, d]: the normalised mean over the templates of W_raw [K, C, d]. This equals
    open_clip's build_zero_shot_classifier, transposed. The mean is taken in float64, so that it
    does not depend on the order of the templates."""
    return F.normalize(w_raw.mean(dim=0, dtype=torch.float64), dim=-1).to(w_raw.dtype)


def zero_shot_head(scale: float | Tensor, w_cls: Tensor) -> nn.Linear:
    """Return the zero-shot head: its weight is CLIP's logit scale times W_cls [C, d]."""
    return linear_head(scale * w_cls)


def context_weights(w_raw: Tensor) -> Tensor:
    """Return W_ctx [K, d]: the normalised float64 mean over the classes of W_raw [K, C, d]."""
    return F.normalize(w_raw.mean(dim=1, dtype=torch.float64), dim=-1).to(w_raw.dtype)


def _encoded(
    clip: OpenedClip, templates: TemplateSet, class_names: Sequence[str], device: torch.device
) -> Tensor:
    """Return the features [K * C, d] of all prompts on the CPU."""
    texts = list(templates.texts(class_names))
    batches = [texts[i : i + TEXTS_PER_BATCH] for i in range(0, len(texts), TEXTS_PER_BATCH)]
    for number, batch in enumerate(batches):
        for index in clip.cut_texts(batch):
            template, name = divmod(number * TEXTS_PER_BATCH + index, len(class_names))
            raise RequestError(
                f"template {templates.templates[template]!r} with class {class_names[name]!r} is "
                f"longer than the {clip.context_length} tokens that {clip.name} reads; shorten "
                "either"
            )
    if device.type != "cpu":
        clip = replace(clip, model=clip.text_tower(device))
    with arithmetic(device, "fp32"):
        return torch.cat([clip.encode_text(batch).cpu() for batch in batches])


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
