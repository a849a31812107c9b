"""One model of a run as a folder that plain open_clip loads: checkpoint, head, classes, card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from torch import Tensor

from carft_core.checkpoint import save_weights
from carft_core.clip import OpenedClip, open_model
from carft_core.clip_source import CONFIG, FOLDER, PREPROCESS_KEYS, find_model
from carft_core.config import TrialConfig
from carft_core.contexts import context_set
from carft_core.data import FamilyData
from carft_core.data.splits import prepare
from carft_core.errors import RequestError, unknown
from carft_core.files import read_json, write_atomically, write_folder, write_json
from carft_core.merges import State
from carft_core.model_card import MeasuredRow, model_card
from carft_core.paths import found
from carft_core.prompts import (
    TemplateSet,
    class_weights,
    context_weights,
    template_set,
    text_features,
)
from carft_core.result import RunFolder
from carft_core.run_models import UNMERGED, model_state, models_of, tuned_state
from carft_core.teacher import zero_shot_classifier

FORMAT = 1
FACTS = "carft.json"
CLASSES = "classes.json"
HEAD = "head.safetensors"
CONTEXTS = "contexts.safetensors"
CARD = "README.md"
PACKAGES = ("carft-sweep", "open_clip_torch", "timm", "torch")


@dataclass(frozen=True)
class _Source:
    """What a run was trained from and with."""

    clip: OpenedClip
    data: FamilyData
    classes: TemplateSet
    contexts: TemplateSet
    zero_shot: State
    """The classifier before training."""
    w_ctx: Tensor
    """[K, d]"""

    @classmethod
    def open(cls, config: TrialConfig, cache: Path | None) -> _Source:
        """On the CPU, whatever trained: text features are always from there."""
        data = prepare(config.data)
        clip = open_model(config.model.name, config.model.pretrained, cache=cache)
        classes = template_set(config.prompts.classes)
        contexts = context_set(config.prompts, config.data)
        w_cls, w_ctx = (
            mean(text_features(clip, templates, data.class_names, cache=cache))
            for mean, templates in ((class_weights, classes), (context_weights, contexts))
        )
        zero_shot = zero_shot_classifier(clip, w_cls).state_dict()
        return cls(clip, data, classes, contexts, zero_shot, w_ctx)


def export(
    workdir: Path,
    config: TrialConfig,
    out: Path,
    *,
    label: str = UNMERGED,
    rows: Sequence[MeasuredRow] = (),
    force: bool = False,
    cache: Path | None = None,
) -> None:
    """Write the model `label` of the finished run in `workdir` to the folder `out`, all or nothing.

    The checkpoint is the whole CLIP in float32: the run's image tower beside the text tower as it
    was. `rows` are the card's other measurements. The same model may be written again; another
    one in `out` is replaced only with `force`, and a folder that holds anything else never.

    Raises RequestError for a label that the run does not have or has not measured, for weights
    that are not kept, and when model, data or prompts are not what the run was trained with.
    """
    folder, models = RunFolder(workdir), models_of(config)
    claimed = folder.claimed()
    if label not in models:
        raise RequestError(unknown("model of this run", label, models))
    measured = read_json(folder.metrics(label))
    if measured is None:
        raise RequestError(f"{workdir} has no evaluation of {label}: the run is not finished")
    _check_place(out, claimed["digest"], label, force=force)
    source = _Source.open(config, cache)
    _check_unchanged(claimed, source)
    tuned = tuned_state(folder.weights(config.keep.result), config, source.zero_shot)
    state = model_state(models[label], source.zero_shot, tuned)
    facts = _facts(claimed, measured, config, source)
    card = model_card(facts, rows, title=out.resolve().name)
    write_folder(out, lambda new: _fill(new, config, source, state, facts, card))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What an export says of itself; None where there is none.

    Raises RequestError for one of another format.
    """
    facts: object = read_json(folder / FACTS)
    if facts is None:
        return None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise RequestError(
            f"{folder / FACTS} is not of format {FORMAT}: another version of carft-sweep wrote it"
        )
    return facts


