"""The pages of the built-in data and model say of their files what is in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from carft_sweep.carft_core.data.families.icon_shift import DATA, SHIFTS
from tools.builtin.check import read_labels
from tools.builtin.copies import NEAR_COPY
from tools.builtin.corpus import MIN_DRAWINGS
from tools.builtin.icon_shift import SCHEMA
from tools.builtin.manifest import read_benchmark, split_names
from tools.builtin.tiny_clip import CONFIG, NAME, Recipe

DOCS = Path(__file__).parents[2] / "docs"
SPLITS = split_names(read_benchmark())
WORDS = {6: "six"}


@cache
def page(name: str) -> str:
    """A page, each run of white space as one space."""
    return " ".join((DOCS / name).read_text().split())


@cache
def drawings() -> list[dict[str, Any]]:
    """Every row of the packed file, without its pixels."""
    table = pq.read_table(DATA, columns=[name for name in SCHEMA.names if name != "png"])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def cells(name: str, first: str) -> list[str]:
    """The cells of the table's row that begins with this one."""
    lines = (DOCS / name).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("subset", "family"), [("report", "icon_shift"), ("development", "icon_shift_dev")]
)
def test_the_table_of_drawings_is_that_of_the_file(subset: str, family: str) -> None:
    rows = [row for row in drawings() if row["subset"] == subset]
    counts = Counter(row["split"] for row in rows)
    expected = [len({row["class"] for row in rows}), *(counts[split] for split in SPLITS)]
    assert cells("icon-shift.md", f"`{family}`") == [str(number) for number in expected]
    names = ", ".join(sorted({row["class"] for row in rows}))
    assert subset != "report" or f"The **report** classes: {names}." in page("icon-shift.md")


@pytest.mark.parametrize("split", SPLITS)
def test_the_table_of_designers_is_that_of_the_file(split: str) -> None:
    counts = Counter(row["designer"] for row in drawings() if row["split"] == split)
    first = f"{split} (solid)" if split not in SHIFTS else split
    (designers,) = cells("icon-shift.md", first)
    numbers = [int(number) for number in re.findall(r"\((\d+)\)", designers)]
    assert sum(numbers) == sum(counts.values())
    more = re.search(r"and (\d+) more", designers)
    named = len(numbers) - 1 if more else len(numbers)
    assert numbers[:named] == [count for _, count in counts.most_common(named)]
    assert named + (int(more[1]) if more else 0) == len(counts)


def test_shifts_that_lack_classes_are_named_with_what_they_hold() -> None:
    held = {
        (shift, subset): len(
            {r["class"] for r in drawings() if r["split"] == shift and r["subset"] == subset}
        )
        for shift in SHIFTS
        for subset in ("report", "development")
    }
    every = {s: max(n for (_, sub), n in held.items() if sub == s) for _, s in held}
    assert {shift for (shift, subset), n in held.items() if n < every[subset]} == {
        "duotone",
        "pixel",
    }
    assert (
        f"duotone holds {held['duotone', 'report']} of the {every['report']} report classes "
        f"({held['duotone', 'development']} of the {every['development']} development ones), "
        f"pixel {held['pixel', 'report']} ({held['pixel', 'development']})."
    ) in page("icon-shift.md")


def test_licences_sets_and_what_was_left_out_are_counted() -> None:
    text, plan = page("icon-shift.md"), read_benchmark()
    for licence, count in Counter(row["licence"] for row in drawings()).items():
        entry = re.escape(licence) + rf" \({count:,}( drawings)?\)"
        assert re.search(entry, text), entry
    assert f"lists the {len({row['set'] for row in drawings()})} sets" in text
    assert f"and {len(plan['excluded_drawings'])} drawings of something else" in text
    assert f"the pre-training at least {WORDS[MIN_DRAWINGS]}. Then" in text
    assert f"({DATA.stat().st_size / 1e6:.1f} MB" in text


def test_what_was_judged_by_eye_is_told_as_it_was_judged() -> None:
    text, labels = page("icon-shift.md"), read_labels()
    split_of = {row["id"]: row["split"] for row in drawings()}
    # A set that took a drawing over pixel by pixel is not packed again.
    split_of |= {"ion:beer": "train", "ion:newspaper": "train"}
    left = [label for label in labels if label.sample != "threshold"]
    assert {label.benchmark for label in left} <= {*split_of}
    trained = [label for label in left if split_of[label.benchmark] == "train"]
    copies = sum(label.is_copy for label in trained)
    assert f"Of training drawings {copies} of {len(trained)} have one" in text
    nearest = [
        label
        for label in left
        if label.sample == "nearest left" and split_of[label.benchmark] != "train"
    ]
    copies = sum(label.is_copy for label in nearest)
    assert f"{copies} of the {len(nearest)} among the 50 benchmark drawings" in text
    judged = [label for label in labels if label.sample == "threshold"]
    copies = sum(label.is_copy for label in judged)
    assert f"The threshold, {NEAR_COPY:.2f}, was set on {len(judged)} pairs" in text
    assert f"| **{NEAR_COPY:.2f}** | {copies} of {copies} |" in text


def test_the_log_and_the_recipe_of_the_tiny_clip_are_told_as_they_are() -> None:
    text = page("tiny-clip.md")
    log = [json.loads(line) for line in (DOCS / "tiny-clip-log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == Recipe().steps
    assert f"{Recipe().steps:,} steps, seed {Recipe().seed}" in text
    table = text.partition("## Log")[2].partition("## What")[0]
    lines = re.findall(r"\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", table)
    rows = {row["step"]: row for row in log}
    assert len(lines) >= 6
    for step, loss, scale, id_top1, ood in lines:
        row = rows[int(step.replace(",", ""))]
        assert (loss, scale) == (f"{row['loss']:.2f}", f"{row['logit_scale']:.1f}")
        assert (float(id_top1), float(ood)) == (row["id"], row["ood"])


def test_the_size_of_the_tiny_clip_is_told_as_it_is() -> None:
    text = page("tiny-clip.md")
    state = load_file(CONFIG / "open_clip_model.safetensors")
    words = state["token_embedding.weight"].float()
    assert f"the rows of the {int((words == 0).all(dim=1).sum()):,} tokens" in text
    size = (CONFIG / "open_clip_model.safetensors").stat().st_size
    assert f"safetensors in fp16, {size / 1e6:.1f} MB" in text
    assert f"| logit scale | {float(state['logit_scale'].float().exp()):.1f} |" in text
    model = open_clip.create_model(NAME, load_weights=False)
    image = sum(p.numel() for p in model.visual.parameters())
    every = sum(p.numel() for p in model.parameters())
    assert f"128 features: {image / 1e6:.1f} M parameters" in text
    assert f"{(every - image) / 1e6:.1f} M parameters, {words.numel() / 1e6:.1f} M of them" in text
    assert all(torch.isfinite(value.float()).all() for value in state.values())
