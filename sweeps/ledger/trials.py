"""The trials of a sweep in Optuna: proposed in one transaction, told once, reconciled."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sweeps.home import DATABASE, Home
from sweeps.ledger.storage import generations, storage, study_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState


Goal = Literal["minimize", "maximize"]
State = Literal["running", "complete", "failed", "pruned"]
PROPOSED = "proposed"
LOST = "proposal_lost"
_STATES: Mapping[str, State] = {
    "RUNNING": "running",
    "WAITING": "running",
    "COMPLETE": "complete",
    "FAIL": "failed",
    "PRUNED": "pruned",
}


@contextmanager
def as_a_file() -> Iterator[None]:
    """A database that cannot be written (a full disk) raises OSError, as the journal does."""
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except StorageInternalError as error:
        said = str(getattr(error.__cause__, "orig", error))
        number = errno.ENOSPC if "disk is full" in said else errno.EIO
        raise OSError(number, said, DATABASE) from error


@dataclass(frozen=True)
class Trial:
    """One point of the space, as the ledger keeps it."""

    number: int
    """Optuna's."""
    point: int
    """The place among the sweep's points, from 0; a trial that is tried again keeps it."""
    state: State
    values: tuple[float, ...]
    """One for each goal when it is complete; else none."""
    params: Mapping[str, Any]
    algorithm: str
    runs: Mapping[str, str]
    """Seed as text (`none` where no seed matters) to training digest."""
    merges: Sequence[str]
    """The labels of the merged models that were asked for."""
    reason: Mapping[str, str] | None
    """Why it failed or was pruned: `kind` and `message`."""
    untrained: bool = False
    """Its runs have seeds for their splits alone."""
    result: str | None = None
    """The epoch that its runs are measured at, `last` or `best_val`; None: an older one."""

    @property
    def value(self) -> float | None:
        """By the first goal."""
        return self.values[0] if self.values else None


class Listener(Protocol):
    """Whoever keeps what changes for commands that only read (`sweeps.ledger.snapshot`)."""

    def attributes(self, attributes: Mapping[str, Any]) -> None:
        """The sweep remembers these."""

    def trial(self, trial: Trial) -> None:
        """A trial was proposed or has changed."""


