"""A sweep file in its one form: short forms, profiles, `--set`, the keys of W&B."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.fields import SYNONYMS
from carft_sweep.carft_core.config.trial import SCALARS, SECTIONS, field_names
from carft_sweep.carft_core.errors import Route, misspelt, unknown
from carft_sweep.sweeps.space.parameters import KEYS as PARAMETER_KEYS
from carft_sweep.sweeps.spec.document import COMMAND_LINE, Place, SpecDocument, YamlError, parse
from carft_sweep.sweeps.spec.settings import BAYES, Settings, expand_retries

PROFILES: Route = ("profiles",)
PROFILE_KEY = "profile"
"""What `--set` calls it: `--set profile=smoke` is `--profile smoke`."""
IGNORED = ("program", "command", "project", "entity", "apiVersion", "kind")
"""Keys of W&B's without a meaning here."""
ELSEWHERE: Mapping[str, str] = {
    **SYNONYMS,
    **dict.fromkeys(("num_gpus", "n_gpus"), "resources.gpus"),
    **dict.fromkeys(("trials", "n_trials", "num_trials", "num_samples", "count"), "run_cap"),
    **dict.fromkeys(("n_seeds", "num_seeds", "seed", "random_seed"), "seeds"),
    **dict.fromkeys(("jobs", "n_jobs", "max_concurrent"), "parallel"),
}
"""What other programs call our keys and fields."""
TRIAL_KEYS = (*SECTIONS, "algorithm", "merges", *SCALARS)
KEYS = (
    *(field.alias or name for name, field in Settings.model_fields.items()),
    *("parameters", "baselines", "trial", "profiles"),
)

ALL_KEYS = (
    *KEYS,
    *(
        f"{key}.{name}"
        for key, field in Settings.model_fields.items()
        if isinstance(field.default, BaseModel)
        for name in type(field.default).model_fields
    ),
)
"""`KEYS`, and dotted the keys inside those that are mappings."""

_ALGORITHM: Route = ("trial", "algorithm")
_NAMED: tuple[Route, ...] = (_ALGORITHM, (*_ALGORITHM, "of"), ("trial", "model"))
SHORT: tuple[Route, ...] = (*_NAMED, ("retries",))
"""Routes whose value may have a short form, which is expanded so that `--set` finds its keys."""


def normalize(document: SpecDocument, overrides: Sequence[str]) -> None:
    """Move every value to its canonical route; report unknown keys. The `key=value` texts of
    `overrides`, from `--set`, replace values of the file."""
    _top_keys(document)
    for route in SHORT:
        value = document.get(route)
        long = _long_form(route, value)
        if long != value:
            document.set(route, long)
    for key in list(document.mapping(("trial",))):
        if key in field_names() and "." in key:
            document.move(("trial", key), ("trial", *key.split(".")))
    _name_by_dots(document, ("parameters",), "")
    unknown_fields: list[str] = []
    for name in list(document.mapping(("parameters",))):
        if name not in field_names():
            unknown_fields.append(name)
            document.remove(("parameters", name))
    _check_profiles(document)
    apply_overrides(document, overrides)
    _fix_constants(document)
    for name in unknown_fields:
        played = [n for n in document.field_values("algorithm.name") if isinstance(n, str)]
        if not (played and name.startswith("algorithm.")):
            document.add_error(("parameters", name), _unknown_field("parameter", name))
        elif not names_unknown_algorithm(document):
            document.add_error(("parameters", name), no_field_of(played, name))
    if document.get(("method",)) == BAYES:
        document.add_warning(("method",), f"method {BAYES} runs as tpe")
        document.set(("method",), "tpe")
    _read_hyperband(document)


def _name_by_dots(document: SpecDocument, route: Route, prefix: str) -> None:
    """Move W&B's nested parameters, at `route` and below, to dotted names that begin with `prefix`:
    `optim: {parameters: {lr: ...}}` becomes `optim.lr`."""
    for key, value in list(document.mapping(route).items()):
        if isinstance(value, Mapping) and "parameters" in value:
            for other in value.keys() - {"parameters"}:
                document.add_error((*route, key, other), "does not go with nested parameters")
            _name_by_dots(document, (*route, key, "parameters"), f"{prefix}{key}.")
            document.remove((*route, key))
        elif prefix:
            document.move((*route, key), ("parameters", f"{prefix}{key}"))


