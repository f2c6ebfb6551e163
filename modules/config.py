"""The JSON config of a run as typed, validated, frozen objects.

`load_config(path)` reads a file, `parse_config` what a state recorded: there is no other way in. A run of days must not
die at its first save because of a misspelt key, nor silently train with a default that the user thought was overridden.
So everything is checked before anything is built: unknown and repeated keys, types (strictly: 256.0, "256" and true are
not integers), ranges, and the few rules between keys. The error is one line with the file, the dotted key, what was
expected, what was found and the nearest valid key.

The fields below, and those of each model's `Params`, are the one place where keys, defaults and meanings are written,
and what each of them decides (fields.py); `python -m modules.config` prints them as the table in docs/config.md.
Published configs leave keys out or give null for "the default", so null counts as
absent for every key that has a default.

Paths stay in the config, and in states, as they were written: `~` and `$VARIABLE` mean something else on another
machine. They are expanded where files are opened, by `expanded`.

Objects are frozen: what the state records about a run is what the run trained
with. `with_training` and `with_model` return changed, validated copies.
"""

import difflib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from modules.data.orders import BACKWARD, FORWARD, FRESH, Order, Reading, in_run_name, is_backward, orders_of
from modules.data.windows import Cut
from modules.fields import (
    IDENTITY,
    MAX_SEED,
    MAX_STEP_TOKENS,
    MAX_STEPS,
    SETTING,
    WHY_64_BITS,
    WHY_STEPS,
    Decides,
    ModelParams,
    OpenablePath,
    Positive,
    Rate,
    Section,
    Steps,
    Windows,
    expanded,
    up_to,
)
from modules.models import MODELS, GPTParams, RecurrentParams
from modules.system.console import tell
from modules.system.errors import UserError
from modules.system.names import check_name
from modules.system.schema import SHOWN_ERRORS, SHOWN_LENGTH, expected, shown

RUN_NAME = "the run's name (the config file's, or --run_name)"
MAX_CONFIG_BYTES = 1 << 20
HELD_OUT = "held-out windows"
STEP_WINDOWS = Decides("identity", by="step_windows", name="training_params.batch_size x aggregate")
STRIDE = Decides("identity", by="stride", name="training_params.stride")
HELD_OUT_WINDOWS = Decides("identity", by="held_out_windows", name=HELD_OUT)
ORDER = Decides("identity", by="order", name="training_params.order")


THEIR_KEYS = {"permutation": "order", "save_loc": "state_save_loc", "val_batch_size": "valid_batch_size"}


