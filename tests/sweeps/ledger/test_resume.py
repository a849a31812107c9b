"""Going on with a sweep by its name: as it was run, from anywhere, with more trials, or again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.base import Handler
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import DRIVER, Claim, Limits, holder, limits_of
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import Lease
from carft_sweep.sweeps.scheduler.session import SweepResult, Syncs, drive_sweep
from carft_sweep.sweeps.spec.spec import SweepSpec
from carft_sweep.sweeps.spec.user_code import vet_of
from tests.sweeps import toy_core
from tests.sweeps.conftest import Carft, ToySweep
from tests.sweeps.scheduler.dying import Crash, crash

LEFT = [{"do": "raise", "error": "request"}] * 9
"""What leaves a run to be done each time."""


def resume(*more: str) -> int:
    return main(["resume", "toy", "--in-process", *more])


def test_a_sweep_that_is_done_or_of_which_too_little_is_kept_says_so(
    toy_cli: ToySweep, carft: Carft
) -> None:
    toy_cli.command()
    printed = carft("resume", "toy")
    ended = "toy has nothing left to do: 2 of 2 trials have ended"
    assert printed == (f"{ended}. The result: carft-sweep compare toy\n", "")
    again = carft("run", toy_cli.file(), "--in-process", "--json")
    assert carft("resume", "toy", "--json").json == again.json
    file = toy_cli.file(parameters={"algorithm.kl_weight": {"values": [7.0]}})
    printed = carft("resume", "toy")
    assert "nothing left to do" in printed.out
    assert f"{file} has changed since; " in printed.out
    assert "no sweep 'toi'" in carft("resume", "toi", code=2).err
    (toy_cli.home.sweep("toy") / "sweep.yaml").unlink()
    assert "run its file instead: carft-sweep run FILE" in carft("resume", "toy", code=2).err


def test_a_paused_sweep_goes_on_as_it_began_or_by_its_limits(
    toy_cli: ToySweep, carft: Carft
) -> None:
    toy_cli.run()
    with Claim(folder := toy_cli.home.sweep("toy")):
        carft("pause", "toy")
        refusal = carft("resume", "toy", "--failed", "--parallel", 7, "--json", code=2).err
        assert "toy is paused, and goes on as it began: leave --failed, --json out" in refusal
        driver = holder(folder)
        assert driver is not None
        assert limits_of(folder, driver) == Limits(is_paused=True)
        carft("resume", "toy", "--parallel", 7)
        assert limits_of(folder, driver) == Limits(parallel=7)


def test_what_a_driver_that_was_killed_at_its_end_had_not_sent_is_sent(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Syncs, "end_driver", crash)
        with pytest.raises(Crash):
            toy_cli.command()
    file = toy_cli.home.sweep("toy") / DRIVER
    Lease("here", 1, None, "of a process that is dead", since=0.0, renewed=0.0).write(file)
    (sweep,) = (run for key, run in toy_cli.tracker.runs.items() if key.kind == "sweep")
    assert sweep.state == "running"
    assert resume() == 0
    assert sweep.state == "finished"
    assert not file.exists()


def test_a_nan_is_tried_again_only_when_that_is_asked(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.plan({"0.1/0": [{"do": "raise", "error": "nan"}]})
    toy_cli.command(baselines=[])
    printed = carft("resume", "toy").out
    assert "nothing left to do: 1 of 2 trials" in printed
    assert "1 failed; to try them again: carft-sweep resume toy --failed" in printed
    assert toy_cli.values()[0.1] is None
    assert resume("--failed") == 0
    assert toy_cli.values()[0.1] == pytest.approx(0.785)
    assert "nothing left to do" in carft("resume", "toy", "--failed").out


CHANGED = '{"name": "toy", "parameters": {"algorithm.kl_weight": {"values": [7.0]}}}'


@pytest.mark.parametrize("now", [None, "name: [", CHANGED], ids=["gone", "broken", "changed"])
def test_what_was_left_over_is_done_as_it_was_run_whatever_has_become_of_its_file(
    toy_cli: ToySweep, carft: Carft, now: str | None
) -> None:
    toy_cli.plan({"0.3/1": LEFT[:1]})
    toy_cli.command("--set", "baselines=[]")
    file = toy_cli.folder / "toy.yaml"
    if now is None:
        file.unlink()
    else:
        file.write_text(now)
    printed = carft("resume", "toy").err
    if now is not None:
        assert f"{file} has changed since; the sweep goes on with the file as it was run" in printed
        assert f"carft-sweep run {file}" in printed
    assert ("is gone" in printed) == (now is None)
    assert "[4/4] car_ft kl_weight=0.3 seed 1  done" in printed
    assert toy_cli.values() == {0.1: pytest.approx(0.785), 0.3: pytest.approx(0.805)}
    assert len(toy_cli.tracked()) == 4


def test_the_working_folder_of_the_run_is_taken_up_and_left_again(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, carft: Carft
) -> None:
    origin, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    origin.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(origin)
    toy_cli.plan({"0.3/1": LEFT[:2]})
    toy_cli.command(baselines=[])
    monkeypatch.chdir(elsewhere)
    seen: list[Path] = []

    def watched(*args: Any, **named: Any) -> SweepResult:
        seen.append(Path.cwd())
        return drive_sweep(*args, **named)

    monkeypatch.setattr("carft_sweep.sweeps.api.drive_sweep", watched)
    assert resume() == 0
    assert seen == [origin]
    assert Path.cwd() == elsewhere
    origin.rmdir()
    assert "is gone, where the sweep was run" in carft("resume", "toy").err


def test_what_was_imported_is_imported_again_but_nothing_that_lies_in_the_home(
    toy_cli: ToySweep, tmp_path: Path, carft: Carft
) -> None:
    """Who can write a home makes its ledger name such a module."""
    plugin = tmp_path / "carft_toy_plugin.py"
    plugin.write_text("LOADED = True\n")
    toy_cli.plan({"0.3/1": LEFT[:2]})
    toy_cli.command("--import", str(plugin), baselines=[])
    assert Invocation.last(toy_cli.ledger()).imports == (str(plugin.resolve()),)
    assert resume() == 0
    assert Invocation.last(toy_cli.ledger()).imports == (str(plugin.resolve()),)
    plugin.unlink()
    folder, ran = toy_cli.home.sweep("toy"), toy_cli.folder / "ran"
    with pytest.raises(RequestError, match="does not exist"):
        Invocation.last(toy_cli.ledger()).load(folder, vet_of(toy_cli.home))
    planted = toy_cli.home.path / "carft_toy_planted.py"
    planted.write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    ledger = toy_cli.ledger()
    ledger.execute({**ledger.executions[-1], "imports": [str(planted)]})
    assert (
        f"{planted} is not imported, though the home {toy_cli.home.path} names it: it lies in the "
        "home. If you trust it: --trust-home"
    ) in carft("resume", "toy", "--in-process", code=2).err
    assert not ran.exists()
    assert resume("--trust-home") == 0
    assert ran.exists()


class Chosen:
    """Stands for `choose`: what it was asked for, and what was kept when the engine ran."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.engine, self.timeout, self.address = "", 0.0, ""
        self.kept: Invocation | None = None

    def __call__(self, spec: SweepSpec, **options: Any) -> InProcessEngine:
        self.engine, self.timeout = spec.engine, spec.timeout or 0.0
        self.address = options["address"]
        chosen = self

        class Engine(InProcessEngine):
            def run(self, handler: Handler) -> None:
                chosen.kept = Invocation.last(find_ledger(chosen.home, "toy"))
                super().run(handler)

        return Engine(toy_core.ENTRY)