def _fix_constants(document: SpecDocument) -> None:
    """Move W&B's constants (`{value: ...}`) into the trial, since they do not vary and are in no
    label; drop those that `--set` sets. An algorithm's stay, as do all where any has a `when`."""
    varied = document.mapping(("parameters",))
    if any(isinstance(item, Mapping) and "when" in item for item in varied.values()):
        return
    for name, item in list(varied.items()):
        route: Route = ("trial", *name.split("."))
        is_constant = isinstance(item, Mapping) and item.keys() == {"value"}
        if not is_constant or route[1] == "algorithm" or name == document.get(("tasks",)):
            continue
        if document.get(route) is None:
            document.move(("parameters", name, "value"), route)
            document.remove(("parameters", name))
        elif document.place(route).is_of_command_line:
            document.remove(("parameters", name))


def _read_hyperband(document: SpecDocument) -> None:
    """Translate W&B's `early_terminate: hyperband` to asha; the first bracket is the first rung.
    W&B's brackets are at min_iter * eta**k, or at max_iter / eta**k for k up to s."""
    rule: Route = ("early_terminate",)
    fields: Any = document.mapping(rule)
    if fields.get("type") != "hyperband":
        return
    document.add_warning((*rule, "type"), "early_terminate hyperband runs as asha")
    document.set((*rule, "type"), "asha")
    if "strict" in fields:
        document.ignore((*rule, "strict"), "strict is W&B's and ignored here")
    eta, longest, brackets = numbers = fields.get("eta", 3), fields.get("max_iter"), fields.get("s")
    if all(type(number) is int and number > 0 for number in numbers):
        document.move((*rule, "max_iter"), (*rule, "min_iter"))
        document.remove((*rule, "s"))
        document.set((*rule, "min_iter"), max(1, longest // eta ** min(brackets, 64)))
    document.set((*rule, "eta"), eta)
    for theirs, ours in (("min_iter", "min_epochs"), ("eta", "reduction_factor")):
        if theirs in document.mapping(rule):
            document.move((*rule, theirs), (*rule, ours))


def no_field_of(algorithms: Sequence[str], name: str) -> str:
    """Return the message on a dotted name that is no field of these algorithms, with their own."""
    known = {field for algorithm in algorithms for field in field_names(algorithm)}
    own = {field for field in known - {"algorithm.name"} if field.startswith("algorithm.")}
    return unknown(f"field of {' or '.join(algorithms)}", name, own)


def names_unknown_algorithm(document: SpecDocument) -> bool:
    """Return whether a sweep file names an unregistered algorithm, which may have any field."""
    inner = document.get(("trial", "algorithm", "of"))
    names = [inner, *document.field_values("algorithm.of.name")]
    names += document.field_values("algorithm.name")
    return any(isinstance(name, str) and name not in ALGORITHMS for name in names)


def apply_overrides(document: SpecDocument, overrides: Sequence[str]) -> None:
    """Put each `key=value` of `--set`, or `profile=NAME`, over a normalised file."""
    for index, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        shown = f"{override[:60]}{'...' * (len(override) > 60)}"
        place = Place(COMMAND_LINE + index, f"--set {shown}")
        if key.strip() == PROFILE_KEY and equals:
            _put_profile(document, text.strip().strip("\"'"), place)
            continue
        if not equals:
            document.add_error_at(place, "must be key=value, such as optim.lr=3e-4")
            continue
        try:
            parsed = parse(text)
            route = _route_of(key.strip())
        except YamlError as error:
            document.add_error_at(place, error.reason)
        except KeyError as error:
            document.add_error_at(place, str(error.args[0]))
        else:
            for mistake in parsed.mistakes:
                document.add_error_at(place, mistake.message)
            if not parsed.mistakes:
                _put(document, route, parsed.data, place)


def _check_profiles(document: SpecDocument) -> None:
    """Report the unknown keys of all profiles, also of those that are not used."""
    for name in document.mapping(PROFILES):
        for key in document.mapping((*PROFILES, name)):
            try:
                _route_of(key)
            except KeyError as error:
                place = document.place((*PROFILES, name, key))
                document.add_error_at(place, f"profiles.{name}: {error.args[0]}")


def _put_profile(document: SpecDocument, name: str, place: Place) -> None:
    """Put the values of the profile `name` over the file's, with their own places in the file;
    report at `place`, the option's, a name that the file lacks."""
    names = document.mapping(PROFILES)
    if name not in names:
        message = unknown("profile", name, names) if names else "the file has no profiles"
        document.add_error_at(place, message)
        return
    for key, value in document.mapping((*PROFILES, name)).items():
        if key == "name" and isinstance(value, str):
            value = value.replace("{name}", str(document.get(("name",))))
        # An unknown key is reported already, with those of all profiles.
        with contextlib.suppress(KeyError):
            _put(document, _route_of(key), value, document.place((*PROFILES, name, key)))


def _top_keys(document: SpecDocument) -> None:
    for key in list(document.data):
        if key in KEYS:
            if document.data[key] is None:
                del document.data[key]
        elif key in IGNORED:
            document.ignore((key,), f"{key} is W&B's and ignored here")
        elif key in TRIAL_KEYS or key in field_names():
            document.add_error((key,), f"is at the top; write it under trial: {key}")
        else:
            # `trials: {...}` is meant to be `trial`, but `trials: 20` is a number of runs.
            is_section = isinstance(document.data[key], Mapping)
            near = misspelt(key, KEYS) if is_section else None
            message = unknown("key", key, [near]) if near else _unknown_field("key", key, ALL_KEYS)
            document.add_error((key,), message)


def _long_form(route: Route, value: object) -> object:
    """Return the long form of a value in short form; a wrong value is returned unchanged, to be
    reported later."""
    if route in _NAMED and isinstance(value, str):
        return {"name": value}
    return expand_retries(value) if route == ("retries",) else value


def _unknown_field(kind: str, name: str, more: Iterable[str] = ()) -> str:
    """Return the error message of an unknown field: it suggests fields of the same last part, those
    that another tool calls so, or those of similar spelling, also among the keys `more`."""
    names = (*field_names(), *more)
    by_last_name: dict[str, list[str]] = {}
    for known in names:
        by_last_name.setdefault(known.rpartition(".")[2], []).append(known)
    for other, known in ELSEWHERE.items():
        by_last_name.setdefault(other, [known])
    section, _, last = name.rpartition(".")
    near = difflib.get_close_matches(last, by_last_name, n=1, cutoff=0.75)
    if near:
        meant = by_last_name[near[0]]
        meant = [known for known in meant if known.rpartition(".")[0] == section] or meant
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, meant))}?"
    return unknown(kind, name, names)


