"""Export a run's model as a folder that open_clip, MLflow and people can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.carft_core.files import (
    path_or_none,
    read_json,
    write_folder,
    write_json,
    write_text,
)
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.source import (
    BUILTIN,
    CONFIG,
    FOLDER,
    PREPROCESS_KEYS,
    SAFE_WEIGHTS,
    find_model,
)
from carft_sweep.carft_core.requirements import installed_version
from carft_sweep.carft_core.runs.folder import RunFolder, save_weights
from carft_sweep.carft_core.runs.models import UNMERGED, load_classifier, merged, models_of
from carft_sweep.carft_core.runs.result import Evaluation
from carft_sweep.carft_core.training.numerics import resolve_device
from carft_sweep.carft_core.training.setup import RunSetup, open_setup

CARD_TEMPLATE = Path(__file__).with_name("model_card.md.j2")
ICONS = ("icon_shift", "icon_shift_dev")


@dataclass(frozen=True)
class MeasuredRow:
    """A row of the model card's table; accuracies are fractions in [0, 1]."""

    name: str
    metrics: Mapping[str, float]
    seeds: int = 1
    """How many runs the metrics are a mean over."""


def model_card(facts: Mapping[str, Any], rows: Sequence[MeasuredRow], *, title: str) -> str:
    """Return the model card: Markdown with front matter for the Hugging Face hub. `facts` describe
    the export; the table's first row has its own measurements, then follow `rows`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": _cell, "percent": _percent, "fields": _fields}
    heads = [(split, f"{split}/top1") for split in _splits(facts)]
    means = (("ood/mean", "ood/mean/top1"), ("gap", "gap/top1"))
    heads += [(head, name) for head, name in means if name in facts["metrics"]]
    return environment.from_string(CARD_TEMPLATE.read_text(encoding="utf-8")).render(
        {**facts, "facts": facts},
        title=title,
        front_matter=_front_matter(facts, title),
        heads=heads,
        rows=[MeasuredRow("**this model**", facts["metrics"]), *rows],
        is_builtin=_is_builtin(facts),
    )


def _front_matter(facts: Mapping[str, Any], title: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    config = facts["config"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=config["data"]["family"],
            dataset_name=f"{config['data']['family']} {split}",
            dataset_config=split,  # without it the hub would make one of them all
            metric_type="accuracy",
            metric_name="top-1",
            metric_value=facts["metrics"][f"{split}/top1"],
        )
        for split in _splits(facts)
        if split != "id/val"
    ]
    card = ModelCardData(
        library_name="open_clip",
        license="apache-2.0" if _is_builtin(facts) else "other",
        pipeline_tag="image-classification",
        tags=["clip", "carft-sweep", config["algorithm"]["name"]],
        model_name=title,
        eval_results=results,
    )
    return card.to_yaml()


def _splits(facts: Mapping[str, Any]) -> list[str]:
    """Return the measured splits, `id/val` and `id/test` first, without means over several."""
    names = [name.removesuffix("/top1") for name in facts["metrics"] if name.endswith("/top1")]
    shifts = [name for name in names if name.startswith("ood/") and name != "ood/mean"]
    return [*(name for name in ("id/val", "id/test") if name in names), *shifts]


def _is_builtin(facts: Mapping[str, Any]) -> bool:
    """Return whether model and data are those of this package, whose licences are known."""
    config = facts["config"]
    return bool(config["model"]["name"] in BUILTIN and config["data"]["family"] in ICONS)


def _fields(values: Mapping[str, Any], *without: str) -> str:
    """Return fields that have a value as the text `key=value, ...`."""
    shown = (
        f"{key}={value}"
        for key, value in values.items()
        if key not in without and value is not None
    )
    return ", ".join(shown)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _cell(text: str) -> str:
    """Return the text with what would end a Markdown table's cell escaped."""
    return text.replace("|", r"\|").replace("\n", " ")


FORMAT = 1
FACTS = "carft.json"
NAMES = "classes.json"
HEAD = "head.safetensors"
CONTEXTS = "contexts.safetensors"
CARD = "README.md"
PACKAGES = ("carft-sweep", "open_clip_torch", "timm", "torch")


