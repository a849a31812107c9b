"""How an algorithm looks in every chart: its colour, with a symbol and a dash beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from tracking.comparison.compare import Row

NEUTRAL = "#7f7f7f"
"""Of rules and marks that belong to no algorithm; seen on white and on black."""
RAMP = ("#2f6bcb", "#9557c2", "#bf560c")
"""Low to high; seen on white and on black, below white words, and by the colour-blind."""
_STAR = "M0,-1.1L.26,-.36L1.05,-.34L.42,.14L.65,.89L0,.44L-.65,.89L-.42,.14L-1.05,-.34L-.26,-.36Z"
# Okabe and Ito's colours for the colour-blind, as far as they are seen on white and on black.
_KNOWN = {
    "zero_shot": (NEUTRAL, _STAR),
    "fine_tune": ("#d55e00", "square"),
    "car_ft": ("#0077bb", "circle"),
}
_COLOURS = ("#009e73", "#c065a0", "#8f7a00", "#8a63d2", "#a0612e", "#2a8fa8")
_SYMBOLS = ("triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
_POLYGONS: Mapping[str, Sequence[tuple[float, float]]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle-up": ((0, -1), (1, 0.8), (-1, 0.8)),
    "triangle-down": ((0, 1), (-1, -0.8), (1, -0.8)),
    "triangle-right": ((1, 0), (-0.8, 1), (-0.8, -1)),
    "diamond": ((0, -1.1), (1.1, 0), (0, 1.1), (-1.1, 0)),
    "cross": ((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)),
}
_RING = "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0ZM.55,0A.55,.55,0,1,0,-.55,0A.55,.55,0,1,0,.55,0Z"
_HOLE = 0.5
_SHORT = 20
"""Letters of a name in a legend of two columns."""
_LONG = 46
"""Letters that a legend has room for on a phone."""
_SOLID = (1, 0)
_DASHES: Sequence[Sequence[int]] = (_SOLID, (6, 3), (2, 2), (9, 3, 2, 3), (1, 3), (12, 4))


@dataclass(frozen=True)
class Sign:
    """How one entry of a legend looks."""

    colour: str
    symbol: str
    dash: Sequence[int]


@dataclass(frozen=True)
class Signs:
    """A legend: its entries in order; every channel names the same field, so that they are one."""

    field: str
    entries: Mapping[str, Sign]

    def colour(self, *, legend: bool = True) -> alt.Color:
        """The channel of colours."""
        return alt.Color(**self._channel([sign.colour for sign in self.entries.values()], legend))

    def shape(self, *, legend: bool = True) -> alt.Shape:
        """The channel of symbols."""
        return alt.Shape(**self._channel([sign.symbol for sign in self.entries.values()], legend))

    def dash(self) -> alt.StrokeDashValue:
        """The dash of each entry, without a scale: symbols of the legend have no room for it."""
        field = json.dumps(self.field)
        known = [
            {"test": f"datum[{field}] === {json.dumps(text)}", "value": list(sign.dash)}
            for text, sign in self.entries.items()
            if sign.dash != _SOLID
        ]
        return alt.StrokeDashValue(_SOLID, **({"condition": known} if known else {}))

    def _channel(self, values: Sequence[Any], legend: bool) -> dict[str, Any]:
        # Two short names stand side by side on a phone. The columns do not go by the width of the
        # chart: Vega would reserve too little height when it fits the width afterwards.
        longest = max(map(len, self.entries))
        columns = 2 if longest <= _SHORT else 1
        shown = alt.Legend(
            orient="bottom", title=None, columns=columns, labelLimit=300, symbolOpacity=1
        )
        if longest > _LONG:  # What tells settings apart is often at the end: `+ wise_ft@0.5`.
            shown["labelExpr"] = f"truncate(datum.label, {_LONG}, 'center')"
        return {
            "field": self.field,
            "type": "nominal",
            "scale": alt.Scale(domain=list(self.entries), range=list(values)),
            "legend": shown if legend else None,
        }


def ramp(low: float, high: float) -> alt.Scale:
    """Colours of the values from low to high, however few of them are shown."""
    return alt.Scale(domain=[low, high], range=list(RAMP), interpolate="lab", nice=False)


def colour_of(algorithm: str, algorithms: Sequence[str]) -> str:
    """The colour of one of the comparison's algorithms."""
    return _look(algorithm, algorithms)[0]


def of_series(series: Mapping[str, tuple[str, bool]], algorithms: Sequence[str]) -> Signs:
    """A legend of algorithms: text to (algorithm, whether merged)."""
    entries = {
        text: _sign(algorithm, algorithms, merged=merged, nth=0)
        for text, (algorithm, merged) in series.items()
    }
    return Signs("series", entries)


def of_rows(rows: Mapping[str, Row], algorithms: Sequence[str], field: str = "setting") -> Signs:
    """A legend of rows, by the text that stands for each: colour by algorithm, merged ones hollow.

    Several settings of one algorithm differ in symbol and dash.
    """
    seen: Counter[tuple[str, bool]] = Counter()
    entries = {}
    for text, row in rows.items():
        merged = row.arm.merge is not None
        nth = seen[row.arm.algorithm, merged]
        seen[row.arm.algorithm, merged] += 1
        entries[text] = _sign(row.arm.algorithm, algorithms, merged=merged, nth=nth)
    return Signs(field, entries)


def _sign(algorithm: str, algorithms: Sequence[str], *, merged: bool, nth: int) -> Sign:
    colour, symbol = _look(algorithm, algorithms)
    if nth:
        others = [name for name in _SYMBOLS if name != symbol]
        symbol = others[(nth - 1) % len(others)]
    dash = _DASHES[(2 * nth + merged) % len(_DASHES)]
    return Sign(colour, _hollow(symbol) if merged else symbol, dash)


def _look(algorithm: str, algorithms: Sequence[str]) -> tuple[str, str]:
    if algorithm in _KNOWN:
        return _KNOWN[algorithm]
    others = [name for name in dict.fromkeys(algorithms) if name not in _KNOWN]
    place = others.index(algorithm)
    return _COLOURS[place % len(_COLOURS)], _SYMBOLS[place % len(_SYMBOLS)]


def _hollow(symbol: str) -> str:
    """The symbol with a hole, through which both light and dark pages show."""
    if symbol not in _POLYGONS:
        return _RING
    outer = _POLYGONS[symbol]
    # Drawn the other way round, the inner outline is a hole.
    inner = [(_HOLE * x, _HOLE * y) for x, y in reversed(outer)]
    return "".join(f"M{'L'.join(f'{x:g},{y:g}' for x, y in points)}Z" for points in (outer, inner))
