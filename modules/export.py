"""A trained model as a folder that others open without this project.

A GPT becomes one of `transformers` (exchange/gpt2.py), with its tokenizer: `AutoModelForCausalLM` and `AutoTokenizer`
open the folder, and so does whatever stands on them. A GRU, an LSTM or a model of one's own has no peer there, and
keeps our names. Beside the weights the folder has what is known of them: in words in README.md, the model card, and for
programs in config.json, under "backperplexity".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from modules.config import Config, parse_config
from modules.data.orders import BACKWARD, FORWARD, name_of, positions
from modules.exchange.gpt2 import as_transformers
from modules.models import GPTParams, build_model
from modules.system.console import one_line
from modules.system.errors import UserError
from modules.system.files import check_new, new_folder
from modules.system.names import in_markdown
from modules.tokenizer import Tokenizer, get_tokenizer
from modules.training.initial import check_fit, fingerprint_of, state_at
from modules.training.metrics import read_metrics

# How a text becomes what the model reads, by its order; and how what it makes up becomes text.
READING = {
    FORWARD: ("*ids", "BOS in front", "written"),
    BACKWARD: ("*reversed(ids)", "BOS in front, then the last token first", "written.flip(0)"),
}

SAID = {FORWARD: "forward", BACKWARD: "backward: the last token first, and predicts the token before each"}


def export(path: Path, out: Path, tokenizer_path: str, command: str) -> str:
    """Write the model of the state at `path` to the new folder `out`; a line on what was written.

    command: how it was asked for. Raises UserError where there is no such state, the tokenizer is not the data's, no
    model of others computes the same, or `out` is there already; `out` is whole or not there.
    """
    check_new(out)
    toki = get_tokenizer(tokenizer_path)
    state = state_at(path)
    config = parse_config(state["config"], state["run"], source=str(path))
    check_exportable(config, path)
    check_tokenizer(toki, state, config, path)
    with torch.device("meta"):
        model = build_model(config.trained_model, 0, **config.model_arguments)
    weights = state["model"]
    check_fit(weights, {name: tensor.shape for name, tensor in model.state_dict().items()}, [], path)
    known = facts(state, config, path) | {"weights": fingerprint_of(weights), "command": one_line(command)}
    if isinstance(config.model_params, GPTParams) and config.trained_model == "gpt":
        tensors, theirs = as_transformers(weights, config.model_params, toki.bos_id)
    else:
        tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
        theirs: dict[str, Any] = {
            "model": config.model,
            "model_params": config.model_params.model_dump(),
            "bos_token_id": toki.bos_id,
            "eos_token_id": toki.bos_id,
        }
    with new_folder(out) as folder:
        write_tensors(tensors, folder / "model.safetensors", out)
        files = {"config.json": theirs | {"backperplexity": known}} | tokenizer_files(toki, config)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(config, known), encoding="utf-8")
    kind = theirs["architectures"][0] if "architectures" in theirs else config.model
    return f"{out}: {kind} of {sum(map(torch.Tensor.numel, tensors.values())):,} parameters, reads {config.order}"


def check_exportable(config: Config, path: Path) -> None:
    """UserError where the model reads what no model of others is told: which of several orders, or places."""
    if config.reading.is_fresh:
        raise UserError(f"{path}: is told the places of its tokens (order {config.order}), which no other model is")
    if len(config.orders) > 1:
        raise UserError(
            f"{path}: reads {config.order}, with start tokens behind its vocabulary that are read and never predicted; "
            "models of others predict all that they read. Export a model of one order"
        )


def check_tokenizer(toki: Tokenizer, state: dict, config: Config, path: Path) -> None:
    """UserError where the tokenizer cannot be the one of the data that the model was trained on."""
    recorded, size = state["dataset"].get("tokenizer_fingerprint"), config.model_params.vocab_size
    if recorded not in (None, toki.fingerprint):
        raise UserError(
            f"{toki.folder}: not the tokenizer of {path}: fingerprint {toki.fingerprint[:12]}, expected {recorded[:12]}"
        )
    if toki.vocab_size > size:
        raise UserError(
            f"{toki.folder}: not the tokenizer of {path}: it has {toki.vocab_size:,} ids, the model {size:,}"
        )


def facts(state: dict, config: Config, path: Path) -> dict[str, object]:
    """What is known of a model, as plain data. held_out_loss: None where the run's metrics are not beside its state."""
    order = config.orders[0]
    beside = (folder / "metrics" / f"{config.name}.jsonl" for folder in path.resolve().parents[1:3])  # 2: of a backup
    metrics = next((each for each in beside if each.is_file()), None)
    held_out = [
        entry["loss"]
        for entry in (read_metrics(metrics) if metrics else ())
        if entry["split"] == "valid" and entry["step"] == state["step"]
    ]
    return {
        "run": config.name,
        "order": name_of(order),
        "positions": None if order in READING else positions(order, config.model_params.context).tolist(),
        "context": config.model_params.context,
        "seed": config.training_params.seed,
        "step": state["step"],
        "tokens": state["tokens"],
        "held_out_loss": held_out[-1] if held_out else None,
        "held_out_tokens": state["held_out_tokens"],
        "data": Path(config.training_params.dataset_folder).name,
        "dataset": state["dataset"],
        "initial_weights": state.get("initial_weights"),
        "notes": state.get("notes", []),
    }


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path, out: Path) -> None:
    """Write a safetensors file. UserError, which names `out`, where it cannot be written."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors would let nobody but the owner read it
    except SafetensorError as error:  # also where the disk is full; the text has the system's reason
        raise UserError(f"{out}: the weights cannot be written: {error}") from None


def tokenizer_files(toki: Tokenizer, config: Config) -> dict[str, object]:
    """The files that `AutoTokenizer` opens, by name."""
    bos = toki.backend.id_to_token(toki.bos_id)
    named = {"bos_token": bos, "eos_token": bos}
    if toki.unk_id is not None:
        named["unk_token"] = toki.backend.id_to_token(toki.unk_id)
    return {
        "tokenizer.json": toki.definition,
        "special_tokens_map.json": named,
        "tokenizer_config.json": named
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.model_params.context,
            "clean_up_tokenization_spaces": False,
        },
    }


# The model card
# ----------------------------------------------------------------------------------------------------------------------


def card(config: Config, known: Mapping) -> str:
    """README.md: what the model is, how it is read, and where it came from."""
    is_gpt = config.trained_model == "gpt"
    dataset, loss, order = known["dataset"], known["held_out_loss"], known["order"]
    initial = known["initial_weights"]
    rows = {
        "reads": SAID.get(order, f"{order}: the token read i-th is token `positions[i]` of a window, see config.json"),
        "context": f"{known['context']:,} tokens, BOS included",
        "trained for": f"{known['step']:,} steps, {known['tokens']:,} tokens, seed {known['seed']}",
        "held-out loss": f"{loss:.4f} nats per token over the {known['held_out_tokens']:,} tokens held out"
        if loss is not None
        else "not recorded beside the state",
        "data": f"{known['data']}, {dataset['n_tokens']:,} tokens, fingerprint {dataset['fingerprint']}",
        "tokenizer": f"fingerprint {dataset.get('tokenizer_fingerprint') or 'not recorded'}",
        "began with": f"{initial['path']}, fingerprint {initial['fingerprint']}" if initial else "new weights",
        "weights": f"fingerprint {known['weights']}",
    }
    tags = "\n".join(f"- {tag}" for tag in ("arrow-of-time", *([f"reads-{order}"] if order in READING else [])))
    parts = [
        f"---\nlibrary_name: {'transformers' if is_gpt else 'pytorch'}\ntags:\n{tags}\n---",
        f"# {in_markdown(config.name)}",
        f"A language model ({config.trained_model.upper()}), trained with BackPerplexity to measure the arrow of time "
        "(arXiv 2401.17505).",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {in_markdown(value)} |" for name, value in rows.items())]),
        *(in_markdown(note[0].upper() + note[1:] + ".") for note in known["notes"]),
        "## How to read with it",
        "A text is read behind BOS, so that its first token is predicted too: the logits at a place are those of the "
        "token that is read next.",
        f"```python\n{code(known, is_gpt)}\n```",
        "Exported by:",
        f"    {known['command']}",
    ]
    return "\n\n".join(parts) + "\n"


def code(known: Mapping, is_gpt: bool) -> str:
    """Python that opens the folder, reads a text in the model's order and, where it reads on, lets it write."""
    read, said, back = READING.get(known["order"], ("*(ids[i] for i in positions)", "BOS in front, then as read", ""))
    lines = [
        "import json" if not is_gpt else "",
        "import torch",
        "from safetensors.torch import load_file" if not is_gpt else "",
        f"from transformers import {'AutoModelForCausalLM, ' if is_gpt else ''}AutoTokenizer",
        "from modules.models import build_model  # run it in a copy of BackPerplexity" if not is_gpt else "",
        "from modules.models.generate import generate" if back and not is_gpt else "",
        'folder = "."  # this one',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]
    if is_gpt:
        lines.append("model = AutoModelForCausalLM.from_pretrained(folder)")
    else:
        lines += [
            'config = json.load(open(f"{folder}/config.json"))',
            'model = build_model(config["model"], 0, **config["model_params"]).eval()',
            'model.load_state_dict(load_file(f"{folder}/model.safetensors"))',
        ]
    if known["positions"]:
        config = "model.config.backperplexity" if is_gpt else 'config["backperplexity"]'
        lines.append(f'positions = {config}["positions"]')
    lines.append('text = "The text to read."' if back else f'text = "A text of {known["context"]} tokens or more."')
    lines += [
        "ids = tokenizer(text, add_special_tokens=False).input_ids",
        f"read = torch.tensor([[tokenizer.bos_token_id, {read}]])  # {said}",
        f"read = read[:, :{known['context']}]",
        "logits = model(read).logits" if is_gpt else "logits = model(read)",
    ]
    if back and is_gpt:
        half = f"read[:, :{known['context'] // 2}]"
        lines.append(f"written = model.generate({half}, do_sample=True, max_length={known['context']})[0, 1:]")
    elif back:
        lines.append("written = generate(model, read, 20)[0, 1:]")
    if back:
        lines.append(f"text = tokenizer.decode({back})")
    return "\n".join(line for line in lines if line)
