"""Our GPT as models of `transformers`, and theirs as ours: the same numbers under other names.

With learned positions, or none, it is their GPT-2. Their Conv1D keeps matrices the other way round, and where there are
no positions, a table of zeros stands for them. With rotary positions it is their GPT-NeoX whose halves follow each
other: it turns channel i of a head with channel i + C / 2, where ours are neighbours, so that channels change places;
and it keeps query, key and value head by head.

What is read is refused unless it computes what our GPT computes: another activation, another scale of attention, tied
heads that a bias unties.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open

from modules.fields import Layers
from modules.kernels.rotary import BASE
from modules.models.gpt import GPTParams
from modules.system.errors import UserError, describe_os_error
from modules.system.schema import Schema, checked, shown

CONFIG = "config.json"
INDEX = ".index.json"  # of weights in several files, behind the name of the one that they are parts of
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NORM_EPS = 1e-5  # torch's, and so ours
MAX_JSON_BYTES = 1 << 26

# Theirs by ours; {} is the number of a block.
GPT2_MODULES = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "blocks.{}.norm_1": "transformer.h.{}.ln_1",
    "blocks.{}.attention.query_key_value": "transformer.h.{}.attn.c_attn",
    "blocks.{}.attention.out": "transformer.h.{}.attn.c_proj",
    "blocks.{}.norm_2": "transformer.h.{}.ln_2",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.mlp.out": "transformer.h.{}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
NEOX_MODULES = {
    "embedding": "gpt_neox.embed_in",
    "blocks.{}.norm_1": "gpt_neox.layers.{}.input_layernorm",
    "blocks.{}.attention.query_key_value": "gpt_neox.layers.{}.attention.query_key_value",
    "blocks.{}.attention.out": "gpt_neox.layers.{}.attention.dense",
    "blocks.{}.norm_2": "gpt_neox.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "blocks.{}.mlp.out": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
}
ACTIVATIONS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_fast": "tanh", "gelu": "exact"}
ACTIVATION_OF = {"tanh": "gelu_new", "exact": "gelu"}
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # that older versions keep among the weights


def renamed(name: str, modules: Mapping[str, str]) -> str:
    """Their name of our parameter `name`."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    pattern = module.replace(number[0], ".{}.", 1) if number else module
    return f"{modules[pattern].format(number[1] if number else '')}.{kind}"


def is_conv1d(name: str) -> bool:
    """Whether our parameter `name` is a matrix that their GPT-2 keeps transposed."""
    return name.startswith("blocks.") and name.endswith(".weight") and ".norm_" not in name


# Ours for others
# ----------------------------------------------------------------------------------------------------------------------