@pytest.fixture
def chosen(toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch) -> Chosen:
    """Each execution of `toy` leaves a run to be tried again."""
    seen = Chosen(toy_cli.home)
    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", seen)
    toy_cli.plan({"0.3/1": LEFT})
    return seen


def test_engine_timeout_and_address_are_kept_before_anything_runs_and_used_again(
    toy_cli: ToySweep, chosen: Chosen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def took() -> tuple[str, float, str | None]:
        return chosen.engine, chosen.timeout, chosen.address

    by_ray = ("--engine", "ray", "--timeout", "2h", "--set", "timeout=1h")
    toy_cli.command(*by_ray, "--address", "head:6379")
    assert chosen.kept is not None
    assert chosen.kept.address == "head:6379"
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "head:6379")
        assert resume() != 2
    assert took() == ("ray", 7200, "head:6379")
    assert resume("--trust-home") != 2
    assert (took(), chosen.kept.address) == (("ray", 7200, "head:6379"), "head:6379")
    resume("--address", "other:6379")
    assert took() == ("ray", 7200, "other:6379")
    for options in (["--engine", "local", "--timeout", "90m"], []):
        resume(*options)
        assert took() == ("local", 5400, None)
    resume("--engine", "ray", "--address", "local")
    assert took() == ("ray", 5400, "local")
    toy_cli.command()
    assert (took(), chosen.kept.address) == (("auto", 0, None), None)
    resume()
    assert chosen.address is None
    before = Invocation("f.yaml", overrides=("seeds=2", "run_cap=3", " run_cap =4"))
    assert before.with_override("run_cap", 9).overrides == ("seeds=2", "run_cap=9")


def test_a_cluster_that_only_the_home_names_is_sent_nothing_and_no_password_is_kept(
    toy_cli: ToySweep, chosen: Chosen, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    """Ray sends its token to whom it connects to, and the home may be another's archive."""
    toy_cli.command("--address", "head:6379")
    chosen.address = "none"
    assert (
        f"the Ray cluster head:6379 is named by the home {toy_cli.home.path} alone, and would be "
        "sent your token: if it is yours, --address head:6379 (or RAY_ADDRESS, or --trust-home); "
        "--address local starts a Ray here"
    ) in carft("resume", "toy", "--in-process", code=2).err
    monkeypatch.setenv("RAY_ADDRESS", "mine:6379")
    assert resume() == 2
    assert chosen.address == "none"
    toy_cli.command("--address", "auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert resume() != 2
    assert chosen.address == "auto"
    toy_cli.command("--address", "me:SECRET@head:6379")
    assert chosen.address == "me:SECRET@head:6379"
    files = [path.read_bytes() for path in toy_cli.home.path.rglob("*") if path.is_file()]
    assert not any(b"SECRET" in content for content in files)


@pytest.mark.usefixtures("chosen")
def test_what_to_type_after_an_interruption_names_the_cluster(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    words = ("run", toy_cli.file(), "--in-process", "--address", "head:6379")
    main([*map(str, words)])
    monkeypatch.setattr("carft_sweep.sweeps.cli.run.run_with_services", interrupted)
    assert "To go on: carft-sweep resume toy --address head:6379" in carft(*words, code=3).err
