"""The ledger is one file to which lines are added: what is in memory is what anybody reads."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import (
    LEDGER_FILE,
    Ledger,
    find_ledger,
    newest_generation,
    read_generations,
    sweep_folder,
    sweep_names,
)

GOAL = {"name": "id/val/top1", "goal": "maximize"}
SPEC: dict[str, Any] = {"name": "toy", "seeds": [0], "metric": GOAL, "parameters": {}}
EXECUTION: dict[str, Any] = {"file": "/toy.yaml", "overrides": [], "imports": [], "tags": {}}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


@pytest.fixture
def ledger(home: Home) -> Ledger:
    return begin(home)


def begin(
    home: Home, name: str = "toy", generation: int = 1, *earlier: Ledger, **changes: Any
) -> Ledger:
    return Ledger.create(home.sweep(name), generation, {**SPEC, **changes}, EXECUTION, earlier)


def propose(ledger: Ledger, point: int, lr: float = 0.1, **more: Any) -> int:
    params = {"optim.lr": lr, "prompts": ["a", 'of "them"\n\u2028']}
    setting = {"params": params, "algorithm": "car_ft", "runs": {"0": "d"}, "merges": ["m@0.5"]}
    return ledger.add_trial(point, setting, **more).number


def contents(ledger: Ledger) -> str:
    """All that a ledger holds, as text, in which NaN equals NaN."""
    held = {name: value for name, value in vars(ledger).items() if name != "file"}
    return str({**held, "earlier": [contents(earlier) for earlier in ledger.earlier]})


def read(home: Home, name: str = "toy") -> Ledger:
    """Read the ledger as the next process does."""
    return find_ledger(home, name)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("propose"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("report"), st.integers(1, 5), st.floats()),
        st.tuples(st.just("complete"), FLOATS),
        st.tuples(st.just("fail"), st.text(max_size=8)),
        st.tuples(st.just("prune"), st.text(max_size=8)),
        st.tuples(st.just("remember"), st.sampled_from("ab"), FLOATS),
        st.tuples(st.just("extend"), st.integers(0, 3)),
        st.tuples(st.just("execute"), st.integers(0, 3)),
        st.tuples(st.just("create")),
    ),
    max_size=14,
)


def apply(home: Home, ledger: Ledger, changes: list[Any]) -> Ledger:
    """Make changes to a ledger; its newest generation."""
    running: list[int] = []
    for kind, *args in changes:
        match kind:
            case "propose":
                point, is_noted = args
                running.append(propose(ledger, point, sampler={"g": 1} if is_noted else None))
            case "remember":
                ledger.remember(args[0], {"deep": [args[1], None]})
            case "extend":
                ledger.extend({**SPEC, "run_cap": args[0]})
            case "execute":
                ledger.execute({**EXECUTION, "overrides": [f"seeds={args[0]}"]})
            case "create":
                earlier = (*ledger.earlier, ledger)
                ledger, running = begin(home, "toy", ledger.generation + 1, *earlier), []
            case _ if not running:
                continue
            case "report":
                ledger.report(running[-1], *args)
            case "complete":
                ledger.complete(running.pop(), [args[0], -args[0]])
            case "fail":
                ledger.fail(running.pop(), "crashed", args[0])
            case "prune":
                ledger.prune(running.pop(), "asha", args[0])
    return ledger


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES)
def test_after_any_changes_a_reader_sees_what_the_driver_has_in_memory(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Any]
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    ledger = apply(home, begin(home), changes)
    assert contents(read(home)) == contents(ledger)
    generations = [stored.generation for stored in read_generations(ledger.file)]
    assert generations == [*range(1, ledger.generation + 1)]


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, share=st.floats(0, 1))
def test_a_crash_at_any_byte_leaves_the_changes_before_it_and_the_next_driver_goes_on(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Any], share: float
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    file = apply(home, begin(home), changes).file
    data = file.read_bytes()
    head = data.index(b"\n") + 1
    cut = head + round(share * (len(data) - head))
    whole = data[: data[:cut].rfind(b"\n") + 1]
    file.write_bytes(whole)
    expected = contents(read(home))
    file.write_bytes(data[:cut])
    later = read(home)
    assert contents(later) == expected
    assert file.read_bytes() == data[:cut], "who only reads changes nothing"
    later.remember("later", 1)
    assert file.read_bytes() == whole + b'{"facts":{"later":1}}\n'
    assert contents(read(home)) == contents(later)


@pytest.mark.parametrize("written", [1, 30, -1])
def test_a_sweep_whose_first_line_is_torn_was_never_begun(home: Home, written: int) -> None:
    file = begin(home).file
    first = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(first[:written])
    assert newest_generation(home, "toy") is None
    again = begin(home)
    assert file.read_bytes().startswith(first[:12])
    assert contents(read(home)) == contents(again)


def test_a_trial_ends_once(ledger: Ledger) -> None:
    number = propose(ledger, 0)
    ledger.complete(number, [0.5])
    before = ledger.file.read_bytes()
    for end, args in (
        (ledger.complete, [[0.6]]),
        (ledger.fail, ["crashed", "m"]),
        (ledger.prune, ["asha", "m"]),
    ):
        with pytest.raises(ValueError, match="trial 0 has ended already: complete"):
            end(number, *args)
    assert ledger.file.read_bytes() == before


def test_a_point_tried_again_is_its_newest_trial_under_a_new_number(ledger: Ledger) -> None:
    ledger.fail(propose(ledger, 0), "crashed", "m")
    assert [propose(ledger, point) for point in (1, 0)] == [1, 2]
    assert [(t.point, t.number) for t in ledger.trials()] == [(0, 2), (1, 1)]
    states = [(trial.point, trial.state) for trial in ledger.proposals()]
    assert states == [(0, "failed"), (1, "running"), (0, "running")]


def test_each_change_is_one_line_behind_the_others(ledger: Ledger) -> None:
    before = ledger.file.read_bytes()
    ledger.complete(propose(ledger, 0), [0.5])
    ledger.remember("merges", ["wise_ft@0.5"])
    ledger.remember("merges", ["wise_ft@0.5"])  # no news
    ledger.extend(dict(SPEC))  # none either
    after = ledger.file.read_bytes()
    assert after.startswith(before)
    lines = after[len(before) :].splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["trial", "trial", "facts"]


def test_a_change_is_on_the_disk_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    number = propose(ledger, 0)
    assert sizes == [ledger.file.stat().st_size]
    ledger.report(number, 1, 0.5)  # the runs' histories have it too
    assert len(sizes) == 1
    ledger.complete(number, [0.5])
    assert sizes[1:] == [ledger.file.stat().st_size]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_report_may_be_nan_and_a_value_not(home: Home, ledger: Ledger, value: float) -> None:
    number = propose(ledger, 0)
    ledger.report(number, 1, value)
    assert math.isnan(read(home).trials()[0].reports[1])
    before = ledger.file.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.complete(number, [value])
    assert (ledger.file.read_bytes(), ledger.trials()[0].state) == (before, "running")


def changes_of(ledger: Ledger, number: int) -> list[Callable[[], object]]:
    """Everything that writes, with a running trial's number."""
    return [
        lambda: propose(ledger, 1),
        lambda: ledger.report(number, 1, 0.5),
        lambda: ledger.complete(number, [0.5]),
        lambda: ledger.fail(number, "nan", "m"),
        lambda: ledger.prune(number, "asha", "m"),
        lambda: ledger.remember("key", 1),
        lambda: ledger.extend({**SPEC, "run_cap": 9}),
        lambda: ledger.execute(EXECUTION),
    ]


