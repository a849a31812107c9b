"""Colours and symbols: an algorithm looks the same in every chart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from carft_sweep.tracking.comparison.compare import Row

NEUTRAL = "#7f7f7f"
"""Colour of rules and marks that belong to no algorithm; readable on white and on black."""
# Okabe and Ito's colours for the colour-blind, as far as they are readable on white and on black.
_KNOWN = {
    "zero_shot": (NEUTRAL, "cross"),
    "fine_tune": ("#d55e00", "square"),
    "car_ft": ("#1a85d6", "circle"),
}
_COLOURS = ("#009e73", "#c065a0", "#8f7a00", "#8a63d2", "#a0612e", "#2a8fa8")
_SYMBOLS = ("triangle-up", "diamond", "triangle-down", "triangle-left", "triangle-right")
_SHORT = 20
"""Most letters of a name in a legend of two columns."""
_MANY = 16
"""Most entries of a legend that names the hollow (merged) ones too."""
_LONG = 38
"""Most letters of a name in a legend on a phone."""


@dataclass(frozen=True)
class Style:
    """The look of one entry of a legend."""

    colour: str
    symbol: str
    hollow: bool


@dataclass(frozen=True)
class Legend:
    """The style of each value of `field`, in order; all channels share the field, hence one
    legend."""

    field: str
    styles: Mapping[str, Style]
    orient: Literal["bottom", "top"] = "bottom"

    def colour(self) -> alt.Color:
        """Return the encoding of a point's colour."""
        colours = [style.colour for style in self.styles.values()]
        return alt.Color(**self._channel(colours))

    def symbols(self) -> tuple[alt.Color, alt.Fill, alt.Shape]:
        """Return encodings of a point's colour, fill and shape, for marks with `filled=False`."""
        styles = self.styles.values()
        fills = ["transparent" if style.hollow else style.colour for style in styles]
        shapes = [style.symbol for style in styles]
        fill, shape = self._channel(fills), self._channel(shapes)
        return self.colour(), alt.Fill(**fill), alt.Shape(**shape)

    def _channel(self, values: Sequence[Any]) -> dict[str, Any]:
        # Two short names stand side by side on a phone. The columns do not depend on the width of
        # the chart: Vega would reserve too little height when it fits the width afterwards.
        # Of many methods it names each once, with the filled mark: they would fill half a page.
        is_crowded = len(self.styles) > _MANY
        names = [name for name, style in self.styles.items() if not (is_crowded and style.hollow)]
        longest = max(map(len, names))
        columns = 2 if longest <= _SHORT else 1
        shown = alt.Legend(
            orient=self.orient, title=None, columns=columns, labelLimit=300, symbolOpacity=1
        )
        if is_crowded:
            shown["values"], shown["symbolLimit"] = names, 0
        if longest > _LONG:  # What distinguishes settings is often at the end: `+ wise_ft@0.5`.
            shown["labelExpr"] = f"truncate(datum.label, {_LONG}, 'center')"
        return {
            "field": self.field,
            "type": "nominal",
            "scale": alt.Scale(domain=list(self.styles), range=list(values)),
            "legend": shown,
        }


def colour_of(algorithm: str, algorithms: Sequence[str]) -> str:
    """Return the colour of an algorithm, by its place among all `algorithms` of the comparison."""
    return _look(algorithm, algorithms)[0]


def legend_of_methods(series: Mapping[str, tuple[str, bool]], algorithms: Sequence[str]) -> Legend:
    """Return a legend of methods. `series` maps the text of an entry to its algorithm and whether
    it is merged; `algorithms` are all of the comparison."""
    styles = {
        text: Style(*_look(algorithm, algorithms), merged)
        for text, (algorithm, merged) in series.items()
    }
    return Legend("method", styles)


def legend_of_rows(rows: Iterable[Row], algorithms: Sequence[str]) -> Legend:
    """Return a legend of rows by their labels. Rows of one algorithm share a colour, and points of
    merged models are hollow; several settings of one algorithm differ in symbol."""
    counts: Counter[tuple[str, bool]] = Counter()
    styles = {}
    for row in rows:
        merged = row.arm.merge is not None
        nth = counts[row.arm.algorithm, merged]
        counts[row.arm.algorithm, merged] += 1
        styles[row.arm.label] = Style(*_look(row.arm.algorithm, algorithms, nth), merged)
    return Legend("setting", styles)


def _look(algorithm: str, algorithms: Sequence[str], nth: int = 0) -> tuple[str, str]:
    """Return the colour of an algorithm, and the symbol of its `nth` setting, from 0 on."""
    others = [name for name in algorithms if name not in _KNOWN]
    place = others.index(algorithm) if algorithm in others else 0
    own = _COLOURS[place % len(_COLOURS)], _SYMBOLS[place % len(_SYMBOLS)]
    colour, symbol = _KNOWN.get(algorithm, own)
    free = [name for name in _SYMBOLS if name != symbol]
    return colour, free[(nth - 1) % len(free)] if nth else symbol
