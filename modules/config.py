"""The JSON config of a run as typed, validated, frozen objects.

`load_config(path)` is the only way in. A run of days must not die at its first
save because of a misspelt key, nor silently train with a default that the user
thought was overridden. So everything is checked before anything is built:
unknown and repeated keys, types (strictly: 256.0, "256" and true are not
integers), ranges, and the few rules between keys. The error is one line with the
file, the dotted key, what was expected, what was found and the nearest valid key.

The fields below are the one place where keys, defaults and meanings are written;
`python -m modules.config` prints them as the table in docs/config.md.
Published configs leave keys out or give null for "the default", so null counts as
absent for every key that has a default.

Every number has bounds, each with its reason: within them nothing overflows, and the counts of a run (steps x windows,
tokens) fit 64 bits. Whether the model fits the machine is another question, which `memory.py` answers before it is
built.

Paths stay in the config, and in states, as they were written: `~` and `$VARIABLE` mean something else on another
machine. They are expanded where files are opened, by `expanded`.

Objects are frozen: what the state records about a run is what the run trained
with. `with_training` and `with_model` return changed, validated copies.
"""

import difflib
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from modules.data.orders import BACKWARD, FORWARD, FRESH, Order, Reading, is_backward, orders_of
from modules.system.console import tell
from modules.system.errors import UserError
from modules.system.names import check_name
from modules.system.schema import SHOWN_ERRORS, SHOWN_LENGTH, expected, shown

RUN_NAME = "the run's name (the config file's, or --run_name)"
MAX_SEED = 2**63 - 1  # what torch.manual_seed takes
MAX_STEPS = 10**11
MAX_STEP_TOKENS = 2**26
MAX_CONFIG_BYTES = 1 << 20


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


class GPTParams(Section):
    vocab_size: Ids = Field(description="vocabulary size")
    n_layers: Layers = Field(description="number of transformer blocks")
    n_heads: Width = Field(description="number of attention heads")
    embed_dim: Width = Field(description="width of the residual stream")
    attn_length: Context = Field(description="context: tokens in a window")
    mlp_ratio: Annotated[float, up_to(1000, "the usual is 4")] = Field(
        4.0, gt=0, description="hidden width of the MLP over `embed_dim`"
    )
    dropout: Probability = Field(0.1, description="dropout inside the blocks")
    embd_dropout: Probability = Field(0.0, description="dropout of the embeddings")
    position: Literal["learned", "rope", "none"] = Field(
        "learned", description="positions: learned embeddings, rotary ones, or none but causal attention"
    )

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.attn_length

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Self:
        if self.embed_dim % self.n_heads:
            raise ValueError(f"expected embed_dim divisible by n_heads, found {self.embed_dim} and {self.n_heads}")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(f"expected embed_dim * mlp_ratio of at least 1, found {self.embed_dim} * {self.mlp_ratio}")
        if self.position == "rope" and self.embed_dim // self.n_heads % 2:
            raise ValueError(
                "expected heads of even width for rotary positions, found "
                f"embed_dim / n_heads = {self.embed_dim // self.n_heads}"
            )
        return self


class RecurrentParams(Section):
    vocab_size: Ids = Field(description="vocabulary size")
    n_layers: Layers = Field(description="number of recurrent layers")
    embed_dim: Width = Field(description="width of the embeddings and of the hidden state")
    desired_attn_length: Context = Field(description="context: tokens in a window")
    dropout: Probability = Field(0.0, description="dropout between the layers")
    embd_dropout: Probability = Field(0.0, description="dropout of the embeddings")

    @property
    def context(self) -> int:
        """Tokens in a window."""
        return self.desired_attn_length


THEIR_KEYS = {"permutation": "order", "save_loc": "state_save_loc", "val_batch_size": "valid_batch_size"}