def _check_place(out: Path, digest: str, label: str, *, force: bool) -> None:
    """Raise RequestError where `out` holds what this model may not replace."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    facts = read_facts(out) if out.is_dir() else None
    if facts is None:
        raise RequestError(f"{out} is there and is no exported model; name another folder")
    if (facts["digest"], facts["label"]) != (digest, label) and not force:
        raise RequestError(
            f"{out} holds another model ({facts['label']} of run {facts['digest'][:12]}); name "
            "another folder, or replace it (--force)"
        )


def _check_unchanged(claimed: Mapping[str, Any], source: _Source) -> None:
    """Raise RequestError where a head or a text tower would not be the run's own."""
    then = claimed["identity"]
    pairs = {
        "the model": (then["model"], source.clip.digest),
        "the data": (then["data"]["digest"], source.data.digest_of_training),
        "prompts.classes": (then["prompts"]["classes"], source.classes.digest),
        "prompts.contexts": (then["prompts"]["contexts"], source.contexts.digest),
    }
    changed = [name for name, (before, now) in pairs.items() if before != now]
    if changed:
        raise RequestError(
            f"run {claimed['digest'][:12]} was trained with something else: {', '.join(changed)} "
            "changed since; put back what it was, or train it again"
        )


def _facts(
    claimed: Mapping[str, Any],
    measured: Mapping[str, Any],
    config: TrialConfig,
    source: _Source,
) -> dict[str, Any]:
    """Where the model comes from, without a path of this machine."""
    plain = config.as_dict()
    del plain["data"]["root"]
    plain["model"] = {name: _without_path(text) for name, text in plain["model"].items()}
    plain["prompts"] = {"classes": source.classes.name, "contexts": source.contexts.name}
    return {
        "format": FORMAT,
        "digest": claimed["digest"],
        "evaluation": measured["digest"],
        "label": measured["label"],
        "values": measured["values"],
        "seed": claimed["seed"] if config.algorithm.trains else None,
        "model": source.clip.digest,
        "data": source.data.digest,
        "classes": len(source.data.class_names),
        "image_size": source.clip.transform.size,
        "config": plain,
        "metrics": measured["metrics"],
        "versions": dict(_versions()),
    }


def _without_path(text: str | None) -> str | None:
    written = (text or "").removeprefix(FOLDER)
    return Path(written).name if found(written) is not None else text


def _versions() -> list[tuple[str, str]]:
    known = []
    for package in PACKAGES:
        try:
            known.append((package, version(package)))
        except PackageNotFoundError:  # this package, run from its sources
            continue
    return known


def _fill(
    folder: Path,
    config: TrialConfig,
    source: _Source,
    state: State,
    facts: Mapping[str, Any],
    card: str,
) -> None:
    clip = source.clip
    architecture = dict(find_model(config.model.name, config.model.pretrained).architecture)
    preprocess = {key: getattr(clip.transform, key) for key in PREPROCESS_KEYS}
    write_json(folder / CONFIG, {"model_cfg": architecture, "preprocess_cfg": preprocess})
    head = state["head.weight"]
    tower = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    save_weights(folder / HF_SAFE_WEIGHTS_NAME, {**clip.model.state_dict(), **tower})
    save_weights(folder / HEAD, {"weight": head})
    scale = torch.tensor(clip.logit_scale)
    save_weights(folder / CONTEXTS, {"w_ctx": source.w_ctx, "logit_scale": scale})
    if "hf_tokenizer_name" in architecture["text_cfg"]:
        # In a folder open_clip looks for the tokenizer's files, and nowhere else.
        clip.tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]
    told = {
        "family": config.data.family,
        "classes": list(source.data.class_names),
        "templates": list(source.classes.templates),
        "contexts": list(source.contexts.templates),
    }
    write_json(folder / CLASSES, told)
    write_json(folder / FACTS, facts)
    write_atomically(folder / CARD, lambda file: file.write_text(card, encoding="utf-8"))
