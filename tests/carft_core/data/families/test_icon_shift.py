"""The packed benchmark keeps its promises, and the build that makes it holds them on any source."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from carft_sweep.carft_core.data.base import DataConfig, FamilyData
from carft_sweep.carft_core.data.families.icon_shift import (
    DATA,
    EVAL_VIEWS,
    ICON_SHIFT,
    SHIFTS,
    TRAIN_VIEWS,
    decode,
    render_views,
    uniforms,
    view_keys,
    view_parameters,
)
from carft_sweep.carft_core.data.transforms import Transform
from tests.carft_core.refusals import refused
from tools.builtin import copies, manifest
from tools.builtin.check import read_labels
from tools.builtin.render import Pixels
from tools.builtin.source import Drawing, read_drawings, read_sets, read_styles, split_name

ID_SPLITS = ("train", "val", "test")
SUBSETS = ("report", "development")
TRANSFORM = Transform(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
Rows = list[dict[str, Any]]
Packed = tuple[Rows, copies.Fingerprints]


@pytest.fixture(scope="module")
def rows() -> Rows:
    columns = [name for name in pq.read_schema(DATA).names if name != "png"]
    rows: Rows = pq.read_table(DATA, columns=columns).to_pylist()
    return rows


@pytest.fixture(scope="module")
def packed() -> Packed:
    table: Rows = pq.read_table(DATA, columns=["id", "split", "png"]).to_pylist()
    return table, copies.fingerprints([decode(row["png"]) for row in table])


@pytest.fixture(scope="module")
def report() -> FamilyData:
    return ICON_SHIFT.open(DataConfig(family="icon_shift"))


def by_split(rows: Rows, column: str) -> dict[str, set[str]]:
    values = defaultdict(set)
    for row in rows:
        values[row["split"]].add(row[column])
    return values


def test_the_digest_beside_the_file_is_the_files_own() -> None:
    stated = DATA.with_suffix(".sha256").read_text().split()
    assert stated == [hashlib.sha256(DATA.read_bytes()).hexdigest(), DATA.name]


def test_splits_of_the_id_style_are_by_designer(rows: Rows) -> None:
    designers, styles = by_split(rows, "designer"), by_split(rows, "style")
    evaluated = [drawers for name, drawers in designers.items() if name != "train"]
    assert all(designers["train"].isdisjoint(drawers) for drawers in evaluated)
    assert not designers["val"] & designers["test"]
    assert all(styles[split] == {"solid"} for split in ID_SPLITS)
    assert not any("solid" in styles[shift] for shift in SHIFTS)
    # No designer alone carries more than a third of the OOD mean.
    lone = (designers[shift] for shift in SHIFTS if len(designers[shift]) == 1)
    alone = Counter(itertools.chain.from_iterable(lone))
    assert all(3 * count <= len(SHIFTS) for count in alone.values())


def test_subsets_share_no_class_and_each_class_has_drawings_where_it_must(rows: Rows) -> None:
    counts = Counter((row["class"], row["split"]) for row in rows)
    classes = {name: {row["class"] for row in rows if row["subset"] == name} for name in SUBSETS}
    for split, least in manifest.read_benchmark()["minimum"].items():
        assert all(counts[name, split] >= least for name in set().union(*classes.values()))
    assert all(row["subset"] == manifest.subset_of(row["class"]) for row in rows)
    assert not classes["report"] & classes["development"]
    assert len(classes["report"]) >= 80
    assert len(classes["development"]) >= 60


def test_ids_are_unique_and_licences_allowed_and_listed(rows: Rows) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    styles = read_styles()
    lines = (DATA.parent / "LICENSES.md").read_text().splitlines()
    for name, licence in {(row["set"], row["licence"]) for row in rows}:
        assert licence in styles["licences"] or name in styles["share_alike"]
        assert any(line.startswith(f"| {name} |") and f"| {licence} |" in line for line in lines)


def test_views_of_a_drawing_are_its_unit(report: FamilyData) -> None:
    for split, views in ((report.id_test, EVAL_VIEWS), (report.train, TRAIN_VIEWS)):
        drawings = [name.rpartition("#")[0] for name in split.ids]
        assert set(Counter(drawings).values()) == {views}
        assert len({*zip(drawings, split.units, strict=True)}) == len({*drawings})


def test_a_drawing_in_several_styles_is_one_unit(rows: Rows) -> None:
    styles = defaultdict(set)
    for row in rows:
        assert row["unit"].startswith(f"{row['designer']}:")
        if row["set"].startswith("fluent-emoji"):
            styles[row["unit"]].add(row["style"])
    assert styles
    assert sum(drawn == {"3d", "flat", "black"} for drawn in styles.values()) > len(styles) / 2


def test_no_training_drawing_is_a_near_copy_of_an_evaluation_drawing(packed: Packed) -> None:
    rows, prints = packed
    training = np.array([row["split"] == "train" for row in rows])
    correlation, which = copies.nearest(prints[training], prints[~training])
    worst = int(correlation.argmax())
    assert correlation[worst] <= copies.NEAR_COPY, (
        [row["id"] for row in rows if row["split"] == "train"][worst],
        [row["id"] for row in rows if row["split"] != "train"][int(which[worst])],
    )


def _icon(draw: Callable[[ImageDraw.ImageDraw], None], colour: str = "black") -> Pixels:
    mask = Image.new("L", (192, 192))
    draw(ImageDraw.Draw(mask))
    icon = Image.new("RGBA", mask.size, colour)
    icon.putalpha(mask)
    return np.array(icon.resize((48, 48), Image.Resampling.BOX))


def _cup(width: int, indent: int = 20, scale: float = 1) -> Callable[[ImageDraw.ImageDraw], None]:
    def draw(pen: ImageDraw.ImageDraw) -> None:
        def box(x: int, y: int, right: int, bottom: int) -> tuple[float, float, float, float]:
            return indent + scale * x, 40 + scale * y, indent + scale * right, 40 + scale * bottom

        pen.rectangle(box(0, 0, 100, 100), outline=255, width=width)
        pen.ellipse(box(90, 20, 140, 70), outline=255, width=width)

    return draw


def test_a_copy_is_found_whatever_its_stroke_place_size_colour_or_side() -> None:
    original = copies.fingerprints([_icon(_cup(12))])
    variants = [
        _icon(_cup(8)),
        _icon(_cup(16)),
        _icon(_cup(12, indent=10)),
        _icon(_cup(9, scale=0.75)),
        _icon(_cup(12), colour="navy"),
        np.ascontiguousarray(_icon(_cup(12))[:, ::-1]),
    ]
    assert copies.near_copies(copies.fingerprints(variants), original).all()


def test_another_drawing_is_no_copy_nor_is_anything_of_nothing() -> None:
    cup, star = _icon(_cup(12)), _icon(lambda pen: pen.regular_polygon((96, 96, 80), 3, fill=255))
    assert not copies.near_copies(copies.fingerprints([star]), copies.fingerprints([cup])).any()
    assert not copies.near_copies(copies.fingerprints([cup]), copies.fingerprints([])).any()
    assert copies.near_copies(copies.fingerprints([]), copies.fingerprints([cup])).tolist() == []
    blank = np.zeros((48, 48, 4), dtype=np.uint8)
    blanks = copies.fingerprints([blank]), copies.fingerprints([cup, blank])
    assert not copies.near_copies(*blanks).any()


def test_labels_judged_by_eye_are_whole() -> None:
    labels = read_labels()
    counts = Counter(label.sample for label in labels)
    assert counts == {"threshold": 164, "nearest left": 50, "left": 105}
    assert sum(label.is_copy for label in labels if label.sample != "threshold") == 11


def test_a_training_drawing_that_copies_an_evaluation_drawing_is_left_out() -> None:
    plan = manifest.read_benchmark()
    enough = _items({**plan["minimum"], "train": 4})
    items = manifest.benchmark_items(enough, manifest.read_classes(), plan)
    draw = np.random.default_rng(0)
    pixels = [_icon(_scribble(draw)) for _ in items]
    splits = [item.split for item in items]
    copy = splits.index("train")
    pixels[copy] = pixels[splits.index("outline")]
    chosen = {item.drawing.id for item in copies.choose_items(items, pixels, plan)}
    assert chosen == {item.drawing.id for item in items} - {items[copy].drawing.id}


def _scribble(draw: np.random.Generator) -> Callable[[ImageDraw.ImageDraw], None]:
    points = [(int(x), int(y)) for x, y in draw.integers(10, 180, (9, 2))]
    return lambda pen: pen.line(points, fill=255, width=12)


def test_a_root_is_refused() -> None:
    refused("leave it out", ICON_SHIFT.open, DataConfig(family="icon_shift", root="/data"))


def test_no_two_classes_claim_one_name() -> None:
    assert manifest.alias_table(manifest.read_classes())
    with pytest.raises(ValueError, match="claimed"):
        manifest.alias_table({"car": ("car", "auto"), "bus": ("bus", "auto")})


def test_names_say_concept_and_style() -> None:
    families = read_styles()["families"].values()
    for set_name, name, expected in (
        ("mdi", "rocket-launch-outline", ("rocket launch", "outline")),
        ("mdi", "rocket", ("rocket", "solid")),
        ("ic", "twotone-anchor", ("anchor", "duotone")),
        ("ic", "round-anchor", ("anchor", None)),
        ("ph", "cat-duotone", ("cat", "duotone")),
        ("solar", "bell-bold", ("bell", "solid")),
        ("fluent", "key-24-filled", ("key", "solid")),
        ("streamline-plump", "star-remix", ("star remix", None)),
        ("pixelarticons", "heart-solid", ("heart", "pixel")),
        ("fluent-emoji", "hot-beverage", ("hot beverage", "3d")),
    ):
        rules = next(sets[set_name] for sets in families if set_name in sets)
        rules = rules if isinstance(rules, dict) else {"style": rules}
        assert split_name(name, rules) == expected


BODY = '<path fill="currentColor" d="M2 2h{}v20H2z"/>'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small @iconify/json: the same four things by designers of every split and others."""
    folder = tmp_path_factory.mktemp("iconify")
    (folder / "json").mkdir()
    solid = ("ph", "mdi", "tabler", "openmoji", "game-icons", "whh", "vaadin", "gg", "ion")
    names = ("rocket", "rocket-launch-off", "bell", "windmill")
    catalogue = {}
    for number, prefix in enumerate((*solid, "lucide", "carbon", "hugeicons")):
        catalogue[prefix] = {
            "name": prefix,
            "author": {"name": "A designer", "url": "https://example.org"},
            "license": {"spdx": "GPL-3.0" if prefix == "gg" else "MIT"},
        }
        icons: dict[str, dict[str, Any]] = {
            name: {"body": BODY.format(4 + number + 2 * at)} for at, name in enumerate(names)
        }
        icons["bell-filled"] = {"body": BODY.format(9), "hidden": True}
        content = {"prefix": prefix, "icons": icons, "width": 24, "height": 24}
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(content))
    (folder / "collections.json").write_text(json.dumps(catalogue))
    return folder


