"""Prompts: template sets and class names become the text features of heads and contexts."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import open_clip
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from carft_core.clip import OpenedClip
from carft_core.data.base import DataConfig, held_out
from carft_core.data.downstream_tasks import TASKS
from carft_core.errors import InvalidConfig, Problem, RequestError, unknown
from carft_core.files import found, keep, user_cache
from carft_core.registry import NAME

SUFFIXES = (".txt", ".yaml", ".yml")
TEMPLATE_FIELDS = ("name", "templates", "domains")
MAX_BYTES = 1_000_000
EXAMPLE = 'such as "a photo of a {}"'


class TemplateFile(NamedTuple):
    """What a file says, checked."""

    name: str
    templates: tuple[str, ...]
    domains: tuple[str, ...]


def read_template_file(path: Path) -> TemplateFile:
    """Read a `.txt` file (blank lines and lines that begin with # are skipped) or a YAML mapping
    `{name?, templates, domains?}`. The name is by default the file's.

    Raises RequestError with all mistakes, each with its line or place.
    """
    if path.suffix not in SUFFIXES:
        raise RequestError(f"{path}: a file of templates ends in one of {', '.join(SUFFIXES)}")
    text = _text(path)
    if path.suffix == ".txt":
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
        kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
        templates = tuple(line for _, line in kept)
        _refuse(path, templates, [f"line {number}" for number, _ in kept])
        return TemplateFile(path.stem, templates, ())
    return _from_yaml(path, text)


def mistakes(templates: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, what is wrong) for every template that is not text with exactly one `{}`, or that
    stands in the set already."""
    for index, template in enumerate(templates):
        first = templates.index(template)
        count = template.count("{}")
        rest = template.replace("{}", "")
        if not template.strip():
            yield index, f"is empty; a template is a text with one {{}}, {EXAMPLE}"
        elif "{" in rest or "}" in rest:
            yield index, f"{template!r} has other braces; the class is written {{}}, {EXAMPLE}"
        elif count != 1:
            often = "no" if count == 0 else f"{count} times"
            yield index, f"{template!r} has {often} {{}}; it takes exactly one, {EXAMPLE}"
        elif first < index:
            yield index, f"{template!r} stands in the set twice; each template counts once"


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RequestError(f"{path} has {size} bytes; templates take at most {MAX_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None


def _from_yaml(path: Path, text: str) -> TemplateFile:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RequestError(f"{path}:{line} not YAML: {problem}") from None
    except RecursionError:
        raise RequestError(f"{path}: not a set of templates: nested too deeply") from None
    if not isinstance(data, dict):
        raise RequestError(
            f"{path}: must be a mapping with `templates:`, a list of texts with one {{}} each"
        )
    problems = [
        Problem((str(path),), unknown("field", key, TEMPLATE_FIELDS))
        for key in data
        if key not in TEMPLATE_FIELDS
    ]
    name = data.get("name", path.stem)
    if not isinstance(name, str) or not name:
        problems.append(Problem((f"{path}: name",), "must be a text"))
    templates = _texts(data.get("templates"), f"{path}: templates", problems)
    domains = _texts(data.get("domains", []), f"{path}: domains", problems)
    if problems:
        raise InvalidConfig(problems)
    templates = tuple(template.strip() for template in templates)
    _refuse(path, templates, [f"templates[{index}]" for index in range(len(templates))])
    return TemplateFile(name, templates, domains)


def _texts(value: object, place: str, problems: list[Problem]) -> tuple[str, ...]:
    if not isinstance(value, list):
        problems.append(Problem((place,), "must be a list of texts"))
        return ()
    for index, item in enumerate(value):
        if item == {}:
            problems.append(
                Problem((place, index), 'YAML reads a bare {} as a mapping: write "{}"')
            )
        elif not isinstance(item, str):
            problems.append(
                Problem((place, index), f"must be a text in quotes, not {type(item).__name__}")
            )
    return tuple(item for item in value if isinstance(item, str))


def _refuse(path: Path, templates: Sequence[str], places: Sequence[str]) -> None:
    if not templates:
        raise RequestError(f"{path} holds no template; one a line, {EXAMPLE}")
    found = [
        Problem((f"{path}: {places[index]}",), message) for index, message in mistakes(templates)
    ]
    if found:
        raise InvalidConfig(found)


OWN_FILES = Path(__file__).parent / "templates"
TEXTS_PER_BATCH = 256
TEXT_REVISION = 1
"""Raised by hand when a text becomes another feature."""


@dataclass(frozen=True)
class TemplateSet:
    """Templates, each with one `{}` for the class. Raises InvalidConfig for others, or for none."""

    name: str
    templates: tuple[str, ...]
    domains: tuple[str, ...] = ()
    """The domain words that the set names: a comparison on such a domain is marked."""

    def __post_init__(self) -> None:
        if not self.templates:
            raise RequestError(f"template set {self.name} is empty")
        found = [Problem((self.name, index), text) for index, text in mistakes(self.templates)]
        if found:
            raise InvalidConfig(found)

    @property
    def digest(self) -> str:
        """sha256 over the templates in their order; name and domains change no feature."""
        return _sha256(list(self.templates))

    def texts(self, class_names: Sequence[str]) -> Iterator[str]:
        """The K * C prompts, template by template."""
        for template in self.templates:
            for name in class_names:
                yield template.replace("{}", name)


class _LazySets(Mapping[str, TemplateSet]):
    """The sets by name, each made when it is first asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], TemplateSet]]) -> None:
        self._makers = {name: functools.cache(maker) for name, maker in makers.items()}

    def __getitem__(self, name: str) -> TemplateSet:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _from_callables(name: str, templates: Sequence[Callable[[str], str]]) -> TemplateSet:
    """open_clip's sets are functions of the class name."""
    return _with_domains(TemplateSet(name, tuple(template("{}") for template in templates)))


def _own_file(file: str) -> TemplateSet:
    return TemplateSet(*read_template_file(OWN_FILES / file))


def _clips_own(name: str) -> TemplateSet:
    """What CLIP's authors use for one downstream task; source: `data/prompts.md` of openai/CLIP."""
    return _with_domains(_own_file(f"{name}.txt"))


def _icon_shift() -> TemplateSet:
    from carft_core.data.icon_shift import ICON_SHIFT, ICON_TEMPLATES

    return TemplateSet("icon_shift", ICON_TEMPLATES, ICON_SHIFT.domains)


def _with_domains(templates: TemplateSet) -> TemplateSet:
    """Add the domain words of DomainBed's sets that stand in the templates."""
    known = TEMPLATE_SETS["domain_words"].domains
    return replace(templates, domains=named_domains(templates, known) + templates.domains)


TEMPLATE_SETS: Mapping[str, TemplateSet] = _LazySets(
    {
        "openai": lambda: _from_callables("openai", open_clip.OPENAI_IMAGENET_TEMPLATES),
        "simple": lambda: _from_callables("simple", open_clip.SIMPLE_IMAGENET_TEMPLATES),
        "icon_shift": _icon_shift,
        "domain_words": lambda: _own_file("domain_words.yaml"),
        "known_domain_words": lambda: replace(
            TEMPLATE_SETS["domain_words"], name="known_domain_words"
        ),
        "photo": lambda: _with_domains(_own_file("photo.txt")),
        "class_only": lambda: _own_file("class_only.txt"),
        "iwildcam": lambda: _own_file("iwildcam.txt"),
        "fmow": lambda: _own_file("fmow.txt"),
        **{name: functools.partial(_clips_own, name) for name in TASKS},
    }
)


def template_set(name_or_path: str) -> TemplateSet:
    """A set by name, or a user's own file (`.txt`, `.yaml`).

    Raises RequestError for a name nobody knows and for each mistake in a file.
    """
    if name_or_path in TEMPLATE_SETS:
        return TEMPLATE_SETS[name_or_path]
    path = found(name_or_path)
    if path is not None or Path(name_or_path).suffix in SUFFIXES:
        return _with_domains(TemplateSet(*read_template_file(path or Path(name_or_path))))
    raise RequestError(
        f"{unknown('template set', name_or_path, TEMPLATE_SETS)} Or give the path of a file "
        f"({', '.join(SUFFIXES)})."
    )


def named_domains(templates: TemplateSet, words: Iterable[str]) -> tuple[str, ...]:
    """Which of `words` the set declares, or has in a template as whole words.

    `art_painting`, `art-painting` and `art painting` are the same.
    """
    declared = {_plain(word) for word in templates.domains}
    text = " | ".join(_plain(template) for template in templates.templates)
    return tuple(
        word
        for word in words
        if _plain(word) in declared or re.search(rf"\b{re.escape(_plain(word))}\b", text)
    )


def text_features(
    clip: OpenedClip,
    templates: TemplateSet,
    class_names: Sequence[str],
    *,
    device: torch.device | None = None,
) -> Tensor:
    """W_raw [K, C, d]: unit-norm float32 text features of each template and class, on the CPU.

    Encoded in batches on `device` (by default where the model is). Kept in the user's cache by
    the digest of all that they depend on; a damaged file is computed anew. Raises RequestError when
    there is no class, or when a prompt is longer than the model reads.
    """
    if not class_names:
        raise RequestError("prompts need at least one class name")
    shape = (len(templates.templates), len(class_names))
    name = _key(clip, templates, class_names, device)
    path = user_cache() / "text_features" / f"{name}.safetensors"
    kept = _kept(path)
    if kept is not None and kept.shape[:2] == shape:
        return kept
    w_raw = _encoded(clip, templates, class_names, device).view(*shape, -1)
    facts = {"sha256": _content(w_raw), "templates": templates.name, "model": clip.name}
    keep(path, lambda file: save_file({"w_raw": w_raw}, file, metadata=facts))
    return w_raw


def class_weights(w_raw: Tensor) -> Tensor:
    """W_cls [C, d]: the normalised mean over the templates of W_raw [K, C, d].

    What open_clip's build_zero_shot_classifier gives, transposed. The mean is taken in float64, so
    that it does not depend on the order of the templates.
    """
    return F.normalize(w_raw.mean(dim=0, dtype=torch.float64), dim=-1).to(w_raw.dtype)


def context_weights(w_raw: Tensor) -> Tensor:
    """W_ctx [K, d]: the normalised mean of W_raw [K, C, d] over the classes, in any order."""
    return F.normalize(w_raw.mean(dim=1, dtype=torch.float64), dim=-1).to(w_raw.dtype)


def _encoded(
    clip: OpenedClip,
    templates: TemplateSet,
    class_names: Sequence[str],
    device: torch.device | None,
) -> Tensor:
    """[K * C, d]."""
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
    if device is not None and device.type != "cpu":
        clip = replace(clip, model=deepcopy(clip.model).to(device))
    return torch.cat([clip.encode_text(batch).cpu() for batch in batches])


def _key(
    clip: OpenedClip,
    templates: TemplateSet,
    class_names: Sequence[str],
    device: torch.device | None,
) -> str:
    return _sha256(
        {
            "clip": clip.digest,
            "templates": list(templates.templates),
            "classes": list(class_names),
            # Devices round differently; what is kept must be what would be computed.
            "device": "cpu" if device is None else device.type,
            "revision": [TEXT_REVISION, open_clip.__version__],
        }
    )


def _kept(path: Path) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            w_raw: Tensor = file.get_tensor("w_raw")
            content = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    # safetensors checks lengths, not content.
    return w_raw if content == _content(w_raw) else None


def _content(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _plain(text: str) -> str:
    return re.sub(r"[-_\s]+", " ", text).lower()


def register_templates(templates: TemplateSet, *, again: bool = False) -> TemplateSet:
    """Make a set known to `prompts.classes` and `prompts.contexts`; gives it back.

    The same set may come again, and `again` lets it take the place of an earlier one. Raises
    RequestError when its name is another's, or no name.
    """
    name = templates.name
    if not NAME.fullmatch(name):
        raise RequestError(
            f"template set {name!r} cannot be registered: its name must be lower-case letters, "
            "digits and '_', beginning with a letter"
        )
    if not again and name in TEMPLATE_SETS and TEMPLATE_SETS[name] != templates:
        raise RequestError(
            f"template set {name!r} cannot be registered: another set has this name; give it "
            "another"
        )
    # Not a method over there: the source of prompts.py is a part of every run's digest.
    cast(_LazySets, TEMPLATE_SETS)._makers[name] = functools.cache(lambda: templates)
    return templates


KNOWN_WORDS = "known_domain_words"
"""The set that a run takes without the templates that name a domain held out of it."""


def context_set(name: str, data: DataConfig) -> TemplateSet:
    """What `prompts.contexts: <name>` stands for in a run on `data`.

    Raises RequestError for a name nobody knows, for each mistake in a file, and where every
    template names a domain that is held out.
    """
    templates = template_set(name)
    unknown = held_out(data)
    if name != KNOWN_WORDS or not named_domains(templates, unknown):
        return templates
    return without(templates, unknown)


def without(templates: TemplateSet, words: Iterable[str]) -> TemplateSet:
    """The templates that name none of the words, under a name that says so.

    Raises RequestError when none is left.
    """
    words = tuple(words)
    kept = [
        template
        for template in templates.templates
        if not named_domains(TemplateSet(templates.name, (template,)), words)
    ]
    named = f"{templates.name} without {', '.join(words)}"
    if not kept:
        raise RequestError(f"prompts.contexts: nothing is left of {named}")
    left = TemplateSet(named, tuple(kept))
    return replace(left, domains=named_domains(left, templates.domains))


def words_to_mark(contexts: TemplateSet, data: DataConfig, domains: Iterable[str]) -> list[str]:
    """The domains that contexts name and should not know: those held out; of a family that holds
    none out, any of its `domains`."""
    return sorted(named_domains(contexts, held_out(data) or domains))
