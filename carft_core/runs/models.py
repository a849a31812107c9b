"""The models of a run: what it trained, the merges of it, and the members of a soup."""

from __future__ import annotations

from collections.abc import Sequence

from carft_sweep.carft_core.algorithms import Soup
from carft_sweep.carft_core.algorithms.base import Loaded
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.merges import Model
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights
from carft_sweep.carft_core.runs.result import Claim
from carft_sweep.carft_core.training.setup import RunSetup

UNMERGED = "unmerged"
"""The label of the run's own model."""


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
