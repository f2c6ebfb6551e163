"""What an arrow's control says: which half of it turns round with the text, and which does not."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from modules.measurement import arrow, contrast
from modules.measurement.comparison import Control, Halves, Measurement, places_of
from modules.measurement.convergence import LossPair
from modules.measurement.pairing import differences


def with_controls(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The same, each with what its control says: the comparison of the same runs on the reversed text (control.py).
    None where there is none, and the tokenizer has a direction."""
    result = []
    for each in measurements:
        control = next((other for other in measurements if is_control(other, each)), None)
        said = None
        if control is not None:
            said = trained_control(each, control)
        elif each.token_file.symmetric and are_mirrored(each):
            said = exact_control(each)
        estimate = said.turns if said and are_mirrored(each) else each.estimate
        comparison = replace(each.comparison, control=said)
        result.append(replace(each, comparison=comparison, estimate=estimate, control=control))
    return result


def trained_control(text: Measurement, control: Measurement) -> Control:
    """Half the difference from the control's arrow turns, half the sum with it stays."""
    (turns, stays), (turns_nats, stays_nats) = (
        contrast.turning(text.sample(unit), control.sample(unit), same_text=text.folds)
        for unit in (arrow.OF_THE_MEAN, "nats")
    )
    return Control(
        name=control.comparison.name,
        exact=False,
        arrow=control.comparison.arrow.percent,
        turns=turns,
        stays=stays,
        turns_nats=turns_nats,
        stays_nats=stays_nats,
        by_length=[*halves(text.by_length, control.by_length), Halves(text.comparison.context, turns, stays)],
        by_step=halves(text.by_step, control.by_step),
    )


def exact_control(text: Measurement) -> Control:
    """What a tokenizer without direction says: its tokens of the reversed text are the reversed tokens.

    Reading the reversed text forward is then reading the text backward, token by token, so the control's expected arrow
    is minus this one: the arrow itself, in its units, is the half that turns, the other is zero by construction (None),
    and nothing has to be trained. What a trained control gives even then: a second set of models, so less noise of
    seeds, and a test that the programs treat both directions alike.
    """
    whole = text.comparison.arrow
    return Control(
        name=None,
        exact=True,
        arrow=None,
        turns=whole.percent,
        stays=None,
        turns_nats=whole.nats,
        stays_nats=None,
        by_length=[],
        by_step=[],
    )


def halves(text: dict[int, LossPair], control: dict[int, LossPair]) -> list[Halves]:
    """The halves at each key that both have."""
    found = []
    for at, losses in text.items():
        if at in control:
            found.append(Halves(at, *contrast.turning(losses.sample, control[at].sample, same_text=losses.folds)))
    return found


def are_mirrored(measurement: Measurement) -> bool:
    """Whether each of the two orders reads the reversed text as the other reads the text. Then their difference is the
    opposite on the reversed text, tokens being equal."""
    one, other = map(places_of, measurement.pairs[0])
    return one.ndim == 1 and np.array_equal(one, len(one) - 1 - other)


def is_control(control: Measurement, text: Measurement) -> bool:
    """Whether the first is the second on the reversed text."""
    reversed_of = control.token_file.reversed_of
    if reversed_of is None or not text.token_file.matches(reversed_of):
        return False
    if control.comparison.which != text.comparison.which:
        return False
    runs = [each.pairs[0][0].run for each in (control, text)]
    return control.seeds == text.seeds and not differences(*runs, but=("data", "tokenizer"))
