"""What `compare --json` says of a sweep, computed once more by numpy and scipy.

Nothing of the product is used here: numbers come from the kept predictions, those of contexts from
images and kept weights. `document` has the shape of the JSON, with `pytest.approx` for what kept
numbers hold in fewer digits: another key of the JSON is another line here.
"""

from __future__ import annotations

import functools
import itertools
import json
from abc import ABC, abstractmethod
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
from scipy import special, stats

Values = dict[int | None, float]
"""By seed; that of zero-shot, which no seed changes, under None."""
Run = tuple[Path, ...]
"""The folder of a run; of a mean over tasks those of its runs, a task after another."""
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
    """A setting of the sweep with the folders of its runs."""

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


@dataclass(frozen=True)
class Rule:
    """By what a comparison is made."""

    metric: str = "id/val/top1"
    sign: int = 1
    merge: str | None = None
    within: float | None = None
    reference: str = "fine_tune"
    margin: float = 0.005
    images: bool = False


@functools.cache
def predictions(folder: Path, merge: str | None) -> pd.DataFrame:
    """What a model of a run says of every image."""
    return pd.read_parquet(folder / "evaluations" / (merge or "unmerged") / "predictions.parquet")


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


class Numbers(ABC):
    """Settings, and every metric of each of their runs."""

    alphas: Sequence[float]

    @property
    @abstractmethod
    def seeds(self) -> list[int]:
        """Those of the choice."""

    @property
    @abstractmethod
    def settings(self) -> list[Setting]:
        """In the order of the table."""

    @abstractmethod
    def metrics(self, run: Run, merge: str | None) -> dict[str, float]:
        """Every metric of a model, as docs/metrics.md defines it."""

    @abstractmethod
    def image_step(self, metric: str) -> float:
        """What one image changes at most."""

    @property
    def tuned(self) -> list[Setting]:
        """Those that were selected among."""
        return [setting for setting in self.settings if setting.role != "confirmation"]

    @property
    def zero_shot(self) -> Run:
        return next(setting.runs[None] for setting in self.settings if not setting.trains)

    def models(self, setting: Setting) -> list[str | None]:
        """The unmerged model and its merges."""
        merges = [f"wise_ft@{alpha:g}" for alpha in self.alphas if setting.trains]
        return [None, *merges]

    def values(self, setting: Setting, merge: str | None, metric: str) -> Values:
        """Zero-shot's one value stands for every seed where it is paired."""
        return {seed: self.metrics(run, merge)[metric] for seed, run in setting.runs.items()}

    def paired(
        self, setting: Setting, merge: str | None, metric: str, seeds: Sequence[int]
    ) -> list[float]:
        values = self.values(setting, merge, metric)
        return [values[seed if setting.trains else None] for seed in seeds]


