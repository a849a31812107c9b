"""What `compare --json` says of a sweep, computed once more by numpy and scipy.

Nothing of the product is used here: numbers come from the kept predictions, those of contexts from
images and kept weights. `document` has the shape of the JSON, with `pytest.approx` for what kept
numbers hold in fewer digits: another key of the JSON is another line here.
"""

from __future__ import annotations

import functools
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from scipy import optimize, special, stats

from tests.scalar_curves import Curve, above, common_range, gains_of, height_at

Values = dict[int | None, float]
"""By seed; that of zero-shot, which no seed changes, under None."""
Run = tuple[Path, ...]
"""The folder of a run; of a mean over tasks those of its runs, a task after another."""
ID, OOD = "id/test/top1", "ood/mean/top1"
KL = "algorithm.kl_weight"
BINS = 15
OTHER_DIGITS = {"nll": 1e-6, "ece": 1e-6, "brier": 5e-3}
"""What is lost where probabilities are kept in single and logits in half precision."""
OF_CONTEXTS = 2e-5
"""Lost by features in single precision."""
IDENTIFIERS = frozenset({"params", "trial"})
"""Keys of the JSON below which numbers name a setting and measure nothing."""


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each number, truth value, null and text of a JSON document under its path; items of a list
    under their names.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            named = part if isinstance(part, Mapping) else {}
            names = (
                named.get(key) for key in ("label", "candidate", "parameter", "algorithm", "alpha")
            )
            name = next((str(name) for name in names if name is not None), str(place))
            yield from leaves(part, (*path, name))
    else:
        yield path, value


@dataclass(frozen=True)
class Setting:
    label: str
    algorithm: str
    params: Mapping[str, Any]
    role: str
    runs: Mapping[int | None, Run]

    @property
    def trains(self) -> bool:
        return self.algorithm != "zero_shot"

    @property
    def weight(self) -> float | None:
        return self.params.get(KL)

    def run(self, seed: int) -> Run:
        return self.runs[seed if self.trains else None]


Model = tuple[Setting, str | None]
"""A setting through one of its merges, or unmerged."""


@dataclass(frozen=True)
class Rule:
    metric: str = "id/val/top1"
    sign: int = 1
    merge: str | None = None
    within: float | None = None
    reference: str = "fine_tune"
    margin: float = 0.005
    ood_margin: float = 0.005


@functools.cache
def predictions(folder: Path, merge: str | None) -> pd.DataFrame:
    return pd.read_parquet(folder / "evaluations" / (merge or "unmerged") / "predictions.parquet")


@functools.cache
def table_of(folder: Path, merge: str | None) -> pd.DataFrame:
    """Of each of these images where it is from."""
    return predictions(folder, merge)[["split", "id", "unit"]].astype(str)


def shown_of(shown: Mapping[str, Any], by: str, task: str) -> dict[str, Any]:
    """The part of `show --json` that is of one task, without the field that names tasks."""
    part = dict(shown)
    for kind in ("baselines", "trials"):
        part[kind] = []
        for item in shown[kind]:
            params = dict(item["params"])
            if params.pop(by) == task:
                part[kind].append({**item, "params": params})
    return part


