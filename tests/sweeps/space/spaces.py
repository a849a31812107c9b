"""Search spaces of every kind, for properties that hold of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from carft_sweep.sweeps.space import distributions
from carft_sweep.sweeps.space.distributions import Categorical, Distribution, LogUniform, Uniform
from carft_sweep.sweeps.space.samplers import from_stored

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(-1, 1), st.sampled_from("abc")
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.sampled_from("xy"), SCALARS)
)


def dimensions(name: str = "x", *, listed: bool = False) -> st.SearchStrategy[Any]:
    """A dimension of any kind, or of one that a grid takes, without conditions."""
    apart = distributions.canonical
    choices = st.lists(VALUES, min_size=1, max_size=5, unique_by=apart).map(tuple)
    integers = st.builds(
        lambda low, steps, step: Uniform(name, low, low + steps * step, step),
        *(st.integers(-10, 10), st.integers(1, 6), st.integers(1, 4)),
    )
    stepped = st.builds(
        lambda low, steps, step: Uniform(name, low, Uniform(name, low, low, step).at(steps), step),
        *(st.sampled_from([-0.3, 0.0, 0.1, 1.0]), st.integers(1, 8)),
        st.sampled_from([0.1, 0.25, 0.3]),
    )
    ends = (st.floats(1e-6, 1.0), st.floats(1e-3, 10.0))
    endless = st.builds(lambda low, wide: Uniform(name, low, low + wide), *ends)
    by_kind: dict[type, st.SearchStrategy[Any]] = {
        Categorical: st.builds(Categorical, st.just(name), choices),
        Uniform: st.one_of(integers, stepped) if listed else st.one_of(integers, stepped, endless),
        LogUniform: st.builds(
            lambda low, wide, q, down: LogUniform(name, low, low + wide, q, down),
            st.floats(1e-3, 1.0),
            st.floats(1, 100),
            st.one_of(st.none(), st.sampled_from([1, 2, 0.1, 0.25])),
            st.booleans(),
        ),
    }
    kinds = (Categorical, Uniform) if listed else (*by_kind,)
    return st.one_of(*(by_kind[kind] for kind in kinds))


@st.composite
def spaces(draw: st.DrawFn, *, listed: bool = False) -> tuple[Distribution, ...]:
    """A few dimensions, some of which depend on others; `listed` for a grid."""
    count = draw(st.integers(1, 4))
    made: list[Distribution] = [draw(dimensions(name, listed=listed)) for name in "abcd"[:count]]
    # Each may depend on some before it; declared in any order.
    for index in range(1, count):
        deciding = [item for item in made[:index] if item.grid_values() is not None]
        subsets = st.lists(st.sampled_from(deciding), max_size=2, unique_by=lambda item: item.name)
        chosen = draw(subsets) if deciding else []
        when = []
        for item in chosen:
            values = st.lists(st.sampled_from(item.grid_values() or ()), min_size=1, max_size=2)
            when.append(distributions.Condition(item.name, tuple(draw(values))))
        made[index] = type(made[index])(**{**vars(made[index]), "when": tuple(when)})
    return tuple(draw(st.permutations(made)))


def decode(space: Sequence[Distribution], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert what Optuna stores of a point back to the sweep's own values."""
    return {
        item.name: from_stored(item, stored[item.name]) for item in space if item.name in stored
    }
