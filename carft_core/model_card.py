"""The card of an exported model: what it is, how it was trained and measured, how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carft_core.clip_source import BUILTIN

USE = """```python
import json
from pathlib import Path
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
head = load_file("head.safetensors")["weight"]
classes = json.loads(Path("classes.json").read_text())["classes"]
image = Image.open("image.png").convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
image = preprocess(image)[None]
with torch.inference_mode():
    p = (model.eval().encode_image(image, normalize=True) @ head.T).softmax(dim=1)[0]
print(classes[int(p.argmax())], float(p.max()))
```"""
"""Names lie relative to the folder of the export."""
TUNED_ON_ICONS = (
    "The weights of the tiny CLIP are under Apache-2.0, and so are these. The drawings of "
    "IconShift keep the licences of their icon sets."
)
UNKNOWN = (
    "Not known here. These weights are made from those of the model named above and were tuned on "
    "the data named above: the licences of both may bind you. Name them before you publish."
)
ICONS = ("icon_shift", "icon_shift_dev")


@dataclass(frozen=True)
class MeasuredRow:
    """A line of the card's table; accuracies are fractions in [0, 1]."""

    name: str
    metrics: Mapping[str, float]
    seeds: int = 1
    """How many runs the metrics are a mean over."""


def model_card(facts: Mapping[str, Any], rows: Sequence[MeasuredRow], *, title: str) -> str:
    """Markdown with front matter as the Hugging Face hub reads it.

    `facts` are those of an export; its own measurements are the table's first row, `rows` follow.
    """
    parts = [
        _front_matter(facts, title),
        f"# {title}",
        _sentence(facts),
        _table(["", ""], _origin(facts)),
        "## Measured",
        _measured(facts, rows),
        "## Use",
        f"In this folder, with open_clip 3 and nothing else:\n\n{USE}",
        "`head.safetensors` holds one row a class with the logit scale in it, in the order of "
        "`classes.json`. `contexts.safetensors` holds one row a template of `contexts` in "
        "`classes.json`: the softmax of `logit_scale` times cosine tells as what the model sees "
        "the image. With carft-sweep: `carft-sweep predict FOLDER IMAGE`.",
        "## Limits",
        "\n".join(f"* {limit}" for limit in _limits(facts)),
        "## Licence",
        TUNED_ON_ICONS if _is_builtin(facts) else UNKNOWN,
    ]
    return "\n\n".join(parts) + "\n"


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
    return f"---\n{card.to_yaml()}\n---"


def _sentence(facts: Mapping[str, Any]) -> str:
    config = facts["config"]
    return (
        f"A CLIP ({config['model']['name']}) with {facts['image_size']} pixels that tells "
        f"{facts['classes']} classes of `{config['data']['family']}` apart, tuned by "
        f"`{config['algorithm']['name']}`"
        + (f" and merged by `{facts['label']}`" if facts["values"] else "")
        + ". Made by carft-sweep."
    )


def _origin(facts: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    config = facts["config"]
    model, data, algorithm = config["model"], config["data"], config["algorithm"]
    named = " ".join(filter(None, (model["name"], model["pretrained"])))
    yield "starts from", f"{named}, digest `{facts['model'][:12]}`"
    yield "data", f"{data['family']}, digest `{facts['data'][:12]}`; {_fields(data, 'family')}"
    yield "prompts", _fields(config["prompts"])
    yield "algorithm", f"{algorithm['name']} {_fields(algorithm, 'name')}".strip()
    if facts["seed"] is not None:
        yield "optimisation", f"{_fields(config['optim'])}, seed={facts['seed']}"
        yield "weights of", f"the {config['keep']['result']} epoch"
    yield "model", f"{facts['label']} of run `{facts['digest']}`"
    yield "made with", ", ".join(f"{name} {at}" for name, at in facts["versions"].items())


def _measured(facts: Mapping[str, Any], rows: Sequence[MeasuredRow]) -> str:
    heads = _splits(facts)
    names = [f"{split}/top1" for split in heads]
    for name, head in (("ood/mean/top1", "ood/mean"), ("gap/top1", "gap")):
        if name in facts["metrics"]:
            names.append(name)
            heads.append(head)
    gap = "; `gap` is ID test minus OOD mean" if "gap" in heads else ""
    own = MeasuredRow("**this model**", facts["metrics"])
    lines = [
        [row.name, str(row.seeds), *(_percent(row.metrics.get(name)) for name in names)]
        for row in (own, *rows)
    ]
    return (
        f"Top-1 in percent; `id` is in distribution, `ood` are shifts{gap}. A row of several runs "
        f"is their mean.\n\n{_table(['', 'runs', *heads], lines)}"
    )


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"It knows its {facts['classes']} classes and always names one of them; of what is none of "
        "them it may be as sure."
    )
    yield (
        "The text tower is the one it started from: texts of other classes still match the images, "
        "but how well was not measured after tuning."
    )
    yield "The shifts in the table are the only ones on which it was measured."
    if facts["config"]["algorithm"]["name"] != "zero_shot":
        yield "One run with one seed; the spread over seeds is in the comparison of its sweep."


def _splits(facts: Mapping[str, Any]) -> list[str]:
    """What was measured, `id/val` and `id/test` first where they are; no mean of several."""
    names = [name.removesuffix("/top1") for name in facts["metrics"] if name.endswith("/top1")]
    shifts = [name for name in names if name.startswith("ood/") and name != "ood/mean"]
    return [*(name for name in ("id/val", "id/test") if name in names), *shifts]


def _is_builtin(facts: Mapping[str, Any]) -> bool:
    """Whether model and data are those of the package, whose licences are known."""
    config = facts["config"]
    return bool(config["model"]["name"] == BUILTIN and config["data"]["family"] in ICONS)


def _fields(values: Mapping[str, Any], *without: str) -> str:
    shown = {
        key: value for key, value in values.items() if key not in without and value is not None
    }
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _table(heads: Sequence[str], lines: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