class TrainingParams(Section):
    dataset_folder: OpenablePath = Field(
        description="path of the `.h5` to train on, relative to where the script is launched"
    )
    batch_size: Windows = Field(description="windows in a micro-batch, over all devices together")
    aggregate: Windows = Field(1, description="micro-batches in one optimizer step")
    order: str | list | None = Field(
        None, description="order of reading: a name, positions, or several (orders.md); null is what `backwards` says"
    )
    backwards: bool = Field(False, description="whether the order is backward, as an older key says it")
    steps_to_train: Steps | None = Field(None, description="optimizer steps in total; null is one epoch")
    save_every: Positive = Field(3000, description="steps between saves of the training state, each with a validation")
    backup_every: Positive = Field(15000, description="steps between backups of the training state")
    step_log: Positive = Field(400, description="steps between logs of the training loss")
    valid_steps: Positive = Field(1000, description="held-out windows, in steps' worth of windows")
    held_out_tokens: Positive | None = Field(
        None, description="tokens held out at the end of the data, in place of `valid_steps`"
    )
    state_save_loc: OpenablePath = Field(
        "runs", description="folder of states and metrics, relative to where the script is launched"
    )
    seed: Annotated[int, Field(ge=0), up_to(MAX_SEED, WHY_64_BITS)] = Field(
        0, description="of initial weights, dropout and the order of windows"
    )
    stride: Positive | None = Field(
        None, description="tokens between the starts of training windows; null is half the context"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto is bf16 autocast where the hardware is faster with it"
    )
    compile: Literal["auto", True, False] = Field(
        "auto", description="`torch.compile`; auto is on where it pays for itself"
    )
    valid_batch_size: Windows | None = Field(
        None, description="windows evaluated at a time: memory and speed, no result; null is `batch_size`"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="many devices: a whole model on each (ddp), or shards of it (fsdp)"
    )
    checkpoint_activations: bool = Field(
        False, description="recompute activations in the backward pass: less memory, a third more work"
    )
    tokenizer_path: OpenablePath | None = Field(
        None, description="folder of the tokenizer that made the data, for snippets, where `-t` gives none"
    )
    cooldown_finish: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of all steps that end the run in a linear fall to zero, where `cooldown_start` is null"
    )

    @model_validator(mode="before")
    @classmethod
    def keys_of_others(cls, data: Any) -> Any:
        """The keys by which the paper's authors later said the same: each goes before ours, as in their code; and
        `backwards` follows from an order where there is one."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        data.pop("fast_scrambling", None)  # how the order of windows is drawn, which here needs no table
        if data.get("permutation") is not None:
            if data.get("order") is not None:
                raise ValueError("expected order or permutation, which are the same, found both")
            data["backwards"] = None
        for theirs, ours in THEIR_KEYS.items():
            if (value := data.pop(theirs, None)) is not None:
                data[ours] = value
        order, backwards = data.get("order"), data.get("backwards")
        if order is None:
            return data
        backward = is_backward(order)
        if backwards is True and not backward or backwards is False and backward:
            raise ValueError(
                f"expected order and backwards to agree, found order {shown(order)} and backwards "
                f"{str(backwards).lower()}; leave backwards out"
            )
        return data | ({"backwards": backward} if backwards is None else {})

    @field_validator("order", mode="before")
    @classmethod
    def name_or_list(cls, value: Any) -> Any:
        """One line for both kinds; what they may say depends on the model's context: see `Config`."""
        if value is not None and not isinstance(value, (str, list)):
            raise ValueError(f"expected a name or a list, found {shown(value)}")
        return value

    @field_validator("compile", mode="before")
    @classmethod
    def number_is_no_boolean(cls, value: Any) -> Any:
        """Literal compares with ==, by which 1 would be true."""
        return shown(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class OptimParams(Section):
    lr: Rate = Field(gt=0, description="learning rate at the end of the warm-up")
    warmup_steps: Annotated[int, Field(ge=0), up_to(2**63 - 1, WHY_64_BITS)] = Field(
        4000, description="steps of linear rise from `lr_init` to `lr`"
    )
    oscil_steps: Positive | None = Field(
        None, description="steps of a cosine cycle, between warm restarts; null is a constant rate"
    )
    lr_shrink: float = Field(0.85, gt=0, le=1, description="factor on the learning rate from one cycle to the next")
    lr_init: Rate = Field(1e-7, description="learning rate at the first step of the warm-up")
    lr_min: Rate = Field(1e-6, description="learning rate at the end of the first cycle")
    weight_decay: Rate = Field(
        0.01, description="weight decay of AdamW; torch's default, as no published config sets one"
    )
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    cooldown_steps: Steps | None = Field(
        None, description="steps of a linear fall to zero that ends the run; null is none"
    )
    cooldown_start: Annotated[int, Field(ge=0), up_to(MAX_STEPS, WHY_STEPS)] | None = Field(
        None, description="step at which that fall starts"
    )

    @model_validator(mode="after")
    def rates_in_order(self) -> Self:
        for key in ("lr_init", "lr_min"):
            if getattr(self, key) > self.lr:
                raise ValueError(f"expected {key} of at most lr, found {key} {getattr(self, key)} and lr {self.lr}")
        if (self.cooldown_steps is None) != (self.cooldown_start is None):
            raise ValueError("expected cooldown_steps and cooldown_start together, found one without the other")
        return self


def model_shape(params: Any) -> str:
    """Which kind of `model_params` a user meant, "gpt" or "recurrent", even where the telling key is misspelt."""
    keys = (
        params if isinstance(params, dict) else getattr(type(params), "model_fields", ())
    )  # the latter when it is written out
    return "recurrent" if difflib.get_close_matches("desired_attn_length", keys, cutoff=0.8) else "gpt"


ModelParams = Annotated[
    Annotated[GPTParams, Tag("gpt")] | Annotated[RecurrentParams, Tag("recurrent")], Discriminator(model_shape)
]


class Config(Section):
    """A run: what to train, on what, how. `name`, the stem of the file, is the run's name and not a key of the file."""

    model_params: ModelParams = Field(description="the model; its keys tell a GPT from a recurrent model")
    training_params: TrainingParams = Field(description="the data and the loop")
    optim_params: OptimParams = Field(description="the optimizer and its schedule")
    model: Literal["gpt", "gru", "lstm"] | None = Field(
        None, description="the kind of model; null is what the script trains"
    )
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        return self._name

    @property
    def stride(self) -> int:
        """Tokens between the starts of two training windows."""
        return self.training_params.stride or self.model_params.context // 2

    @property
    def step_windows(self) -> int:
        """Windows in an optimizer step, however it is divided into micro-batches."""
        return self.training_params.batch_size * self.training_params.aggregate

    @property
    def held_out_windows(self) -> int:
        """Windows held out at the end of the data."""
        params = self.training_params
        return (
            params.held_out_tokens // self.model_params.context
            if params.held_out_tokens
            else params.valid_steps * self.step_windows
        )

    @property
    def valid_batch_size(self) -> int:
        """Windows evaluated at a time."""
        return self.training_params.valid_batch_size or self.training_params.batch_size

    @property
    def dataset_path(self) -> str:
        """Where to open the data. UserError as in `expanded`."""
        return expanded(self.training_params.dataset_folder, f"{self.name}: training_params.dataset_folder")

    @property
    def tokenizer_path(self) -> str | None:
        """Where the config has the tokenizer. UserError as in `expanded`."""
        path = self.training_params.tokenizer_path
        return None if path is None else expanded(path, f"{self.name}: training_params.tokenizer_path")

    @property
    def runs_folder(self) -> str:
        """Where states and metrics are. UserError as in `expanded`."""
        return expanded(self.training_params.state_save_loc, f"{self.name}: training_params.state_save_loc")

    @property
    def orders(self) -> tuple[Order, ...]:
        """The orders in which the model reads: one, or several."""
        params = self.training_params
        said = params.order if params.order is not None else BACKWARD if params.backwards else FORWARD
        return orders_of(said, self.model_params.context)

    @property
    def reading(self) -> Reading:
        """The orders in which the model reads, and how it is told which."""
        return Reading.of(self.orders, self.model_params.vocab_size)

    @property
    def order(self) -> str:
        """The name of the order: "forward", "chunks:8", "forward + backward" ..."""
        return self.reading.name

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What `build_model` takes beside the kind of model and the seed."""
        reading = self.reading
        arguments = self.model_params.model_dump() | {"start_tokens": reading.start_tokens}
        return arguments | ({"told_places": True} if reading.is_fresh else {})

    @model_validator(mode="after")
    def steps_are_of_a_possible_size(self) -> Self:
        """Counted in 64 bits, steps x windows of a step cannot overflow then, and nor can steps x tokens."""
        params, context = self.training_params, self.model_params.context
        for key, windows in (
            ("batch_size x aggregate", params.batch_size * params.aggregate),
            ("valid_batch_size", self.valid_batch_size),
        ):
            if windows * context > MAX_STEP_TOKENS:
                raise ValueError(
                    f"expected {key} x context of at most {MAX_STEP_TOKENS:,} tokens (the largest published steps), "
                    f"found {windows:,} x {context:,}"
                )
        return self

    @model_validator(mode="after")
    def model_fits_its_params(self) -> Self:
        is_gpt = isinstance(self.model_params, GPTParams)
        if self.model is not None and is_gpt != (self.model == "gpt"):
            expected = '"gpt"' if is_gpt else '"gru" or "lstm"'
            raise ValueError(
                f"expected model {expected} for model_params with "
                f'{"attn_length" if is_gpt else "desired_attn_length"}, found "{self.model}"'
            )
        return self

    @model_validator(mode="after")
    def order_fits_the_model(self) -> Self:
        try:
            orders = self.orders
        except ValueError as error:
            raise ValueError(f"training_params.order: {error}") from None
        if FRESH in orders and not (
            isinstance(self.model_params, GPTParams) and self.model_params.position == "learned"
        ):
            raise ValueError(
                f'training_params.order: expected a fixed order, found "{FRESH}": places are told to a GPT alone, '
                'with model_params.position "learned"'
            )
        return self

    @model_validator(mode="after")
    def two_windows_are_held_out(self) -> Self:
        if self.held_out_windows < 2:
            raise ValueError(
                f"expected at least two held-out windows of {self.model_params.context} tokens, found "
                f"{self.held_out_windows}; set a larger training_params.held_out_tokens or valid_steps"
            )
        return self

    def to_dict(self) -> dict:
        """The config as plain JSON-able data, defaults filled in; what the state records and `parse_config` takes."""
        return self.model_dump(mode="json")

    def with_training(self, **changes) -> "Config":
        """A copy with some of `training_params` changed, e.g. `with_training(order="backward")`; `order` and
        `backwards` each replace the other. UserError as in `load_config`."""
        data = self.to_dict()
        if "order" in changes or "backwards" in changes:
            changes = {"order": None, "backwards": None} | changes
        return parse_config(data | {"training_params": data["training_params"] | changes}, self.name)

    def cooled(self, last_step: int) -> "Config":
        """A copy in which `cooldown_finish` is a cool-down in steps, for a run of `last_step` steps."""
        share = self.training_params.cooldown_finish
        if share is None or self.optim_params.cooldown_start is not None:
            return self
        steps = max(1, round(share * last_step))
        return self.with_optim(cooldown_start=last_step - steps, cooldown_steps=steps)

    def with_optim(self, **changes) -> "Config":
        """A copy with some of `optim_params` changed."""
        data = self.to_dict()
        return parse_config(data | {"optim_params": data["optim_params"] | changes}, self.name)

    def with_model(self, model: str) -> "Config":
        """A copy that says which model it trains; UserError where `model_params` belong to another kind."""
        if self.model not in (None, model):
            raise UserError(
                f'{self.name}: model: expected "{model}", found "{self.model}"; use the script of that model'
            )
        return parse_config(self.to_dict() | {"model": model}, self.name)

    def with_name(self, name: str) -> "Config":
        """A copy under another run name. UserError where files cannot have it."""
        return parse_config(self.to_dict(), check_name(name, RUN_NAME))


def load_config(path: str | os.PathLike) -> Config:
    """Read a config file; the run's name is the file's, without .json.

    Raises UserError, one line, where the file is missing, is not JSON (with line and
    column) or holds a key, type or value that it should not.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, and be empty for a second reader
            raise UserError(
                f"{path}: expected a config file, found "
                f"{'a folder' if stat.S_ISDIR(found.st_mode) else 'no regular file'}"
            )
        if found.st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: expected a config file of some kB, found {found.st_size:,} bytes")
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a JSON config: byte {error.start} is not UTF-8") from None
    except ValueError:
        raise UserError(f"{shown(str(path))}: no path that a file can have") from None
    try:
        data = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=refuse_constant,
            parse_float=finite,
            parse_int=short_enough,
        )
    except json.JSONDecodeError as error:
        hint = " (JSON has no comments)" if text.startswith(("#", "//"), error.pos) else ""
        raise UserError(f"{path}: not JSON: line {error.lineno} column {error.colno}: {error.msg}{hint}") from None
    except RecursionError:
        raise UserError(f"{path}: not a config: objects or lists nested too deep") from None
    except ValueError as error:
        raise UserError(f"{path}: not a config: {error}") from None
    name = Path(path).name
    return parse_config(
        data, name[: -len(".json")] if name.lower().endswith(".json") else Path(path).stem, source=str(path)
    )


