"""A run on disk: its folder, the measuring of its models, and what is read back of them."""

from __future__ import annotations

import errno
import functools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from carft_sweep.carft_core.algorithms import Soup, blame_own_code
from carft_sweep.carft_core.algorithms.base import Loaded
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.evaluation.measure import measure
from carft_sweep.carft_core.files import (
    check_archive,
    check_regular,
    open_regular,
    read_json,
    write_atomically,
    write_json,
)
from carft_sweep.carft_core.merges import Model
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.carft_core.runs.facts import facts_of
from carft_sweep.carft_core.runs.identity import Identity, evaluation_digest, present
from carft_sweep.carft_core.runs.result import Claim, Evaluation, History, Trained
from carft_sweep.carft_core.training.ranks import current_ranks
from carft_sweep.carft_core.training.setup import RunSetup, open_setup

UNMERGED = "unmerged"
"""The label of the run's own model."""

DAMAGED = "%s is damaged (%s); the run begins again"
"""The log message on a damaged checkpoint; it takes the file and the reason."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The result of a run. Metric names are those of docs/metrics.md; top-1 is in [0, 1]."""

    digest: str
    seed: int | None
    metrics: Mapping[str, float]
    """By metric name, of the run's own (unmerged) model."""
    merges: Mapping[str, Mapping[str, Any]]
    """By label (`wise_ft@0.5`): `step`, `values` and `metrics`."""
    warnings: Sequence[str]
    seconds: float
    """How long training took, without evaluation."""
    facts: Mapping[str, Any]
    """What a fair comparison must share: model, data, transform, budget, contexts."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, under `runs/<digest>/`."""

    path: Path
    writes: bool = True
    """Whether this process writes the files; of the ranks of one run only rank 0 does."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which an unfinished run resumes; deleted once the run is trained."""
        return self.path / "checkpoint.pt"

    def weights(self, kind: str) -> Path:
        """Return the file of the module's weights after the `last` or the `best_val` epoch."""
        return self.path / "weights" / f"{kind}.safetensors"

    def metrics(self, label: str) -> Path:
        """Return the file with the metrics of one evaluated model."""
        return self.path / "evaluations" / label / "metrics.json"

    def predictions(self, label: str) -> Path:
        """Return the file with the predictions of one evaluated model, by split and image."""
        return self.path / "evaluations" / label / "predictions.parquet"

    def member(self, digest: str) -> RunFolder:
        """Return the folder of another run of the same home, for a soup."""
        return RunFolder(self.path.parent / digest)

    def claim(self, config: TrialConfig, seed: int, identity: Identity) -> None:
        """Write the run's config and identity into its folder, and remove large unfinished files of
        a killed process. Raises RequestError for a folder that belongs to another run, or is named
        by another run's digest."""
        if not self.writes:
            return
        name, digest = self.path.name, identity.digest
        if re.fullmatch("[0-9a-f]{64}", name) and name != digest:
            raise RequestError(
                f"{self.path} is the folder of run {name[:12]}, but here the run would be "
                f"{digest[:12]}: model, data, code, device or precision differ from its name"
            )
        file = self.path / "config.json"
        claimed = read_json(file, Claim)
        if claimed is None:
            parts = {"digest": identity.digest, "identity": dict(identity.parts)}
            write_json(file, {**parts, "seed": seed, "config": config.as_dict()})
        elif claimed["digest"] != identity.digest:
            raise RequestError(
                f"{self.path} holds another run ({claimed['digest'][:12]}), not "
                f"{identity.digest[:12]}; give each run a folder of its own"
            )
        # Not other temporary files, which the driver may be writing just now.
        for left in (*self.path.glob(".checkpoint.pt.*"), *self.path.glob("weights/.*.*")):
            left.unlink(missing_ok=True)

    def claimed(self) -> dict[str, Any]:
        """Return what `claim` wrote. Raises RequestError where the folder holds no run."""
        claimed: dict[str, Any] | None = read_json(self.path / "config.json", Claim)
        if claimed is None:
            raise RequestError(f"{self.path} holds no run")
        return claimed

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the reports of all epochs so far."""
        if self.writes:
            write_json(self.path / "history.json", list(history))

    def history(self) -> list[dict[str, Any]]:
        """Return the reports that `write_history` wrote."""
        return read_json(self.path / "history.json", History) or []

    def save_checkpoint(self, progress: Mapping[str, Any]) -> None:
        """Write atomically what a run needs to resume exactly: tensors and plain data."""
        if self.writes:
            write_atomically(self.checkpoint, functools.partial(_save, progress))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return what `save_checkpoint` wrote; None for a missing file, or a damaged one, which is
        logged.

        After a damaged file the run starts from the beginning. Raises OSError when the disk fails,
        after which another try may succeed, RequestError where torch is too old to read the file
        safely.
        """
        if self.checkpoint.exists():
            risk = f"{self.checkpoint} is a pickle: a crafted one may run code when it is read"
            refuse_outdated("torch", risk)
        try:
            with open_regular(self.checkpoint) as file:
                check_archive(self.checkpoint, sums=True)
                progress: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except MemoryError:
            raise
        except Exception as error:  # foreign bytes make the unpickler raise nearly anything
            # torch seeks before the beginning of a file that is cut short.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            if self.checkpoint.is_dir():  # nothing can take its place
                raise
            reason = str(error).partition("\n")[0]
            _LOG.warning(DAMAGED, self.checkpoint, reason[:200])
            return None
        return progress

    def save_weights(self, kind: str, state: Mapping[str, Tensor]) -> None:
        """Write a module's state dict as safetensors, atomically."""
        if self.writes:
            save_weights(self.weights(kind), state)

    def mark_trained(self, *, seconds: float, warnings: Sequence[str] = ()) -> None:
        """Record, as the last write of training, that it is complete; delete the checkpoint."""
        if not self.writes:
            return
        mark = {"seconds": seconds, "ended": time.time(), "warnings": list(warnings)}
        write_json(self.path / "trained.json", mark)
        self.checkpoint.unlink(missing_ok=True)

    def unmark_trained(self) -> None:
        """Remove the record of `mark_trained`, before a run trains again."""
        if self.writes:
            (self.path / "trained.json").unlink(missing_ok=True)

    def trained(self) -> dict[str, Any] | None:
        """Return the record that `mark_trained` wrote; None before the end of training."""
        mark: dict[str, Any] | None = read_json(self.path / "trained.json", Trained)
        return mark

    def is_trained(self, config: TrialConfig) -> bool:
        """Return whether training is complete and the weights that `config` requests exist."""
        if self.trained() is None:
            return False
        return not config.algorithm.trains or self.weights(config.keep.result).exists()