def export(
    workdir: Path,
    config: TrialConfig,
    out: Path,
    *,
    label: str = UNMERGED,
    rows: Sequence[MeasuredRow] = (),
    force: bool = False,
) -> None:
    """Write the model `label` of the finished run in `workdir` to the folder `out`, completely or
    not at all.

    The checkpoint is the whole CLIP in float32: the run's image tower and the pre-trained text
    tower. `rows` are further measurements for the card. The same model may be written again;
    another model in `out` is replaced only with `force`, and a folder with anything else never.

    Raises RequestError for a label that the run does not have or has not measured, for deleted
    weights, and when model, data or prompts are not what the run was trained with.
    """
    folder, models = RunFolder(workdir), models_of(config)
    claimed = folder.claimed()
    if label not in models:
        raise RequestError(unknown("model of this run", label, models))
    measured = read_json(folder.metrics(label), Evaluation)
    if measured is None:
        raise RequestError(f"{workdir} has no evaluation of {label}: the run is not finished")
    _check_place(out, claimed["digest"], label, force=force)
    setup = open_setup(config.model_copy(update=_computing(claimed)))
    _check_unchanged(claimed, setup)
    classifier = merged(models[label], load_classifier(folder, config, setup), setup)
    if not isinstance(classifier, ImageClassifier):
        raise RequestError(
            f"{label} of {config.algorithm.name} is no image tower with a linear head on its "
            "features, and so nothing that open_clip could load; export another model of the sweep"
        )
    facts = _facts(claimed, measured, label, config, setup)
    card = model_card(facts, rows, title=out.resolve().name)
    write_folder(out, lambda new: _fill(new, config, setup, classifier, facts, card))


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the content of `carft.json` in an export's folder; None where there is no such file.
    Raises RequestError for another format."""
    facts: object = read_json(folder / FACTS, follow=True)
    if facts is None:
        return None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise RequestError(
            f"{folder / FACTS} is not of format {FORMAT}: another version of carft-sweep wrote it"
        )
    return facts


def _check_place(out: Path, digest: str, label: str, *, force: bool) -> None:
    """Raise RequestError where the folder `out` holds something that the export may not replace."""
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


def _computing(claimed: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's device and precision, with which the head is rebuilt to the last bit; the
    CPU and fp32 where this machine lacks that device."""
    fields = {name: claimed["identity"][name] for name in ("device", "precision")}
    try:
        resolve_device(fields["device"])
    except RequestError:
        return {"device": "cpu", "precision": "fp32"}
    return fields


def _check_unchanged(claimed: Mapping[str, Any], setup: RunSetup) -> None:
    """Raise RequestError where the head or the text tower would differ from the run's."""
    then, contexts = claimed["identity"], setup.teacher.contexts.digest
    pairs = {
        "the model": (then["model"], setup.teacher.clip.digest),
        "the data": (then["data"]["digest"], setup.data.digest_of_training),
        "prompts.classes": (then["classes"], setup.teacher.classes.digest),
        # Not in it where the algorithm does not use them.
        "prompts.contexts": (then.get("contexts", contexts), contexts),
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
    label: str,
    config: TrialConfig,
    setup: RunSetup,
) -> dict[str, Any]:
    """Return the description of an export: where the model comes from, without local paths."""
    plain, clip = _without_paths(config.as_dict()), setup.teacher.clip
    del plain["data"]["root"], plain["eval"]["retention_root"]
    sets = {"classes": setup.teacher.classes, "contexts": setup.teacher.contexts}
    plain["prompts"] = {field: templates.name for field, templates in sets.items()}
    return {
        "format": FORMAT,
        "digest": claimed["digest"],
        "evaluation": measured["digest"],
        "label": label,
        "values": measured["values"],
        "seed": claimed["seed"] if config.algorithm.trains else None,
        "model": clip.digest,
        "data": setup.data.digest,
        "classes": len(setup.data.class_names),
        "image_size": clip.transform.size,
        "config": plain,
        "metrics": measured["metrics"],
        # Not of this package, where it is run from its sources.
        "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
    }


def _without_paths(value: Any) -> Any:
    """Return plain data in which each path is its last name."""
    if isinstance(value, dict):
        return {name: _without_paths(field) for name, field in value.items()}
    if isinstance(value, list):
        return [*map(_without_paths, value)]
    written = value.removeprefix(FOLDER) if isinstance(value, str) else ""
    is_path = written.startswith(("/", "~")) or path_or_none(written) is not None
    return Path(written).name if is_path else value


def _fill(
    folder: Path,
    config: TrialConfig,
    setup: RunSetup,
    classifier: ImageClassifier,
    facts: Mapping[str, Any],
    card: str,
) -> None:
    clip, teacher = setup.teacher.clip, setup.teacher
    architecture = dict(find_model(config.model.name, config.model.pretrained).architecture)
    preprocess = {key: getattr(clip.transform, key) for key in PREPROCESS_KEYS}
    write_json(folder / CONFIG, {"model_cfg": architecture, "preprocess_cfg": preprocess})
    tower = {f"visual.{name}": tensor for name, tensor in classifier.visual.state_dict().items()}
    save_weights(folder / SAFE_WEIGHTS, {**clip.model.state_dict(), **tower})
    save_weights(folder / HEAD, {"weight": classifier.head.weight})
    scale = torch.tensor(clip.logit_scale)
    save_weights(folder / CONTEXTS, {"w_ctx": teacher.w_ctx, "logit_scale": scale})
    if "hf_tokenizer_name" in architecture["text_cfg"]:
        # In a folder open_clip looks for the tokenizer's files, and nowhere else.
        clip.tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]
    texts = {
        "family": config.data.family,
        "classes": list(setup.data.class_names),
        "templates": list(teacher.classes.templates),
        "contexts": list(teacher.contexts.templates),
    }
    write_json(folder / NAMES, texts)
    write_json(folder / FACTS, facts)
    write_text(folder / CARD, card)
