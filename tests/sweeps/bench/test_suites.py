"""Every suite does the work of both sides and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carft_sweep.sweeps.bench import data, photographs, shards, sweeping
from carft_sweep.sweeps.bench.measurement import Effort, Measurement
from carft_sweep.sweeps.bench.recording import measure_recording
from carft_sweep.sweeps.bench.starting import measure_starts
from carft_sweep.sweeps.bench.training import measure_runs, measure_steps

QUICK = Effort(1, quick=True)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data, photographs, shards, sweeping):
        monkeypatch.setattr(module, "QUICK_IMAGES", 10)


def lines(measure: Callable[[Effort], Iterator[Measurement]]) -> dict[str, Measurement]:
    """What a suite yields, by name and floor."""
    measured = {f"{line.name} / {line.floor_name}": line for line in measure(QUICK)}
    for line in measured.values():
        assert len(line.floor) == len(line.ours) == 1
        assert min(*line.floor, *line.ours) > 0
    return measured


@pytest.mark.usefixtures("cache")
def test_photographs_are_loaded_trained_on_and_evaluated() -> None:
    loaded = lines(data.measure_data)
    assert len(loaded) == 7
    assert "2 JPEGs of 2048 x 1536, decode reduced / decode full" in loaded
    assert [*lines(photographs.measure_photographs)] == [
        "train on 10 JPEGs / wise-ft's loop",
        "evaluate 11 alphas on 10 JPEGs / wise-ft's loop",
    ]


@pytest.mark.usefixtures("cache")
def test_shards_hold_the_images_of_the_folders(tmp_path: Path) -> None:
    folders, packed = tmp_path / "folders", tmp_path / "shards"
    data.make(folders, 5)
    shards.pack(folders, packed, 2)
    assert len([*packed.glob("train/*.tar")]) == 2
    of_folders, of_shards = (
        {
            (image.numpy().tobytes(), int(label))
            for images, labels in data.load_ours(place, "evaluation", 0)(0)
            for image, label in zip(images, labels, strict=True)
        }
        for place in (folders, packed)
    )
    assert len(of_folders) == 5
    assert of_shards == of_folders


@pytest.mark.usefixtures("cache")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of files left open
def test_shards_are_loaded_beside_webdataset() -> None:
    pytest.importorskip("webdataset", reason="pip install webdataset")
    assert [*lines(shards.measure_shards)][:2] == [
        "10 JPEGs in tar shards, 0 workers / webdataset, tar shards",
        "10 JPEGs in folders, 0 workers / webdataset, tar shards",
    ]


def test_without_webdataset_nothing_is_measured_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WEBDATASET", "not_installed")
    assert not [*shards.measure_shards(QUICK)]


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("measure", "count"),
    [(measure_steps, 3), (measure_runs, 2), (measure_recording, 1), (measure_starts, 3)],
)
def test_every_other_suite_measures(
    measure: Callable[[Effort], Iterator[Measurement]], count: int
) -> None:
    assert len(lines(measure)) == count


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("ray")
def test_sweeps_are_measured_on_both_engines_beside_both_floors() -> None:
    measured = lines(sweeping.measure_sweeps)
    assert len(measured) == 7
    assert f"sweep on 10 JPEGs, engine local / {sweeping.STOCK_PUBLISHED}" in measured