@dataclass(frozen=True)
class Measured(Numbers):
    """A sweep of `show --json`, or one of its tasks, with what its runs predict."""

    shown: Mapping[str, Any]
    data: Path
    clip: Path
    alphas: Sequence[float]
    templates: Sequence[str]
    epochs: int
    _metrics: dict[tuple[Path, str | None], dict[str, float]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return list(self.shown["seeds"])

    @functools.cached_property
    def settings(self) -> list[Setting]:
        kinds = [
            ("baseline", "", self.shown["baselines"]),
            ("trial", "", self.shown["trials"]),
            ("confirmation", " (confirmed)", self.shown["confirmations"]),
        ]
        return [
            Setting(
                " ".join([item["algorithm"], *_written(item["params"])]) + end,
                item["algorithm"],
                item["params"],
                role,
                {run["seed"]: (Path(run["folder"]),) for run in item["runs"]},
            )
            for role, end, items in kinds
            for item in items
        ]

    def metrics(self, run: Run, merge: str | None) -> dict[str, float]:
        (folder,) = run
        if (folder, merge) not in self._metrics:
            self._metrics[folder, merge] = self._measure(folder, merge)
            if merge is None:
                seconds = json.loads((folder / "trained.json").read_text())["seconds"]
                self._metrics[folder, merge]["system/train_seconds"] = seconds
        return self._metrics[folder, merge]

    def image_step(self, metric: str) -> float:
        counts = predictions(*self.zero_shot, None).groupby("split", observed=True)
        sizes = {str(name): len(rows) for name, rows in counts}
        if metric == "ood/mean/top1":
            shifts = [size for name, size in sizes.items() if name.startswith("ood/")]
            return 1 / (len(shifts) * min(shifts))
        return 1 / sizes[metric.removesuffix("/top1")]

    def _measure(self, folder: Path, merge: str | None) -> dict[str, float]:
        found: dict[str, float] = {}
        is_frozen = (folder,) == self.zero_shot
        tuned = self.frozen if is_frozen else self.contexts(self.tower(folder, merge))
        for split, rows in predictions(folder, merge).groupby("split", observed=True):
            right = (rows.label == rows.prediction).to_numpy()
            p = special.softmax(np.stack(rows.logits.to_list()).astype(float), axis=1)
            p_label, confidence = rows.p_label.to_numpy(float), rows.confidence.to_numpy(float)
            one_hot = np.eye(p.shape[1])[rows.label]
            found[f"{split}/top1"] = right.mean()
            found[f"{split}/nll"] = -np.log(p_label).mean()
            found[f"{split}/brier"] = ((p - one_hot) ** 2).sum(axis=1).mean()
            binned = np.ceil(confidence * BINS).astype(int)
            surplus = np.bincount(binned, weights=right - confidence, minlength=BINS + 1)
            found[f"{split}/ece"] = np.abs(surplus).sum() / len(rows)
            before, after = (of.loc[rows.id].to_numpy() for of in (self.frozen, tuned))
            found[f"context/{split}/kl"] = special.rel_entr(before, after).sum(axis=1).mean()
            found[f"context/{split}/entropy"] = stats.entropy(after, axis=1).mean()
        for metric in ("top1", "nll", "ece", "brier"):
            shifts = [name for name in found if name.startswith("ood/")]
            of_metric = [found[name] for name in shifts if name.endswith(f"/{metric}")]
            found[f"ood/mean/{metric}"] = float(np.mean(of_metric))
        test, ood = found["id/test/top1"], found["ood/mean/top1"]
        start = found if is_frozen else self.metrics(self.zero_shot, None)
        found["gap/top1"], found["hmean/top1"] = test - ood, float(stats.hmean([test, ood]))
        found["gain/ood/top1"] = ood - start["ood/mean/top1"]
        return found

    @functools.cached_property
    def opened(self) -> Any:
        config = json.loads((self.clip / "open_clip_config.json").read_text())["model_cfg"]
        model = open_clip.CLIP(**config).eval()
        model.load_state_dict(load_file(self.clip / "open_clip_model.safetensors"))
        return model

    @functools.cached_property
    def start(self) -> dict[str, torch.Tensor]:
        weights = self.opened.state_dict()
        return {name: it.clone() for name, it in weights.items() if name.startswith("visual.")}

    def tower(self, folder: Path, merge: str | None) -> dict[str, torch.Tensor]:
        """The weights of a run's image tower, or between these and the pre-trained."""
        alpha = 1.0 if merge is None else float(merge.partition("@")[2])
        tuned = load_file(folder / "weights" / "last.safetensors")
        return {name: (1 - alpha) * it + alpha * tuned[name] for name, it in self.start.items()}

    @functools.cached_property
    def classes(self) -> list[str]:
        return sorted(place.name for place in (self.data / "train").iterdir())

    @functools.cached_property
    def w_ctx(self) -> NDArray[np.float64]:
        """[K, d] of each template the mean over the task's classes, as a unit vector."""
        prompts = [[template.format(name) for name in self.classes] for template in self.templates]
        with torch.no_grad():
            texts = [
                self.opened.encode_text(open_clip.tokenize(it), normalize=True) for it in prompts
            ]
        means = np.stack([text.mean(dim=0).numpy() for text in texts]).astype(float)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    @functools.cached_property
    def paths(self) -> list[str]:
        return sorted(str(file.relative_to(self.data)) for file in self.data.rglob("*.png"))

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
        model = self.opened
        model.load_state_dict(tower, strict=False)
        features = model.encode_image(self.images, normalize=True).numpy().astype(float)
        model.load_state_dict(self.start, strict=False)
        scale = float(model.logit_scale.exp())
        p = special.softmax(scale * features @ self.w_ctx.T, axis=1)
        return pd.DataFrame(p, index=self.paths)


def _written(params: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(params):
        value = params[name]
        yield f"{name.rpartition('.')[2]}={value if isinstance(value, str) else f'{value:.6g}'}"


@dataclass(frozen=True)
class Means(Numbers):
    """Means over tasks: of each algorithm and seed the runs that the rule takes on each task."""

    alphas: Sequence[float]
    each: Sequence[Measured]
    rule: Rule

    @property
    def seeds(self) -> list[int]:
        return self.each[0].seeds

    @functools.cached_property
    def settings(self) -> list[Setting]:
        of_first = {setting.algorithm: setting for setting in self.each[0].settings}
        return [
            Setting(
                name,
                name,
                {},
                one.role,
                {
                    seed: tuple(_Comparison(of, self.rule).taken(name, seed) for of in self.each)
                    for seed in one.runs
                },
            )
            for name, one in of_first.items()
        ]

    def metrics(self, run: Run, merge: str | None) -> dict[str, float]:
        """Those that every task has."""
        own = [of.metrics((folder,), merge) for of, folder in zip(self.each, run, strict=True)]
        shared = set.intersection(*({*values} for values in own))
        return {name: float(np.mean([values[name] for values in own])) for name in shared}

    def image_step(self, metric: str) -> float:
        """One image is of one task, and changes the mean by the less."""
        return max(of.image_step(metric) for of in self.each) / len(self.each)


def document(measured: Measured | Mapping[str, Measured], rule: Rule) -> dict[str, Any]:
    """What `compare --json` should say of a sweep, or of one over several tasks."""
    if isinstance(measured, Measured):
        return _Comparison(measured, rule).document()
    return _OfTasks.made(measured, rule).document()


Model = tuple[Setting, str | None]
"""A setting through one of its merges, or unmerged."""


def named(model: Model) -> str:
    setting, merge = model
    return setting.label if merge is None else f"{setting.label} + {merge}"


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's, of a mean."""
    if len(values) < 3:
        return None
    error, middle = stats.sem(values), float(np.mean(values))
    if np.ptp(values) < 1e-12:
        return middle, middle
    low, high = stats.t.interval(confidence, len(values) - 1, loc=middle, scale=error)
    return float(low), float(high)


def close(value: Any, metric: str) -> Any:
    """As exact as what is kept allows."""
    digits = OF_CONTEXTS if metric.startswith("context/") else 1e-9
    digits = OTHER_DIGITS.get(metric.rpartition("/")[2], digits)
    if isinstance(value, (list, tuple)):
        return [close(item, metric) for item in value]
    return None if value is None else pytest.approx(value, abs=digits, rel=0)


def estimate(values: Sequence[float | None], metric: str = "") -> dict[str, Any]:
    whole = [value for value in values if value is not None]
    lacks = len(whole) < len(values)
    return {
        "values": close(list(values), metric),
        "mean": None if lacks else close(float(np.mean(whole)), metric),
        "ci95": None if lacks else close(interval(whole), metric),
    }


def holms(ps: Sequence[float]) -> NDArray[np.float64]:
    """Adjusted by Holm's rule."""
    order = np.argsort(ps)
    stepped = np.maximum.accumulate(np.arange(len(ps), 0, -1) * np.array(ps)[order])
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def association(values: Sequence[Any], means: Sequence[float]) -> dict[str, Any]:
    """Spearman's rank correlation of a numeric field over ten settings or more, with its interval.

    The variance of Fisher's z is Bonett and Wright's. Means that differ by rounding are equal.
    """
    rho: float | None = None
    if len(values) >= 10 and not any(isinstance(value, (str, bool)) for value in values):
        rho = float(stats.spearmanr(values, np.round(means, 12)).statistic)
    if rho is None:
        return {"rank_correlation": None, "ci95": None}
    z = stats.norm(np.arctanh(rho), np.sqrt((1 + rho**2 / 2) / (len(values) - 3)))
    return {
        "rank_correlation": close(rho, ""),
        "ci95": close(np.tanh(z.interval(0.95)).tolist(), ""),
    }


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

    def best(self, models: Sequence[Model]) -> Model:
        """The rule's choice; of equal ones the first."""
        values = [self.rule.sign * self.mean(model, self.rule.metric) for model in models]
        near = [m for m, v in zip(models, values, strict=True) if v >= max(values) - 1e-12]
        if self.rule.within is None:
            return near[0]
        margin = max(values) - self.rule.within - 1e-12
        same = near[0][0].algorithm
        pool = [
            model
            for model, value in zip(models, values, strict=True)
            if value >= margin and model[0].algorithm == same
        ]
        return max(pool, key=lambda model: model[0].weight or 0.0)

    @functools.cached_property
    def selected(self) -> dict[str, Model]:
        """By algorithm, trials' first."""
        tuned = sorted(self.measured.tuned, key=lambda setting: setting.role != "trial")
        algorithms = dict.fromkeys(setting.algorithm for setting in tuned)
        pools = {
            name: [(s, self.rule.merge) for s in tuned if s.algorithm == name]
            for name in algorithms
        }
        return {
            name: self.best(pool)
            for name, pool in pools.items()
            if pool[0][0].trains or self.rule.merge is None
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
        labels = {setting.label: self.best_merge([setting]) for setting in tuned}
        for setting in self.measured.settings:
            if setting.role == "confirmation":
                labels[setting.label] = labels[setting.label.removesuffix(" (confirmed)")]
        return labels

    @property
    def winner(self) -> Model:
        """The rule's choice among all trials."""
        trials = [setting for setting in self.measured.tuned if setting.role == "trial"]
        return self.best([(setting, self.rule.merge) for setting in trials])

    def document(self) -> dict[str, Any]:
        best, merge = self.winner
        return {
            "metric_merge": self.rule.merge,
            "id_margin": self.rule.margin,
            "seeds": self.seeds,
            "fresh_seeds": self.fresh,
            "rows": [
                self.row(setting, it, is_best=(best, merge) == (setting, it))
                for setting in self.measured.settings
                for it in self.measured.models(setting)
            ],
            "selected": {
                "label": named((best, merge)),
                "value": close(self.mean((best, merge), self.rule.metric), self.rule.metric),
            },
            "answer": self.answer(best),
            "tests": self.tests(),
            "budgets": self.budgets,
            "curves": [
                {"label": setting.label, "points": self.points(setting, list(setting.runs))}
                for setting, merge in self.tested.values()
                if setting.trains and merge is None
            ],
        }

    @property
    def budgets(self) -> list[dict[str, Any]]:
        """What each algorithm that trains was given."""
        assert isinstance(self.measured, Measured)
        trained = [setting for setting in self.measured.tuned if setting.trains]
        budgets = []
        for name in dict.fromkeys(setting.algorithm for setting in trained):
            pool = [setting for setting in trained if setting.algorithm == name]
            runs = sum(len(setting.runs) for setting in pool)
            counts = {"settings": len(pool), "runs": runs, "epochs": self.measured.epochs * runs}
            budgets.append({"algorithm": name, **counts})
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
        values = {
            name: [*self.measured.values(setting, merge, name).values()]
            for name in self.measured.metrics(next(iter(setting.runs.values())), merge)
        }
        stands = self.selected.get(setting.algorithm) == (setting, merge)
        chosen = stands or self.merge_of.get(setting.label) == (merge or "")
        return {
            "label": named((setting, merge)),
            "merge": merge,
            "n": len(setting.runs),
            "runs": {"done": len(setting.runs)},
            "metrics": {name: estimate(of, name) for name, of in values.items()},
            "value": close(self.mean((setting, merge), self.rule.metric), self.rule.metric),
            "selected": is_best,
            "chosen": chosen,
            "ci95_images": self.over_images((setting, merge))
            if self.rule.images and (merge is None or chosen)
            else {},
            "above_wise_ft_curve": self.distance((setting, merge))
            if chosen and setting.label in self.on_show
            else None,
        }

    @functools.cached_property
    def on_show(self) -> set[str]:
        """Settings that stand for something."""
        best, _ = self.winner
        return {best.label, *(setting.label for setting, _ in self.tested.values())}

    def distance(self, model: Model) -> dict[str, Any] | None:
        """To the reference's curve, of models that are trained and not on it, on the same seeds."""
        reference, merge = self.tested[self.rule.reference]
        same = model[0].algorithm == reference.algorithm and model[0].weight == reference.weight
        if not model[0].trains or same or (model[0].role == "confirmation") != bool(self.fresh):
            return None
        seeds = [seed for seed in model[0].runs if seed is not None]
        found: dict[str, Any] | None = self.against_curve(model, (reference, merge), seeds)[
            "above_wise_ft_curve"
        ]
        return found

    def points(self, setting: Setting, seeds: Sequence[int | None]) -> list[dict[str, Any]]:
        """The mean WiSE-FT curve."""
        found = []
        for alpha in sorted({0.0, *self.measured.alphas, 1.0}):
            pairs = [self.point(setting, seed, alpha) for seed in seeds]
            x, y = np.mean(pairs, axis=0)
            found.append({"alpha": alpha, "id": close(float(x), ""), "ood": close(float(y), "")})
        return found

    def point(self, setting: Setting, seed: int | None, alpha: float) -> tuple[float, float]:
        """ID and OOD accuracy of a model on the curve of one seed."""
        run = self.measured.zero_shot if alpha == 0 else setting.runs[seed]
        merge = None if alpha in (0, 1) else f"wise_ft@{alpha:g}"
        metrics = self.measured.metrics(run, merge)
        return metrics["id/test/top1"], metrics["ood/mean/top1"]

    def curve(self, setting: Setting, seeds: Sequence[int | None]) -> NDArray[np.float64]:
        """[A, 2] ID and OOD accuracy over the alphas, a mean over seeds."""
        alphas = sorted({0.0, *self.measured.alphas, 1.0})
        return np.mean([[self.point(setting, s, a) for a in alphas] for s in seeds], axis=0)

    def tests(self) -> list[dict[str, Any]]:
        reference = self.tested[self.rule.reference]
        rivals = [
            model
            for name, model in self.tested.items()
            if name != self.rule.reference and model[0].trains
        ]
        pairs = [self.pair(model, reference) for model in rivals]
        holm = {}
        for name in ("p_different", "p_better"):
            ps = [1.0 if pair[name] is None else pair[name] for pair in pairs]
            holm[name] = holms(ps)
        return [
            self.verdict(
                model,
                reference,
                pair,
                **{
                    name: None if pair[name] is None else float(of[place])
                    for name, of in holm.items()
                },
                compared=len(pairs),
            )
            for place, (model, pair) in enumerate(zip(rivals, pairs, strict=True))
        ]

    def pair(self, candidate: Model, reference: Model) -> dict[str, Any]:
        side = candidate if candidate[0].trains else reference
        seeds = [seed for seed in side[0].runs if seed is not None]
        tests = {
            metric: self.paired_test(candidate, reference, metric, seeds, bound)
            for metric, bound in (("ood/mean/top1", 0.0), ("id/test/top1", -self.rule.margin))
        }
        above = [test.pop("p_above") for test in tests.values()]
        return {
            "candidate": named(candidate),
            "reference": named(reference),
            "seeds": seeds,
            **tests,
            "p_different": tests["ood/mean/top1"]["p"],
            "p_better": None if None in above else min(1.0, 2 * max(above)),
        }

    def paired_test(
        self,
        candidate: Model,
        reference: Model,
        metric: str,
        seeds: Sequence[int],
        bound: float,
    ) -> dict[str, Any]:
        one, two = (
            np.array(self.measured.paired(*model, metric, seeds))
            for model in (candidate, reference)
        )
        differences = (one - two).tolist()
        spreads = bool(np.ptp(differences) > self.measured.image_step(metric) + 1e-12)
        p = p_above = None
        if spreads and len(seeds) > 2:
            p = float(stats.ttest_rel(one, two).pvalue)
            p_above = float(stats.ttest_1samp(one - two, bound, alternative="greater").pvalue)
        of_values = estimate(differences)
        return {
            **of_values,
            "ci95": of_values["ci95"] if spreads else None,
            "spreads": spreads,
            "p": p,
            "p_above": p_above,
        }

    def verdict(
        self,
        candidate: Model,
        reference: Model,
        pair: Mapping[str, Any],
        *,
        p_different: float | None,
        p_better: float | None,
        compared: int,
    ) -> dict[str, Any]:
        seeds = pair["seeds"]
        images = self.over_images(candidate, minus=reference) if self.rule.images else {}
        tried = {of["algorithm"]: of["settings"] for of in self.budgets}
        sides = [model[0].algorithm for model in (candidate, reference)]
        outcome = self.outcome(pair, p_different, p_better)
        ends = pair["ood/mean/top1"]["ci95"]
        excluded = ends is not None and ends[1].expected < self.rule.margin
        return {
            **pair,
            "p_different_holm": p_different,
            "p_better_holm": p_better,
            "compared": compared,
            "seeds_required": self.fresh or self.seeds,
            "settings_tried": 1 if self.fresh else max(tried.get(name, 1) for name in sides),
            "confirmed": bool(self.fresh),
            "outcome": outcome,
            "state": {
                "better": "BETTER",
                "trade_off": "MORE ROBUST",
                "worse": "LESS ROBUST",
                "tie": "NO GAIN",
                "no_difference": "NO GAIN" if excluded else "UNDECIDED",
            }.get(outcome, "UNDECIDED"),
            "gain/ood/top1": estimate(
                self.measured.paired(*candidate, "gain/ood/top1", seeds), "gain/ood/top1"
            ),
            **self.against_curve(candidate, reference, seeds),
            "merged": self.merged(candidate, reference),
            "ood_ci95_images": images.get("ood/mean/top1"),
            "ci95_images": images,
        }

    def outcome(
        self, pair: Mapping[str, Any], different: float | None, better: float | None
    ) -> str:
        ood = pair["ood/mean/top1"]
        if not {*(self.fresh or self.seeds)} <= {*pair["seeds"]}:
            return "incomplete"
        if len(pair["seeds"]) < 5:
            return "too_few_seeds"
        if self.is_tie(pair):
            return "tie"
        if different is None:
            return "no_spread"
        if better is not None and better < 0.05:
            return "better"
        if different < 0.05:
            return "worse" if ood["mean"].expected < 0 else "trade_off"
        return "no_difference"

    def is_tie(self, pair: Mapping[str, Any]) -> bool:
        tests = (pair["ood/mean/top1"], pair["id/test/top1"])
        return all(abs(value.expected) < 1e-12 for test in tests for value in test["values"])

    def merged(self, candidate: Model, reference: Model) -> dict[str, Any]:
        """Both through WiSE-FT at one alpha, that with the best mean of what was selected."""
        both = (candidate, reference)
        if not all(setting.trains and merge is None for setting, merge in both):
            return {}
        sides = [self.selected[setting.algorithm][0] for setting, _ in both]
        label = self.best_merge(sides)
        return {"wise_ft": self.pair((candidate[0], label), (reference[0], label))}

    def best_merge(self, settings: Sequence[Setting]) -> str:
        """The alpha with the best mean value; within a margin the smallest."""
        merges = [merge for merge in self.measured.models(settings[0]) if merge is not None]
        values = [
            self.rule.sign * np.mean([self.mean((one, it), self.rule.metric) for one in settings])
            for it in merges
        ]
        margin = (self.rule.within or 0.0) + 1e-12
        pool = zip(merges, values, strict=True)
        return next(merge for merge, value in pool if value >= max(values) - margin)

    def answer(self, best: Setting) -> dict[str, Any]:
        tests, reference = self.tests(), self.tested[self.rule.reference]
        rivals = [model for name, model in self.tested.items() if name != self.rule.reference]
        rivals = [model for model in rivals if model[0].trains]
        candidate = self.tested[best.algorithm]
        if best.algorithm == self.rule.reference:
            # Values were selected on the seeds of the choice, and so on fresh ones on those.
            candidate = max(rivals, key=lambda it: self.rule.sign * self.mean(it, self.rule.metric))
        (tried,) = [it["settings_tried"] for it in tests if it["candidate"] == named(candidate)]
        zero_shot = next(setting for setting in self.measured.settings if not setting.trains)
        return {
            "strongest": self.strongest(reference),
            "candidate": named(candidate),
            "against_zero_shot": None
            if not reference[0].trains
            else self.alone(candidate, (zero_shot, None), tried),
            **self.of_fields(),
        }

    def of_fields(self) -> dict[str, Any]:
        """The KL weight where it alone varies; else how each field goes with the OOD mean."""
        best, merge = self.winner
        arms = [setting for setting in self.measured.settings if setting.role == "trial"]
        names = sorted({name for setting in arms for name in setting.params})
        if names == [KL]:
            return {"effects": [self.effect(best, merge)], "associations": []}
        means = [self.mean((setting, merge), "ood/mean/top1") for setting in arms]
        return {
            "effects": [],
            "associations": [
                {
                    "parameter": name,
                    "algorithm": best.algorithm,
                    "settings": len(arms),
                    **association([setting.params[name] for setting in arms], means),
                }
                for name in names
            ],
        }

    def alone(self, candidate: Model, reference: Model, tried: int = 1) -> dict[str, Any]:
        """A pair that is judged by itself, with neither merges nor curve."""
        pair = self.pair(candidate, reference)
        own = self.verdict(
            candidate,
            reference,
            pair,
            p_different=pair["p_different"],
            p_better=pair["p_better"],
            compared=1,
        )
        nothing: dict[str, Any] = {
            "above_wise_ft_curve": None,
            "dominated_by": None,
            "merged": {},
            "ci95_images": {},
            "ood_ci95_images": None,
        }
        values = [*self.measured.values(*candidate, "gain/ood/top1").values()]
        gain = {"gain/ood/top1": estimate(values, "gain/ood/top1")}
        return {**own, **nothing, **gain, "settings_tried": tried}

    def strongest(self, reference: Model) -> dict[str, Any]:
        """The highest OOD mean of those that keep ID, and the next."""
        role_is_confirmation = bool(self.fresh)
        models: list[Model] = []
        for setting in self.measured.settings:
            if not setting.trains:
                models.append((setting, None))
            elif (setting.role == "confirmation") == role_is_confirmation:
                models += [(setting, None), (setting, self.merge_of[setting.label])]
        least = self.mean(reference, "id/test/top1") - self.rule.margin
        keep = [model for model in models if self.mean(model, "id/test/top1") >= least - 1e-12]
        keep.sort(key=lambda model: -round(self.mean(model, "ood/mean/top1"), 12))

        def described(model: Model) -> dict[str, Any]:
            metrics = {"endpoint": "ood/mean/top1", "id": "id/test/top1"}
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
            "test": following and self.alone(keep[0], following),
        }

    def effect(self, best: Setting, merge: str | None) -> dict[str, Any]:
        """The KL weight: the highest against the lowest, and what lies between."""
        arms = [setting for setting in self.measured.settings if setting.role == "trial"]
        arms.sort(key=lambda setting: setting.weight or 0.0)
        models: list[Model] = [(setting, merge) for setting in arms]
        heights = [self.mean(model, "ood/mean/top1") for model in models]
        end = max((models[0], models[-1]), key=lambda model: self.mean(model, "ood/mean/top1"))
        top = int(np.argmax(heights))
        peak = models[top] if 0 < top < len(models) - 1 else None
        pairs = len(models) * (len(models) - 1) / 2
        difference, of_id = (
            self.difference(models[-1], models[0], metric, 0.95)
            for metric in ("ood/mean/top1", "id/test/top1")
        )

        def level(model: Model) -> dict[str, Any]:
            means = {"endpoint": "ood/mean/top1", "id": "id/test/top1"}
            return {"value": model[0].weight} | {k: self.mean(model, m) for k, m in means.items()}

        return {
            "parameter": KL,
            "algorithm": best.algorithm,
            "numeric": True,
            "levels": [level(model) for model in models],
            "settings": 1,
            "difference": difference,
            "id_difference": of_id,
            "peak": peak and level(peak),
            "above_ends": peak and self.difference(peak, end, "ood/mean/top1", 1 - 0.05 / pairs),
            "selected": best.weight,
        }

    def difference(
        self, one: Model, other: Model, metric: str, confidence: float
    ) -> dict[str, Any]:
        tested = self.paired_test(one, other, metric, self.seeds, 0.0)
        values = tested["values"]
        exact = [value.expected for value in values]
        return {
            "mean": tested["mean"],
            "level": confidence,
            "interval": interval(exact, confidence) if tested["spreads"] else None,
            "values": values,
            "spreads": tested["spreads"],
        }

    def against_curve(
        self, candidate: Model, against: Model, seeds: Sequence[int]
    ) -> dict[str, Any]:
        reference, merge = against
        if not reference.trains or merge is not None:
            return {"above_wise_ft_curve": None, "dominated_by": None}
        xs, ys = (
            self.measured.paired(*candidate, metric, seeds)
            for metric in ("id/test/top1", "ood/mean/top1")
        )
        bounds = [
            bound(self.curve(reference, [seed]), x) for seed, x in zip(seeds, xs, strict=True)
        ]
        above = [None if most is None else y - most for y, most in zip(ys, bounds, strict=True)]
        mean, x, y = self.curve(reference, seeds), float(np.mean(xs)), float(np.mean(ys))
        as_good = [
            (float(id_test), float(ood), alpha)
            for (id_test, ood), alpha in zip(
                mean, sorted({0.0, *self.measured.alphas, 1.0}), strict=True
            )
            if min(id_test - x, ood - y) >= -1e-12 and max(id_test - x, ood - y) > 1e-12
        ]
        point = max(as_good, key=lambda point: point[1], default=None)
        return {
            "above_wise_ft_curve": estimate(above),
            "dominated_by": point
            and {"id": close(point[0], ""), "ood": close(point[1], ""), "alpha": point[2]},
        }

    def over_images(self, model: Model, *, minus: Model | None = None) -> dict[str, Any]:
        """Scipy's bootstrap of the share of the runs that have an image right."""
        shares = self.shares(model)
        if minus is not None:
            other = self.shares(minus)
            shares = {split: share - other[split] for split, share in shares.items()}
        found = {f"{split}/top1": self.bootstrap([share]) for split, share in shares.items()}
        shifts = [share for split, share in shares.items() if split.startswith("ood/")]
        return {**found, "ood/mean/top1": self.bootstrap(shifts)}

    def shares(self, model: Model) -> dict[str, NDArray[np.float64]]:
        setting, merge = model
        right = []
        for (folder,) in setting.runs.values():
            rows = predictions(folder, merge).set_index(["split", "id"])
            right.append(rows.label == rows.prediction)
        mean = pd.concat(right, axis=1).mean(axis=1)
        return {str(name): of.to_numpy(float) for name, of in mean.groupby("split", observed=True)}

    def bootstrap(self, samples: Sequence[NDArray[np.float64]]) -> list[Any]:
        def mean_of_means(*drawn: NDArray[np.float64], axis: int) -> Any:
            return np.mean([of.mean(axis=axis) for of in drawn], axis=0)

        if all(np.ptp(sample) == 0 for sample in samples):
            middle = float(np.mean([sample.mean() for sample in samples]))
            return [pytest.approx(middle, abs=1e-12)] * 2
        ends = stats.bootstrap(
            samples, mean_of_means, n_resamples=4_000, method="percentile", rng=1
        ).confidence_interval
        # Two samples of resamples: of 0.07 standard deviations an end is off, by the larger one.
        width = float(ends.high - ends.low)
        step = max(1 / len(sample) for sample in samples) / len(samples)
        return [pytest.approx(float(end), abs=0.08 * width + step) for end in ends]


@dataclass(frozen=True)
class _OfTasks(_Comparison):
    """The means over tasks, with the table of the tasks and the comparison of each."""

    parts: Mapping[str, _Comparison]

    @classmethod
    def made(cls, tasks: Mapping[str, Measured], rule: Rule) -> _OfTasks:
        each = list(tasks.values())
        parts = {task: _Comparison(of, rule) for task, of in tasks.items()}
        # Intervals over images are of each task.
        return cls(Means(each[0].alphas, each, rule), replace(rule, images=False), parts)

    def document(self) -> dict[str, Any]:
        """Nothing is selected as a whole."""
        of_means = super().document()
        models = [
            (setting, merge)
            for setting in self.measured.settings
            for merge in self.measured.models(setting)
        ]
        in_table = {it["label"] for it in of_means["rows"] if it["merge"] is None or it["chosen"]}
        return {
            **of_means,
            "rows": [{**row, "selected": False} for row in of_means["rows"]],
            "selected": None,
            "tasks": {
                "metrics": dict.fromkeys(self.parts, "ood/mean/top1"),
                "settings": {task: named(part.winner) for task, part in self.parts.items()},
                "rows": [self.line(model) for model in models if named(model) in in_table],
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
            task: cell(
                {
                    seed: part.measured.metrics((run[place],), merge)["ood/mean/top1"]
                    for seed, run in setting.runs.items()
                }
            )
            for place, (task, part) in enumerate(self.parts.items())
        }
        return {
            "label": named(model),
            "cells": cells,
            "average": cell(self.measured.values(setting, merge, "ood/mean/top1")),
        }

    @property
    def budgets(self) -> list[dict[str, Any]]:
        """Settings on a task, runs on all."""
        each = [part.budgets for part in self.parts.values()]
        return [
            {
                **of[0],
                "settings": max(it["settings"] for it in of),
                "runs": sum(it["runs"] for it in of),
                "epochs": sum(it["epochs"] for it in of),
            }
            for of in zip(*each, strict=True)
        ]

    def of_fields(self) -> dict[str, Any]:
        """Each task has its own."""
        return {"effects": [], "associations": []}


def bound(curve: NDArray[np.float64], x: float) -> float | None:
    """The most that a curve bent upwards may have at an ID accuracy, from its measured points."""
    runs, rises = np.diff(curve, axis=0).T
    found: list[tuple[float, float | None]] = []
    for place, (one, two) in enumerate(itertools.pairwise(curve)):
        if on := [point[1] for point in (one, two) if abs(point[0] - x) < 1e-12]:
            found.append((max(on), max(on)))
        elif min(one[0], two[0]) < x < max(one[0], two[0]):
            beside = [k for k in (place - 1, place + 1) if 0 <= k < len(runs)]
            onwards = [k for k in beside if runs[k] * runs[place] > 0]
            chord, *beyond = (
                float(curve[k, 1] + rises[k] / runs[k] * (x - curve[k, 0]))
                for k in (place, *onwards)
            )
            found.append((chord, max(chord, min(beyond)) if beyond else None))
    if not found or max(found, key=lambda piece: piece[0])[1] is None:
        return None
    return float(max(chord if most is None else most for chord, most in found))