def _route_of(key: str) -> Route:
    """Return the route of a key of `--set`: ("trial", "optim", "lr") for `optim.lr`. Raises
    KeyError, with a message for the user, for a key that is unknown or cannot be set so."""
    field = key.removeprefix("trial.")
    if field in field_names() or field in TRIAL_KEYS:
        return ("trial", *field.split("."))
    head, _, rest = key.partition(".")
    if head == "parameters":
        return ("parameters", *_parameter(rest))
    if head == "import":
        raise KeyError("modules are named in the file, or with --import")
    if head in KEYS and head != "trial":
        return tuple(key.split("."))
    raise KeyError(_unknown_field("key", key, ALL_KEYS))


def _parameter(text: str) -> tuple[str, ...]:
    """Split a key below `parameters`: `optim.lr.values` becomes ("optim.lr", "values")."""
    name, _, key = text.rpartition(".")
    if not text:
        raise KeyError("parameters are set one by one: parameters.optim.lr.values=[...]")
    if text in field_names():
        return (text,)
    if name in field_names() and key in PARAMETER_KEYS:
        return (name, key)
    raise KeyError(_unknown_field("parameter", name if key in PARAMETER_KEYS else text))


def _put(document: SpecDocument, route: Route, value: object, place: Place) -> None:
    whole = route[:2]
    if route[0] == "parameters" and value is None and len(route) == 2:
        document.remove(route)
    elif route[0] == "parameters" and route[-1] in ("value", "values") and len(route) == 3:
        # A new list of values replaces whatever described the parameter, but for its condition.
        parameter = document.get(whole)
        has_condition = isinstance(parameter, dict) and "when" in parameter
        condition = {"when": parameter["when"]} if has_condition else {}
        document.set(whole, {**condition, route[-1]: value}, place)
    elif route == ("selection", "within"):
        document.set(("selection",), {"within": value}, place)
    else:
        document.set(route, _long_form(route, value), place)