@pytest.fixture(scope="module")
def drawings(source: Path) -> list[Drawing]:
    return list(read_drawings(source))


def test_sets_with_barred_licences_are_not_read(source: Path, drawings: list[Drawing]) -> None:
    assert "gg" not in {icon_set.prefix for icon_set in read_sets(source)}
    assert "gg" not in {drawing.set for drawing in drawings}
    assert not any(drawing.id.endswith("-filled") for drawing in drawings)


def test_the_pretraining_sees_no_benchmark_drawing(drawings: list[Drawing]) -> None:
    classes, plan = manifest.read_classes(), manifest.read_benchmark()
    table = manifest.alias_table(classes)
    share_alike = read_styles()["share_alike"]
    pairs = manifest.pretraining_pairs(drawings, classes, plan, share_alike=share_alike)
    held_out = manifest.evaluation_designers(plan)
    seen = {(pair.drawing.designer, pair.drawing.concept, pair.drawing.style) for pair in pairs}
    assert not any(designer in held_out and concept in table for designer, concept, _ in seen)
    # Solid ones are by nobody; what the others draw of the classes in other styles is seen.
    assert {style for _, concept, style in seen if concept in table} == {"outline"}
    # A name that merely contains a class is held out as well; their other drawings are not.
    assert not any(designer in held_out and "rocket" in concept for designer, concept, _ in seen)
    assert ("phosphor", "windmill") in {drawn[:2] for drawn in seen}
    assert not any(pair.drawing.set == "openmoji" for pair in pairs)
    items = manifest.benchmark_items(drawings, classes, plan)
    assert items
    assert not {item.drawing.id for item in items} & {pair.drawing.id for pair in pairs}


