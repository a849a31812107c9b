"""W&B's keys: those that mean something else here are translated, the others answered by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sweeps.draft import Draft
from sweeps.yaml_lines import Route

IGNORED = ("program", "command", "project", "entity", "apiVersion", "kind")
"""Without a meaning here, and without harm."""
UNSUPPORTED: Mapping[str, str] = {
    "scheduler": "leave it out; method names the search, and engine: ray with resources says where "
    "runs go",
    "controller": "leave it out; the sweep is controlled where carft-sweep runs",
    "job": "leave it out; what a run trains stands under trial",
    "image_uri": "leave it out; runs train where the engine is, see engine and resources",
    "metric_constraints": "leave it out; a goal with a bound is not available, name the quantity "
    "in metrics as a goal of its own",
    "early_stopping": "write early_terminate",
}
"""What would change a sweep if it was ignored, with what to do instead."""
OF_METRIC: Mapping[str, str] = {
    "impute": "leave it out; a failed run is tried again (retries), and then has no value",
    "impute_while_running": "leave it out; a running trial has no value yet",
    "threshold": "leave it out; the front of several goals needs no reference point",
}
HYPERBAND = ("min_iter", "max_iter", "s", "eta", "strict")
_ETA = 3
SHORT: Mapping[str, str] = {
    "grace_period": "min_epochs",
    "min_resource": "min_epochs",
    "eta": "reduction_factor",
}
"""Ray's, Optuna's and W&B's words for asha's fields."""


def of_metric(draft: Draft, route: Route) -> None:
    """Answer what W&B knows of a metric and there is not here."""
    fields = draft.get(route)
    for key in [key for key in (fields if isinstance(fields, Mapping) else ()) if key in OF_METRIC]:
        draft.report((*route, key), f"{key} of W&B is not supported; {OF_METRIC[key]}")
        draft.drop((*route, key))


def of_early_terminate(draft: Draft) -> None:
    """Let W&B's hyperband, `allow_grid` at the top, and other names of asha's fields be ours."""
    allowed, rule = draft.get(("allow_grid",)), ("early_terminate",)
    given = isinstance(draft.get(rule), dict)
    if allowed is not None and given:
        draft.move(("allow_grid",), (*rule, "allow_grid"))
    elif allowed is not None and draft.get(rule) is None:
        draft.report(("allow_grid",), "goes with early_terminate, which is not given")
    if not given:
        return
    if draft.get((*rule, "type")) == "hyperband":
        _hyperband(draft, rule)
    if draft.get((*rule, "type")) == "asha":
        for name, ours in SHORT.items():
            if draft.get((*rule, name)) is not None:
                draft.move((*rule, name), (*rule, ours))


def _hyperband(draft: Draft, rule: Route) -> None:
    """W&B's only type: brackets at min_iter times powers of eta, or max_iter divided by them."""
    place = draft.place((*rule, "type"))
    draft.warnings.append(f"{place.text}: early_terminate hyperband runs as asha")
    draft.put((*rule, "type"), "asha", place)
    fields = draft.mapping(rule)
    if "strict" in fields:
        at = draft.place((*rule, "strict")).text
        draft.warnings.append(f"{at}: strict is W&B's and ignored here")
        draft.drop((*rule, "strict"))
    if fields.keys().isdisjoint({"eta", "reduction_factor"}):
        draft.put((*rule, "eta"), _ETA, place)
    if "min_iter" in fields and "max_iter" in fields:
        draft.report((*rule, "max_iter"), "give min_iter, or max_iter and s, not both")
        draft.drop((*rule, "max_iter"))
        draft.drop((*rule, "s"))
    elif "min_iter" in fields:
        draft.move((*rule, "min_iter"), (*rule, "min_epochs"))
    elif "max_iter" in fields or "s" in fields:
        _brackets(draft, rule)
    elif fields.keys().isdisjoint(("min_epochs", "min_resource", "grace_period")):
        draft.report(rule, "hyperband wants min_iter, or max_iter and s")


def _brackets(draft: Draft, rule: Route) -> None:
    """`max_iter: 27, s: 2, eta: 3` has brackets at 9 and 3: the first decision after 3 epochs."""
    fields = draft.mapping(rule)
    place = draft.place((*rule, "max_iter" if "max_iter" in fields else "s"))
    last, count = (_whole(draft, rule, key) for key in ("max_iter", "s"))
    eta = fields.get("eta", fields.get("reduction_factor"))
    for key in ("max_iter", "s"):
        draft.drop((*rule, key))
    if last is None or count is None or type(eta) is not int or eta < 2:
        return  # a wrong eta is reported as a wrong reduction_factor
    reached = min(count, int(math.log(last, eta) + 1e-9))
    draft.put((*rule, "min_epochs"), last // eta**reached, place)


def _whole(draft: Draft, rule: Route, key: str) -> int | None:
    value = draft.get((*rule, key))
    if type(value) is int and 1 <= value <= 1_000_000:
        return value
    draft.report((*rule, key), f"hyperband wants {key}, a whole number from 1, got {value!r}")
    return None
