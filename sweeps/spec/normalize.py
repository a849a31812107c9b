"""A sweep file in its one form: aliases, nesting, profiles, `--set`, the keys of W&B."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from carft_core.config import SCALARS, SECTIONS, field_names
from carft_core.errors import Route, unknown
from sweeps.space.parameters import KEYS as PARAMETER_KEYS
from sweeps.spec.document import COMMAND_LINE, Draft, Place, YamlError, parse
from sweeps.spec.settings import Settings, expand_retries

ROUTE = ("profiles",)
KEY = "profile"
"""What `--set` calls it: `--set profile=smoke` is `--profile smoke`."""


def profile_names(draft: Draft) -> tuple[str, ...]:
    """Those that the file has."""
    return tuple(draft.mapping(ROUTE))


def profile_changes(draft: Draft, name: str) -> Iterator[tuple[str, Any, Place]]:
    """Each key that the profile changes, its value, and where that stands in the file."""
    for key, value in draft.mapping((*ROUTE, name)).items():
        yield key, value, draft.place((*ROUTE, name, key))


def no_such(draft: Draft, name: str) -> str:
    """What to say of a profile that the file has not."""
    known = profile_names(draft)
    return unknown("profile", name, known) if known else "the file has no profiles"


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


TRIAL_KEYS = (*SECTIONS, "algorithm", "merges", *SCALARS)
KEYS = (
    *(field.alias or name for name, field in Settings.model_fields.items()),
    *("allow_grid", "parameters", "baselines", "trial", "aliases", "profiles"),
)

NAMED: tuple[Route, ...] = (("trial", "algorithm"), ("trial", "algorithm", "of"))
"""Where an algorithm stands, by its bare name or with fields."""


def normalise(draft: Draft) -> None:
    """Let every value of the file stand at its one route; report keys that nobody knows."""
    _top_keys(draft)
    aliases = _aliases(draft)
    _bare_algorithm(draft)
    _whole_tasks(draft, aliases)
    _bare_retries(draft)
    for key in list(draft.mapping(("trial",))):
        name = aliases.get(key, key)
        if name != key or (name in field_names() and "." in name):
            draft.move(("trial", key), ("trial", *name.split(".")))
    for route, written in list(_leaves(draft, ("parameters",), "")):
        name = aliases.get(written, written)
        if name not in field_names():
            draft.report(route, _unknown_field("parameter", written, aliases))
            draft.drop(route)
        elif route != ("parameters", name):
            draft.move(route, ("parameters", name))
    for key, value in list(draft.mapping(("parameters",)).items()):
        if isinstance(value, dict) and "parameters" in value:
            draft.drop(("parameters", key))
    _profiles(draft, aliases)


def apply(draft: Draft, overrides: Sequence[str]) -> None:
    """Put each `key=value` of the command line over what a normalised file says."""
    aliases = {name: str(field) for name, field in draft.mapping(("aliases",)).items()}
    for index, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        secret = key.strip() == "webhook" and not text.strip().startswith("env:")
        said = "webhook=..." if secret else override
        shown = said if len(said) <= 60 else f"{said[:60]}..."
        place = Place(COMMAND_LINE + index, f"--set {shown}")
        if key.strip() == KEY and equals:
            _put_profile(draft, text.strip().strip("\"'"), aliases, place)
            continue
        if secret and text.strip() not in ("", "null"):
            draft.complain(
                place, "others can see a command line; write it into the file, or say env:NAME"
            )
            continue
        if not equals:
            draft.complain(place, "must be key=value, such as optim.lr=3e-4")
            continue
        try:
            document = parse(text)
            route = _route(key.strip(), aliases)
        except YamlError as error:
            draft.complain(place, error.reason)
        except KeyError as error:
            draft.complain(place, str(error.args[0]))
        else:
            for mistake in document.mistakes:
                draft.complain(place, mistake.message)
            if not document.mistakes:
                _put(draft, route, document.data, place)


def _profiles(draft: Draft, aliases: Mapping[str, str]) -> None:
    """Report the keys that nobody knows, of all the profiles: each waits for its first use."""
    for name in profile_names(draft):
        for key, _, place in profile_changes(draft, name):
            try:
                _route(key, aliases)
            except KeyError as error:
                draft.complain(place, f"profiles.{name}: {error.args[0]}")


def _put_profile(draft: Draft, name: str, aliases: Mapping[str, str], place: Place) -> None:
    """Let the values of a profile stand, each still at its own place in the file."""
    if name not in profile_names(draft):
        draft.complain(place, no_such(draft, name))
        return
    for key, value, where in profile_changes(draft, name):
        if key == "name" and isinstance(value, str):
            value = value.replace("{name}", str(draft.get(("name",))))
        # What nobody knows is reported already, with all other profiles.
        with contextlib.suppress(KeyError):
            _put(draft, _route(key, aliases), value, where)


def _top_keys(draft: Draft) -> None:
    for key in list(draft.data):
        if key in KEYS:
            if draft.data[key] is None:
                draft.drop((key,))
        elif key in UNSUPPORTED:
            draft.report((key,), f"{key} of W&B is not supported; {UNSUPPORTED[key]}")
        elif key in IGNORED:
            place = draft.place((key,)).text
            draft.warnings.append(f"{place}: {key} is W&B's and ignored here")
        elif key in TRIAL_KEYS or key in field_names():
            draft.report((key,), f"stands at the top; write it under trial: {key}")
        else:
            draft.report((key,), unknown("key", key, KEYS))


def _aliases(draft: Draft) -> dict[str, str]:
    """The file's aliases, as far as they are right."""
    taken = {*KEYS, *TRIAL_KEYS, *field_names()}
    right: dict[str, str] = {}
    for alias, field in draft.mapping(("aliases",)).items():
        route = ("aliases", alias)
        if alias in taken:
            draft.report(route, "is a name of its own already; choose another alias")
        elif not isinstance(field, str) or field not in field_names():
            draft.report(route, _unknown_field("field", field, ()))
        else:
            right[alias] = field
    return right


