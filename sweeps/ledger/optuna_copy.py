"""The Optuna study of a sweep: a projection of its ledger, for optuna-dashboard and Optuna's plots.

Nothing is read back from it: a study that is missing, behind, or another's work is written anew.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import append_lines, atomic_file
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import undriven
from carft_sweep.sweeps.ledger.ledger import Ledger, Trial, find_ledger
from carft_sweep.sweeps.ledger.status import goals, source_of
from carft_sweep.sweeps.space.distributions import Distribution
from carft_sweep.sweeps.space.parameters import parse_parameter
from carft_sweep.tracking.database import (
    Database,
    connect_args,
    inspect_database,
    parse_url,
    set_aside_if_damaged,
)
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.location import home_id, network_file_system, sqlite_file, waiting

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

STORAGE_VARIABLE = "CARFT_OPTUNA_STORAGE"
DATABASE, JOURNAL = "optuna.db", "optuna.journal"
_ID_LENGTH = 12
"""Characters of a home's id, 48 bits, that tell homes apart in one database."""
_BUSY_SECONDS = 60
"""Seconds for which SQLite waits for another process's transaction."""
_STATES = {"running": "RUNNING", "complete": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}

logger = logging.getLogger(__name__)


def study_file(home: Home) -> Path:
    """Return the file of a home's studies where no URL is named: an Optuna journal on a network
    file system, where SQLite loses data."""
    return home.path / (JOURNAL if network_file_system(home.path) else DATABASE)


def named_database() -> Database | None:
    """Return the database of CARFT_OPTUNA_STORAGE, None if unset. Raises TrackingError for an
    invalid URL."""
    uri = os.environ.get(STORAGE_VARIABLE, "").strip()
    if not uri:
        return None
    url = parse_url(uri, STORAGE_VARIABLE)
    if url.get_backend_name() == "sqlite" and sqlite_file(uri) is None:
        raise TrackingError(
            f"{STORAGE_VARIABLE} names a database in memory: write sqlite:////path/to/file"
        )
    return Database(uri, "Optuna's database", STORAGE_VARIABLE)


def check_storage() -> None:
    """Raise RequestError or TrackingError if CARFT_OPTUNA_STORAGE can never hold the studies."""
    database = named_database()
    file = None if database is None else sqlite_file(database.uri)
    kind = None if file is None else network_file_system(file)
    if kind is not None:
        raise RequestError(
            f"{STORAGE_VARIABLE} names {file} on a network file system ({kind}), where SQLite "
            "loses data; name a database server, or none: a home there has a file that is safe"
        )


def open_storage(home: Home) -> BaseStorage:
    """Return the storage of a home's studies, created if missing. Raises RequestError where the
    database is MLflow's or another program's, and any error of Optuna and SQLAlchemy where the
    database cannot be used."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database, file = named_database(), study_file(home)
    if database is None and file.name == JOURNAL:
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        # Not its lock by symbolic link: SMB has none.
        lock = JournalFileOpenLock(str(file))
        if file.exists():
            lock.acquire()
            try:
                append_lines(file, [])  # cuts what a killed driver left of its last line
            finally:
                lock.release()
        return optuna.storages.JournalStorage(JournalFileBackend(str(file), lock))
    uri = f"sqlite:///{file.absolute()}" if database is None else database.uri
    place = sqlite_file(uri)
    kwargs: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}}
    if database is not None:
        check_storage()
        if place is None:
            url = parse_url(uri, database.variable)
            kwargs = {"connect_args": connect_args(url), "pool_pre_ping": True, "pool_size": 1}
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
        if place is None or place.exists():
            _check_owner(database)
    if place is not None and not place.exists():
        _create_database(place)
    return optuna.storages.RDBStorage(_escaped(uri), engine_kwargs=kwargs)


def _create_database(file: Path) -> None:
    """Create a database with Optuna's tables, and move the complete database to `file`. A process
    killed between two tables would leave out the index that keeps studies' names unique."""
    from optuna.storages import RDBStorage

    with waiting(file.with_name(f".lock-{file.name}")):
        if not file.exists():
            for left in file.parent.glob(f".{file.name}.*"):  # by a process that was killed here
                left.unlink()
            with atomic_file(file) as new:
                RDBStorage(_escaped(f"sqlite:///{new}")).engine.dispose()


def _escaped(uri: str) -> str:
    """Return a URI with escaped braces, in which Optuna would substitute values."""
    return uri.replace("{", "{{").replace("}", "}}")