def as_transformers(
    weights: Mapping[str, torch.Tensor], params: GPTParams, bos_id: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of a GPT of these `model_params` under their names, and the config.json of their model."""
    shared: dict[str, Any] = {
        "vocab_size": params.vocab_size,
        "bos_token_id": bos_id,
        "eos_token_id": bos_id,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "torch_dtype": "float32",  # the same, as versions before 5 call it
    }
    if params.position == "rope":
        return _as_neox(weights, params), shared | {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_size": params.embed_dim,
            "num_hidden_layers": params.n_layers,
            "num_attention_heads": params.n_heads,
            "intermediate_size": int(params.embed_dim * params.mlp_ratio),
            "hidden_act": ACTIVATION_OF[params.gelu],
            "max_position_embeddings": params.context,
            "layer_norm_eps": NORM_EPS,
            "use_parallel_residual": False,
            "attention_bias": True,
            "rotary_pct": 1.0,
            "rotary_emb_base": BASE,
            "attention_dropout": params.dropout,
            "hidden_dropout": params.dropout,
        }
    return _as_gpt2(weights, params), shared | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": params.context,
        "n_embd": params.embed_dim,
        "n_layer": params.n_layers,
        "n_head": params.n_heads,
        "n_inner": int(params.embed_dim * params.mlp_ratio),
        "activation_function": ACTIVATION_OF[params.gelu],
        "layer_norm_epsilon": NORM_EPS,
        "attn_pdrop": params.dropout,
        "resid_pdrop": params.dropout,
        "embd_pdrop": params.embd_dropout,
    }


def _as_gpt2(weights: Mapping[str, torch.Tensor], params: GPTParams) -> dict[str, torch.Tensor]:
    found = {
        renamed(name, GPT2_MODULES): (tensor.T if is_conv1d(name) else tensor).contiguous()
        for name, tensor in weights.items()
    }
    if params.position == "none":
        found["transformer.wpe.weight"] = torch.zeros(params.context, params.embed_dim)
    return found


def _as_neox(weights: Mapping[str, torch.Tensor], params: GPTParams) -> dict[str, torch.Tensor]:
    heads = (3, params.n_heads, -1)
    found = {}
    for name, tensor in weights.items():
        if ".query_key_value." in name:
            rows_3HC = tensor.unflatten(0, heads).clone()
            rows_3HC[:2] = torch.cat([rows_3HC[:2, :, 0::2], rows_3HC[:2, :, 1::2]], dim=2)  # each pair's first, second
            tensor = rows_3HC.transpose(0, 1).flatten(0, 2)
        found[renamed(name, NEOX_MODULES)] = tensor.contiguous()
    return found


# Theirs for us
# ----------------------------------------------------------------------------------------------------------------------


class GPT2Config(Schema):
    """What of a config.json decides what a GPT-2 computes, with the defaults of `transformers`."""

    model_type: Literal["gpt2"]
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: Layers = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = NORM_EPS
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False


def plain(name: str) -> str:
    """The name of a file beside the index, not a path that leads elsewhere."""
    if name != Path(name).name or "\0" in name:
        raise ValueError(f"expected the name of a file, found {shown(name)}")
    return name


FileName = Annotated[str, AfterValidator(plain)]


class Index(Schema):
    """The index of weights in several files."""

    weight_map: Annotated[dict[str, FileName], Field(min_length=1)]


def read_gpt2(folder: Path, params: GPTParams) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of a folder of `transformers`' GPT-2 in fp32 under our names, and in what it is another model than
    the GPT of `params`. A head that is the embedding is copied.

    Raises UserError where it cannot be read, or is no GPT-2.
    """
    config = checked(GPT2Config, read_json(folder / CONFIG), str(folder / CONFIG), "only GPT-2 is read")
    expected = {
        "vocab_size": (config.vocab_size, params.vocab_size),
        "attn_length": (config.n_positions, params.attn_length),
        "embed_dim": (config.n_embd, params.embed_dim),
        "n_layers": (config.n_layer, params.n_layers),
        "n_heads": (config.n_head, params.n_heads),
        "embed_dim x mlp_ratio": (config.n_inner or 4 * config.n_embd, int(params.embed_dim * params.mlp_ratio)),
        "position": ("learned", params.position),
        "gelu": (ACTIVATIONS.get(config.activation_function, config.activation_function), params.gelu),
        "the layer norms' epsilon": (config.layer_norm_epsilon, NORM_EPS),
    }
    different = [f"{key} {there} there and {here} here" for key, (there, here) in expected.items() if there != here]
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in read_tensors(folder).items()}
    weights = {}
    for block in range(config.n_layer):
        for module in (key for key in GPT2_MODULES if "{}" in key):
            for kind in ("weight", "bias"):
                _take(theirs, f"{module.format(block)}.{kind}", weights)
    for name in ("embedding.weight", "position.weight", "norm.weight", "norm.bias", "head.weight"):
        _take(theirs, name, weights)
    if "head.weight" not in weights and "embedding.weight" in weights:
        weights["head.weight"] = weights["embedding.weight"].clone()
    if left := [name for name in theirs if not CAUSAL_MASK.fullmatch(name)]:
        raise UserError(f"{folder}: has tensors that a GPT-2 has not: {', '.join(map(repr, sorted(left)[:3]))}")
    return weights, different


def _take(theirs: dict[str, torch.Tensor], name: str, weights: dict[str, torch.Tensor]) -> None:
    """Move the tensor of our name `name` from `theirs` to `weights`, where it is there."""
    tensor = theirs.pop(renamed(name, GPT2_MODULES).removeprefix("transformer."), None)
    if tensor is not None:
        turned = tensor.T if is_conv1d(name) and tensor.ndim == 2 else tensor
        weights[name] = (turned.float() if turned.is_floating_point() else turned).contiguous()


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of weights: safetensors or torch's file, in one or in parts. Reading runs no code.

    Raises UserError where there are none, or they cannot be read.
    """
    for name in WEIGHTS:
        if (folder / name).exists():
            return _read_file(folder / name)
        if (index := folder / f"{name}{INDEX}").exists():
            weight_map = checked(Index, read_json(index), str(index)).weight_map
            tensors = {}
            for file in sorted(set(weight_map.values())):
                tensors |= _read_file(folder / file)
            if missing := sorted(weight_map.keys() - tensors.keys()):
                raise UserError(f"{folder}: {missing[0]} is not in {weight_map[missing[0]]}, where its index has it")
            return tensors
    raise UserError(f"{folder}: expected {' or '.join(WEIGHTS)}, found neither")


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"the weights cannot be read: {describe_os_error(error)}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: truncated, damaged or no safetensors ({error})") from None
    except MemoryError:
        raise UserError(f"{path}: not enough memory to read the weights") from None
    except Exception as error:  # pickle, zip and torch each have errors of their own for what they cannot read
        raise UserError(
            f"{path}: no weights that can be read without running code ({type(error).__name__}); "
            "have transformers save them as safetensors"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path}: expected tensors by name, found something else")
    return tensors


def read_json(path: Path) -> object:
    """A JSON file. UserError where it is missing, large or none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path}: expected some kB, found {path.stat().st_size:,} bytes")
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a state, or a folder of transformers' GPT-2") from None
    except OSError as error:
        raise UserError(f"cannot read {describe_os_error(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON: {str(error).splitlines()[0]}") from None