class TrainingParams(Section):
    dataset_folder: OpenablePath = Field(
        description="path of the `.h5` to train on, relative to where the script is launched"
    )
    batch_size: Annotated[Windows, STEP_WINDOWS] = Field(
        description="windows in a micro-batch, over all devices together"
    )
    aggregate: Annotated[Windows, STEP_WINDOWS] = Field(1, description="micro-batches in one optimizer step")
    order: Annotated[str | list | None, ORDER] = Field(
        None, description="order of reading: a name, positions, or several (orders.md); null is what `backwards` says"
    )
    backwards: Annotated[bool, ORDER] = Field(
        False, description="whether the order is backward, as an older key says it"
    )
    steps_to_train: Steps | None = Field(None, description="optimizer steps in total; null is one epoch")
    save_every: Positive = Field(3000, description="steps between saves of the training state, each with a validation")
    backup_every: Positive = Field(15000, description="steps between backups of the training state")
    step_log: Positive = Field(400, description="steps between logs of the training loss")
    valid_steps: Annotated[Positive, HELD_OUT_WINDOWS] = Field(
        1000, description="held-out windows, in steps' worth of windows"
    )
    held_out_tokens: Annotated[Positive | None, HELD_OUT_WINDOWS] = Field(
        None, description="tokens held out, in place of `valid_steps`"
    )
    held_out_fold: Annotated[Literal["last", "by_seed"], IDENTITY] = Field(
        "last",
        description="where they are held out: at the end; or `by_seed`, another fold of so many tokens for each seed, "
        "as in cross-validation",
    )
    state_save_loc: OpenablePath = Field(
        "runs", description="folder of states and metrics, relative to where the script is launched"
    )
    seed: Annotated[int, Field(ge=0), up_to(MAX_SEED, WHY_64_BITS), IDENTITY] = Field(
        0, description="of initial weights, dropout and the order of windows"
    )
    stride: Annotated[Positive | None, STRIDE] = Field(
        None, description="tokens between the starts of training windows; null is half the context"
    )
    precision: Annotated[Literal["auto", "fp32", "bf16"], SETTING] = Field(
        "auto", description="auto is bf16 autocast where the hardware is faster with it"
    )
    compile: Literal["auto", True, False] = Field(
        "auto", description="`torch.compile`; auto is on where it pays for itself (docs/devices.md)"
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
    init_from: OpenablePath | None = Field(
        None,
        description="a state, or a folder of `transformers`' GPT-2, whose weights the run begins with "
        "(exchange.md); null is new ones, by the seed",
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

    @property
    def cooldown(self) -> tuple[int, int] | None:
        """The step at which the fall to zero starts, and its length; None where there is none."""
        if self.cooldown_start is None or self.cooldown_steps is None:
            return None
        return self.cooldown_start, self.cooldown_steps

    @model_validator(mode="after")
    def rates_in_order(self) -> Self:
        for key in ("lr_init", "lr_min"):
            if getattr(self, key) > self.lr:
                raise ValueError(f"expected {key} of at most lr, found {key} {getattr(self, key)} and lr {self.lr}")
        if (self.cooldown_steps is None) != (self.cooldown_start is None):
            raise ValueError("expected cooldown_steps and cooldown_start together, found one without the other")
        return self


P = TypeVar("P", bound=ModelParams)


class Config(Section, Generic[P]):
    """A run: what to train, on what, how. `name`, the stem of the file, is the run's name and not a key of the file."""

    model_params: Annotated[P, IDENTITY] = Field(description="the model; its keys tell a GPT from a recurrent model")
    training_params: TrainingParams = Field(description="the data and the loop")
    optim_params: Annotated[OptimParams, SETTING] = Field(description="the optimizer and its schedule")
    model: Annotated[str | None, IDENTITY] = Field(
        None, description="the kind of model; null is what the script trains"
    )
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        return self._name

    @property
    def trained_model(self) -> str:
        """The kind of model, once a script has said it (`with_model`)."""
        if self.model is None:
            raise ValueError(f"{self.name}: which model it trains has not been said")
        return self.model

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
        """Windows held out of the data."""
        params = self.training_params
        return (
            params.held_out_tokens // self.model_params.context
            if params.held_out_tokens
            else params.valid_steps * self.step_windows
        )

    @property
    def folds_by_seed(self) -> bool:
        """Whether each seed holds out another part of the data."""
        return self.training_params.held_out_fold == "by_seed"

    @property
    def cut(self) -> Cut:
        """How the data are cut into windows."""
        return Cut(self.model_params.context, self.stride, self.held_out_windows, self.step_windows, self.folds_by_seed)

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
    def init_path(self) -> str | None:
        """Where the weights are that the run begins with: `{order}` and `{seed}` are those of the run. UserError as in
        `expanded`."""
        path = self.training_params.init_from
        if path is None:
            return None
        for name, value in (("{order}", in_run_name(self.orders)), ("{seed}", str(self.training_params.seed))):
            path = path.replace(name, value)
        return expanded(path, f"{self.name}: training_params.init_from")

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
        beside = {"start_tokens": reading.start_tokens, "told_places": reading.is_fresh}
        return self.model_params.model_dump() | {key: value for key, value in beside.items() if value}

    def identity(self) -> dict[str, object]:
        """What makes a run of this config the run that it is, its data aside, by the name under which a difference is
        told."""
        return {
            mark.name or name: getattr(self, mark.by) if mark.by else value
            for name, value, mark in self._marked()
            if mark.what == "identity"
        }

    def settings(self) -> dict[str, object]:
        """What may change on a run's way, where it is asked to: by key, without its section."""
        return {name.rpartition(".")[2]: value for name, value, mark in self._marked() if mark.what == "setting"}

    def _marked(self) -> Iterator[tuple[str, object, Decides]]:
        """Each field that decides something: dotted name, value, mark. A marked section marks its fields."""
        for name, field in type(self).model_fields.items():
            section, of_all = getattr(self, name), mark_of(field)
            if not isinstance(section, Section):
                yield from [(name, section, of_all)] if of_all else []
                continue
            for key, own in type(section).model_fields.items():
                if mark := of_all or mark_of(own):
                    yield f"{name}.{key}", getattr(section, key), mark

    @field_validator("model")
    @classmethod
    def model_is_known(cls, model: str | None) -> str | None:
        if model is not None and model not in MODELS:
            *most, last = map(repr, MODELS)
            raise ValueError(f"expected {', '.join(most)} or {last}, found {shown(model)}")
        return model

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
        if self.model is not None and not isinstance(self.model_params, MODELS[self.model].Params):
            having = " or ".join(f'"{name}"' for name in models_with(type(self.model_params)))
            raise ValueError(f'expected model {having} for these model_params, found "{self.model}"')
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
                f"expected at least two held-out windows of {self.model_params.context} tokens, "
                f"found {self.held_out_windows}; set a larger training_params.held_out_tokens or valid_steps"
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
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise UserError(f"{path}: expected a config file, found {kind}")
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
    params = params_of(data)
    try:
        config = Config[params].model_validate(data)
    except ValidationError as error:
        typos_first = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        problems = [describe(problem, params) for problem in typos_first[:SHOWN_ERRORS]]
        more = f"; and {len(typos_first) - SHOWN_ERRORS} more" if len(typos_first) > SHOWN_ERRORS else ""
        raise UserError(f"{source or name}: {'; '.join(problems)}{more}") from None
    config._name = name
    return config


def params_of(data: Any) -> type[ModelParams]:
    """Of which model the `model_params` of a config are: of the one that it names. GPT and recurrent models are told by
    their keys, even misspelt ones, whatever the name: where it is another's, that is the mistake to tell."""
    data = data if isinstance(data, dict) else {}
    name, keys = data.get("model"), data.get("model_params")
    named = MODELS[name].Params if isinstance(name, str) and name in MODELS else GPTParams
    if named not in (GPTParams, RecurrentParams):
        return named
    recurrent = difflib.get_close_matches("desired_attn_length", keys if isinstance(keys, dict) else (), cutoff=0.8)
    return RecurrentParams if recurrent else GPTParams


def models_with(params: type[ModelParams], written: Callable[[str], str] = str) -> list[str]:
    """The names of the models whose `model_params` are these."""
    return [written(name) for name, model in MODELS.items() if model.Params is params]


def mark_of(field: FieldInfo) -> Decides | None:
    """What a field decides of a run's result."""
    return next((mark for mark in field.metadata if isinstance(mark, Decides)), None)


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


def describe(problem: ErrorDetails, params: type[ModelParams]) -> str:
    """One of pydantic's errors in our words: key, expected, found, and for an unknown key the nearest valid one."""
    keys = [str(part) for part in problem["loc"]]
    where = (
        ".".join(key if len(key) <= SHOWN_LENGTH else key[:SHOWN_LENGTH] + "..." for key in keys) + ": " if keys else ""
    )
    if problem["type"] == "extra_forbidden":
        return f"{where}unknown key, {nearest_key(keys, params)}"
    if problem["type"] == "missing":
        return f"{where}required and missing ({section_fields(keys, params)[keys[-1]].description})"
    if problem["type"] == "value_error":
        return f"{where}{problem.get('ctx', {})['error']}"
    return f"{where}expected {expected(problem)}, found {shown(problem['input'])}"


def section_fields(keys: list[str], params: type[ModelParams]) -> dict[str, FieldInfo]:
    """The fields of the section in which the last of nested `keys` stands."""
    sections = {"training_params": TrainingParams, "optim_params": OptimParams, "model_params": params}
    return next((sections[key] for key in reversed(keys[:-1]) if key in sections), Config).model_fields


def nearest_key(keys: list[str], params: type[ModelParams]) -> str:
    """What to write instead of an unknown key: the nearest key of its section, else the section where that key
    belongs."""
    valid = section_fields(keys, params)
    others = [cls for model in MODELS.values() if keys[-1] in (cls := model.Params).model_fields]
    if others and keys[:-1] == ["model_params"]:
        having, given = (" or ".join(models_with(cls, str.upper)) for cls in (others[0], params))
        return f"only a {having} has it, and the other keys make this a {given}"
    for candidates in (valid, all_keys()):
        if near := difflib.get_close_matches(keys[-1], candidates, n=1):
            dotted = ".".join([*keys[:-1], near[0]]) if candidates is valid else all_keys()[near[0]]
            return f"nearest valid key: {dotted}"
    return f"valid keys: {', '.join(valid)}"


def all_keys() -> dict[str, str]:
    """Every key of every section with its dotted name."""
    sections = [("model_params", model.Params) for model in MODELS.values()]
    sections += [("training_params", TrainingParams), ("optim_params", OptimParams)]
    return {key: f"{section}.{key}" for section, fields in sections for key in fields.model_fields}


def key_table() -> str:
    """All keys as a Markdown table: key, default, meaning."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    sections: dict[str, type[Section]] = {
        f"model_params ({', '.join(models_with(params, str.upper))})": params
        for params in (model.Params for model in MODELS.values())
    }
    sections |= {"training_params": TrainingParams, "optim_params": OptimParams}
    for title, section in sections.items():
        rows.append(f"| **{title}** | | |")
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            rows.append(f"| `{key}` | {default} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    tell(key_table())