def _check_owner(database: Database) -> None:
    tables = inspect_database(database)
    if tables.is_mlflows:
        raise RequestError(
            f"{database} is MLflow's (it has its tables of runs or of users): Optuna needs one of "
            f"its own, name another one in {database.variable}"
        )
    if tables.revision is not None and not tables.is_optunas:
        raise RequestError(
            f"{database} belongs to another program (it has a table alembic_version): name one "
            f"for Optuna alone in {database.variable}"
        )


def study_name(home: Home, name: str, generation: int) -> str:
    """Return the name of a generation's study: `kl_weight`, then `kl_weight@2` and so on. In a
    database that several homes may share, the home's id comes first: `3fa9c2d1b04e/`."""
    prefix = "" if named_database() is None else f"{home_id(home.path)[:_ID_LENGTH]}/"
    return f"{prefix}{name}" + ("" if generation == 1 else f"@{generation}")


def remove_studies(home: Home, name: str, generations: int) -> None:
    """Remove the studies of a sweep's generations 1 to `generations`, where they exist. Raises any
    error of the storage."""
    storage = open_storage(home)
    for generation in range(1, generations + 1):
        with suppress(KeyError):
            study = storage.get_study_id_from_name(study_name(home, name, generation))
            storage.delete_study(study)


def frozen_trial(
    trial: Trial,
    parameters: Sequence[Distribution],
    goal_count: int,
    distributions: Mapping[str, BaseDistribution] | None = None,
) -> FrozenTrial:
    """Return a trial of the ledger as Optuna has it, in a sweep of `goal_count` goals. A caller
    with many trials gives `distributions`, the `parameters` as Optuna's."""
    from optuna.trial import FrozenTrial, TrialState

    from carft_sweep.sweeps.space.samplers import encode, optuna_distributions

    params = encode(parameters, trial.params)
    if distributions is None:
        distributions = optuna_distributions(parameters)
    facts = {"point": trial.point, "algorithm": trial.algorithm, "params": dict(trial.params)}
    facts |= {"runs": dict(trial.runs), "merges": list(trial.merges)}
    if trial.reason is not None:
        facts["reason"] = dict(trial.reason)
    # With several goals Optuna takes no value of an epoch.
    reports = dict(trial.reports) if goal_count == 1 else {}
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=TrialState[_STATES[trial.state]],
        value=None,
        values=_values(trial, reports),
        datetime_start=datetime.fromtimestamp(trial.began),
        datetime_complete=None if trial.ended is None else datetime.fromtimestamp(trial.ended),
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=facts,
        system_attrs=dict(trial.sampler),
        intermediate_values=reports,
    )


def _values(trial: Trial, reports: Mapping[int, float]) -> list[float] | None:
    """Return the values of a complete trial, of a pruned one its last report, as Optuna's `tell`
    has it; else None."""
    if trial.state == "complete":
        return [*trial.values]
    last = reports[max(reports)] if reports else math.nan
    return [last] if trial.state == "pruned" and math.isfinite(last) else None


class StudySync:
    """Keeps the Optuna studies of a sweep's generations up to date with its ledger."""

    def __init__(self, home: Home, ledger: Ledger) -> None:
        self._home, self._ledger = home, ledger
        self._study: _Study | None = None

    def update(self) -> bool:
        """Write into the Optuna study what it lacks of the ledger: trials, values, states; return
        True. Raises any error of the storage; the next call compares study and ledger anew."""
        study, self._study = self._study or self._open(), None
        study.update()
        self._study = study  # after an error it is compared with the ledger again
        return True

    def _open(self) -> _Study:
        storage = open_storage(self._home)
        for earlier in self._ledger.earlier:
            _Study(storage, self._home, earlier).update()
        return _Study(storage, self._home, self._ledger)


def lacking_trials(home: Home, ledger: Ledger) -> int:
    """Return how many trials of a sweep are missing in its studies, or have another state there.
    Raises any error of the storage."""
    every = (*ledger.earlier, ledger)
    if named_database() is None and not study_file(home).exists():
        return sum(generation.next_number for generation in every)
    storage, lacking = open_storage(home), 0
    for generation in every:
        written = {}
        with suppress(KeyError):
            name = study_name(home, ledger.name, generation.generation)
            study = storage.get_study_id_from_name(name)
            trials = storage.get_all_trials(study, deepcopy=False)
            written = {trial.number: trial.state.name for trial in trials}
        states = ((trial.number, _STATES[trial.state]) for trial in generation.proposals())
        lacking += sum(written.get(number) != state for number, state in states)
    return lacking


