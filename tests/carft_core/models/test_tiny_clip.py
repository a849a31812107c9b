"""The shipped tiny CLIP is an ordinary open_clip model that knows things it has not seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.icon_shift import ICON_SHIFT_DEV, ICON_TEMPLATES
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.models.source import BUILTIN
from tests.carft_core.stand_ins import failing
from tools.builtin import tiny_clip
from tools.builtin.batches import Batches, related
from tools.builtin.corpus import Corpus
from tools.builtin.manifest import Item, Pair, read_classes, subset_of
from tools.builtin.source import Drawing

NAME = tiny_clip.model_name("builtin")
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module", params=BUILTIN)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> open_clip.CLIP:
    model: open_clip.CLIP = open_clip.create_model(tiny_clip.model_name(name))
    return model.eval()


def test_the_files_are_small_no_pickle_and_load_strictly(name: str, model: open_clip.CLIP) -> None:
    files = [*BUILTIN[name].iterdir()]
    assert {path.name for path in files} == {"open_clip_config.json", WEIGHTS}
    assert sum(path.stat().st_size for path in files) < 20_000_000
    stored, state = load_file(BUILTIN[name] / WEIGHTS), model.state_dict()
    assert set(stored) == set(state)
    assert "logit_scale" in stored
    for key, value in stored.items():
        assert torch.equal(value.to(state[key].dtype), state[key]), key
        assert torch.isfinite(value).all(), key


def test_tokens_that_training_never_saw_are_zero(name: str, model: open_clip.CLIP) -> None:
    rows = model.token_embedding.weight.abs().sum(dim=1)
    assert 0.5 < float((rows == 0).float().mean()) < 0.99
    tokens = open_clip.get_tokenizer(NAME)([t.format("hot air balloon") for t in ICON_TEMPLATES])
    config = json.loads((BUILTIN[name] / "open_clip_config.json").read_text())
    assert tokens.shape[1] == config["model_cfg"]["text_cfg"]["context_length"]
    assert (rows[tokens[tokens != 0]] > 0).all()


@torch.no_grad()
def test_it_names_drawings_it_has_not_seen(model: open_clip.CLIP) -> None:
    """On the development set, since nothing may be chosen on the report set. Chance is 1.4 %."""
    data = ICON_SHIFT_DEV.open(DataConfig(family="icon_shift_dev"))
    tokenizer = open_clip.get_tokenizer(NAME)
    tokens = [tokenizer([t.format(name) for t in ICON_TEMPLATES]) for name in data.class_names]
    features = torch.stack([model.encode_text(texts, normalize=True).mean(0) for texts in tokens])
    transform = Transform(32, tuple(model.visual.image_mean), tuple(model.visual.image_std))
    for name, split in {"id/test": data.id_test, **data.shifts}.items():
        rows = range(0, len(split), 4)
        views = transform.normalise(split.views(rows, transform=transform, seed=None, epoch=0))
        cosines = model.encode_image(views) @ F.normalize(features, dim=1).T
        top1 = float((cosines.argmax(dim=1) == split.labels[::4]).float().mean())
        assert top1 > (0.40 if name == "id/test" else 0.15), name


def _pairs(count: int) -> list[Pair]:
    drawings = [
        Drawing(f"set{n % 3}:thing{n}", f"thing {n % 10}", "solid", f"d{n % 3}", "MIT", "")
        for n in range(count)
    ]
    return [
        Pair(drawing, drawing.concept, (drawing.concept,), 3 if n % 10 < 8 else 2)
        for n, drawing in enumerate(drawings)
    ]


def test_a_batch_is_a_function_of_seed_and_step_and_holds_no_concept_twice() -> None:
    count = 40
    pixels = np.random.default_rng(0).integers(0, 255, (count, 48, 48, 4), dtype=np.uint8)
    open_clip.add_model_config(BUILTIN["builtin"])

    def batches(seed: int, min_designers: int = 1) -> Batches:
        return Batches(
            _pairs(count),
            pixels,
            np.ones(count, dtype=bool),
            min_designers=min_designers,
            power=0.6,
            seed=seed,
            size=32,
            batch_size=8,
            tokenizer=open_clip.get_tokenizer(NAME),
        )

    first, again = batches(0), batches(0)
    again(0)  # another batch in between changes nothing
    assert torch.equal(first(5).images, again(5).images)
    assert torch.equal(first(5).texts, again(5).texts)
    assert not torch.equal(first(5).images, first(6).images)
    assert not torch.equal(first(5).images, batches(1)(5).images)
    assert len({tuple(text.tolist()) for text in first(5).texts}) == 8
    assert sorted(batches(0, min_designers=3)(5).concepts) == [f"thing {n}" for n in range(8)]


def _corpus(count: int) -> Corpus:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 48, 48, 4), dtype=np.uint8)
    flags = np.ones(count, dtype=bool)
    pairs = _pairs(count)
    development = next(name for name in read_classes() if subset_of(name) == "development")
    splits = ("test", "outline")
    items = [Item(pairs[n].drawing, development, split) for n, split in enumerate(splits)]
    return Corpus(pairs, pixels, flags, items, pixels[:2], flags[:2])


SHORT = tiny_clip.Recipe(steps=3, batch_size=4, warmup=1, cooldown=1, ema=0.5, all_concepts_from=1)
DISTILLED = replace(SHORT, distillation=8.0)


class KilledError(Exception):
    """A process ends where this is raised."""


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, work = _corpus(20), tmp_path / "killed"
    whole = tiny_clip.train("builtin_vit", DISTILLED, corpus, tmp_path / "whole", every=2)

    # Killed after each of its steps: once it has written the checkpoint, before the log.
    monkeypatch.setattr(tiny_clip, "_write_log", failing(KilledError()))
    for _ in range(DISTILLED.steps):
        with pytest.raises(KilledError):
            tiny_clip.train("builtin_vit", DISTILLED, corpus, work, every=2, seconds=0)
    monkeypatch.undo()
    resumed = tiny_clip.train("builtin_vit", DISTILLED, corpus, work, every=2)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    logs = [torch.load(folder / "last.pt")["log"] for folder in (work, tmp_path / "whole")]
    killed, unbroken = ([(row["step"], row["loss"]) for row in log] for log in logs)
    assert killed == unbroken


def test_what_a_recipe_says_of_later_steps_may_change(tmp_path: Path) -> None:
    recipe = replace(SHORT, steps=100, cooldown=20, all_concepts_from=50)
    changed = replace(recipe, steps=90, cooldown=10, all_concepts_from=60)
    assert tiny_clip.so_far(recipe, 50) == tiny_clip.so_far(changed, 50)
    assert tiny_clip.so_far(recipe, 51) != tiny_clip.so_far(changed, 51)
    shorter = replace(recipe, steps=90, cooldown=10)
    assert tiny_clip.so_far(recipe, 80) == tiny_clip.so_far(shorter, 80)
    assert tiny_clip.so_far(recipe, 81) != tiny_clip.so_far(shorter, 81)
    training = tiny_clip.Training("builtin", recipe)
    training.step = 50
    training.save(tmp_path / "last.pt")
    training.step, training.recipe = 0, changed
    training.resume(tmp_path / "last.pt")
    assert training.step == 50
    training.recipe = replace(changed, lr=1.0)
    with pytest.raises(SystemExit, match="another recipe"):
        training.resume(tmp_path / "last.pt")


def test_an_export_is_an_open_clip_model(name: str, tmp_path: Path) -> None:
    model = tiny_clip.Training(name, SHORT).result()
    shutil.copy(BUILTIN[name] / "open_clip_config.json", tmp_path)
    tokenizer = open_clip.get_tokenizer(tiny_clip.model_name(name))
    tiny_clip.export(model, tokenizer, _corpus(20), tmp_path / WEIGHTS)
    loaded = open_clip.create_model(f"local-dir:{tmp_path}").train()
    assert torch.equal(loaded.logit_scale, model.logit_scale.half().float())
    views = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode_image(views), loaded.encode_image(views))
    text = tokenizer(["an icon of a thing 7"])
    assert torch.allclose(loaded.encode_text(text), model.encode_text(text), atol=0.02)


def test_a_distilled_model_keeps_the_text_tower_and_nears_the_teacher(tmp_path: Path) -> None:
    recipe = replace(DISTILLED, steps=6, cooldown=4, batch_size=8)
    untrained = tiny_clip.Training("builtin_vit", recipe).clip
    trained = tiny_clip.train("builtin_vit", recipe, _corpus(20), tmp_path)
    teacher = open_clip.create_model(NAME)
    for key, value in teacher.state_dict().items():
        if not key.startswith("visual."):
            assert torch.equal(value, trained.state_dict()[key]), key
    views = torch.rand(16, 3, 32, 32)
    models = (teacher, untrained, trained)
    goal, before, after = (clip.encode_image(views, normalize=True) for clip in models)
    assert (after * goal).sum(dim=1).mean() > (before * goal).sum(dim=1).mean() + 0.1


def test_the_loss_is_least_on_the_diagonal_and_a_name_within_another_is_no_wrong_answer() -> None:
    names = ["rocket launch", "rocket", "map", "world map"]
    spared = torch.zeros(4, 4, dtype=torch.bool)
    spared[0, 1] = spared[1, 0] = spared[2, 3] = spared[3, 2] = True
    assert torch.equal(related(names), spared)
    features, scale = torch.ones(4, 1), torch.tensor(1.0)
    loss = tiny_clip.contrastive_loss(features, features, scale, spared)
    assert float(loss) == pytest.approx(np.log(3))
    features, scale, none = torch.eye(4), torch.tensor(20.0), torch.zeros_like(spared)
    assert tiny_clip.contrastive_loss(features, features, scale, none) < 1e-6
    assert tiny_clip.contrastive_loss(features, features.roll(1, 0), scale, none) > 10


def test_the_rate_stays_until_the_cooldown_where_there_is_one() -> None:
    recipe = tiny_clip.Recipe(steps=100, warmup=10, lr=1.0, cooldown=40)
    rates = [tiny_clip.learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[9:61]) == {1.0}
    assert rates[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 100)])
