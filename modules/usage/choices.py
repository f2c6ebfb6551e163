"""Multiple choice by loss, as lm-evaluation-harness does it, in both directions.

A line of the file is a question, a JSON object with `context` (or `query`), `choices` and, where it is known, `gold`,
the number of the right choice from 0. A question is read as context, a blank, choice, behind BOS; no blank is added
where one of the two brings white space, or where there is no context. White space at the end of the context is put to
the choice, and the tokens are those of the whole: the first as many as the context alone has are the context's.

- forward: the loss of the choice given the context, -log p(choice | context).
- backward: the loss of the context given the choice, read from its end, -log p(context | choice), by which TRLM ranks
  (arXiv 2412.02626). Its context is the same for all choices, so what is compared is how well each
  explains it.
- summed: the sum of the two; of several models of a direction their mean.

Where there is no context, each direction has the loss of the choice. Per character: the loss over the characters of
what it is the loss of (acc_norm of lm-evaluation-harness); summed, the sum of those of the two directions. The choice
of the lowest loss is taken, the first of equal ones. What is too long loses the beginning of its context, as much for
each choice of a question.
"""

import contextlib
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import AliasChoices, Field, model_validator

from modules.data.orders import FORWARD, reads_on
from modules.measurement.pairing import Trained
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.schema import Schema, checked, shown
from modules.tokenizer import Tokenizer
from modules.usage.scoring import both_directions, scored, table

SUMMED = "summed"


class Question(Schema):
    """A line of the file."""

    context: str = Field(validation_alias=AliasChoices("context", "query"))
    choices: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)]
    gold: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def gold_is_a_choice(self):
        if self.gold is not None and self.gold >= len(self.choices):
            raise ValueError(f"gold: expected 0 to {len(self.choices) - 1}, found {self.gold}")
        return self


@dataclass(frozen=True)
class Alternative:
    """A question with one of its choices: ids, of which the first `in_context` are the context's; characters of the
    context and of the choice."""

    ids: np.ndarray
    in_context: int
    characters: tuple[int, int]


def read_questions(path: str) -> list[Question]:
    """The questions of a file of JSON lines. UserError, with the line's number, for what is none."""
    questions = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        try:
            found = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise UserError(
                f"{where}: expected a JSON object with context, choices and gold, found "
                f"{shown(line[:40].decode('utf-8', 'replace'))}"
            ) from None
        questions.append(checked(Question, found, where))
    if not questions:
        raise UserError(f"{path}: expected questions, a JSON object a line, found none")
    return questions


def alternatives_of(question: Question, toki: Tokenizer, context: int, where: str) -> list[Alternative]:
    """A question with each of its choices, cut so that all fit a window of `context` tokens. UserError, which begins
    with `where`, where a choice does not."""
    kept = question.context.rstrip()
    found = []
    for choice in question.choices:
        joined = question.context + choice
        if kept and kept == question.context and not choice[0].isspace():
            joined = f"{kept} {choice}"
        ids = toki.encode(joined)
        in_context = min(len(toki.encode(kept)), len(ids) - 1) if kept else 0
        if len(ids) < 1 or len(ids) - in_context + bool(kept) > context:
            raise UserError(
                f"{where}: {shown(choice)}: expected a choice of at most {context - bool(kept):,} tokens, which the "
                f"model's context of {context:,} has room for, found {len(ids) - in_context:,}"
            )
        found.append(Alternative(np.array(ids, dtype=np.int64), in_context, (len(kept), len(choice))))
    room = context - max(len(each.ids) - each.in_context for each in found)
    return [
        Alternative(each.ids[max(0, each.in_context - room) :], min(each.in_context, room), each.characters)
        for each in found
    ]


def losses_of_choices(alternatives: Sequence[Alternative], losses: Sequence[np.ndarray], order: str) -> np.ndarray:
    """The loss of each alternative in one direction, and the same per character: [alternatives, 2]."""
    found = []
    for each, of_tokens in zip(alternatives, losses, strict=True):
        of_choice = order == FORWARD or not each.in_context
        loss = float(of_tokens[each.in_context :].sum() if of_choice else of_tokens[: each.in_context].sum())
        found.append((loss, loss / each.characters[of_choice]))
    return np.array(found)


def score_choices(
    runs: Sequence[Trained],
    toki: Tokenizer,
    bos_id: int,
    device: torch.device,
    path: str,
    ranked_csv: str | None = None,
) -> str:
    """Rank the choices of each question of the file, and return the table of what was right. `ranked_csv`: where to
    write the losses and ranks of all. UserError as in `read_questions`, and for a run that reads in another order."""
    for run in runs:
        if not reads_on(run.config.orders[run.number]):
            raise UserError(
                f"{run.path}: reads {run.order}: expected a model that reads forward or backward, for which a choice "
                "follows its context or the context its choice"
            )
    context = min(run.config.model_params.context for run in runs)
    questions = read_questions(path)
    of_question = [
        alternatives_of(question, toki, context, f"{path}, question {number:,}")
        for number, question in enumerate(questions, 1)
    ]
    alternatives = [each for of_one in of_question for each in of_one]
    ends = np.cumsum([len(of_one) for of_one in of_question])[:-1]
    with replacing(ranked_csv) if ranked_csv else contextlib.nullcontext() as ranked:  # told before the work
        models = scored(runs, [each.ids for each in alternatives], bos_id, device)
        by_label = {one.label: losses_of_choices(alternatives, one.losses, one.run.order) for one in models}
        if directions := both_directions(runs):
            each = np.array(list(by_label.values()))
            by_label[SUMMED] = np.sum([each[numbers].mean(axis=0) for numbers in directions], axis=0)
        if ranked:
            write_ranked(ranked, questions, {label: np.split(losses, ends) for label, losses in by_label.items()})
    head = f"{path}: {len(questions):,} questions, {len(alternatives):,} choices"
    known = [number for number, question in enumerate(questions) if question.gold is not None]
    if not known:
        return f"{head}; none says which choice is right"
    rows = [["", "accuracy", "standard error", "per character", "standard error"]]
    for label, losses in by_label.items():
        split = np.split(losses, ends)
        cells = []
        for column in (0, 1):
            right = np.array([split[i][:, column].argmin() == questions[i].gold for i in known], dtype=float)
            cells += [f"{right.mean():.4f}", f"{right.std(ddof=1) / len(right) ** 0.5:.4f}" if len(right) > 1 else ""]
        rows.append([label, *cells])
    guess = np.mean([1 / len(questions[i].choices) for i in known])
    return "\n".join([f"{head}, {len(known):,} with a right one; a guess has {guess:.4f}", *table(rows)])


def write_ranked(path: Path, questions: Sequence[Question], by_label: dict[str, list[np.ndarray]]) -> None:
    """A CSV with a line for each choice: its loss in each model, per character too, and its rank, 1 for the lowest."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        kinds = ("", " per character", " rank")
        rows.writerow(["question", "choice", "text", "gold", *(label + kind for label in by_label for kind in kinds)])
        for number, question in enumerate(questions):
            of_question = [losses[number] for losses in by_label.values()]
            ranks = [1 + losses[:, 0].argsort(kind="stable").argsort() for losses in of_question]
            for i, choice in enumerate(question.choices):
                cells = []
                for losses, rank in zip(of_question, ranks, strict=True):
                    cells += [f"{losses[i, 0]:.6f}", f"{losses[i, 1]:.6f}", rank[i]]
                gold = "" if question.gold is None else int(question.gold == i)
                rows.writerow([number, i, choice, gold, *cells])