def parse_config(data: Any, name: str, source: str | None = None) -> Config:
    """A Config from plain data, as in a file or in a state. UserError names `source` (by default `name`) and the keys
    at fault."""
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        typos_first = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        problems = [describe(problem) for problem in typos_first[:SHOWN_ERRORS]]
        more = f"; and {len(typos_first) - SHOWN_ERRORS} more" if len(typos_first) > SHOWN_ERRORS else ""
        raise UserError(f"{source or name}: {'; '.join(problems)}{more}") from None
    config._name = name
    return config


def unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object in which no key stands twice; json itself would keep the last one without a word."""
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError(f'key "{next(key for key in keys if keys.count(key) > 1)}" stands twice in one object')
    return dict(pairs)


def refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def finite(digits: str) -> float:
    """A JSON number with a point or an exponent; json itself makes 1e400 infinite."""
    if math.isinf(number := float(digits)):
        raise ValueError(f"{shown_digits(digits)} is beyond what a number can be (1.8e308)")
    return number


def short_enough(digits: str) -> int:
    """A JSON integer; of more digits than a number with a point could have, it is refused before the time it would
    take."""
    if len(digits) > 309:
        raise ValueError(f"{shown_digits(digits)} is beyond what a number can be (1.8e308)")
    return int(digits)


def shown_digits(digits: str) -> str:
    return digits if len(digits) <= 20 else f"{digits[:10]}... ({len(digits):,} digits)"


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


def describe(problem: dict) -> str:
    """One of pydantic's errors in our words: key, expected, found, and for an unknown key the nearest valid one."""
    location = problem["loc"]
    keys = [
        str(part) for part in location if part not in ("gpt", "recurrent")
    ]  # those two are names of the union's branches
    where = (
        ".".join(key if len(key) <= SHOWN_LENGTH else key[:SHOWN_LENGTH] + "..." for key in keys) + ": " if keys else ""
    )
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key, {nearest_key(keys, location)}"
    if problem["type"] == "missing":
        return f"{where}required and missing ({section_fields(location)[keys[-1]].description})"
    if problem["type"] == "value_error":
        return f"{where}{problem['ctx']['error']}"
    return f"{where}expected {expected(problem)}, found {shown(problem['input'])}"


