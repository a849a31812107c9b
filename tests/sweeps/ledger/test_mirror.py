"""What a mirror shows is what the ledger holds, and after a crash the next start mends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution

from carft_core.errors import RequestError
from sweeps.home import Home
from sweeps.ledger.snapshot import LEDGER_FILE, Mirror, View, look, view
from sweeps.ledger.trials import Ledger

ROOT = Path(__file__).parents[3]
SPEC = {"name": "toy", "seeds": [0], "metric": {"name": "id/val/top1", "goal": "maximize"}}
SPACE = {"lr": CategoricalDistribution([0.1, 0.2])}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


@pytest.fixture
def ledger(home: Home) -> Ledger:
    return begun(home)


def begun(home: Home, name: str = "toy", generation: int = 1, goals: int = 1) -> Ledger:
    """A ledger with its mirror, as a driver opens it."""
    ledger = Ledger.create(home, name, generation, goals=["maximize"] * goals, spec=SPEC)
    ledger.mirror = Mirror(home.sweep(name))
    ledger.mirror.mend(ledger)
    return ledger


def proposed(ledger: Ledger, point: int, lr: float = 0.1) -> int:
    trial = ledger.propose(
        point,
        stored={"lr": lr},
        distributions=SPACE,
        attributes={
            "params": {"optim.lr": lr, "prompts": ["a", 'of "them"\n']},
            "algorithm": "car_ft",
            "runs": {"0": "d"},
            "merges": ["wise_ft@0.5"],
        },
    )
    return trial.number


def again(home: Home, name: str = "toy") -> Ledger:
    """As the next process finds it."""
    found = Ledger.newest(home, name)
    assert found is not None
    return found


def shown(home: Home, name: str = "toy") -> View:
    found = view(home, name)
    assert found is not None
    return found


def assert_equal(home: Home, name: str = "toy") -> None:
    kept, seen = again(home, name), shown(home, name)
    assert seen.trials() == kept.trials()
    assert (seen.name, seen.generation, seen.spec) == (kept.name, kept.generation, kept.spec)
    assert dict(seen.kept) == dict(kept.study.user_attrs)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["propose", "complete", "fail", "prune", "remember"]), st.floats(0, 1)
    ),
    max_size=12,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, goals=st.integers(1, 3))
def test_after_any_changes_the_mirror_shows_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float]], goals: int
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    ledger = begun(home, goals=goals)
    running: list[int] = []
    for index, (change, number) in enumerate(changes):
        if change == "remember":
            ledger.remember(f"key {number:.0f}", {"deep": [number, None]})
        elif change == "propose" or not running:
            running.append(proposed(ledger, index % 4))
        elif change == "complete":
            ledger.complete(running.pop(), [number] * goals)
        elif change == "fail":
            ledger.fail(running.pop(), "crashed", "it broke")
        else:
            ledger.prune(running.pop(), "asha", "not in the best quarter")
    assert_equal(home)
    assert not Mirror(home.sweep("toy")).mend(again(home)), "nothing was to be mended"


def test_each_change_is_one_line_behind_the_others(home: Home, ledger: Ledger) -> None:
    file = home.sweep("toy") / LEDGER_FILE
    before = file.read_bytes()
    ledger.complete(proposed(ledger, 0), [0.5])
    ledger.remember("merges", ["wise_ft@0.5"])
    after = file.read_bytes()
    assert after.startswith(before)
    assert len(after[len(before) :].splitlines()) == 3


def test_a_rebuilt_mirror_has_no_history(home: Home, ledger: Ledger) -> None:
    for point in range(3):
        ledger.complete(proposed(ledger, point), [0.5])
    assert isinstance(ledger.mirror, Mirror)
    ledger.mirror.rebuild(ledger)
    assert len((home.sweep("toy") / LEDGER_FILE).read_text().splitlines()) == 2 + 3
    assert_equal(home)


def test_a_late_word_on_an_old_trial_does_not_replace_the_one_that_is_tried_again(
    home: Home, ledger: Ledger
) -> None:
    first = proposed(ledger, 0)
    old = shown(home).trials()[0]
    ledger.fail(first, "crashed", "m")
    second = proposed(ledger, 0)
    Mirror(home.sweep("toy")).trial(old)
    assert [trial.number for trial in shown(home).trials()] == [second]


def test_a_torn_last_line_is_not_seen_and_the_next_start_mends_it(
    home: Home, ledger: Ledger
) -> None:
    proposed(ledger, 0)
    file = home.sweep("toy") / LEDGER_FILE
    whole = file.read_bytes()
    proposed(ledger, 1)
    file.write_bytes(file.read_bytes()[:-7])
    assert [trial.point for trial in shown(home).trials()] == [0]
    assert file.read_bytes().startswith(whole)
    assert Mirror(home.sweep("toy")).mend(again(home))
    assert_equal(home)


def test_even_a_lost_line_end_is_mended_before_anything_is_put_behind_it(
    home: Home, ledger: Ledger
) -> None:
    proposed(ledger, 0)
    file = home.sweep("toy") / LEDGER_FILE
    file.write_bytes(file.read_bytes()[:-1])
    later = again(home)
    later.mirror = Mirror(home.sweep("toy"))
    assert later.mirror.mend(later)
    proposed(later, 1)
    assert_equal(home)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\n",
        b"not JSON\n",
        b"\xff\xfe\n",
        b'{"mirror":99,"sweep":"toy","generation":1}\n',
        b'{"mirror":1,"sweep":"toy","generation":1}\n',
        b'{"mirror":1,"sweep":"toy","generation":1}\n{"kept":{"spec":{}}}\n{"trial":{"point":0}}\n',
        b"[1]\n",
    ],
)
def test_a_mirror_that_cannot_be_read_is_none_and_the_database_is_asked(
    home: Home, ledger: Ledger, broken: bytes
) -> None:
    proposed(ledger, 0)
    (home.sweep("toy") / LEDGER_FILE).write_bytes(broken)
    assert view(home, "toy") is None
    found = look(home, "toy")
    assert isinstance(found, Ledger)
    assert found.trials() == ledger.trials()
    assert Mirror(home.sweep("toy")).mend(ledger)
    assert_equal(home)


def test_a_home_from_before_there_were_mirrors_is_read_from_its_database(home: Home) -> None:
    ledger = Ledger.create(home, "toy", 1, goals=["maximize"], spec=SPEC)
    ledger.mirror = Mirror(home.sweep("toy"))
    proposed(ledger, 0)  # no mirror was begun: none is written
    assert view(home, "toy") is None
    assert len(look(home, "toy").trials()) == 1


def test_a_sweep_that_is_not_there_is_no_mirror_and_named_as_unknown(home: Home) -> None:
    assert view(home, "toi") is None
    with pytest.raises(RequestError, match="no sweep 'toi' in"):
        look(home, "toi")


def test_a_new_generation_replaces_the_mirror_of_the_old_one(home: Home, ledger: Ledger) -> None:
    proposed(ledger, 0)
    begun(home, generation=2)
    assert shown(home).generation == 2
    assert shown(home).trials() == []


def test_a_full_disk_leaves_no_mirror_rather_than_half_of_one(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed(ledger, 0)
    write = os.write
    monkeypatch.setattr(
        "sweeps.ledger.snapshot.os.write", lambda file, data: write(file, data[:10])
    )
    ledger.complete(0, [0.5])
    monkeypatch.undo()
    assert view(home, "toy") is None
    assert look(home, "toy").trials()[0].value == 0.5
    assert Mirror(home.sweep("toy")).mend(again(home))
    assert_equal(home)


DRIVER = """
import os, signal, sys
from pathlib import Path
from sweeps.ledger.snapshot import Mirror
from tests.sweeps.ledger.test_mirror import Home, begun, proposed

