"""What `after` of a sweep file may ask for: soups of runs that the sweep has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS, Soup
from carft_core.config import TrialConfig
from carft_core.errors import InvalidConfig, Route, unknown
from sweeps.space.points import baseline_at
from sweeps.spec.document import Draft
from sweeps.spec.settings import After, Settings
from sweeps.spec.space_checks import TrialSpace


def check_after(
    draft: Draft, settings: Settings, space: TrialSpace, baselines: Sequence[Mapping[str, Any]]
) -> None:
    """Report every soup that cannot be made, at the value that is in its way."""
    for index, item in enumerate(settings.after):
        route: Route = ("after", index)
        if item in settings.after[:index]:
            draft.report(route, "stands in the list twice")
            continue
        soup = _soup(draft, space, item, route)
        members = _members(draft, space, item, baselines, route)
        if soup is None or members is None:
            continue
        if not members.algorithm.keeps_shape:
            message = f"{item.of.algorithm} gives models of another shape than the zero-shot one"
            draft.report((*route, "of", "algorithm"), message)
        if not members.keep.weights:
            message = f"{soup.name} (after) is made of the runs' weights, so they must be kept"
            draft.report(("trial", "keep", "weights"), message)
        if members.follows_seed:
            message = (
                "data.split_seed: seed gives each seed a split of its own, so a soup would be "
                "validated on images that some of its runs were trained on"
            )
            draft.report(route, message)
        if item.of.settings == "selected" and len(settings.seeds) < soup.least_members:
            message = (
                f"{soup.name} is made of {soup.least_members} runs or more, and a setting has as "
                f"many as there are seeds: {len(settings.seeds)}; give more seeds, or say "
                "of: {algorithm: " + item.of.algorithm + ", settings: all}"
            )
            draft.report(route, message)


def _soup(draft: Draft, space: TrialSpace, item: After, route: Route) -> type[Soup] | None:
    """The class of the soup, unless something is wrong with it."""
    soups = sorted(name for name, cls in ALGORITHMS.items() if issubclass(cls, Soup))
    name = item.algorithm.get("name")
    cls = ALGORITHMS.get(name) if isinstance(name, str) else None
    place = (*route, "algorithm")
    if cls is None:
        draft.report((*place, "name"), unknown("soup", name, soups))
    elif not issubclass(cls, Soup):
        message = f"{name} is not made of other runs; after takes {', '.join(soups)}"
        draft.report((*place, "name"), message)
    elif "members" in item.algorithm:
        message = "are the runs that `of` names; leave it out, or name the soup in baselines"
        draft.report((*place, "members"), message)
    else:
        try:
            baseline_at(space.trial, item.algorithm, {})
        except InvalidConfig as error:
            for mistake in error.problems:
                if mistake.path[0] == "algorithm":
                    draft.report((*route, *mistake.path), mistake.message)
        return cls
    return None


def _members(
    draft: Draft,
    space: TrialSpace,
    item: After,
    baselines: Sequence[Mapping[str, Any]],
    route: Route,
) -> TrialConfig | None:
    """The config of the runs that it is made of, but for what varies; None if there are none."""
    name, place = item.of.algorithm, (*route, "of", "algorithm")
    own = {algorithm: {"name": algorithm} for algorithm in space.algorithms}
    played = own | {str(baseline["name"]): dict(baseline) for baseline in baselines}
    if name not in played:
        draft.report(place, unknown("algorithm of this sweep", name, played))
    elif not ALGORITHMS[name].trains:
        draft.report(place, f"{name} trains nothing, so there is nothing to make a soup of")
    else:
        try:
            return baseline_at(space.trial, played[name], {})
        except InvalidConfig:  # reported where it stands
            return None
    return None