class Ledger:
    """One generation of a sweep: an Optuna study. One driver at a time writes to it.

    What writes raises OSError where the database cannot be written.
    """

    def __init__(self, study: Study, name: str, generation: int) -> None:
        self.study = study
        self.name = name
        self.generation = generation
        self.mirror: Listener | None = None
        """Told of every change once it is durable."""
        self._newest: dict[int, Trial] | None = None

    @classmethod
    @as_a_file()
    def create(
        cls,
        home: Home,
        name: str,
        generation: int,
        *,
        goals: Sequence[Goal],
        spec: Mapping[str, Any],
    ) -> Ledger:
        """Begin a generation; its first attribute is the sweep as plain data."""
        import optuna

        study = optuna.create_study(
            storage=storage(home),
            study_name=study_name(home, name, generation),
            directions=[*goals],
        )
        study.set_user_attr("generation", generation)
        study.set_user_attr("spec", dict(spec))
        return cls(study, name, generation)

    @classmethod
    def newest(cls, home: Home, name: str) -> Ledger | None:
        """The latest whole generation of a sweep, None when it was never run in this home."""
        import optuna

        if not home.has_trials:
            return None
        opened = storage(home)
        for generation in sorted(generations(opened, home, name), reverse=True):
            study = optuna.load_study(study_name=study_name(home, name, generation), storage=opened)
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
        self.remember("spec", dict(spec))

    @as_a_file()
    def remember(self, key: str, value: Any) -> None:
        """Keep plain data with the generation."""
        if self.study.user_attrs.get(key) != value:
            self.study.set_user_attr(key, value)
            if self.mirror is not None:
                self.mirror.attributes({key: value})

    def recall(self, key: str, default: Any = None) -> Any:
        """What `remember` kept."""
        return self.study.user_attrs.get(key, default)

    def trials(self) -> list[Trial]:
        """The newest trial at each point, by point; lost proposals are nobody's."""
        if self._newest is None:
            found = map(_trial, self.study.get_trials(deepcopy=False))
            self._newest = {trial.point: trial for trial in found if trial is not None}
        return [self._newest[point] for point in sorted(self._newest)]

    def trial(self, point: int) -> Trial:
        """The newest trial at a point. Raises KeyError when there is none."""
        if self._newest is None:
            self.trials()
        return (self._newest or {})[point]

    @as_a_file()
    def propose(
        self,
        point: int,
        *,
        stored: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
        system_attrs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Trial:
        """Add a running trial, with everything known of it, in one transaction.

        Optuna's own `ask` writes the trial first and its parameters later: a crash in between
        leaves a trial that nobody can go on with. `system_attrs` are the sampler's own notes.
        """
        from optuna.trial import TrialState, create_trial

        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=dict(stored),
                distributions={name: distributions[name] for name in stored},
                user_attrs={"point": point, **attributes, PROPOSED: True},
                system_attrs=dict(system_attrs),
            )
        )
        trial = self._changed(len(self.study.get_trials(deepcopy=False)) - 1)
        if trial is None:
            raise RuntimeError("another process writes to the study of a sweep that is ours")
        return trial

    @as_a_file()
    def report(self, number: int, epoch: int, value: float) -> None:
        """Keep the value that a running trial has after so many epochs.

        With several goals nothing is kept: Optuna knows one such value only.
        """
        if len(self.study.directions) == 1:
            self.study._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    @as_a_file()
    def complete(self, number: int, values: Sequence[float]) -> None:
        """The trial has its values, one for each goal."""
        self.study.tell(number, list(values))
        self._changed(number)

    def prune(self, number: int, kind: str, message: str) -> None:
        """The trial was not worth going on with, and why."""
        from optuna.trial import TrialState

        self._end(number, TrialState.PRUNED, kind, message)

    def fail(self, number: int, kind: str, message: str) -> None:
        """The trial has no value, and why."""
        from optuna.trial import TrialState

        self._end(number, TrialState.FAIL, kind, message)

    def reconcile(self) -> int:
        """Give up trials that were asked and never proposed; how many there were.

        A trial that was proposed is still running, whoever ran it: it goes on under its number.
        """
        from optuna.trial import TrialState

        lost = [
            frozen.number
            for frozen in self.study.get_trials(
                deepcopy=False, states=[TrialState.RUNNING, TrialState.WAITING]
            )
            if not frozen.user_attrs.get(PROPOSED)
        ]
        for number in lost:
            self.fail(number, LOST, "the driver ended before the point was known")
        return len(lost)

    @as_a_file()
    def _end(self, number: int, state: TrialState, kind: str, message: str) -> None:
        # The storage itself: a Trial object would draw again from the sampler.
        self.study._storage.set_trial_user_attr(
            self._id(number), "reason", {"kind": kind, "message": message}
        )
        self.study.tell(number, state=state)
        self._changed(number)

    def _id(self, number: int) -> int:
        storage, study = self.study._storage, self.study._study_id
        return storage.get_trial_id_from_study_id_trial_number(study, number)

    def _changed(self, number: int) -> Trial | None:
        """The trial as it is now, None when it was never proposed; the mirror learns of it."""
        trial = _trial(self.study._storage.get_trial(self._id(number)))
        if trial is not None:
            if self._newest is not None:
                self._newest[trial.point] = trial
            if self.mirror is not None:
                self.mirror.trial(trial)
        return trial


def _trial(frozen: FrozenTrial) -> Trial | None:
    """None for a trial that was never proposed."""
    attributes = frozen.user_attrs
    if "point" not in attributes:
        return None
    state = _STATES[frozen.state.name]
    return Trial(
        number=frozen.number,
        point=attributes["point"],
        state=state,
        values=tuple(frozen.values) if state == "complete" else (),
        params=attributes.get("params", frozen.params),
        algorithm=attributes.get("algorithm", ""),
        runs=attributes.get("runs", {}),
        merges=attributes.get("merges", ()),
        reason=attributes.get("reason"),
        untrained=attributes.get("untrained", False),
        result=attributes.get("result"),
    )
