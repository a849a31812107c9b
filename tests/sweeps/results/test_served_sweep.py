"""What MLflow's own client finds about a sweep to somebody who knows nothing of this program."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carft_sweep.sweeps.results.sync import sync_sweep
from carft_sweep.tracking.location import EXPERIMENT
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from tests.sweeps.results.troubled import MadeSweep

ALPHAS = {0.0: 0.1, 0.25: 0.2, 0.5: 0.4, 1.0: 0.3}
"""To the OOD mean of the interpolated model; at 1 that of the run itself."""


@dataclass
class Served:
    """A finished sweep of one run in a database of MLflow's."""

    client: MlflowClient
    experiment: str

    @property
    def run(self) -> Run:
        (run,) = self.search("tags.`carft.kind` = 'run'")
        return run

    def search(self, query: str) -> list[Run]:
        return [*self.client.search_runs([self.experiment], query)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    made = MadeSweep(folder)
    made.start(made.propose())
    made.ledger.remember("merges", [f"wise_ft@{alpha:g}" for alpha in ALPHAS])
    made.epoch(0)
    for _ in range(3):
        made.point(0)
    made.epoch(0)
    made.finish(0)
    for alpha, ood in ALPHAS.items():
        accuracies = {"id/val/top1": alpha, "ood/mean/top1": ood, "ood/dark/top1": ood / 2}
        evaluation = {"step": round(1000 * alpha), "values": {}, "metrics": accuracies}
        file = f"evaluations/wise_ft@{alpha:g}/metrics.json"
        made.write(0, file, {**evaluation, "digest": "e", "facts": {}})
    made.end()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    for _ in range(2):
        store = MlflowStore(uri, EXPERIMENT, folder / "artifacts")
        assert not sync_sweep(made.home, "made", store).refused
        store.close()
        for log in (made.home.sweep("made") / "sent").iterdir():
            log.unlink()  # so that all is sent again
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return Served(client, experiment.experiment_id)


def test_each_alpha_has_its_value_and_its_point_of_the_curve(served: Served) -> None:
    run = served.run
    values = run.data.metrics
    assert values["wise_ft_0.5/ood/mean/top1"] == ALPHAS[0.5]
    assert values["wise_ft_0.25/ood/mean/top1"] == ALPHAS[0.25]
    merged = {name for name in values if "wise_ft" in name and not name.startswith("curve/")}
    assert {name.partition("/")[0] for name in merged} == {"wise_ft_0.25", "wise_ft_0.5"}
    shifts = [name for name in merged if "dark" in name]
    assert shifts == ["wise_ft_0.5/ood/dark/top1"]
    history = served.client.get_metric_history(run.info.run_id, "curve/wise_ft/ood/mean/top1")
    assert {point.step / 1000: point.value for point in history} == ALPHAS


def test_runs_are_filtered_by_a_merged_value_and_by_any_field(served: Served) -> None:
    query = "metrics.`wise_ft_0.5/ood/mean/top1` > 0.35 and params.`data.family` = 'icon_shift'"
    assert [run.data.params["seed"] for run in served.search(query)] == ["0"]
    assert not served.search(query.replace("0.35", "0.45"))


def test_points_within_epochs_are_there_once_beside_the_epochs(served: Served) -> None:
    def history(name: str) -> list[tuple[int, int, float]]:
        points = served.client.get_metric_history(served.run.info.run_id, name)
        return [(point.step, point.timestamp, point.value) for point in points]

    steps = [(step, 1_700_000_000_000 + step, 1 / step) for step in (1, 2, 3)]
    assert history("train/loss_step") == steps
    assert [step for step, *_ in history("train/loss")] == [0, 1]
    cpu = history("system/cpu_utilization_percentage")
    assert [value for *_, value in cpu] == [50.0] * 3
