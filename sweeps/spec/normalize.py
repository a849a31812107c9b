"""A sweep file in its one form: aliases, nesting, profiles, `--set`, the keys of W&B."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config import SCALARS, SECTIONS, field_names
from carft_sweep.carft_core.errors import Route, listed_in_groups, unknown
from carft_sweep.carft_core.fields import SYNONYMS
from carft_sweep.sweeps.space.parameters import KEYS as PARAMETER_KEYS
from carft_sweep.sweeps.spec.document import (
    COMMAND_LINE,
    Place,
    SpecDocument,
    YamlError,
    parse,
    validated,
)
from carft_sweep.sweeps.spec.settings import (
    ASHA_SYNONYMS,
    METHOD_ALIASES,
    Hyperband,
    Settings,
    expand_retries,
)

PROFILES: Route = ("profiles",)
PROFILE_KEY = "profile"
"""What `--set` calls it: `--set profile=smoke` is `--profile smoke`."""
IGNORED = ("program", "command", "project", "entity", "apiVersion", "kind")
"""Without a meaning here, and without harm."""
UNSUPPORTED: Mapping[str, str] = {
    "scheduler": "leave it out; method names the search, and engine: ray with resources says where "
    "runs execute",
    "controller": "leave it out; the sweep is controlled where carft-sweep runs",
    "job": "leave it out; what a run trains is under trial",
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
ELSEWHERE: Mapping[str, str] = {
    **SYNONYMS,
    **dict.fromkeys(("num_gpus", "n_gpus"), "resources.gpus"),
    **dict.fromkeys(("trials", "n_trials", "num_trials", "num_samples", "count"), "run_cap"),
    **dict.fromkeys(("n_seeds", "num_seeds"), "seeds"),
    **dict.fromkeys(("jobs", "n_jobs", "max_concurrent"), "parallel"),
}
"""What other programs call our keys and fields."""
TRIAL_KEYS = (*SECTIONS, "algorithm", "merges", *SCALARS)
KEYS = (
    *(field.alias or name for name, field in Settings.model_fields.items()),
    *("allow_grid", "parameters", "baselines", "trial", "aliases", "profiles"),
)

_ALGORITHMS: tuple[Route, ...] = (("trial", "algorithm"), ("trial", "algorithm", "of"))
SHORT: tuple[Route, ...] = (*_ALGORITHMS, ("tasks",), ("retries",))
"""The routes that have a short form, and a long one below which `--set` finds its place."""


def normalize(document: SpecDocument, overrides: Sequence[str]) -> None:
    """Put every value at its one route and translate W&B's; report unknown keys.

    The `key=value` of the command line are put over those of the file.
    """
    _top_keys(document)
    aliases = _aliases(document)
    for route in SHORT:
        value = document.get(route)
        long = _long_form(route, value, aliases)
        if long != value:
            document.set(route, long)
    for key in list(document.mapping(("trial",))):
        name = aliases.get(key, key)
        if name != key or (name in field_names() and "." in name):
            document.move(("trial", key), ("trial", *name.split(".")))
    unknown_fields: list[tuple[Route, str]] = []
    for route, written in list(_leaves(document, ("parameters",), "")):
        name = aliases.get(written, written)
        if name not in field_names():
            unknown_fields.append((route, written))
            document.remove(route)
        elif route != ("parameters", name):
            document.move(route, ("parameters", name))
    for key, value in list(document.mapping(("parameters",)).items()):
        if isinstance(value, dict) and "parameters" in value:
            document.remove(("parameters", key))
    _check_profiles(document, aliases)
    apply_overrides(document, overrides)
    for route, written in unknown_fields:
        name = aliases.get(written, written)
        if not (name.startswith("algorithm.") and names_unknown_algorithm(document)):
            document.add_error(route, _unknown_field("parameter", written, aliases))
    _translate_wandb(document)


def names_unknown_algorithm(document: SpecDocument) -> bool:
    """Whether a sweep file names an algorithm that is not registered, which may have any field."""
    inner = document.get(("trial", "algorithm", "of"))
    names = [inner, *document.field_values("algorithm.of.name")]
    names += document.field_values("algorithm.name")
    return any(isinstance(name, str) and name not in ALGORITHMS for name in names)


def apply_overrides(document: SpecDocument, overrides: Sequence[str]) -> None:
    """Put each `key=value` of `--set`, or `profile=NAME`, over a normalised file."""
    aliases = {name: str(field) for name, field in document.mapping(("aliases",)).items()}
    for index, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        # What is no env:NAME may be the address itself, which is a secret.
        is_secret = key.strip() == "webhook" and not text.strip().startswith("env:")
        shown = "webhook=..." if is_secret else override
        place = Place(COMMAND_LINE + index, f"--set {shown[:60]}{'...' * (len(shown) > 60)}")
        if key.strip() == PROFILE_KEY and equals:
            _put_profile(document, text.strip().strip("\"'"), aliases, place)
            continue
        if not equals:
            document.add_error_at(place, "must be key=value, such as optim.lr=3e-4")
            continue
        try:
            parsed = parse(text)
            route = _route(key.strip(), aliases)
        except YamlError as error:
            document.add_error_at(place, error.reason)
        except KeyError as error:
            document.add_error_at(place, str(error.args[0]))
        else:
            for mistake in parsed.mistakes:
                document.add_error_at(place, mistake.message)
            if not parsed.mistakes:
                _put(document, route, parsed.data, place)


def _translate_wandb(document: SpecDocument) -> None:
    """Translate W&B's values to ours; report those that have no like here."""
    method = document.get(("method",))
    if isinstance(method, str) and method in METHOD_ALIASES:
        document.add_warning(("method",), f"method {method} runs as {METHOD_ALIASES[method]}")
    several = document.get(("metrics",))
    routes: list[Route] = [("metric",)]
    routes += [
        ("metrics", index) for index, _ in enumerate(several if isinstance(several, list) else ())
    ]
    for route in routes:
        fields = document.get(route)
        for key in OF_METRIC if isinstance(fields, dict) else ():
            if key in fields:
                message = f"{key} of W&B is not supported; {OF_METRIC[key]}"
                document.add_error((*route, key), message)
                document.remove((*route, key))
    _translate_early_terminate(document)