home = Home(Path(sys.argv[1]))
ledger = begun(home)
for point in range(3):
    proposed(ledger, point)
ledger.complete(0, [0.5])

def dying(self, change):
    os.kill(os.getpid(), signal.SIGKILL)

Mirror._append = dying
ledger.{change}
"""


@pytest.mark.parametrize(
    "change",
    [
        "complete(1, [0.75])",
        "fail(1, 'crashed', 'm')",
        "prune(1, 'asha', 'm')",
        "remember('merges', ['wise_ft@0.5'])",
    ],
)
def test_a_kill_between_the_database_and_the_mirror_is_mended_by_the_next_start(
    home: Home, change: str
) -> None:
    script = DRIVER.replace("{change}", change)
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.path)], cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    lagging, kept = shown(home), again(home)
    assert (lagging.trials(), dict(lagging.kept)) != (kept.trials(), dict(kept.study.user_attrs))
    assert Mirror(home.sweep("toy")).mend(kept)
    assert_equal(home)


def test_looking_opens_neither_a_database_nor_a_heavy_package(home: Home, ledger: Ledger) -> None:
    ledger.complete(proposed(ledger, 0), [0.5])
    script = (
        "import json, sys; from pathlib import Path; from sweeps.home import Home; "
        "from sweeps.ledger.snapshot import look; found = look(Home(Path(sys.argv[1])), 'toy'); "
        "heavy = {'optuna', 'sqlalchemy', 'torch', 'numpy', 'ray', 'mlflow'} & set(sys.modules); "
        "print(json.dumps([found.trials()[0].value, sorted(heavy)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    assert found == [0.5, []]
