"""The copy of what runs were measured to: used while the files are the same, else never."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import user_cache, write_json
from carft_sweep.sweeps.ledger import runs as run_files
from carft_sweep.sweeps.results import measurements
from carft_sweep.sweeps.results.measurements import Measurements

LABELS = ("unmerged", "wise_ft@0.5")
FACTS = {"model": "b" * 64, "images": {"id/val": 200}, "transform": "Transform(size=32)"}


def evaluation(value: float, **metrics: float) -> dict[str, Any]:
    own = {"id/val/top1": value, "ood/mean/top1": value / 3, **metrics}
    return {"digest": "d", "label": "", "step": 0, "values": {}, "metrics": own, "facts": FACTS}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three measured runs, and one that was not; every new file is kept."""
    monkeypatch.setattr(measurements, "MOST_NEW", 1)
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "cache"))
    folders = [tmp_path / "runs" / name for name in ("one", "two", "three", "unmeasured")]
    for number, folder in enumerate(folders[:-1]):
        for label in LABELS:
            write(folder, label, evaluation(0.1 * number + 0.07))
    return folders


def write(folder: Path, label: str, content: Mapping[str, Any]) -> Path:
    file = folder / "evaluations" / label / "metrics.json"
    write_json(file, content)
    return file


def read(folders: list[Path]) -> list[Mapping[str, Any] | None]:
    """What a comparison reads, which keeps what was new."""
    measurements = Measurements(folders[0].parent, "toy")
    evaluations = [measurements.of(folder.name, label) for folder in folders for label in LABELS]
    measurements.keep()
    return [one and {"metrics": {**one["metrics"]}, "facts": one["facts"]} for one in evaluations]


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are parsed from now on."""
    names: list[str] = []

    def noted(folder: str, label: str) -> Mapping[str, Any] | None:
        names.append(f"{Path(folder).name}/{label}")
        return run_files.measured(folder, label)

    monkeypatch.setattr(measurements, "measured", noted)
    return names


def cache_file() -> Path:
    (file,) = (user_cache() / "measurements").iterdir()
    return file


def test_a_second_look_parses_nothing_and_finds_the_same(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, names = read(folders), parsed(monkeypatch)
    second = read(folders)
    assert names == ["unmeasured/unmerged", "unmeasured/wise_ft@0.5"]
    assert second == first
    assert json.dumps(second) == json.dumps(first)  # in the same order, and to the last digit
    assert first[0] == {"metrics": evaluation(0.07)["metrics"], "facts": FACTS}


def test_the_seconds_of_training_are_a_metric_of_the_unmerged_model(folders: list[Path]) -> None:
    first, second, *_ = folders
    write_json(first / "trained.json", {"seconds": 12.5})
    (second / "trained.json").write_text("torn")  # its results are there all the same
    for _ in ("read", "kept"):
        seconds = [one and one["metrics"].get("system/train_seconds") for one in read(folders)]
        assert seconds == [12.5, None, None, None, None, None, None, None]


def test_a_file_that_was_replaced_is_read_again(folders: list[Path]) -> None:
    read(folders)
    write(folders[1], "unmerged", evaluation(0.9))
    replaced = read(folders)[2]
    assert replaced is not None
    assert replaced["metrics"]["id/val/top1"] == 0.9


def test_runs_with_other_metrics_or_whole_numbers_keep_theirs(folders: list[Path]) -> None:
    write(folders[0], "unmerged", evaluation(0.5, **{"train/loss": 2.5}))
    write(folders[1], "unmerged", evaluation(0.5, **{"system/parameters": 3}))
    first, second = read(folders), read(folders)
    assert json.dumps(second) == json.dumps(first)
    assert '"system/parameters": 3}' in json.dumps(second)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_damaged_copy_is_made_anew(
    folders: list[Path], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(folders)
    whole = cache_file().read_bytes()
    cache_file().write_bytes(content or whole[: len(whole) // 2])
    assert read(folders) == first
    names = parsed(monkeypatch)
    assert read(folders) == first
    assert {name.partition("/")[0] for name in names} == {"unmeasured"}


def test_a_damaged_file_is_named_whatever_was_kept_of_it(folders: list[Path]) -> None:
    read(folders)
    (folders[0] / "evaluations" / "unmerged" / "metrics.json").write_text('{"metrics": 1}')
    with pytest.raises(RequestError, match=r"metrics\.json is damaged"):
        read(folders)


def test_a_small_sweep_leaves_no_copy(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurements, "MOST_NEW", 100)
    read(folders)
    assert not (user_cache() / "measurements").exists()
