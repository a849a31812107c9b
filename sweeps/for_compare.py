"""What a sweep leaves on its tracking server, so that `compare --tracking-uri` needs no home."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from carft_core.files import read_json, write_json
from sweeps.home import Home
from sweeps.mirror import view
from sweeps.parts import CONFIG, judging
from sweeps.plan import Task, merge_labels
from sweeps.records import measured, records
from sweeps.runs import Runs
from tracking import kept_results
from tracking.fields import scalar
from tracking.kept_results import OWN, RESULT, RULE, SETTINGS
from tracking.records import RunRecord


class ForCompare:
    """The files and tags of one sweep, of which `folder` is the home's."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._home = Home(folder.parents[1])

    def tags(self) -> dict[str, str]:
        """Of the sweep: how it judges. Nothing where the ledger has no mirror."""
        kept = view(self._home, self._name)
        return {} if kept is None else {RULE: json.dumps(judging(kept.spec).plain())}

    def settings(self) -> Path | None:
        """The list of the sweep's runs as they are now; None where the ledger has no mirror."""
        kept = view(self._home, self._name)
        if kept is None:
            return None
        found = records(kept, Runs(self._home.runs))
        write_json(self._folder / SETTINGS, kept_results.settings(found, kept.generation))
        return self._folder / SETTINGS

    @contextmanager
    def result(self, task: Task, folder: Path) -> Iterator[Path]:
        """All that was measured of a finished run, from its folder; gone when it is told."""
        labels = (OWN, *merge_labels(task.config))
        found = {label: item for label in labels if (item := measured(folder, label))}
        claimed: Mapping[str, object] = read_json(folder / CONFIG) or {}
        params = {name: scalar(value) for name, value in task.params.items()}
        record = RunRecord(
            task.algorithm, params, task.seed, task.digest, "done", task.role, task.trial
        )
        with TemporaryDirectory() as place:
            file = Path(place) / RESULT
            file.write_text(json.dumps(kept_results.result(record, claimed, found)))
            yield file