@dataclass(frozen=True, eq=False)
class Task:
    """A sweep of `show --json`, or one of its tasks, with what its runs predict."""

    shown: Mapping[str, Any]
    data: Path
    clip: Path
    alphas: Sequence[float]
    templates: Sequence[str]
    known: dict[tuple[Path, str | None], dict[str, float]] = field(default_factory=dict)

    @functools.cached_property
    def settings(self) -> list[Setting]:
        settings = []
        for role, end in (("baseline", ""), ("trial", ""), ("confirmation", " (confirmed)")):
            for item in self.shown[f"{role}s"]:
                runs = {run["seed"]: (Path(run["folder"]),) for run in item["runs"]}
                label = _label(item) + end
                settings.append(Setting(label, item["algorithm"], item["params"], role, runs))
        return settings

    @functools.cached_property
    def zero_shot(self) -> Path:
        (folder,) = next(of.runs[None] for of in self.settings if not of.trains)
        return folder

    def metrics(self, folder: Path, merge: str | None) -> dict[str, float]:
        """Every metric of a model, as docs/metrics.md defines it."""
        if (folder, merge) not in self.known:
            self.known[folder, merge] = metrics = self._measure(folder, merge)
            if merge is None:
                trained = json.loads((folder / "trained.json").read_text())
                metrics["system/train_seconds"] = trained["seconds"]
        return self.known[folder, merge]

    def _measure(self, folder: Path, merge: str | None) -> dict[str, float]:
        metrics: dict[str, float] = {}
        is_frozen = folder == self.zero_shot
        tuned = self.frozen if is_frozen else self.contexts(self.tower(folder, merge))
        for split, rows in predictions(folder, merge).groupby("split", observed=True):
            right = (rows.label == rows.prediction).to_numpy()
            p = special.softmax(np.stack(rows.logits.to_list()).astype(float), axis=1)
            p_label, confidence = rows.p_label.to_numpy(float), rows.confidence.to_numpy(float)
            one_hot = np.eye(p.shape[1])[rows.label]
            metrics[f"{split}/top1"] = right.mean()
            metrics[f"{split}/nll"] = -np.log(p_label).mean()
            metrics[f"{split}/brier"] = ((p - one_hot) ** 2).sum(axis=1).mean()
            binned = np.ceil(confidence * BINS).astype(int)
            surplus = np.bincount(binned, weights=right - confidence, minlength=BINS + 1)
            metrics[f"{split}/ece"] = np.abs(surplus).sum() / len(rows)
            before, after = (of.loc[rows.id].to_numpy() for of in (self.frozen, tuned))
            metrics[f"context/{split}/kl"] = special.rel_entr(before, after).sum(axis=1).mean()
            metrics[f"context/{split}/entropy"] = stats.entropy(after, axis=1).mean()
        for metric in ("top1", "nll", "ece", "brier"):
            shifts = [name for name in metrics if name.startswith("ood/")]
            of_metric = [metrics[name] for name in shifts if name.endswith(f"/{metric}")]
            metrics[f"ood/mean/{metric}"] = float(np.mean(of_metric))
        test, ood = metrics[ID], metrics[OOD]
        start = metrics if is_frozen else self.metrics(self.zero_shot, None)
        metrics["gap/top1"], metrics["hmean/top1"] = test - ood, float(stats.hmean([test, ood]))
        metrics["gain/ood/top1"] = ood - start[OOD]
        return metrics

    @functools.cached_property
    def model(self) -> Any:
        config = json.loads((self.clip / "open_clip_config.json").read_text())["model_cfg"]
        model = open_clip.CLIP(**config).eval()
        model.load_state_dict(load_file(self.clip / "open_clip_model.safetensors"))
        return model

    @functools.cached_property
    def start(self) -> dict[str, torch.Tensor]:
        weights = self.model.state_dict().items()
        return {name: tensor.clone() for name, tensor in weights if name.startswith("visual.")}

    def tower(self, folder: Path, merge: str | None) -> dict[str, torch.Tensor]:
        """The weights of a run's image tower, or between these and the pre-trained."""
        alpha = 1.0 if merge is None else float(merge.partition("@")[2])
        weights = load_file(folder / "weights" / "last.safetensors")
        tuned = {name.removeprefix("clip."): tensor for name, tensor in weights.items()}  # flyp's
        return {
            name: (1 - alpha) * start + alpha * tuned[name] for name, start in self.start.items()
        }

    @functools.cached_property
    def classes(self) -> list[str]:
        return sorted(place.name for place in (self.data / "train").iterdir())

    @functools.cached_property
    def w_ctx(self) -> NDArray[np.float64]:
        """[K, d] of each template the mean over the task's classes, as a unit vector."""
        prompts = [[template.format(name) for name in self.classes] for template in self.templates]
        with torch.no_grad():
            tokens = map(open_clip.tokenize, prompts)
            texts = [self.model.encode_text(of_classes, normalize=True) for of_classes in tokens]
        means = np.stack([text.mean(dim=0).numpy() for text in texts]).astype(float)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    @functools.cached_property
    def paths(self) -> list[str]:
        return [*table_of(self.zero_shot, None).id]

    @functools.cached_property
    def images(self) -> torch.Tensor:
        """[N, 3, H, W] as the tower takes them; they have its size."""
        pixels = np.stack([np.asarray(Image.open(self.data / name)) for name in self.paths]) / 255
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return torch.tensor((pixels - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)

    @functools.cached_property
    def frozen(self) -> pd.DataFrame:
        return self.contexts(self.start)

    @torch.no_grad()
    def contexts(self, tower: Mapping[str, torch.Tensor]) -> pd.DataFrame:
        """[N, K] p_ctx of every image, by its path."""
        model = self.model
        model.load_state_dict(tower, strict=False)
        features = model.encode_image(self.images, normalize=True).numpy().astype(float)
        model.load_state_dict(self.start, strict=False)
        scale = float(model.logit_scale.exp())
        p = special.softmax(scale * features @ self.w_ctx.T, axis=1)
        return pd.DataFrame(p, index=self.paths)


def _label(item: Mapping[str, Any]) -> str:
    """The algorithm and its fields, or where that is long the number of the trial."""
    text = " ".join([item["algorithm"], *_written(item["params"])])
    return text if len(text) <= 40 else f"{item['algorithm']} #{item['number']}"


def _written(params: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(params):
        value = params[name]
        yield f"{name.rpartition('.')[2]}={value if isinstance(value, str) else f'{value:.6g}'}"


class Images:
    """The test images of a sweep. Its parts are the splits of its tasks, in their order."""

    def __init__(self, tables: Sequence[pd.DataFrame]) -> None:
        self.table = pd.concat([of.assign(task=k) for k, of in enumerate(tables)])
        self.table = self.table.reset_index(drop=True)
        if len(tables) > 1:  # a unit is of one task
            self.table.unit = self.table.task.map("{:03d}/".format) + self.table.unit
        self.part = self.table.groupby(["task", "split"]).ngroup().to_numpy()
        self.unit = self.table.unit.factorize()[0]
        first = self.table.loc[np.unique(self.part, return_index=True)[1]]
        self.task_of, self.split_of = first.task.to_numpy(), first.split.to_numpy()

    def enter(self, metric: str) -> NDArray[np.bool_]:
        own = metric.removesuffix("/top1")
        is_in = [of.startswith("ood/") if metric == OOD else of == own for of in self.split_of]
        return np.array(is_in)[self.part]

    def weights(self, metric: str, counted: Any = True) -> NDArray[np.float64]:
        """How much each of the kept counts in a metric: each split and each task alike."""
        enters = self.enter(metric) & counted
        images = np.bincount(self.part[enters], minlength=len(self.task_of))
        splits = np.bincount(self.task_of[images > 0])[self.task_of]
        tasks = len({*self.task_of[images > 0]})
        return enters / np.maximum(images * splits * tasks, 1)[self.part]


@dataclass(frozen=True, eq=False)
class Numbers:
    """Settings with every metric of each of their runs; of several tasks the means over these."""

    tasks: Sequence[Task]
    settings: Sequence[Setting]
    known: dict[Any, dict[str, float]] = field(default_factory=dict)
    errors: dict[Any, Any] = field(default_factory=dict)
    """Of pairs of models and of curves, once computed: they are the same by every rule."""

    @property
    def seeds(self) -> list[int]:
        return list(self.tasks[0].shown["seeds"])

    @property
    def tuned(self) -> list[Setting]:
        return [setting for setting in self.settings if setting.role != "confirmation"]

    @property
    def zero_shot(self) -> Run:
        return tuple(of.zero_shot for of in self.tasks)

    @functools.cached_property
    def images(self) -> Images:
        return Images([table_of(folder, None) for folder in self.zero_shot])

    def models(self, setting: Setting) -> list[str | None]:
        merges = [f"wise_ft@{alpha:g}" for alpha in self.tasks[0].alphas if setting.trains]
        return [None, *merges]

    @property
    def rows(self) -> list[Model]:
        return [(setting, merge) for setting in self.settings for merge in self.models(setting)]

    def metrics(self, run: Run, merge: str | None) -> dict[str, float]:
        """Those that every task has."""
        if (run, merge) not in self.known:
            own = [of.metrics(place, merge) for of, place in zip(self.tasks, run, strict=True)]
            shared = set.intersection(*({*values} for values in own))
            means = {name: float(np.mean([values[name] for values in own])) for name in shared}
            self.known[run, merge] = means
        return self.known[run, merge]

    def right(self, run: Run, merge: str | None) -> NDArray[np.float64]:
        for folder, start in zip(run, self.zero_shot, strict=True):
            assert table_of(folder, merge).equals(table_of(start, None))
        rows = [predictions(folder, merge) for folder in run]
        return np.concatenate([of.label == of.prediction for of in rows]).astype(float)

    def image_step(self, metric: str) -> float:
        """What one image, which is of one task, changes at most."""
        return float(self.images.weights(metric).max())

    def values(self, setting: Setting, merge: str | None, metric: str) -> Values:
        return {seed: self.metrics(run, merge)[metric] for seed, run in setting.runs.items()}

    def image_error(
        self, pairs: Sequence[Sequence[tuple[Run, str | None]]], metric: str
    ) -> ImageError:
        """That of the mean over pairs, one a seed, with images of one unit alike: the units' own
        sums, whose mean is 0, vary as those of other units would.
        """
        images, by_seed = self.images, []
        weights, enters = images.weights(metric), images.enter(metric)
        used = np.unique(images.unit[enters])
        for model, other in pairs:
            difference = self.right(*model) - self.right(*other)
            means = np.bincount(images.part, difference) / np.bincount(images.part)
            of_units = np.bincount(images.unit, weights * (difference - means[images.part]))
            by_seed.append(of_units[used])
        counts = {"units": len(used), "images": int(enters.sum())}
        return {**floor(len(used) * np.atleast_2d(np.cov(by_seed)), len(used) - 1), **counts}


def numbers_of(task: Task) -> Numbers:
    return Numbers([task], task.settings)


def means_of(tasks: Sequence[Numbers], rule: Rule) -> Numbers:
    """Of each algorithm and seed the runs that the rule takes on each task."""
    settings = []
    parts = [_Comparison(of, rule) for of in tasks]
    for name, setting in {setting.algorithm: setting for setting in tasks[0].settings}.items():
        runs = {seed: tuple(part.taken(name, seed) for part in parts) for seed in setting.runs}
        settings.append(Setting(name, name, {}, setting.role, runs))
    return Numbers([of for numbers in tasks for of in numbers.tasks], settings)


def document(sweep: Mapping[str, Numbers], rule: Rule) -> dict[str, Any]:
    """What `compare --json` should say of a sweep over these tasks, which may be one."""
    parts = {task: _Comparison(of, rule) for task, of in sweep.items()}
    if len(parts) == 1:
        return next(iter(parts.values())).document()
    return _OfTasks(means_of([*sweep.values()], rule), rule, parts).document()


ImageError = dict[str, Any]
"""The variance of a difference over drawings of test images, and what it was estimated from."""


def floor(covariances: NDArray[np.float64], freedom: int) -> ImageError:
    """What seeds have in common: the mean covariance of two of them, which is a difference of two
    mean squares; 0 for a negative one. The interaction is what one seed has beyond it."""
    seeds = len(covariances)
    own = float(np.trace(covariances) / seeds)
    if seeds == 1:
        return {"variance": own, "freedom": freedom, "interaction": 0.0}
    common = float((covariances.sum() - np.trace(covariances)) / (seeds * (seeds - 1)))
    common = max(0.0, common)
    return {"variance": common, "freedom": freedom, "interaction": own - common}


def freedom_of(of_seeds: Any, seeds: Any, images: ImageError | None) -> Any:
    """Welch and Satterthwaite's, of the seeds' variance, that over images of the mean, and what is
    subtracted from it; no fewer than those of the seeds or of the images."""
    if images is None:
        return seeds - 1
    rest = images["interaction"] / seeds
    variances = [of_seeds, images["variance"] + rest, -rest]
    freedoms = [seeds - 1, images["freedom"], images["freedom"] * (seeds - 1)]
    used = 3 if images["variance"] > 0 else 1
    parts = list(zip(variances, freedoms, strict=True))[:used]
    spread = sum(variance**2 / freedom for variance, freedom in parts)
    total = of_seeds + images["variance"]
    return np.maximum(np.minimum(seeds - 1, images["freedom"]), total**2 / spread)


def named(model: Model) -> str:
    setting, merge = model
    return setting.label if merge is None else f"{setting.label} + {merge}"


@functools.cache
def interval(values: tuple[float, ...], confidence: float = 0.95) -> tuple[float, ...] | None:
    if len(values) < 3:
        return None
    error, middle = stats.sem(values), float(np.mean(values))
    if np.ptp(values) < 1e-12:
        return middle, middle
    return _ends(stats.t.interval(confidence, len(values) - 1, loc=middle, scale=error))


def _ends(of_interval: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, of_interval))


def close(value: Any, metric: str) -> Any:
    """As exact as what is kept allows."""
    digits = OF_CONTEXTS if metric.startswith("context/") else 1e-9
    digits = OTHER_DIGITS.get(metric.rpartition("/")[2], digits)
    if isinstance(value, (list, tuple)):
        return [close(item, metric) for item in value]
    return None if value is None else pytest.approx(value, abs=digits, rel=0)


def estimate(values: Sequence[float | None], metric: str = "") -> dict[str, Any]:
    present = whole(values)
    return {
        "values": close(list(values), metric),
        "mean": close(float(np.mean(present)), metric) if present else None,
        "ci95": close(interval(tuple(present)), metric) if present else None,
    }


@dataclass(frozen=True)
class Paired:
    """Differences by seed, tested with the variances over seeds and over images together."""

    differences: Sequence[float]
    step: float
    images: ImageError | None

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def spreads(self) -> bool:
        return bool(np.ptp(self.differences) > self.step + 1e-12)

    @functools.cached_property
    def distribution(self) -> Any:
        """Student's around the mean; the degrees of freedom are Welch and Satterthwaite's."""
        seeds = len(self.differences)
        if seeds < 3 or not self.spreads:
            return None
        of_seeds = stats.sem(self.differences) ** 2
        of_images = 0.0 if self.images is None else self.images["variance"]
        freedom = freedom_of(of_seeds, seeds, self.images)
        return stats.t(freedom, loc=self.mean, scale=np.sqrt(of_seeds + of_images))

    def interval(self, level: float) -> tuple[float, ...] | None:
        return None if self.distribution is None else _ends(self.distribution.interval(level))

    def p_above(self, bound: float) -> float | None:
        return None if self.distribution is None else float(self.distribution.cdf(bound))

    def p_below(self, bound: float) -> float | None:
        return None if self.distribution is None else float(self.distribution.sf(bound))

    @property
    def p(self) -> float | None:
        tails = self.p_above(0.0), self.p_below(0.0)
        return None if tails[0] is None or tails[1] is None else 2 * min(tails[0], tails[1])

    def document(self, level: float = 0.95) -> dict[str, Any]:
        images = self.images
        return {
            "mean": close(self.mean, ""),
            "values": close(list(self.differences), ""),
            "spreads": self.spreads,
            "level": level,
            "interval": close(self.interval(level), ""),
            "p": self.p,
            "images": images and {"se": float(np.sqrt(images["variance"])), **images},
        }

    def power(self, level: float, margin: float, slack: float = 0.0) -> dict[str, Any] | None:
        """What 80 % of such sweeps would find, and how many seeds find the margin, where what is
        tested lies below the true difference by `slack`."""
        if self.distribution is None:
            return None
        own = len(self.differences)
        seeds = np.array([own, *range(own, 201)])
        of_seeds = np.var(self.differences, ddof=1) / seeds
        both = of_seeds + (0.0 if self.images is None else self.images["variance"])
        freedoms = freedom_of(of_seeds, seeds, self.images)
        critical = stats.t.ppf((1 + level) / 2, freedoms)
        powers = stats.nct.sf(critical[1:], freedoms[1:], (margin - slack) / np.sqrt(both[1:]))
        shift = optimize.brentq(
            lambda shift: stats.nct.sf(critical[0], freedoms[0], shift) - 0.8, 0, 100
        )
        enough = int(seeds[1:][np.argmax(powers >= 0.8)]) if powers[-1] >= 0.8 else None
        return {
            "smallest_difference": pytest.approx(shift * np.sqrt(both[0]) + slack, rel=1e-6),
            "margin": margin,
            "seeds_for_margin": enough,
        }


def doubled(*ps: float | None) -> float | None:
    """The p of claims that must all hold, for both sides: 0.05 decides."""
    return None if None in ps else min(1.0, 2 * max(p for p in ps if p is not None))


def adjusted(ps: Sequence[float | None]) -> list[float | None]:
    known = np.array([1.0 if p is None else p for p in ps])
    order = np.argsort(known)
    stepped = np.maximum.accumulate(np.arange(len(ps), 0, -1) * known[order])
    of_all = np.empty(len(ps))
    of_all[order] = np.minimum(stepped, 1)
    return [None if p is None else float(q) for p, q in zip(ps, of_all, strict=True)]


def whole(values: Sequence[float | None]) -> list[float]:
    """The values, or none where one is lacking."""
    present = [value for value in values if value is not None]
    return present if len(present) == len(values) else []


def level_of(p: float | None, holm: float | None, compared: int) -> float:
    """That at which an interval excludes 0 where Holm's p is below 0.05."""
    times = compared if p is None or holm is None or holm >= 1 else holm / p
    return 1 - 0.05 / times


@dataclass(frozen=True)
class _Comparison:
    measured: Numbers
    rule: Rule

    @property
    def seeds(self) -> list[int]:
        return self.measured.seeds

    @functools.cached_property
    def fresh(self) -> list[int]:
        """Seeds on which what was selected is confirmed."""
        arms = [setting for setting in self.measured.settings if setting.role == "confirmation"]
        return sorted({seed for arm in arms for seed in arm.runs if seed is not None})

    def mean(self, model: Model, metric: str) -> float:
        return float(np.mean([*self.measured.values(*model, metric).values()]))

    def value(self, model: Model) -> float:
        """By which the rule chooses: the more the better."""
        return self.rule.sign * self.mean(model, self.rule.metric)

    def best(self, models: Sequence[Model]) -> Model:
        """The rule's choice; of equal ones the first."""
        values = [self.value(model) for model in models]
        near = [m for m, v in zip(models, values, strict=True) if v >= max(values) - 1e-12]
        if self.rule.within is None:
            return near[0]
        margin = max(values) - self.rule.within - 1e-12
        same = near[0][0].algorithm
        pairs = zip(models, values, strict=True)
        pool = [m for m, v in pairs if v >= margin and m[0].algorithm == same]
        return max(pool, key=lambda model: model[0].weight or 0.0)

    @functools.cached_property
    def selected(self) -> dict[str, Model]:
        """By algorithm, trials' first."""
        tuned = sorted(self.measured.tuned, key=lambda setting: setting.role != "trial")
        algorithms = dict.fromkeys(setting.algorithm for setting in tuned)
        return {
            name: self.best([(s, self.rule.merge) for s in tuned if s.algorithm == name])
            for name in algorithms
            if name != "zero_shot" or self.rule.merge is None
        }

    @functools.cached_property
    def tested(self) -> dict[str, Model]:
        """What stands for each algorithm in the verdict."""
        again = {s.algorithm: s for s in self.measured.settings if s.role == "confirmation"}
        return {name: (again.get(name, s), merge) for name, (s, merge) in self.selected.items()}

    @functools.cached_property
    def merge_of(self) -> dict[str, str]:
        """By setting, the alpha that stands for WiSE-FT: as it was chosen, of fresh runs too."""
        tuned = [setting for setting in self.measured.tuned if setting.trains]
        labels = {setting.label: self.best_merge(setting) for setting in tuned}
        for setting in self.measured.settings:
            if setting.role == "confirmation":
                labels[setting.label] = labels[setting.label.removesuffix(" (confirmed)")]
        return labels

    @property
    def winner(self) -> Model:
        trials = [setting for setting in self.measured.tuned if setting.role == "trial"]
        return self.best([(setting, self.rule.merge) for setting in trials])

    def document(self) -> dict[str, Any]:
        best, merge = self.winner
        return {
            "metric_merge": self.rule.merge,
            "id_margin": self.rule.margin,
            "ood_margin": self.rule.ood_margin,
            "seeds": self.seeds,
            "fresh_seeds": self.fresh,
            "rows": [
                self.row(*model, is_best=model == (best, merge)) for model in self.measured.rows
            ],
            "selected": {
                "label": named((best, merge)),
                "value": close(self.mean((best, merge), self.rule.metric), self.rule.metric),
            },
            "answer": self.answer(best),
            "curves": self.curve_tests(),
            "tests": self.judged(self.rivals, self.tested[self.rule.reference]),
            "budgets": self.budgets,
            "mean_curves": [
                {"label": setting.label, "points": self.points(setting, list(setting.runs))}
                for setting, merge in self.tested.values()
                if setting.trains and merge is None
            ],
        }

    @property
    def budgets(self) -> list[dict[str, Any]]:
        trained = [setting for setting in self.measured.tuned if setting.trains]
        budgets = []
        for name in dict.fromkeys(setting.algorithm for setting in trained):
            pool = [setting for setting in trained if setting.algorithm == name]
            runs = sum(len(setting.runs) for setting in pool)
            budgets.append({"algorithm": name, "settings": len(pool), "runs": runs})
        return budgets

    def taken(self, algorithm: str, seed: int | None) -> Path:
        """The run of one seed that stands for an algorithm among tasks; of equal ones the later."""
        pool = [setting for setting in self.measured.tuned if setting.algorithm == algorithm]
        of_seed = [replace(setting, runs={seed: setting.runs[seed]}) for setting in pool]
        merge = self.rule.merge if pool[0].trains else None
        (setting, _) = self.best([(setting, merge) for setting in reversed(of_seed)])
        (folder,) = setting.runs[seed]
        return folder

    def row(self, setting: Setting, merge: str | None, *, is_best: bool) -> dict[str, Any]:
        names = self.measured.metrics(next(iter(setting.runs.values())), merge)
        values = {name: self.measured.values(setting, merge, name).values() for name in names}
        stands = self.selected.get(setting.algorithm) == (setting, merge)
        chosen = stands or merge in (self.merge_of.get(setting.label, ""), "wise_ft@0.5")
        return {
            "label": named((setting, merge)),
            "merge": merge,
            "n": len(setting.runs),
            "runs": {"done": len(setting.runs)},
            "metrics": {name: estimate([*of], name) for name, of in values.items()},
            "value": close(self.mean((setting, merge), self.rule.metric), self.rule.metric),
            "selected": is_best,
            "chosen": chosen,
        }

    def points(self, setting: Setting, seeds: Sequence[int | None]) -> list[dict[str, Any]]:
        means = np.mean([self.curve(setting, seed) for seed in seeds], axis=0).tolist()
        pairs = zip(self.alphas, close(means, ""), strict=True)
        return [{"alpha": alpha, "id": x, "ood": y} for alpha, (x, y) in pairs]

    def at(self, setting: Setting, seed: int | None, alpha: float) -> tuple[Run, str | None]:
        run = self.measured.zero_shot if alpha == 0 else setting.runs[seed]
        return run, None if alpha in (0, 1) else f"wise_ft@{alpha:g}"

    @property
    def alphas(self) -> list[float]:
        return sorted({0.0, *self.measured.tasks[0].alphas, 1.0})

    def curve(self, setting: Setting, seed: int | None) -> Curve:
        models = [self.measured.metrics(*self.at(setting, seed, alpha)) for alpha in self.alphas]
        return [(metrics[ID], metrics[OOD]) for metrics in models]

    def curve_tests(self) -> list[dict[str, Any]]:
        reference, _ = self.tested[self.rule.reference]
        if not reference.trains:
            return []
        tests = [self.curve_test(setting, reference) for setting, _ in self.rivals]
        one_sided = [
            {name: doubled(of.p_above(0.0) if of else None) for name, of in test.items()}
            for test, _ in tests
        ]
        gains, losses = (adjusted([ps[name] for ps in one_sided]) for name in ("gain", "loss"))
        parts = zip(self.rivals, tests, one_sided, gains, losses, strict=True)
        return [
            self.curve_verdict(setting, reference, *test, ps, gain, loss)
            for (setting, _), test, ps, gain, loss in parts
        ]

    def curve_test(
        self, candidate: Setting, reference: Setting
    ) -> tuple[dict[str, Paired | None], dict[str, Any]]:
        """Gain and loss by seed, with their errors; and what is not tested."""
        seeds = [seed for seed in candidate.runs if seed in reference.runs]
        both = [(self.curve(candidate, s), self.curve(reference, s)) for s in seeds]
        ranges = [common_range(*pair) for pair in both]
        gains, losses = gains_of(both), gains_of([pair[::-1] for pair in both])
        errors, key = self.measured.errors, (candidate.label, reference.label)
        if key not in errors:
            errors[key] = self.jackknife(candidate, reference, seeds)
        step, sides = self.measured.image_step(OOD), {"gain": whole(gains), "loss": whole(losses)}
        parts = zip(sides.items(), errors[key], strict=True)
        tests = {name: Paired(of, step, images) if of else None for (name, of), images in parts}
        is_whole = all(low <= high for low, high in ranges)
        common = close(np.mean(ranges, axis=0).tolist(), "") if is_whole else None
        return tests, {"seeds": seeds, "common_range": common}

    def jackknife(
        self, candidate: Setting, reference: Setting, seeds: Sequence[int | None]
    ) -> list[ImageError | None]:
        """By a jackknife that leaves out a group of units after another from all models.

        Groups are as many as the smallest split has units, at most 100; units go to them in
        turn, sorted by the splits that they are in, then by the checksums of their names. Groups
        without which there is no common range are taken to vary as the others.
        """
        measured, images = self.measured, self.measured.images
        models = itertools.product(seeds, (candidate, reference), self.alphas)
        right = np.stack([measured.right(*self.at(of, seed, alpha)) for seed, of, alpha in models])
        tested = images.enter(ID) | images.enter(OOD)
        of_parts = images.table[tested].groupby(images.part[tested]).unit
        count = min(100, int(of_parts.nunique().min()))
        places = pd.crosstab(images.table.unit, images.part) > 0
        order = sorted(
            places.index, key=lambda unit: (*places.loc[unit], zlib.crc32(unit.encode()), unit)
        )
        group_of = {unit: place % count for place, unit in enumerate(order)}
        group = images.table.unit.map(group_of).to_numpy()
        shape = (len(seeds), 2, len(self.alphas))
        without = []
        for left_out in range(count):
            of_id, of_ood = (images.weights(metric, group != left_out) for metric in (ID, OOD))
            curves = np.stack([right @ of_id, right @ of_ood], axis=-1).reshape(*shape, 2).tolist()
            without.append((gains_of(curves), gains_of([pair[::-1] for pair in curves])))
        units, tests = len({*images.unit[tested]}), int(tested.sum())
        errors: list[ImageError | None] = []
        for side in zip(*without, strict=True):
            kept = [of_seeds for of_seeds in side if None not in of_seeds]
            if len(kept) < 2:
                return [None, None]
            covariances = (count - 1) * np.atleast_2d(np.cov(np.transpose(kept), ddof=0))
            counts = {"units": units, "images": tests}
            errors.append({**floor(covariances, len(kept) - 1), **counts})
        return errors

    def curve_verdict(
        self,
        candidate: Setting,
        reference: Setting,
        tests: Mapping[str, Paired | None],
        described: Mapping[str, Any],
        raw: Mapping[str, float | None],
        better: float | None,
        worse: float | None,
    ) -> dict[str, Any]:
        gain, loss = tests["gain"], tests["loss"]
        level = level_of(raw["gain"], better, len(self.rivals))
        level_of_loss = level_of(raw["loss"], worse, len(self.rivals))
        slack = max(0.0, -(gain.mean + loss.mean) / 2) if gain and loss else 0.0
        of_gain, of_loss = gain and gain.interval(level), loss and loss.interval(level_of_loss)
        ends = [of_gain[0], -of_loss[0]] if of_gain and of_loss else None
        return {
            "candidate": candidate.label,
            "reference": reference.label,
            **described,
            "gain": gain and gain.document(level),
            "loss": loss and loss.document(level_of_loss),
            "difference": self.drawn_difference(candidate, reference) if gain and loss else None,
            "interval": close(ends, ""),
            "slack": close(slack, ""),
            "p_better_holm": better,
            "p_worse_holm": worse,
            "compared": len(self.rivals),
            "seeds_required": self.fresh or self.seeds,
            "settings_tried": self.tried(candidate, reference),
            "power": gain and gain.power(level, self.rule.ood_margin, slack),
        }

    def drawn_difference(self, candidate: Setting, reference: Setting) -> Any:
        """What the curves differ by as they are drawn, straight between their models."""
        seeds = [seed for seed in candidate.runs if seed in reference.runs]
        pairs = [(self.curve(candidate, seed), self.curve(reference, seed)) for seed in seeds]
        values = [above(ours, theirs, height_at) for ours, theirs in pairs]
        return close(float(np.mean([value for value in values if value is not None])), "")

    @property
    def rivals(self) -> list[Model]:
        own = self.rule.reference
        return [m for name, m in self.tested.items() if name != own and m[0].trains]

    def tried(self, *sides: Setting) -> int:
        """Among how many settings one side was chosen on the seeds that are judged."""
        settings = {of["algorithm"]: of["settings"] for of in self.budgets}
        return 1 if self.fresh else max(settings.get(side.algorithm, 1) for side in sides)

    def judged(self, rivals: Sequence[Model], reference: Model) -> list[dict[str, Any]]:
        pairs = [self.pair(model, reference) for model in rivals]
        ps = [self.p_values(pair) for pair in pairs]
        holm = {
            name: adjusted([of[name] for of in ps]) for name in ("different", "better", "worse")
        }
        each = [{name: (raw[name], of[k]) for name, of in holm.items()} for k, raw in enumerate(ps)]
        parts = zip(rivals, pairs, each, strict=True)
        return [self.verdict(of, reference, pair, own, len(pairs)) for of, pair, own in parts]

    def pair(self, candidate: Model, reference: Model) -> dict[str, Paired]:
        seeds = self.seeds_of(candidate, reference)
        return {
            metric: self.paired_test(candidate, reference, metric, seeds) for metric in (OOD, ID)
        }

    def seeds_of(self, candidate: Model, reference: Model) -> list[int]:
        side = candidate if candidate[0].trains else reference
        return [seed for seed in side[0].runs if seed is not None]

    def p_values(self, pair: Mapping[str, Paired]) -> dict[str, float | None]:
        margin, ood, of_id = self.rule.margin, pair[OOD], pair[ID]
        return {
            "different": ood.p,
            "better": doubled(ood.p_above(0.0), of_id.p_above(-margin)),
            "worse": doubled(ood.p_below(0.0), of_id.p_below(margin)),
        }

    def paired_test(
        self, candidate: Model, reference: Model, metric: str, seeds: Sequence[int]
    ) -> Paired:
        """Zero-shot's one value stands for every seed. What does not spread over seeds is not
        tested, whatever its images say.
        """
        sides = (candidate, reference)
        pairs = tuple(tuple((of.run(seed), merge) for of, merge in sides) for seed in seeds)
        each = [[self.measured.metrics(*model)[metric] for model in pair] for pair in pairs]
        differences = [ours - theirs for ours, theirs in each]
        test = Paired(differences, self.measured.image_step(metric), None)
        if not test.spreads:
            return test
        errors = self.measured.errors
        if (pairs, metric) not in errors:
            errors[pairs, metric] = self.measured.image_error(pairs, metric)
        return replace(test, images=errors[pairs, metric])

    def verdict(
        self,
        candidate: Model,
        reference: Model,
        pair: Mapping[str, Paired],
        ps: Mapping[str, tuple[float | None, float | None]],
        compared: int,
    ) -> dict[str, Any]:
        seeds = self.seeds_of(candidate, reference)
        levels = {name: level_of(*both, compared) for name, both in ps.items()}
        holm = {name: adjusted for name, (_, adjusted) in ps.items()}
        known = {side: p for side in ("better", "worse") if (p := holm[side]) is not None}
        decided = [side for side, p in known.items() if p < 0.05]
        level = levels[decided[0] if decided and len(seeds) >= 5 else "different"]
        return {
            "candidate": named(candidate),
            "reference": named(reference),
            "seeds": seeds,
            **{metric: test.document(level) for metric, test in pair.items()},
            **{f"p_{name}": p for name, (p, _) in ps.items()},
            **{f"p_{name}_holm": p for name, p in holm.items()},
            "compared": compared,
            "seeds_required": self.fresh or self.seeds,
            "settings_tried": self.tried(candidate[0], reference[0]),
            "confirmed": bool(self.fresh),
            "power": pair[OOD].power(level, self.rule.ood_margin),
        }

    def best_merge(self, setting: Setting) -> str:
        """The alpha with the best value; within a margin the smallest."""
        merges = [merge for merge in self.measured.models(setting) if merge is not None]
        values = [self.value((setting, merge)) for merge in merges]
        margin = (self.rule.within or 0.0) + 1e-12
        pool = zip(merges, values, strict=True)
        return next(merge for merge, value in pool if value >= max(values) - margin)

    def answer(self, best: Setting) -> dict[str, Any]:
        reference, candidate = self.tested[self.rule.reference], self.tested[best.algorithm]
        if best.algorithm == self.rule.reference:
            # Values were selected on the seeds of the choice, and so on fresh ones on those.
            candidate = max(self.rivals, key=self.value)
        arms = [setting for setting in self.measured.settings if setting.role == "trial"]
        alone = {name for setting in arms for name in setting.params} == {KL}
        return {
            "strongest": self.strongest(reference),
            "candidate": named(candidate),
            "effects": [self.effect(*self.winner)] if alone else [],  # of tasks each has its own
        }

    def strongest(self, reference: Model) -> dict[str, Any]:
        """The highest OOD mean of those that keep ID, and the next."""
        models = [
            model
            for model in self.measured.rows
            if not model[0].trains or (model[0].role == "confirmation") == bool(self.fresh)
        ]
        least = self.mean(reference, ID) - self.rule.margin
        keep = [model for model in models if self.mean(model, ID) >= least - 1e-12]
        keep.sort(key=lambda model: -round(self.mean(model, OOD), 12))

        def described(model: Model) -> dict[str, Any]:
            metrics = {"endpoint": OOD, "id": ID}
            values = {key: self.measured.values(*model, of) for key, of in metrics.items()}
            return {"label": named(model)} | {
                key: estimate([*of.values()]) for key, of in values.items()
            }

        following = keep[1] if len(keep) > 1 else None
        return {
            **described(keep[0]),
            "eligible": len(keep),
            "models": len(models),
            "runner_up": following and described(following),
            "test": following and self.judged([keep[0]], following)[0] | {"settings_tried": 1},
        }

    def effect(self, best: Setting, merge: str | None) -> dict[str, Any]:
        arms = [setting for setting in self.measured.settings if setting.role == "trial"]
        arms.sort(key=lambda setting: setting.weight or 0.0)
        models: list[Model] = [(setting, merge) for setting in arms]
        ood, of_id = (self.paired_test(models[-1], models[0], of, self.seeds) for of in (OOD, ID))

        def level(model: Model) -> dict[str, Any]:
            means = {"endpoint": OOD, "id": ID}
            return {"value": model[0].weight} | {k: self.mean(model, m) for k, m in means.items()}

        return {
            "parameter": KL,
            "algorithm": best.algorithm,
            "numeric": True,
            "levels": [level(model) for model in models],
            "settings": 1,
            "difference": ood.document(),
            "id_difference": of_id.document(),
            "selected": best.weight,
        }


@dataclass(frozen=True)
class _OfTasks(_Comparison):
    """The means over tasks, with the table of the tasks and the comparison of each."""

    parts: Mapping[str, _Comparison]

    def document(self) -> dict[str, Any]:
        """Nothing is selected as a whole."""
        of_means = super().document()
        rows = of_means["rows"]
        in_table = {row["label"] for row in rows if row["merge"] is None or row["chosen"]}
        return {
            **of_means,
            "rows": [{**row, "selected": False} for row in rows],
            "selected": None,
            "tasks": {
                "metrics": dict.fromkeys(self.parts, OOD),
                "settings": {task: named(part.winner) for task, part in self.parts.items()},
                "rows": [self.line(of) for of in self.measured.rows if named(of) in in_table],
                "comparisons": {task: part.document() for task, part in self.parts.items()},
            },
        }

    def line(self, model: Model) -> dict[str, Any]:
        """The OOD mean of each task and of all, as DomainBed prints them."""
        setting, merge = model

        def cell(values: Mapping[int | None, float]) -> dict[str, Any]:
            own = [*values.values()]
            return {
                "mean": close(float(np.mean(own)), ""),
                "error": close(float(stats.sem(own, ddof=0)), "") if len(own) > 1 else None,
                "values": [{"seed": k, "value": close(v, "")} for k, v in values.items()],
            }

        cells = {
            task: cell({k: of.metrics((run[at],), merge)[OOD] for k, run in setting.runs.items()})
            for at, (task, of) in enumerate((n, part.measured) for n, part in self.parts.items())
        }
        average = cell(self.measured.values(setting, merge, OOD))
        return {"label": named(model), "cells": cells, "average": average}

    @property
    def budgets(self) -> list[dict[str, Any]]:
        """Settings on a task, runs on all."""
        each = [part.budgets for part in self.parts.values()]
        return [
            {
                "algorithm": budgets[0]["algorithm"],
                "settings": max(budget["settings"] for budget in budgets),
                "runs": sum(budget["runs"] for budget in budgets),
            }
            for budgets in zip(*each, strict=True)
        ]
