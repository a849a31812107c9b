"""What a sweep leaves on its server, so that a comparison needs no home."""

from __future__ import annotations

import json
from pathlib import Path

from sweeps.results.tracker import ForCompare
from tests.sweeps.conftest import ToySweep
from tracking.comparison import runs as kept_results
from tracking.comparison.runs import read_result, read_settings
from tracking.comparison.spec import read_spec
from tracking.store.base import RunKey
from tracking.store.memory_store import MemoryTracker


def test_the_sweep_tells_its_rule_and_its_runs_and_each_run_its_result(toy: ToySweep) -> None:
    toy.plan({"0.3/1": [{"do": "raise", "error": "nan"}]})
    toy.run(selection={"within": 0.01}, report={"id_margin": 0.02})
    parent = toy.tracker.runs[RunKey("toy")]
    spec = read_spec(parent.tags[kept_results.RULE])
    assert (spec.rule.within, spec.seeds, spec.endpoint.id_margin) == (0.01, (0, 1), 0.02)
    assert parent.tags[kept_results.HAS_SETTINGS] == kept_results.SETTINGS
    listed = read_settings(parent.artifacts[kept_results.SETTINGS].decode())
    assert listed is not None
    states = [(r.algorithm, r.role, r.seed, r.state) for r in listed.records]
    assert states[0] == ("zero_shot", "baseline", None, "done")
    assert states[-1] == ("car_ft", "trial", 1, "failed")
    assert len(states) == 7
    children = toy.tracked()
    child = children["car_ft kl_weight=0.3 seed 0"]
    found = read_result(child.artifacts[kept_results.RESULT].decode())
    assert found is not None
    assert found.params == {"algorithm.kl_weight": 0.3}
    assert set(found.merges) == {"wise_ft@0.5"}
    assert found.fields["optim.batch_size"] == 64
    failed = children["car_ft kl_weight=0.3 seed 1"]
    assert kept_results.HAS_RESULT not in failed.tags
    assert child.tags["carft.generation"] == "1"


def test_a_sweep_that_an_older_version_told_of_delivers_the_files_at_the_next_run(
    toy: ToySweep,
) -> None:
    toy.run()
    (book,) = toy.home.sweep("toy").glob("told/*.jsonl")
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    older = [[digest, content and content.replace("v1 ", "", 1)] for digest, content in lines]
    book.write_text("".join(f"{json.dumps(line)}\n" for line in older))
    toy.tracker = MemoryTracker()
    toy.run()
    assert all(kept_results.RESULT in child.artifacts for child in toy.tracked().values())
    assert len(toy.tracked()) == 7
    toy.tracker = MemoryTracker()
    toy.run()
    assert toy.tracker.runs == {}


def test_without_a_mirror_of_the_ledger_nothing_is_told(tmp_path: Path) -> None:
    told = ForCompare("toy", tmp_path / "home" / "sweeps" / "toy")
    assert told.tags() == {}
    assert told.settings() is None
