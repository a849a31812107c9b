"""An answer in plain English: lines without intervals, and the statistics behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from carft_sweep.tracking.comparison.answer import Model, Strongest
from carft_sweep.tracking.comparison.effects import Association, Effect, Level
from carft_sweep.tracking.comparison.metrics import NOUNS, named
from carft_sweep.tracking.comparison.runs import Arm, scalar_text
from carft_sweep.tracking.comparison.spec import FEWEST_SEEDS, Endpoint, SelectionRule
from carft_sweep.tracking.comparison.statistics import Interval, PairedTest
from carft_sweep.tracking.comparison.verdict import Verdict
from carft_sweep.tracking.comparison.verdict_text import describe, with_interval

NO_VALUE = "UNDECIDED: no run gave a value to select on."


def no_reference(arm: Arm, reference: str) -> str:
    """Say that there is nothing finished to compare with."""
    if arm.algorithm == reference:
        return f"UNDECIDED: {reference} is the only algorithm here, at {arm.name}."
    return f"UNDECIDED: there is no finished {reference} run to compare {arm.name} with."


def strongest_line(
    strongest: Strongest, selected: Arm | None, reference: Arm | None, endpoint: Endpoint
) -> str:
    """Say which model is the strongest, and whether it is told apart from the next."""
    best, verdict = strongest.model, strongest.verdict
    is_selected = (
        selected is not None
        and selected.is_setting_of(best.arm)
        and selected.merge == best.arm.merge
    )
    described = "also the selected one" if is_selected else "described and not selected"
    numbers = ", ".join(
        f"{named(metric)} {value}" for metric, value in _means(best, endpoint).items()
    )
    head = f"the strongest here is {best.arm.name} ({numbers}), {described}"
    margin = f"{100 * endpoint.id_margin:.3g} pp"
    if strongest.runner_up is None or verdict is None:
        alone = f"{head[0].upper()}{head[1:]}"
        others = strongest.models - strongest.eligible
        if reference is None or not others:
            return f"{alone}; there is no other model."
        which = f"each of the {others} others" if others > 1 else "the other model"
        return (
            f"{alone}; the {named(endpoint.id_metric)} of {which} is more than {margin} below "
            f"that of {reference.name}."
        )
    runner_up = strongest.runner_up
    following = f"{runner_up.arm.name} ({', '.join(_means(runner_up, endpoint).values())})"
    relation, rest = "not told apart from", ""
    match verdict.outcome:
        case "better":
            relation = "told apart from"
            rest = f", with ID kept within {margin}" if endpoint.has_shifts else ""
        case "trade_off":
            relation, rest = "told apart from", ", but ID is not shown to be kept"
        case "tie":
            relation = "equal in every seed to"
        case "no_difference" if verdict.state == "NO GAIN":
            relation = f"less than {margin} ahead of"
        case "no_spread":
            rest = ": no spread over seeds, so nothing is tested"
        case "too_few_seeds":
            rest = f": {_too_few(len(verdict.pair.seeds))}"
    return f"{verdict.state}: {head}; {relation} the next, {following}{rest}."


def brief(verdict: Verdict, rule: SelectionRule) -> str:
    """Say in a line what came of one comparison, to a tenth of a point and without intervals."""
    pair, endpoint = verdict.pair, verdict.pair.endpoint
    margin = f"{100 * endpoint.id_margin:.3g} pp"
    numbers = ", ".join(
        f"{named(metric)} {round(100 * test.mean, 1) + 0.0:+.1f} pp"
        for metric in dict.fromkeys((endpoint.ood, endpoint.id_metric))
        if (test := pair.test(metric)) is not None
    )
    match verdict.outcome:
        case "better":
            how = f"ID is kept within {margin}" if endpoint.has_shifts else "in distribution"
        case "trade_off":
            of_id = pair.test(endpoint.id_metric)
            is_tested = of_id is None or of_id.ci95 is not None
            untested = "ID is not tested: its difference has no spread over seeds"
            how = f"ID is not shown to be kept within {margin}" if is_tested else untested
        case "worse":
            how = "" if endpoint.has_shifts else "in distribution"
        case "tie":
            how = "equal in every seed"
        case "no_difference":
            how = f"a gain of {margin} is {'' if verdict.state == 'NO GAIN' else 'not '}excluded"
        case "no_spread":
            how = "no spread over seeds, so nothing is tested"
        case "incomplete":
            how = f"{len(pair.seeds)} of {len(verdict.seeds)} seeds have finished"
        case "too_few_seeds":
            how = _too_few(len(pair.seeds))
        case "no_pairs":
            how = "no finished seed in common"
        case "no_shifts":
            how = "no shift was measured"
        case "not_measured":
            how = f"not measured by {NOUNS[endpoint.by]}"
    among = ""
    # Of zero-shot nothing is chosen, and the line before has said it of the candidate.
    if verdict.tried > 1 and not pair.reference.is_zero_shot:
        among = f"chosen among {verdict.tried} settings by {rule.metric} on these same seeds"
    statement = "; ".join(filter(None, (numbers, how, among)))
    return f"{verdict.state}: {pair.candidate.name} against {pair.reference.name}: {statement}."


def effect_line(effect: Effect, endpoint: Endpoint, rule: SelectionRule) -> str:
    """Say how the endpoint and ID move with one field, and which value is selected."""
    metric, head = named(endpoint.metric), _short(effect.parameter)
    if effect.numeric:
        head += f" {_value(effect.low)} to {_value(effect.high)}"
        ends = (effect.low.endpoint, effect.high.endpoint)
        sides = [_moves(effect, effect.difference, metric, ends, endpoint)]
        if effect.id_difference is not None:
            id_ends = (effect.low.id, effect.high.id)
            id_name = named(endpoint.id_metric)
            sides.append(_moves(effect, effect.id_difference, id_name, id_ends, endpoint))
        parts = [", ".join(sides)]
        if effect.peak is not None:
            is_apart = effect.has_seeds and _is_above(effect.above_ends_interval)
            from_what = "both ends" if is_apart else _value(effect.better_end)
            parts.append(
                f"the highest {metric} is in between, {_percent(effect.peak.endpoint)} at "
                f"{_value(effect.peak)}, {'' if is_apart else 'not '}told apart from {from_what}"
            )
    else:
        is_apart = effect.has_seeds and _is_above(effect.interval)
        best, worst = effect.high, effect.low
        parts = [
            f"{metric} is highest with {_value(best)} ({_percent(best.endpoint)}) and lowest with "
            f"{_value(worst)} ({_percent(worst.endpoint)}), {'' if is_apart else 'not '}told apart"
        ]
    if not effect.has_seeds:
        parts.append(_too_few(len(effect.difference.differences)))
    parts.append(f"{_selected(effect)} is selected by {rule.metric}")
    return f"{head}: {'; '.join(parts)}."


def strongest_statistics(
    strongest: Strongest, reference: Arm | None, *, has_merges: bool
) -> Iterator[str]:
    """Say among how many models the strongest is, and by how much it is ahead of the next."""
    if strongest.verdict is None:
        return
    endpoint = strongest.verdict.pair.endpoint
    at_alpha = ", merged ones at the alpha chosen for them," if has_merges else ""
    among = f"{strongest.models} models with all seeds{at_alpha}"
    if reference is not None and endpoint.has_shifts:
        among = (
            f"the {strongest.eligible} of {among} whose {named(endpoint.id_metric)} is not below "
            f"that of {reference.name} by more than {100 * endpoint.id_margin:.3g} pp"
        )
    yield (
        f"The strongest has the highest {named(endpoint.metric)} among {among.rstrip(',')}. "
        f"Against the next: {describe(strongest.verdict)}"
    )


def effect_statistics(effect: Effect, endpoint: Endpoint) -> str:
    """Give the differences between levels with their intervals, and what they are means of."""
    metric = named(endpoint.metric)
    tests = [f"{metric} {_difference(effect, effect.difference, effect.interval)}"]
    if effect.id_difference is not None:
        test = effect.id_difference
        tests.append(f"{named(endpoint.id_metric)} {with_interval(test.mean, test.ci95)}")
    sides = f"{_value(effect.high)} minus {_value(effect.low)}"
    text = f"{_short(effect.parameter)} {sides}: {', '.join(tests)}"
    if effect.peak is not None and effect.above_ends is not None:
        interval = effect.above_ends_interval
        text += (
            f"; {_value(effect.peak)} minus {_value(effect.better_end)}: {metric} "
            f"{_difference(effect, effect.above_ends, interval)}"
        )
    text += f"; over {_seed_count(len(effect.difference.differences))}"
    if effect.settings > 1:
        text += f", each a mean over {effect.settings} settings of the other fields"
    return f"{text}."


def associations(found: Sequence[Association], endpoint: Endpoint) -> Iterator[str]:
    """Say what is known of fields that never vary alone."""
    metric = named(endpoint.metric)
    for it in found:
        name = _short(it.parameter)
        if it.rank_correlation is None:
            yield (
                f"No comparison of {name}: no setting of the other fields was tried at all of its "
                "values."
            )
        else:
            interval = "" if it.ci95 is None else f" [{it.ci95.low:+.2f}, {it.ci95.high:+.2f}]"
            yield (
                f"{name} and {metric} have a rank correlation of {it.rank_correlation:+.2f}"
                f"{interval} over {it.settings} settings, which differ in other fields too: an "
                "association, not an effect."
            )


def _means(model: Model, endpoint: Endpoint) -> dict[str, str]:
    """Return the endpoint and ID in percent, by metric; without shifts they are one."""
    numbers = {endpoint.metric: model.endpoint, endpoint.id_metric: model.id}
    return {metric: _percent(it.mean) for metric, it in numbers.items()}


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}"


def _seed_count(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _too_few(n: int) -> str:
    return f"{_seed_count(n)}, and a claim needs {FEWEST_SEEDS}"


def _short(parameter: str) -> str:
    return parameter.rpartition(".")[2]


def _value(level: Level) -> str:
    return scalar_text(level.value)


def _is_above(interval: Interval | None) -> bool:
    return interval is not None and interval.low > 0


def _moves(
    effect: Effect,
    test: PairedTest,
    metric: str,
    ends: tuple[float | None, float | None],
    endpoint: Endpoint,
) -> str:
    """Write `OOD mean rises from 38.8 to 39.2`, as far as the seeds show it."""
    low, high = map(_percent, ends)
    ci, margin = test.ci95, endpoint.id_margin
    if ci is None or not effect.has_seeds:
        untested = " without spread over seeds" if effect.has_seeds else ""
        return f"{metric} goes from {low} to {high}{untested}"
    if ci.low > 0 or ci.high < 0:
        return f"{metric} {'rises' if ci.low > 0 else 'falls'} from {low} to {high}"
    if -margin < ci.low and ci.high < margin:
        return f"{metric} is unchanged within {100 * margin:.3g} pp"
    return f"{metric} shows no change beyond the noise of the seeds ({low} to {high})"


def _difference(effect: Effect, test: PairedTest, interval: Interval | None) -> str:
    """Write a difference with its interval, and its level where that is not 95 %."""
    number = with_interval(test.mean, interval)
    is_usual = interval is None or len(effect.levels) < 3 or interval == test.ci95
    return number if is_usual else f"{number} at {100 * effect.adjusted_level:.4g} %"


def _selected(effect: Effect) -> str:
    """Write `0.3, the smallest,` of the selected value."""
    text = scalar_text(effect.selected)
    ends = {_value(effect.low): "smallest", _value(effect.high): "largest"}
    return f"{text}, the {ends[text]}," if effect.numeric and text in ends else text