def mend_studies(home: Home, name: str) -> int:
    """Write what is missing in the studies of a sweep without a driver, or everything if the home's
    own database is damaged. Return the number of trials written. Raises RequestError while a driver
    runs, and any error of the storage."""
    with undriven(home.sweep(name)):
        if named_database() is None and study_file(home).name == DATABASE:
            set_aside_if_damaged(study_file(home))
        ledger = find_ledger(home, name)
        lacking = lacking_trials(home, ledger)
        StudySync(home, ledger).update()
    return lacking


class _Study:
    def __init__(self, storage: BaseStorage, home: Home, ledger: Ledger) -> None:
        from carft_sweep.sweeps.space.samplers import optuna_distributions

        self._storage, self._ledger = storage, ledger
        self._parameters = parameters_of(ledger.spec)
        self._distributions = optuna_distributions(self._parameters)
        self._directions = [goal["goal"] for goal in goals(ledger.spec)]
        self._name = study_name(home, ledger.name, ledger.generation)
        self._study = self._open_study()
        self._id = self._study._study_id

    def update(self) -> None:
        from optuna.exceptions import ExperimentalWarning
        from optuna.trial import TrialState

        names = [goal["name"] for goal in goals(self._ledger.spec)]
        if self._study.metric_names != names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(names)
        for key, value in (("generation", self._ledger.generation), ("spec", self._ledger.spec)):
            if self._study.user_attrs.get(key) != value:
                self._study.set_user_attr(key, value)
        states = (TrialState.RUNNING,)
        running = self._storage.get_all_trials(self._id, deepcopy=False, states=states)
        for written in running:
            self._catch_up(written, self._frozen(self._ledger.proposal(written.number)))
        for number in range(self._storage.get_n_trials(self._id), self._ledger.next_number):
            # Not by the study, whose storage would keep every trial in memory.
            frozen = self._frozen(self._ledger.proposal(number))
            self._storage.create_new_trial(self._id, template_trial=frozen)

    def _catch_up(self, written: FrozenTrial, wanted: FrozenTrial) -> None:
        """Update an unfinished trial of the study to the state of the ledger's trial."""
        trial_id = written._trial_id
        for epoch, value in wanted.intermediate_values.items():
            # A mean over more seeds replaces that of fewer. As text, since NaN is not equal to NaN.
            if str(written.intermediate_values.get(epoch)) != str(value):
                self._storage.set_trial_intermediate_value(trial_id, epoch, value)
        if wanted.state.is_finished():
            if "reason" in wanted.user_attrs:
                self._storage.set_trial_user_attr(trial_id, "reason", wanted.user_attrs["reason"])
            self._storage.set_trial_state_values(trial_id, wanted.state, wanted.values)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        goal_count = len(self._directions)
        frozen = frozen_trial(trial, self._parameters, goal_count, self._distributions)
        source = source_of(self._ledger.spec, trial)
        if source is not None:
            frozen.set_user_attr("from", source)
        return frozen

    def _open_study(self) -> Study:
        """Return the study of this ledger, whichever trials it has, or a new study."""
        import optuna

        directions = self._directions
        place: Any = {"storage": self._storage, "study_name": self._name}
        study = optuna.create_study(**place, directions=directions, load_if_exists=True)
        trials = self._ledger.proposals()
        # Not by the study, whose cache would keep them in memory.
        stored = self._storage.get_all_trials(study._study_id, deepcopy=False)
        agree = [direction.name.lower() for direction in study.directions] == directions
        if agree and len(stored) <= len(trials) and all(map(self._agrees, stored, trials)):
            return study
        logger.info("the study %s is not that of the ledger; it is written anew", self._name)
        optuna.delete_study(**place)
        return optuna.create_study(**place, directions=directions)

    def _agrees(self, stored: FrozenTrial, trial: Trial) -> bool:
        wanted = self._frozen(trial)
        if stored.params != wanted.params or stored.user_attrs.get("point") != trial.point:
            return False
        if not stored.state.is_finished():
            return stored.intermediate_values.keys() <= wanted.intermediate_values.keys()
        if (stored.state, stored.values) != (wanted.state, wanted.values):
            return False
        reports = (str(sorted(trial.intermediate_values.items())) for trial in (stored, wanted))
        return len({*reports}) == 1


def parameters_of(spec: Mapping[str, Any]) -> list[Distribution]:
    """Return the search space of a sweep, made from the sweep's plain data."""
    return [parse_parameter(name, data) for name, data in spec["parameters"].items()]
