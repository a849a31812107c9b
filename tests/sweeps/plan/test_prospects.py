"""What stands between a sweep and a verdict is said before it runs, with what would help."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import pytest

from carft_sweep.sweeps.plan.prospects import Obstacle, find_obstacles
from tests.sweeps.conftest import SEARCH, Carft, ToySweep

SHIFTED = ("id/test", "ood/dark")
BOTH = ("fine_tune", "car_ft")


def obstacles(seeds: Sequence[int] = range(5), **changes: Any) -> list[Obstacle]:
    usual = {"algorithms": BOTH, "splits": SHIFTED}
    return list(find_obstacles(seeds=seeds, **{**usual, **changes}))


@pytest.mark.parametrize(
    ("seeds", "override", "runs"),
    [([0, 1, 2], "seeds=5", 10), ([0], "seeds=5", 20), ([7, 9], "seeds=[7,9,10,11,12]", 15)],
)
def test_lacking_seeds_come_with_their_runs(seeds: list[int], override: str, runs: int) -> None:
    (obstacle,) = obstacles(seeds, settings=5)
    assert (obstacle.override, obstacle.runs) == (override, runs)
    number = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    remedy = f"`--set {shlex.quote(override)}` adds {runs} runs"
    message = f"{number}: no verdict is possible (5 needed); {remedy}"
    assert obstacle.describe() == message
    assert obstacle.describe("4 min") == f"{message}, about 4 min"


def test_fresh_seeds_are_the_ones_that_count_where_there_are_some() -> None:
    assert obstacles([0], confirm_seeds=range(1, 6)) == []
    (obstacle,) = obstacles(range(5), confirm_seeds=[5, 6], settings=9)
    assert obstacle.reason == "2 fresh seeds: no verdict is possible (5 needed)"
    assert (obstacle.override, obstacle.runs) == ("confirm_seeds=[5,6,7,8,9]", 6)


def test_what_else_is_lacking() -> None:
    for algorithms, splits, start in (
        (["car_ft"], SHIFTED, "no fine_tune among the algorithms: no verdict is possible"),
        (["fine_tune"], SHIFTED, "fine_tune is the only algorithm that trains"),
        (BOTH, ["id/test"], "no shift is measured: a verdict says nothing of robustness"),
        (BOTH, [], "neither a shift nor a test split is measured: no verdict is possible"),
    ):
        (obstacle,) = obstacles(algorithms=algorithms, splits=splits)
        assert obstacle.describe().startswith(start)
        assert obstacle.describe() == f"{obstacle.reason}; {obstacle.remedy}"
    assert obstacles() == obstacles(splits=["ood/sketch"]) == [], "shifts are enough"


def test_check_says_it_with_the_time_where_that_is_known(toy_cli: ToySweep, carft: Carft) -> None:
    words = ["check", str(toy_cli.file())]
    obstacle = "! 2 seeds: no verdict is possible (5 needed); `--set seeds=5` adds 9 runs"
    assert carft(*words).out.splitlines()[0] == obstacle
    toy_cli.run()
    assert carft(*words).out.startswith(f"{obstacle}, about ")
    plan = carft(*words, "--set", "seeds=5", "--json").json
    assert plan["power"].startswith(
        "5 seeds and 400 groups of shifted test images find a true OOD difference of 1.7 pp in 80 %"
    )
    assert (plan["warnings"], plan["to_train"]) == ([], 9)


def test_of_a_search_without_baselines_there_is_nothing_to_compare_with(toy: ToySweep) -> None:
    toy.run(**{**SEARCH, "seeds": 5, "run_cap": 1})
    assert any(line.startswith("no fine_tune among the algorithms") for line in toy.lines)


def test_the_end_names_the_command_for_a_verdict(
    toy_cli: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_cli.home.sweep("toy").mkdir(parents=True)
    page = toy_cli.home.sweep("toy") / "report.html"
    page.write_text("")
    file = str(toy_cli.file())
    sets = ["--set", "parallel=1", "--set", "seeds=3"]
    assert carft("run", file, "--in-process", *sets).err.splitlines()[-4:] == [
        f"Report: {page}",
        "All sweeps: carft-sweep ui",
        "3 seeds: no verdict is possible (5 needed). With 6 more runs it is:",
        f"  carft-sweep run {file} --set parallel=1 --set seeds=5",
    ]
    monkeypatch.setenv("CARFT_SUBMITTED", "carft-sweep submit tiny.yaml --home /shared")
    assert carft("run", file, "--in-process", "--set", "seeds=5").err.splitlines()[-1:] == [
        "  carft-sweep submit tiny.yaml --home /shared --set seeds=5 --set confirm_seeds=5"
    ]
    monkeypatch.delenv("CARFT_SUBMITTED")
    assert carft("run", file, "--in-process", "--set", "seeds=5").err.splitlines()[-2:] == [
        "To judge what was chosen on seeds that no choice has seen:",
        f"  carft-sweep run {file} --set seeds=5 --set confirm_seeds=5",
    ]
    alone = ["--set", "baselines=[zero_shot]", "--set", "seeds=3"]
    assert carft("run", file, "--in-process", *alone).err.splitlines()[-3:-1] == [
        "no fine_tune among the algorithms: no verdict is possible, since there is nothing to "
        "compare with; add fine_tune to `baselines`.",
        "3 seeds: no verdict is possible (5 needed). With 4 more runs there are enough:",
    ]
    fresh = ["--set", "seeds=5", "--set", "confirm_seeds=5"]
    last = carft("run", file, "--in-process", *fresh).err.splitlines()[-1]
    assert last == "All sweeps: carft-sweep ui"