def _bare_algorithm(draft: Draft) -> None:
    for route in NAMED:
        if isinstance(draft.get(route), str):
            place = draft.place(route)
            draft.put(route, {"name": draft.get(route)}, place)


def _bare_retries(draft: Draft) -> None:
    """A number in its long form, so that `--set retries.preempted=3` finds its place."""
    value, place = draft.get(("retries",)), draft.place(("retries",))
    if type(value) is int:
        with contextlib.suppress(ValueError):  # reported when the settings are checked
            draft.put(("retries",), expand_retries(value), place)


def _whole_tasks(draft: Draft, aliases: Mapping[str, str]) -> None:
    """The tasks' parameter by its whole name."""
    given = draft.get(("tasks",))
    if isinstance(given, str) and given in aliases:
        draft.put(("tasks",), aliases[given], draft.place(("tasks",)))


def _leaves(draft: Draft, route: Route, prefix: str) -> Iterator[tuple[Route, str]]:
    """Each parameter's route and dotted name, W&B's nested ones too."""
    for key, value in draft.mapping(route).items():
        if isinstance(value, Mapping) and "parameters" in value:
            for other in value:
                if other != "parameters":
                    message = "does not stand beside nested parameters"
                    draft.report((*route, key, other), message)
            yield from _leaves(draft, (*route, key, "parameters"), f"{prefix}{key}.")
        else:
            yield (*route, key), f"{prefix}{key}"


def _unknown_field(kind: str, name: object, more: Iterable[str]) -> str:
    """Names the near fields: of the same section, or of the same last name (`lr`: `optim.lr`)."""
    names = (*field_names(), *more)
    section, _, last = str(name).rpartition(".")
    same = [known for known in names if known.rpartition(".")[2] == last]
    if same:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, same))}?"
    near = [known for known in names if section and known.startswith(f"{section}.")]
    return unknown(kind, name, near or names)


def _route(key: str, aliases: Mapping[str, str]) -> Route:
    """Where a key of the command line stands. Raises KeyError with a message."""
    key = aliases.get(key, key)
    field = key.removeprefix("trial.")
    if field in field_names() or field in TRIAL_KEYS:
        return ("trial", *field.split("."))
    head, _, rest = key.partition(".")
    if head == "parameters":
        return ("parameters", *_parameter(rest, aliases))
    if head == "aliases":
        raise KeyError("aliases are given in the file")
    if head == "import":
        raise KeyError("modules are named in the file, or with --import")
    if head in KEYS and head != "trial":
        return tuple(key.split("."))
    raise KeyError(_unknown_field("key", key, (*KEYS, *aliases)))


def _parameter(text: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """`optim.lr.values` as ("optim.lr", "values")."""
    name, _, key = text.rpartition(".")
    known = {*field_names(), *aliases}
    if not text:
        raise KeyError("parameters are set one by one: parameters.optim.lr.values=[...]")
    if text in known:
        return (aliases.get(text, text),)
    if name in known and key in PARAMETER_KEYS:
        return (aliases.get(name, name), key)
    raise KeyError(_unknown_field("parameter", text, aliases))


def _put(draft: Draft, route: Route, value: object, place: Place) -> None:
    whole = route[:2]
    if route[0] == "parameters" and value is None and len(route) == 2:
        draft.drop(route)
    elif route[0] == "parameters" and route[-1] in ("value", "values") and len(route) == 3:
        # A new list of values replaces whatever described the parameter, but for its condition.
        given = draft.get(whole)
        kept = {"when": given["when"]} if isinstance(given, dict) and "when" in given else {}
        draft.put(whole, {**kept, route[-1]: value}, place)
    elif route in NAMED and isinstance(value, str):
        draft.put(route, {"name": value}, place)
    elif route == ("tasks",):
        draft.put(route, value, place)
        _whole_tasks(draft, {name: str(f) for name, f in draft.mapping(("aliases",)).items()})
    elif route == ("retries",) and type(value) is int:
        draft.put(route, value, place)
        _bare_retries(draft)
    elif route == ("selection", "within"):
        draft.put(("selection",), {"within": value}, place)
    else:
        draft.put(route, value, place)
