"""What the keys of a config can hold: bounds with their reasons, and what a key decides of a run's result.

Every number has bounds: within them nothing overflows, and the counts of a run (steps x windows, tokens) fit 64 bits.
Whether the model fits the machine is another question, which `memory.py` answers before it is built.

What decides a result is marked on the fields, and nowhere else: `IDENTITY` on what makes a run the run that it is,
`SETTING` on what may change on its way, where it is asked to, and is then recorded. A field without a mark decides
nothing: it says where or how fast a run goes. `Config.identity` reads the marks.

Nothing heavy is imported here: the command line and the models stand on it.
"""

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from modules.system.errors import UserError
from modules.system.schema import shown

MAX_SEED = 2**63 - 1  # what torch.manual_seed takes
MAX_STEPS = 10**11
MAX_STEP_TOKENS = 2**26


def up_to(most: float, reason: str) -> AfterValidator:
    """A bound that says why it is there."""

    def check(value: float) -> float:
        if value > most:
            raise ValueError(
                f"expected at most {most:{',' if isinstance(most, int) else 'g'}} ({reason}), found {shown(value)}"
            )
        return value

    return AfterValidator(check)


def openable(path: str) -> str:
    """A path that the operating system can be asked for at all."""
    if "\0" in path:
        raise ValueError(f"expected a path, found {shown(path)}: a path has no NUL")
    return path


WHY_64_BITS = "a 64-bit integer"
WHY_STEPS = "at a thousand steps a second, three years"
WHY_FP32 = "weights are fp32 numbers, of at most 3.4e38"
Positive = Annotated[int, Field(ge=1), up_to(2**63 - 1, WHY_64_BITS)]
Ids = Annotated[int, Field(ge=2), up_to(2**31 - 1, "ids are stored in 32 bits")]
Layers = Annotated[
    int,
    Field(ge=1),
    up_to(10_000, "a layer takes time whatever its width, and the deepest published transformers have 1,000"),
]
Width = Annotated[int, Field(ge=1), up_to(2**20, "the widest published models have some 50,000")]
Context = Annotated[int, Field(ge=2), up_to(2**24, "the longest published contexts are of ten million tokens")]
Windows = Annotated[
    int, Field(ge=1), up_to(MAX_STEP_TOKENS // 2, "with windows of two tokens, the largest step that is allowed")
]
Steps = Annotated[int, Field(ge=1), up_to(MAX_STEPS, WHY_STEPS)]
Probability = Annotated[float, Field(ge=0, lt=1), up_to(0.999, "choices are made with 16 random bits")]
Rate = Annotated[float, Field(ge=0), up_to(1e30, WHY_FP32)]
OpenablePath = Annotated[str, Field(min_length=1), AfterValidator(openable)]


# What a key decides
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decides:
    """What a field of a config decides: the identity of a run, or a setting that may change on the way.

    by: where several fields say one thing together, the property of the config that is this thing; name: what it is
    called then.
    """

    what: Literal["identity", "setting"]
    by: str | None = None
    name: str | None = None


IDENTITY, SETTING = Decides("identity"), Decides("setting")


class Section(BaseModel):
    """What all parts of a config share: strict types, no unknown keys, no changes, null as "the default"."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def null_is_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        optional = {key for key, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if value is not None or key not in optional}


class ModelParams(Section):
    """What every model's `model_params` have; a model adds its own, and says which of them is its context."""

    if TYPE_CHECKING:  # declared by each model, with what it means there
        vocab_size: Ids
        n_layers: Layers
        embed_dim: Width

    @property
    def context(self) -> int:
        """Tokens in a window."""
        raise NotImplementedError


# Paths
# ------------------------------------------------------------------------------------------------------------------


def expanded(path: str, what: str) -> str:
    """`path` with `~` and `$VARIABLE` (`${VARIABLE}`) replaced, as a shell does; `what` is where it was written, for
    messages.

    What exists under the very name, a file or a folder above it, stays as it is: `$` and `~` are letters that a name
    can have. Raises UserError where a variable is not set (or empty: `$SCRATCH/runs` must not become `/runs`), or
    nobody's home is known.
    """
    if os.path.lexists(path):
        return path
    folders = [path[:end] for end in range(len(path), 0, -1) if path[end : end + 1] in (os.sep, os.altsep)]
    literal = next((folder for folder in folders if "$" in folder and os.path.lexists(folder)), "")

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise UserError(f"{what}: {path}: the variable {name} is not set; set it, or write the path without it")
        return os.environ[name]

    home = path if literal else os.path.expanduser(path)
    if home == "~" or home.startswith(("~/", "~" + os.sep)):
        raise UserError(f"{what}: {path}: there is no home folder here for ~; set HOME, or write the path without it")
    return home[: len(literal)] + re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, home[len(literal) :], flags=re.ASCII)
