"""What a file that we read must hold, as a schema that checks all of it at once.

Each kind of file has one subclass of `Schema`, beside the code that reads it. `checked` turns what was read into it, or
into one line that names the file, the entry, what was expected and what was found.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from modules.system.errors import UserError

SHOWN_ERRORS = 3  # a line stays readable; the rest show up once these are mended
SHOWN_LENGTH = 60
# What was expected, by pydantic's type of error, where its own words would not do.
EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "string_too_short": "a path",
    "list_type": "a list",
    "dict_type": "a dictionary",
    "model_type": "an object { ... }",
    "model_attributes_type": "an object { ... }",
}


class Schema(BaseModel):
    """Strict types, nothing changes afterwards, entries that it does not name are left alone."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


S = TypeVar("S", bound=Schema)


def checked(kind: type[S], data: Any, source: str, advice: str = "") -> S:
    """`data`, as read from `source`, as an instance of `kind`. UserError where it is anything else; `advice` ends its
    line."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = [described(problem) for problem in error.errors()]
        more = f"; and {len(problems) - SHOWN_ERRORS} more" if len(problems) > SHOWN_ERRORS else ""
        raise UserError(
            f"{source}: {'; '.join(problems[:SHOWN_ERRORS])}{more}{f'; {advice}' if advice else ''}"
        ) from None


def described(problem: ErrorDetails) -> str:
    """One of pydantic's errors: where, what was expected, what was found."""
    where = ".".join(map(str, problem["loc"]))
    where = f"{where}: " if where else ""
    if problem["type"] == "missing":
        return f"{where}missing"
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{where}{problem.get('ctx', {})['error']}"
    return f"{where}expected {expected(problem)}, found {shown(problem['input'])}"


def expected(problem: ErrorDetails) -> str:
    """What one of pydantic's errors expected."""
    words = (
        problem["msg"]
        .removeprefix("Input should be ")
        .replace("greater than or equal to", "at least")
        .replace("less than or equal to", "at most")
    )
    return EXPECTED.get(problem["type"], words)


def shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."