def _translate_early_terminate(document: SpecDocument) -> None:
    """Translate `allow_grid` at the top, W&B's hyperband, and other names of asha's fields."""
    rule: Route = ("early_terminate",)
    given = document.get(rule)
    if document.get(("allow_grid",)) is not None:
        if isinstance(given, dict):
            document.move(("allow_grid",), (*rule, "allow_grid"))
        elif given is None:
            message = "goes with early_terminate, which is not given"
            document.add_error(("allow_grid",), message)
    if not isinstance(given, dict):
        return
    if given.get("type") == "hyperband":
        place = document.place((*rule, "type"))
        document.add_warning((*rule, "type"), "early_terminate hyperband runs as asha")
        if "strict" in given:
            document.ignore((*rule, "strict"), "strict is W&B's and ignored here")
        same = {ours: theirs for theirs, ours in ASHA_SYNONYMS.items() if theirs == "eta"}
        same["min_epochs"] = "min_iter"
        for ours, theirs in same.items():
            if ours in given:
                document.move((*rule, ours), (*rule, theirs))
        hyperband = validated(document, Hyperband, given, rule)
        document.set(rule, None if hyperband is None else hyperband.as_asha(), place)
    elif given.get("type") == "asha":
        for name, ours in ASHA_SYNONYMS.items():
            if given.get(name) is not None:
                document.move((*rule, name), (*rule, ours))


def _check_profiles(document: SpecDocument, aliases: Mapping[str, str]) -> None:
    """Report the unknown keys of all profiles: each waits for its first use."""
    for name in document.mapping(PROFILES):
        for key in document.mapping((*PROFILES, name)):
            try:
                _route(key, aliases)
            except KeyError as error:
                place = document.place((*PROFILES, name, key))
                document.add_error_at(place, f"profiles.{name}: {error.args[0]}")


def _put_profile(
    document: SpecDocument, name: str, aliases: Mapping[str, str], place: Place
) -> None:
    """Apply a profile; its values keep their own places in the file."""
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
            _put(document, _route(key, aliases), value, document.place((*PROFILES, name, key)))


def _top_keys(document: SpecDocument) -> None:
    for key in list(document.data):
        if key in KEYS:
            if document.data[key] is None:
                del document.data[key]
        elif key in UNSUPPORTED:
            document.add_error((key,), f"{key} of W&B is not supported; {UNSUPPORTED[key]}")
        elif key in IGNORED:
            document.ignore((key,), f"{key} is W&B's and ignored here")
        elif key in TRIAL_KEYS or key in field_names():
            document.add_error((key,), f"is at the top; write it under trial: {key}")
        else:
            document.add_error((key,), _unknown_field("key", key, KEYS))