def assert_refused(ledger: Ledger, expected: int) -> None:
    """No change is taken, and neither the file nor what is in memory has any of it."""
    file, held = ledger.file.read_bytes(), contents(ledger)
    for change in changes_of(ledger, 0):
        with pytest.raises(OSError, match=LEDGER_FILE) as raised:
            change()
        assert raised.value.errno == expected
        assert (ledger.file.read_bytes(), contents(ledger)) == (file, held)


class Short(io.FileIO):
    """A file on a disk with room for ten bytes more."""

    def write(self, data: Any) -> int:
        return super().write(data[:10])


@pytest.mark.parametrize("fault", ["short write", "failed write", "failed sync"])
def test_a_full_disk_is_an_os_error_and_leaves_the_ledger_as_it_was(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    propose(ledger, 0)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if fault == "failed sync":
            patch.setattr(os, "fsync", full)
            patch.setattr(Ledger, "report", lambda *args: Ledger._write(args[0], {}))
        else:
            kind = Short if fault == "short write" else type("Full", (io.FileIO,), {"write": full})
            patch.setattr("carft_sweep.carft_core.files.FileIO", kind)
        assert_refused(ledger, errno.ENOSPC)
    ledger.complete(0, [0.5])
    assert contents(read(home)) == contents(ledger)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write every file")
def test_a_ledger_that_may_not_be_written_is_an_os_error(ledger: Ledger) -> None:
    propose(ledger, 0)
    ledger.file.chmod(0o400)
    assert_refused(ledger, errno.EACCES)


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b"\xff\xfe",
        b"[1]",
        b'{"what":1}',
        b'{"trial":{"number":1,"point":1,"params":{},"algorithm":"a","runs":{},"merges":[],'
        b'"priority":1}}',
        b'{"trial":{"number":7}}',
        b'{"trial":{"number":0,"colour":"red"}}',
        b'{"report":[9,1,0.5]}',
        b'{"facts":{},"spec":{}}',
        b"",
        b"[" * 100_000,
        b'{"begin":{"generation":1,"spec":{},"began":1e300}}',
        b'{"spec":{"seeds":[0.5]}}',
        b'{"facts":{"merges":["../../x"]}}',
        b'{"facts":{"merges":["' + b"x" * 300 + b'"]}}',
        b'{"facts":{"outcome":{"state":"finished"}}}',
        b'{"facts":{"baselines":[{"algorithm":"zero_shot","params":{},"runs":{"0":"../x"}}]}}',
        b'{"trial":{"number":0,"ended":1.0,"state":"complete","values":[1e999]}}',
        b'{"trial":{"number":0,"ended":1.0,"state":"failed","reason":{"kind":"nan"}}}',
        b'{"trial":{"number":1,"point":1,"params":{},"algorithm":"a","runs":{"x":"d"},"merges":[]}}',
    ],
)
def test_a_damaged_line_is_named(home: Home, ledger: Ledger, line: bytes) -> None:
    propose(ledger, 0)
    before = ledger.file.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*before, line, b"\n", b'{"facts":{"key":1}}\n'])
    ledger.file.write_bytes(damaged)
    with pytest.raises(RequestError) as raised:
        read(home)
    message, is_newer = str(raised.value), b"priority" in line or b"what" in line
    assert message.startswith(f"{ledger.file}:{len(before) + 1} is damaged (")
    assert "cut the file there, or move it away" in message
    assert ("if a newer carft-sweep wrote it, upgrade" in message) == is_newer
    assert ledger.file.read_bytes() == damaged
    ledger.file.write_bytes(b"".join(before))  # what the message says
    assert contents(read(home)) == contents(ledger)


