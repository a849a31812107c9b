"""What is made of a sweep's results at its end: comparison, page, and the selected model's files.

A warm worker makes page and model: it has loaded torch, open_clip and the data, which the driver
need not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import write_json, write_text
from carft_sweep.sweeps.engines.base import Engine, Errands, Job
from carft_sweep.sweeps.engines.factory import workers_here
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.trials import Ledger, find_ledger
from carft_sweep.sweeps.results.artifacts import COMPARED
from carft_sweep.sweeps.results.export import Exporter, SelectedModel, unkept_model
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.results.report import keep
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps
from carft_sweep.tracking.report.calibration import calibrate
from carft_sweep.tracking.report.formats import markdown, to_csv, to_json
from carft_sweep.tracking.report.table import TableOptions

if TYPE_CHECKING:
    from carft_sweep.sweeps.engines.entry import Report
    from carft_sweep.sweeps.spec.spec import SweepSpec
    from carft_sweep.tracking.comparison.compare import Comparison

PAGE, EXPORT = "page", "export"


def write_comparison(folder: Path, part: SweepRuns) -> Comparison:
    """Compare the runs of a sweep, and write that into its folder, for people and programs."""
    compared, sentences = calibrate(compare_sweeps([part]), part.fields)
    options = TableOptions(calibration=sentences)
    table, rows, plain = COMPARED
    write_text(folder / table, markdown(compared, options=options))
    write_text(folder / rows, to_csv(compared, options=options))
    write_json(folder / plain, to_json(compared, options=options))
    return compared


class Ending:
    """Maker of a sweep's page and of its selected model's export, in workers of this machine.

    Of what no worker could make this process makes the page at once, and the export where it is
    asked for. `note` is called with what went wrong.
    """

    def __init__(self, home: Home, spec: SweepSpec, note: Callable[[str], None]) -> None:
        self._home, self._spec, self._note = home, spec, note
        self._scratch = TemporaryDirectory(prefix="carft-export-")
        self._errands = Errands(())

    def close(self) -> None:
        """Remove the export, unless it was taken."""
        self._scratch.cleanup()

    def make(self, engine: Engine, ledger: Ledger, compared: Comparison, *, page: bool) -> None:
        """Make the page, with `page`, and an export of the selected model that MLflow lacks."""
        jobs = [*(self._pages(ledger) if page else ()), *self._exports(ledger, compared)]
        self._errands = Errands(jobs)
        if jobs:
            with workers_here(engine) as workers:
                if workers is not None:
                    workers.run(self._errands)
        if page:
            drawn = self._errands.results.get(PAGE)
            if drawn is None:
                keep(self._home, ledger, compared, self._note)
            else:
                for text in drawn["notes"]:
                    self._note(text)

    def write(self, models: Exporter, model: SelectedModel, folder: Path) -> None:
        """Provide the export of the selected model as `folder`. Raises as `Exporter.write`."""
        failure = self._errands.failures.get(EXPORT)
        if failure is not None and failure.kind == "data":
            raise RequestError(failure.message)
        result = self._errands.results.get(EXPORT)
        if result is None:
            models.write(model, folder)
        else:
            Path(result["folder"]).rename(folder)

    def _pages(self, ledger: Ledger) -> Iterator[Job]:
        home = self._home.absolute()
        order = {"home": str(home.path), "is_trusted": home.is_trusted, "sweep": ledger.name}
        yield self._job(PAGE, "draw_page", order)

    def _exports(self, ledger: Ledger, compared: Comparison) -> Iterator[Job]:
        if not self._spec.report.model:
            return
        with suppress(Exception):  # whoever asks for the model is told of it
            unkept = unkept_model(self._home, self._spec, ledger, compared)
            if unkept is None:
                return
            models, model = unkept.exporter, unkept.model
            order = {
                "name": ledger.name,
                "run": str(models.folder(model).absolute()),
                "config": models.config(model).as_dict(),
                "label": model.label,
                "rows": [asdict(row) for row in models.rows(model)],
            }
            yield self._job(EXPORT, "export_model", order)

    def _job(self, name: str, entry: str, order: Mapping[str, Any]) -> Job:
        return Job(
            digest=name,
            label=f"the {name} of {self._spec.name}",
            config=order,
            seed=0,
            workdir=str(Path(self._scratch.name, name)),
            imports=self._spec.imports,
            entry=f"{__name__}:{entry}",
        )


def get_ready() -> None:
    """Import what `draw_page` will need, and start what draws its figures."""
    from carft_sweep.tracking.charts import start_drawing

    start_drawing()


def draw_page(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any]:
    """Write the page of the sweep `sweep` in `home`; an entry. Return what there is to note."""
    del seed, report, workdir
    home, notes = Home(Path(config["home"]), is_trusted=config["is_trusted"]), list[str]()
    ledger = find_ledger(home, config["sweep"])
    keep(home, ledger, comparison(ledger, RunStore(home.runs)), notes.append)
    return {"notes": notes}


def export_model(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any]:
    """Export a model of the run in the folder `run`; an entry. Return the folder of the export.

    Raises RequestError as `carft_core.export`.
    """
    from carft_sweep.carft_core.config import trial_config
    from carft_sweep.carft_core.export import MeasuredRow, export

    del seed, report
    folder = workdir / config["name"]
    export(
        Path(config["run"]),
        trial_config(config["config"]),
        folder,
        label=config["label"],
        rows=[MeasuredRow(**row) for row in config["rows"]],
    )
    return {"folder": str(folder)}
