"""Broken sweep and family files: each is refused with its line and the remedy, and nothing else
happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.config.trial import field_names
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.space.parameters import DISTRIBUTIONS, KEYS
from carft_sweep.sweeps.spec.normalize import IGNORED, TRIAL_KEYS
from carft_sweep.sweeps.spec.normalize import KEYS as TOP_KEYS
from carft_sweep.sweeps.spec.settings import EARLY_TERMINATION, RaceSeeds, Resources, Retries
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec, recipes
from carft_sweep.sweeps.spec.user_code import register_family

FOLDER = Path(__file__).parent / "broken"

BROKEN: dict[str, dict[str, Any]] = yaml.safe_load(FOLDER.with_suffix(".yaml").read_text())
"""By what is wrong: the text of a file, unless YAML cannot hold it, whether that is of a family,
what its message says, and in how many lines where nothing else may be said: not what only follows
from the mistake.
"""


def message_of(name: str, folder: Path) -> str:
    """What is said of a broken file."""
    file = FOLDER / f"{name}.yaml"
    if "text" in BROKEN[name]:
        file = folder / file.name
        file.write_text(BROKEN[name]["text"])
    read = register_family if BROKEN[name].get("family") else load_spec
    with pytest.raises(RequestError) as caught:
        read(file)
    return str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line_and_its_remedy(name: str, tmp_path: Path) -> None:
    message = message_of(name, tmp_path)
    for fragment in BROKEN[name]["says"]:
        assert fragment in message
    lines = message.splitlines()
    assert all(line.startswith(f"{name}.yaml:") for line in lines)
    assert len(lines) == BROKEN[name].get("lines", len(lines)), message


def test_all_mistakes_come_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    message = message_of("many_mistakes", tmp_path)
    lines = [int(line.split(":")[1]) for line in message.splitlines()]
    assert lines == sorted(lines)
    assert set(lines) == {1, 2, 3, 4, 6, 7, 9}


def test_what_is_no_file_or_too_large_a_one_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "learning.yaml").write_text("name: learning\n")
    thousand, huge = tmp_path / "x" / "x.yaml", tmp_path / "x" / "huge.yaml"
    thousand.parent.mkdir()
    thousand.write_text("\n".join(f"nonsense_{index}: 1" for index in range(1000)))
    huge.write_text("# " + "x" * (1 << 20))
    refused: dict[str | Path, str] = {
        thousand: "and more mistakes",
        huge: "larger than 1 MiB",
        tmp_path: r"is a folder, not a sweep file; in it: learning\.yaml",
        tmp_path / "lerning.yaml": r"did you mean '.*/learning\.yaml'\?",
        "/dev/zero": "is not a regular file",
        "kl_wieght": "did you mean 'kl_weight'",
        "zzz.yml": "Known: autoft, .*, wilds. Or the path of a file.",
        "zzz": r"unknown sweep file 'zzz'; Known: .*, kl_weight, ",
        "x" * 5000: "sweep file",
        "a\0b": "sweep file",
    }
    for path, pattern in refused.items():
        with pytest.raises(RequestError, match=pattern):
            load_spec(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.yaml"


def outcome(file: Path, overrides: Sequence[str] = ()) -> SweepSpec | str:
    """A sweep, or the message of a RequestError; whatever else is raised fails the test."""
    try:
        return load_spec(file, overrides)
    except RequestError as error:
        return str(error)


@given(text=st.one_of(st.text(), st.text("abn: -[]{}&*!|>'\"#%@\n\t<0.e1,?", max_size=60)))
@settings(max_examples=80, deadline=None)
def test_any_text_is_a_sweep_or_a_wrong_request(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert outcome(file)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_slip_is_a_sweep_or_a_wrong_request(file: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(sorted(recipes().values()))).read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    signs = st.sampled_from(["", " ", "\n", "\t", "- ", ": ", "&a ", "*a", "<<"])
    slip = data.draw(st.one_of(signs, st.text(max_size=5)))
    file.write_bytes((text[:start] + slip + text[end:]).encode("utf-8", "surrogatepass"))
    assert outcome(file)


WORDS = sorted(
    {*TOP_KEYS, *TRIAL_KEYS, *field_names(), *KEYS, *DISTRIBUTIONS}
    | {*IGNORED, *Resources.model_fields}
    | {key for model in EARLY_TERMINATION.values() for key in model.model_fields}
    | {*RaceSeeds.model_fields, *Retries.model_fields}
    | {"median", "asha", "threshold", "2h30m", "env:HOOK", "ray", "local", "nsga2"}
    | {"name", "goal", "merge", "within", "oracle", "lr", "tpe", "random", "car_ft", "fine_tune"}
    | {"zero_shot", "wise_ft", "alphas", "wise_ft@0.5", "id/val/top1", "icon_shift", "~nobody/x"}
)
NUMBERS = st.one_of(st.integers(-2, 3), st.integers(), st.floats())
TEXTS = st.one_of(st.sampled_from(WORDS), st.text(max_size=5))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=12,
)
# A module that is imported may do anything, so none is drawn.
DRAWN_KEYS = sorted({*TOP_KEYS} - {"import"})


@given(tree=st.dictionaries(st.sampled_from(DRAWN_KEYS), TREES))
@settings(max_examples=80, deadline=None)
def test_any_data_is_a_sweep_or_a_wrong_request(file: Path, tree: dict[str, Any]) -> None:
    trial = {"algorithm": "car_ft"} if tree.get("trial") is None else tree["trial"]
    file.write_text(yaml.safe_dump({"name": "fuzz", **tree, "trial": trial}))
    assert outcome(file)


@given(key=st.sampled_from([*WORDS, *(f"parameters.{word}" for word in WORDS)]), value=SCALARS)
@settings(max_examples=60, deadline=None)
def test_any_override_is_a_sweep_or_a_wrong_request(key: str, value: object) -> None:
    result = outcome(recipes()["kl_weight"], [f"{key}={value}"])
    if isinstance(result, str):
        assert f"--set {key}=" in result
    else:
        assert result.overrides == (f"{key}={value}",)
