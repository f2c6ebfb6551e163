"""What several comparisons say together: contrasts between their arrows, and trends along what they differ in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from modules.measurement import arrow, contrast
from modules.measurement.comparison import Comparison, Measurement, called

NUMBERS = ("context", "parameters")  # each is compared to the next; of texts and positions any two


@dataclass(frozen=True)
class Contrast(arrow.Estimate):
    """A difference of arrows in percentage points, or a trend: its slope with each doubling. p_holm: corrected for all
    contrasts of the report."""

    what: str
    trend: bool
    p_holm: float | None


def contrasts_of(measurements: Sequence[Measurement]) -> list[Contrast]:
    """Differences between the arrows of comparisons that differ in one thing ("docstrings: context 64 - 16"), and
    trends along it, with Holm's correction over all of them; where a config has several orders also the difference of
    each from the reference, and that of one model's from two models'. Controls are left out."""
    texts = [each for each in measurements if each.is_of_a_text]
    aspects = [*NUMBERS, "text"]
    if len({each.comparison.positions for each in texts}) > 1:
        aspects.append("positions")
    found: list[tuple[str, bool, arrow.Estimate]] = between_orders(texts)
    for aspect in aspects:
        others = [name for name in aspects if name != aspect]
        rest_of = {
            id(each): (each.comparison.which, *(getattr(each.comparison, name) for name in others)) for each in texts
        }
        for rest in dict.fromkeys(rest_of.values()):
            group = sorted(
                (each for each in texts if rest_of[id(each)] == rest), key=lambda each: getattr(each.comparison, aspect)
            )
            values = [getattr(each.comparison, aspect) for each in group]
            if len(set(values)) < max(2, len(group)):
                continue  # nothing differs, or something else does
            which, *values_of_others = rest
            where = ", ".join(
                str(value) if name == "text" else f"{name} {value}" if name == "positions" else f"{name} {value:,}"
                for name, value in zip(others, values_of_others, strict=True)
            )
            where = called(where, *which)
            held_out = {
                (each.token_file.fingerprint, each.comparison.held_out.tokens, each.held_out and each.held_out.firsts)
                for each in group
            }
            samples, of_what = for_contrasts(group)
            shared = {"same_seeds": len({tuple(each.seeds) for each in group}) == 1, "same_text": len(held_out) == 1}
            arrows = zip(values, samples, strict=True)
            for (low, one), (high, other) in pairwise(arrows) if aspect in NUMBERS else combinations(arrows, 2):
                difference = contrast.contrast(other, one, **shared)
                found.append((f"{where}: {aspect} {high} - {low}{of_what}", False, difference))
            if aspect in NUMBERS and len(group) > 2:
                slope = contrast.trend(values, samples, **shared)
                found.append((f"{where}: trend with each doubling of {aspect}{of_what}", True, slope))
    corrected = contrast.holm([estimate.p for *_, estimate in found])
    return [
        Contrast(**vars(estimate), what=what, trend=is_trend, p_holm=p)
        for (what, is_trend, estimate), p in zip(found, corrected, strict=True)
    ]


def for_contrasts(group: Sequence[Measurement]) -> tuple[Sequence[contrast.Measured], str]:
    """The arrows as contrasts take them, and what is said of it: of the halves that turn where all have a control."""
    pairs = [(each.sample(arrow.OF_THE_MEAN), each.control.sample(arrow.OF_THE_MEAN)) for each in group if each.control]
    if len(pairs) == len(group):
        return pairs, ", halves that turn"
    return [each.sample() for each in group], ""


def between_orders(texts: Sequence[Measurement]) -> list[tuple[str, bool, arrow.Estimate]]:
    """The contrasts of orders with their reference, for each config that has several, and of one model that reads in
    both with two models."""
    found: list[tuple[str, bool, arrow.Estimate]] = []
    for config in dict.fromkeys(each.comparison.config for each in texts):
        of_config = [each for each in texts if each.comparison.config == config]
        if len(of_config) < 2:
            continue
        for each in of_config:
            reference, order, in_one_model = each.comparison.which
            model = f" in one model of {in_one_model}" if in_one_model else ""
            found.append((f"{config}: {order} - {reference}{model}", False, each.comparison.arrow.percent))
        for each in of_config:
            reference, order, in_one_model = each.comparison.which
            two = next((other for other in of_config if other.comparison.which == (reference, order, None)), None)
            if in_one_model and two:
                same = each.seeds == two.seeds
                difference = contrast.contrast(each.sample(), two.sample(), same_seeds=same, same_text=True)
                what = f"{config}: {order} - {reference}, in one model of {in_one_model} - in two"
                found.append((what, False, difference))
    return found


def marked_for_longer_contexts(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, with a warning in those whose loss is above that of the same model with a shorter context: they
    are at an earlier stage."""
    marked = []
    for each in comparisons:
        shorter = [
            other
            for other in comparisons
            if other.context < each.context
            and other.parameters is not None
            and (other.text, other.parameters, other.which) == (each.text, each.parameters, each.which)
            and other.arrow.forward < each.arrow.forward
        ]
        if shorter and each.convergence:
            warning = (
                f"Still moving: with less context ({shorter[0].context}) the same model has the lower loss, "
                "so this one has not learned to use its own yet."
            )
            warnings = [*each.convergence.warnings, warning]
            each = replace(each, convergence=replace(each.convergence, warnings=warnings))
        marked.append(each)
    return marked
