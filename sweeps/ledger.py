"""The trials of a sweep in Optuna: proposed in one transaction, told once, reconciled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sweeps.home import Home
from tracking.locks import waiting

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

State = Literal["running", "complete", "failed", "pruned"]
PROPOSED = "proposed"
LOST = "proposal_lost"
_BUSY_SECONDS = 60.0
_STATES: Mapping[str, State] = {
    "RUNNING": "running",
    "WAITING": "running",
    "COMPLETE": "complete",
    "FAIL": "failed",
    "PRUNED": "pruned",
}


@dataclass(frozen=True)
class Trial:
    """One point of the space, as the ledger keeps it."""

    number: int
    """Optuna's."""
    point: int
    """The place among the sweep's points, from 0; a trial that is tried again keeps it."""
    state: State
    value: float | None
    params: Mapping[str, Any]
    algorithm: str
    runs: Mapping[str, str]
    """Seed as text (`none` where no seed matters) to training digest."""
    merges: Sequence[str]
    """The labels of the merged models that were asked for."""
    reason: Mapping[str, str] | None
    """Of a failure: `kind` and `message`."""


class Ledger:
    """One generation of a sweep: an Optuna study."""

    def __init__(self, study: Study, name: str, generation: int) -> None:
        self.study = study
        self.name = name
        self.generation = generation

    @classmethod
    def create(
        cls,
        home: Home,
        name: str,
        generation: int,
        *,
        goal: Literal["minimize", "maximize"],
        spec: Mapping[str, Any],
    ) -> Ledger:
        """Begin a generation; its first attribute is the sweep as plain data."""
        import optuna

        study = optuna.create_study(
            storage=storage(home), study_name=study_name(name, generation), direction=goal
        )
        study.set_user_attr("generation", generation)
        study.set_user_attr("spec", dict(spec))
        return cls(study, name, generation)

    @classmethod
    def newest(cls, home: Home, name: str) -> Ledger | None:
        """The latest whole generation of a sweep, None when it was never run in this home."""
        import optuna

        if not home.optuna.exists():
            return None
        opened = storage(home)
        for generation in sorted(generations(opened, name), reverse=True):
            study = optuna.load_study(study_name=study_name(name, generation), storage=opened)
            if "spec" in study.user_attrs:  # a crash in `create` leaves one without
                return cls(study, name, generation)
        return None

    @property
    def spec(self) -> Mapping[str, Any]:
        """The sweep as plain data, as it was last run."""
        spec: Mapping[str, Any] = self.study.user_attrs["spec"]
        return spec

    def extend(self, spec: Mapping[str, Any]) -> None:
        """The sweep goes on with a changed file."""
        self.study.set_user_attr("spec", dict(spec))

    def remember(self, key: str, value: Any) -> None:
        """Keep plain data with the generation."""
        if self.study.user_attrs.get(key) != value:
            self.study.set_user_attr(key, value)

    def recall(self, key: str, default: Any = None) -> Any:
        """What `remember` kept."""
        return self.study.user_attrs.get(key, default)

    def trials(self) -> list[Trial]:
        """The newest trial at each point, by point; lost proposals are nobody's."""
        found: dict[int, Trial] = {}
        for frozen in self.study.get_trials(deepcopy=False):
            if "point" in frozen.user_attrs:
                trial = _trial(frozen)
                found[trial.point] = trial
        return [found[point] for point in sorted(found)]

    def propose(
        self,
        point: int,
        *,
        stored: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
    ) -> Trial:
        """Add a running trial, with everything known of it, in one transaction.

        Optuna's own `ask` writes the trial first and its parameters later: a crash in between
        leaves a trial that nobody can go on with.
        """
        from optuna.trial import TrialState, create_trial

        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(stored),
                distributions={name: distributions[name] for name in stored},
                user_attrs={"point": point, **attributes, PROPOSED: True},
            )
        )
        return next(trial for trial in self.trials() if trial.point == point)

    def complete(self, number: int, value: float) -> None:
        """The trial has its value."""
        self.study.tell(number, value)

    def fail(self, number: int, kind: str, message: str) -> None:
        """The trial has none, and why."""
        self._fail(number, kind, message)

    def reconcile(self) -> int:
        """Give up trials that were asked and never proposed; how many there were.

        A trial that was proposed is still running, whoever ran it: it goes on under its number.
        """
        from optuna.trial import TrialState

        lost = [
            frozen.number
            for frozen in self.study.get_trials(states=[TrialState.RUNNING, TrialState.WAITING])
            if not frozen.user_attrs.get(PROPOSED)
        ]
        for number in lost:
            self._fail(number, LOST, "the driver ended before the point was known")
        return len(lost)

    def _fail(self, number: int, kind: str, message: str) -> None:
        from optuna.trial import TrialState

        trial = self.study.get_trials(deepcopy=False)[number]
        # The storage itself: a Trial object would draw again from the sampler.
        self.study._storage.set_trial_user_attr(
            trial._trial_id, "reason", {"kind": kind, "message": message}
        )
        self.study.tell(number, state=TrialState.FAIL)


def storage(home: Home) -> RDBStorage:
    """Optuna's database in the home, created quietly. Raises RequestError when it is another's."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _check(home.optuna)
    with waiting(home.optuna.with_name("optuna.db.lock")):
        return optuna.storages.RDBStorage(
            f"sqlite:///{home.optuna.absolute()}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}},
        )


def study_name(name: str, generation: int) -> str:
    """`kl_weight`, then `kl_weight@2` and so on."""
    return name if generation == 1 else f"{name}@{generation}"


def generations(opened: RDBStorage, name: str) -> list[int]:
    """The generations of a sweep."""
    found = []
    for study in opened.get_all_studies():
        match = re.fullmatch(rf"{re.escape(name)}(?:@(\d+))?", study.study_name)
        if match:
            found.append(int(match[1] or 1))
    return found


def _check(file: Path) -> None:
    from carft_core.errors import RequestError

    try:
        with file.open("rb") as opened:
            head = opened.read(16)
    except FileNotFoundError:
        return
    if head and head != b"SQLite format 3\0":
        raise RequestError(f"{file} is not an SQLite database; move it away")


def _trial(frozen: FrozenTrial) -> Trial:
    attributes = frozen.user_attrs
    return Trial(
        number=frozen.number,
        point=attributes["point"],
        state=_STATES[frozen.state.name],
        value=frozen.value,
        params=attributes.get("params", frozen.params),
        algorithm=attributes.get("algorithm", ""),
        runs=attributes.get("runs", {}),
        merges=attributes.get("merges", ()),
        reason=attributes.get("reason"),
    )