def _aliases(document: SpecDocument) -> dict[str, str]:
    """The file's aliases, as far as they are right."""
    taken = {*KEYS, *TRIAL_KEYS, *field_names()}
    right: dict[str, str] = {}
    for alias, field in document.mapping(("aliases",)).items():
        route = ("aliases", alias)
        if alias in taken:
            document.add_error(route, "is a name of its own already; choose another alias")
        elif not isinstance(field, str) or field not in field_names():
            document.add_error(route, _unknown_field("field", field, ()))
        else:
            right[alias] = field
    return right


def _long_form(route: Route, value: object, aliases: Mapping[str, Any]) -> object:
    """Expand the short form of a value; one that is wrong stays, and is reported later."""
    if route in _ALGORITHMS and isinstance(value, str):
        return {"name": value}
    if route == ("tasks",) and isinstance(value, str):
        return aliases.get(value, value)
    if route == ("retries",) and type(value) is int:
        with contextlib.suppress(ValueError):
            return expand_retries(value)
    return value


def _leaves(document: SpecDocument, route: Route, prefix: str) -> Iterator[tuple[Route, str]]:
    """Each parameter's route and dotted name, W&B's nested ones too."""
    for key, value in document.mapping(route).items():
        if isinstance(value, Mapping) and "parameters" in value:
            for other in value:
                if other != "parameters":
                    message = "does not go with nested parameters"
                    document.add_error((*route, key, other), message)
            yield from _leaves(document, (*route, key, "parameters"), f"{prefix}{key}.")
        else:
            yield (*route, key), f"{prefix}{key}"


def _unknown_field(kind: str, name: object, more: Iterable[str]) -> str:
    """Suggest a field: what others call so, of the same last name, or one that is spelt alike."""
    names = (*field_names(), *more)
    section, _, last = str(name).rpartition(".")
    same = [known for known in names if known.rpartition(".")[2] == last]
    same = same or [known for known in (ELSEWHERE.get(last),) if known in names]
    if not same and not section:  # else data.root is near to dropout
        own = {known.rpartition(".")[2]: known for known in reversed(names)}
        own |= {other: known for other, known in ELSEWHERE.items() if known in names}
        same = [own[near] for near in difflib.get_close_matches(last, own, n=1, cutoff=0.75)]
        same = same or (keys_called(last) if kind == "key" else [])
        if not same:
            known = listed_in_groups(more if kind == "key" else names)
            return f"unknown {kind} {name!r}; Known: {known}."
    if same:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(map(repr, same))}?"
    near = [known for known in names if section and known.startswith(f"{section}.")]
    return unknown(kind, name, near or names)


def keys_called(name: str) -> list[str]:
    """List the keys that a word may mean, as `--set` takes them: `trial.optim.lr` for `lr`.

    They have the word as their last name, are called so elsewhere, or are spelt alike. Of a
    mapping it is the name in it.
    """
    known = {field: f"trial.{field}" for field in field_names() if ".of." not in field}
    for key, field in Settings.model_fields.items():
        inner = field.default if isinstance(field.default, BaseModel) else None
        names = [*(type(inner).model_fields if inner else ())]
        if not names or field.metadata:  # which has a short form
            names.insert(0, "")
        known |= {full: full for full in (f"{key}.{name}".rstrip(".") for name in names)}
    word = name.replace("-", "_").removeprefix("trial.")
    exact = [key for key in (f"{word}.name", word) if key in known]
    if exact:
        return [known[exact[0]]]
    by_last_name: dict[str, list[str]] = {}
    for key in known:
        by_last_name.setdefault(key.rpartition(".")[2], []).append(key)
    for other, key in ELSEWHERE.items():
        by_last_name.setdefault(other, [key])
    near = difflib.get_close_matches(word, by_last_name, n=1, cutoff=0.75)
    return [known[key] for key in by_last_name.get(near[0] if near else "", ())]


def _route(key: str, aliases: Mapping[str, str]) -> Route:
    """Return the route of a key of the command line. Raises KeyError with a message."""
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
    raise KeyError(_unknown_field("parameter", name if key in PARAMETER_KEYS else text, aliases))


def _put(document: SpecDocument, route: Route, value: object, place: Place) -> None:
    whole = route[:2]
    if route[0] == "parameters" and value is None and len(route) == 2:
        document.remove(route)
    elif route[0] == "parameters" and route[-1] in ("value", "values") and len(route) == 3:
        # A new list of values replaces whatever described the parameter, but for its condition.
        parameter = document.get(whole)
        condition = (
            {"when": parameter["when"]}
            if isinstance(parameter, dict) and "when" in parameter
            else {}
        )
        document.set(whole, {**condition, route[-1]: value}, place)
    elif route == ("selection", "within"):
        document.set(("selection",), {"within": value}, place)
    else:
        document.set(route, _long_form(route, value, document.mapping(("aliases",))), place)