def test_a_ledger_that_does_not_begin_with_a_generation_is_told(home: Home, ledger: Ledger) -> None:
    begun = ledger.file.read_bytes()
    ledger.file.write_bytes(b"")
    with pytest.raises(RequestError, match=r"toy has not begun: .*ledger\.jsonl holds nothing"):
        read(home)
    ledger.file.write_bytes(b'{"facts":{"key":1}}\n' + begun)
    with pytest.raises(RequestError, match=r"ledger\.jsonl:1 is damaged"):
        read(home)


def test_sweeps_are_apart_and_an_unknown_one_names_near_ones(home: Home, ledger: Ledger) -> None:
    begin(home, "toy.2")
    begin(home, "toy2", 4)
    (home.sweeps / "no sweep").mkdir()
    assert sweep_names(home) == ["toy", "toy.2", "toy2"]
    assert read(home).generation == ledger.generation == 1
    assert read(home, "toy2").generation == 4
    for unknown in (find_ledger, sweep_folder):
        with pytest.raises(RequestError, match=r"no sweep 'toi' in .*; did you mean 'toy'\?"):
            unknown(home, "toi")
    with pytest.raises(RequestError, match=r"no sweep 'x' in .*; Known: toy, toy\.2, toy2\."):
        find_ledger(home, "x")
    with pytest.raises(
        RequestError, match=r"give the name of a sweep, not its file\. Known: toy, "
    ):
        find_ledger(home, "my.yaml")
    with pytest.raises(RequestError, match="there is no home"):
        find_ledger(Home(home.path / "nowhere"), "toy")