def test_a_pair_says_how_many_designers_draw_its_concept(drawings: list[Drawing]) -> None:
    lone = Drawing("ion:windmill-old", "windmill old", "solid", "ion", "MIT", "<svg/>")
    classes, plan = manifest.read_classes(), manifest.read_benchmark()
    pairs = manifest.pretraining_pairs([*drawings, lone], classes, plan)
    designers = {pair.concept: pair.designers for pair in pairs}
    assert designers["windmill"] >= 3
    assert designers["windmill old"] == 1


def _items(counts: Mapping[str, int]) -> list[Drawing]:
    plan, drawings = manifest.read_benchmark(), []
    for split, count in counts.items():
        rule = plan["shifts"].get(split, {"style": plan["id_style"]})
        designer = rule.get("designers", plan["id"].get(split, ["anybody"]))[0]
        of = ("rocket", rule["style"], designer, "MIT", "<svg/>")
        drawings += [Drawing(f"{designer}:{split}{number}", *of) for number in range(count)]
    return drawings


def test_classes_need_drawings_everywhere_and_are_capped() -> None:
    plan, classes = manifest.read_benchmark(), manifest.read_classes()
    enough = _items({**plan["minimum"], "train": 30})
    items = manifest.benchmark_items(enough, classes, plan)
    chosen = manifest.select_items(items, plan)
    assert Counter(item.split for item in chosen)["train"] == plan["maximum"]["train"]
    assert manifest.select_items(list(reversed(items)), plan) == chosen
    short = [drawing for drawing in enough if drawing.style != "black"]
    assert manifest.select_items(manifest.benchmark_items(short, classes, plan), plan) == []


