"""Running a sweep from Python: `from sweeps import run_sweep`, in a notebook or a script."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from carft_core.errors import RequestError
from sweeps.home import find_home
from sweeps.imports import resolve
from sweeps.performing import perform
from sweeps.progress import Plain, Quiet, to_stderr
from sweeps.session import Ended
from sweeps.spec import SweepSpec, load_spec
from sweeps.webhook import webhook_url
from tracking.compare import Comparison


class SweepFailed(RuntimeError):
    """No run of a sweep succeeded, or its breaker stopped it; the message says why."""


def run_sweep(
    sweep: str | Path | Mapping[str, Any],
    *,
    home: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    imports: Sequence[str] = (),
    address: str | None = None,
    in_process: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Run a sweep, or go on with it, and return the comparison that it ends with.

    `sweep` is a sweep file, a shipped recipe's name, or a sweep file's content as a mapping. `home`
    is the folder of state, as `--home`; `overrides` are keys of the file with other values, as
    `--set` (`{"seeds": 5, "trial.optim.epochs": 3}`); `imports`, `address`, `in_process` and
    `fresh` are as the options of `carft-sweep run`. Progress goes to standard error unless `quiet`.

    An interruption (the notebook's stop button) ends the sweep after its epoch and returns what
    there is so far, with a warning; the same call goes on. Raises RequestError for a wrong
    request, with every mistake in it, and SweepFailed when no run succeeded.
    """
    place = find_home(None if home is None else os.fspath(home))
    spec = _loaded(sweep, overrides or {}, imports)
    ended = perform(
        spec,
        place,
        Quiet(to_stderr) if quiet else Plain(to_stderr),
        address=address,
        in_process=in_process,
        webhook=webhook_url(spec.webhook),
        fresh=fresh,
        undelivered=lambda text: warnings.warn(text, stacklevel=2),
    )
    if ended.state == "failed":
        raise SweepFailed(_why(ended))
    if ended.interrupted:
        warnings.warn(
            f"{spec.name} was interrupted; the same call goes on with it. Its comparison so far "
            "is returned",
            stacklevel=2,
        )
    return ended.comparison


def _loaded(
    sweep: str | Path | Mapping[str, Any], overrides: Mapping[str, Any], imports: Sequence[str]
) -> SweepSpec:
    texts = [f"{key}={_json(value)}" for key, value in overrides.items()]
    modules = resolve(imports, Path.cwd())
    if not isinstance(sweep, Mapping):
        return load_spec(sweep, texts, modules)
    # Only a name for the messages: the text is what counts, and is kept with the results.
    source = Path.cwd() / f"{sweep.get('name', 'sweep')}.yaml"
    content = yaml.safe_dump(json.loads(_json(sweep)), sort_keys=False, allow_unicode=True)
    return load_spec(source, texts, modules, text=content)


def _json(value: object) -> str:
    """Raises RequestError for what no sweep file can hold."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"a sweep holds numbers, texts, lists and mappings only, as its file does: {error}"
        ) from None


def _why(ended: Ended) -> str:
    if ended.broken is not None:
        return f"{ended.comparison.sweep} was given up: {ended.broken}"
    causes = "; ".join(dict.fromkeys(ended.failures)) or "nothing was run"
    return f"no run of {ended.comparison.sweep} succeeded: {causes}"