def section_fields(location: tuple) -> dict:
    """The fields of the section in which the key at pydantic's `location` stands."""
    sections = {
        "training_params": TrainingParams,
        "optim_params": OptimParams,
        "gpt": GPTParams,
        "recurrent": RecurrentParams,
    }
    return next((sections[part] for part in reversed(location[:-1]) if part in sections), Config).model_fields


def nearest_key(keys: list[str], location: tuple) -> str:
    """What to write instead of an unknown key: the nearest key of its section, else the section where that key
    belongs."""
    valid = section_fields(location)
    if all_keys().get(keys[-1]) == ".".join(keys):
        return "only a GPT has it, and desired_attn_length makes this a recurrent model"
    for candidates in (valid, all_keys()):
        if near := difflib.get_close_matches(keys[-1], candidates, n=1):
            return (
                f"nearest valid key: {'.'.join([*keys[:-1], near[0]]) if candidates is valid else all_keys()[near[0]]}"
            )
    return f"valid keys: {', '.join(valid)}"


def all_keys() -> dict[str, str]:
    """Every key of every section with its dotted name."""
    sections = {
        "model_params": RecurrentParams.model_fields | GPTParams.model_fields,
        "training_params": TrainingParams.model_fields,
        "optim_params": OptimParams.model_fields,
    }
    return {key: f"{section}.{key}" for section, fields in sections.items() for key in fields}


def key_table() -> str:
    """All keys as a Markdown table: key, default, meaning."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    sections = [
        ("model_params (GPT)", GPTParams),
        ("model_params (GRU, LSTM)", RecurrentParams),
        ("training_params", TrainingParams),
        ("optim_params", OptimParams),
    ]
    for title, section in sections:
        rows.append(f"| **{title}** | | |")
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            rows.append(f"| `{key}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    tell(key_table())