COUNT = 24


@pytest.fixture(scope="module")
def shapes() -> Tensor:
    """A disc, a bar and a corner, in turn, in red."""
    pixels = torch.zeros(COUNT, 48, 48, 4, dtype=torch.uint8)
    pixels[..., 0] = 255
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    masks = [(x - 24) ** 2 + (y - 24) ** 2 < 300, abs(x - 24) < 3, (x < 24) & (y < 24)]
    for index in range(COUNT):
        pixels[index, ..., 3] = masks[index % 3].to(torch.uint8) * 255
    return pixels


def test_global_random_state_is_neither_used_nor_moved(shapes: Tensor) -> None:
    keys, monochrome = view_keys(0, "train", 0, range(COUNT)), torch.arange(COUNT) % 2 == 0
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render_views(shapes, monochrome, keys, 32)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, render_views(shapes, monochrome, keys, 32))


def test_keys_are_the_same_whoever_asks_and_others_for_each_seed_split_epoch_and_index() -> None:
    whole = view_keys(7, "train", 2, range(100))
    assert np.array_equal(whole[40:60], view_keys(7, "train", 2, range(40, 60)))
    assert np.array_equal(whole[[5]], view_keys(7, "train", 2, [5]))
    places = itertools.product((0, 1), ("train", "test"), (0, 1))
    keys = np.concatenate([view_keys(*place, range(500)) for place in places])
    assert len(np.unique(keys)) == len(keys) == 4000


def test_keys_never_change() -> None:
    """Published numbers hang on them: a change here is a new benchmark."""
    keys = view_keys(0, "train", 0, [0, 1])
    assert keys.tolist() == [10190284756966462071, 18177740455115040680]
    assert uniforms(keys, 2)[0].tolist() == pytest.approx([0.7549043893814087, 0.4126448631286621])


def test_uniforms_are_uniform() -> None:
    numbers = uniforms(view_keys(0, "train", 0, range(4000)), 8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.06


def test_ground_and_tint_never_meet() -> None:
    parameters = view_parameters(view_keys(0, "train", 0, range(2000)))
    assert (parameters.ground - parameters.tint).abs().sum(dim=1).min() > 0.4


def test_only_one_colour_icons_are_tinted(shapes: Tensor) -> None:
    keys = view_keys(0, "train", 0, range(COUNT))
    coloured = render_views(shapes, torch.zeros(COUNT, dtype=torch.bool), keys, 32)
    tinted = render_views(shapes, torch.ones(COUNT, dtype=torch.bool), keys, 32)
    parameters = view_parameters(keys)
    disc = 0
    assert torch.allclose(coloured[disc, :, 16, 16], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    assert torch.allclose(tinted[disc, :, 16, 16], parameters.tint[disc], atol=1e-3)
    assert torch.allclose(tinted[disc, :, 0, 0], parameters.ground[disc], atol=1e-3)