def _save(progress: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # PyTorch does not say why it cannot write to a path
        try:
            torch.save(dict(progress), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # such as a full disk
                raise error.__context__ from None
            raise


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, on the CPU, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda file: save_file(tensors, str(file)))


def load_weights(path: Path, *, follow: bool = False) -> dict[str, Tensor]:
    """Return the state dict that `save_weights` wrote, `follow` as for `read_json`. Raises
    RequestError for another file."""
    check_regular(path, follow=follow)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file: {error}") from None


def models_of(config: TrialConfig) -> dict[str, Model]:
    """Return a run's models by label: its own, then each point of each merge. The zero-shot model
    has no merges, since these would be the zero-shot model again."""
    models: dict[str, Model] = {UNMERGED: None}
    algorithm = config.algorithm
    if algorithm.trains or not algorithm.starts_at_zero_shot:
        for merge in config.merges:
            models |= {point.label: (merge, point) for point in merge.points()}
    return models


def load_classifier(folder: RunFolder, config: TrialConfig, setup: RunSetup) -> Classifier:
    """Return the classifier that the run trained, on the device. Raises RequestError when the
    weights were deleted, or are not of this model."""
    algorithm, teacher = config.algorithm, setup.teacher
    if not algorithm.trains and algorithm.starts_at_zero_shot:
        return teacher.classifier
    if isinstance(algorithm, Soup):
        return algorithm.combine(teacher, _members(folder, config, algorithm, setup))
    model = algorithm.build(teacher)
    if algorithm.trains:
        file = folder.weights(config.keep.result)
        if not file.exists():
            raise RequestError(
                f"the weights of the run in {folder.path} are not kept (keep.weights: false); "
                "train it again with keep.weights: true"
            )
        try:
            model.load_state_dict(load_weights(file))
        except RuntimeError as error:
            raise RequestError(f"{file} does not fit {algorithm.name}: {error}") from None
    return algorithm.classifier(model.to(teacher.device), teacher)


def _members(
    folder: RunFolder, config: TrialConfig, soup: Soup, setup: RunSetup
) -> Sequence[Classifier]:
    """Return the classifiers of a soup's runs, of the epoch that the soup's `keep.result` names,
    each loaded when it is taken.

    Raises RequestError for a run that is missing or not trained, and for one of another model,
    other classes, or other data, which may have trained on the soup's validation images.
    """
    if not soup.members:
        raise RequestError(f"algorithm.members: which runs is {soup.name} made of?")
    own = folder.claimed()["identity"]
    members: list[tuple[RunFolder, TrialConfig]] = []
    for digest in soup.members:
        member, where = folder.member(digest), f"algorithm.members: run {digest[:12]}"
        claimed = read_json(member.path / "config.json", Claim)
        if claimed is None:
            raise RequestError(f"{where} is not in this home ({member.path.parent})")
        for part, name in (("model", "model"), ("classes", "prompts.classes"), ("data", "data")):
            if claimed["identity"][part] != own[part]:
                raise RequestError(f"{where} differs from the {soup.name} in {name}")
        if member.trained() is None:
            raise RequestError(f"{where} is not trained to its end")
        its_config = trial_config(claimed["config"]).for_seed(claimed["seed"])
        its_config = its_config.model_copy(update={"keep": config.keep})
        members.append((member, its_config))
    return Loaded(lambda number: load_classifier(*members[number], setup), len(members))


def merged(model: Model, tuned: Classifier, setup: RunSetup) -> Classifier:
    """Return the classifier of a run's `model`: `tuned`, the run's own, or one merged from it."""
    if model is None:
        return tuned
    merge, point = model
    return merge.model(point, setup.teacher, tuned)


def finish(workdir: Path, config: TrialConfig, seed: int) -> RunResult:
    """Evaluate a trained run on every split, unmerged and at every point of its merges; return the
    result. Existing evaluations are not repeated. Raises RequestError when the folder holds no
    trained run."""
    world = current_ranks()
    config, folder = config.for_seed(seed), RunFolder(workdir, writes=world.is_main)
    # Decided by rank 0, once it has written what training left.
    missing = world.agree(_missing(folder, config) if world.is_main else {})
    if missing:
        if not folder.is_trained(config):
            raise RequestError(f"{workdir} is not trained to its end; train it first")
        with blame_own_code(config.algorithm):
            _evaluate(folder, config, missing)
    world.agree(True)  # the files are there
    if not config.keep.weights and folder.writes:
        for kind in ("last", "best_val"):
            folder.weights(kind).unlink(missing_ok=True)
    return read_result(workdir, config)


def is_complete(workdir: Path, config: TrialConfig) -> bool:
    """Return whether a run has its `config.json`, is trained, and all models of `config`
    measured."""
    folder = RunFolder(workdir)
    is_trained = (workdir / "config.json").exists() and folder.trained() is not None
    return is_trained and not _missing(folder, config)


def read_result(workdir: Path, config: TrialConfig) -> RunResult:
    """Return the result of a complete run, for the merges that `config` requests. Raises
    RequestError when an evaluation is missing."""
    folder = RunFolder(workdir)
    claimed = folder.claimed()
    evaluations: dict[str, dict[str, Any]] = {}
    for label in models_of(config):
        evaluation = read_json(folder.metrics(label), Evaluation)
        if evaluation is None:
            raise RequestError(f"{workdir} has no evaluation of {label}")
        evaluations[label] = evaluation
    own = evaluations.pop(UNMERGED)
    trained = folder.trained() or {}
    warnings = config.algorithm.warnings([item["metrics"] for item in folder.history()])
    return RunResult(
        digest=claimed["digest"],
        seed=claimed["seed"] if config.algorithm.trains else None,
        metrics=own["metrics"],
        merges={
            label: {key: item[key] for key in ("step", "values", "metrics")}
            for label, item in evaluations.items()
        },
        warnings=[*warnings, *trained.get("warnings", ())],
        seconds=trained.get("seconds", 0.0),
        facts=own["facts"],
    )


def _missing(folder: RunFolder, config: TrialConfig) -> dict[str, str]:
    """Return, by label, the digest of each requested evaluation that the folder does not have."""
    claimed = folder.claimed()
    config, missing = config.for_seed(claimed["seed"]), dict[str, str]()
    for label, model in models_of(config).items():
        digest = evaluation_digest(claimed["digest"], model, config)
        evaluation = read_json(folder.metrics(label), Evaluation)
        if evaluation is None or evaluation["digest"] != digest:
            missing[label] = digest
    return missing


def _evaluate(folder: RunFolder, config: TrialConfig, digests: Mapping[str, str]) -> None:
    """Measure the models of a run that `digests` names by label; write each with its digest."""
    models = {label: model for label, model in models_of(config).items() if label in digests}
    setup = open_setup(config)
    tuned = load_classifier(folder, config, setup)
    files = {label: folder.predictions(label) for label in models if folder.writes}
    for left in folder.path.glob("evaluations/*/.predictions.parquet.*") if folder.writes else ():
        left.unlink(missing_ok=True)  # by a process that was killed while it measured
    classifiers = {
        label: functools.partial(merged, model, tuned, setup) for label, model in models.items()
    }
    with setup.teacher.loader:
        measured = measure(classifiers, setup, config, files if config.keep.predictions else {})
    if not folder.writes:
        return
    facts = facts_of(config, setup)
    for label, metrics in measured.items():
        merge, point = models[label] or (None, None)
        write_json(
            folder.metrics(label),
            {
                "digest": digests[label],
                "label": label,
                "step": 0 if point is None else point.step,
                "values": {} if point is None else dict(point.values),
                "metrics": metrics,
                "facts": facts if merge is None else facts | present(merge_mark=merge.mark),
            },
        )
