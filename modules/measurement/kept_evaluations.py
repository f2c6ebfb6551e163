"""Evaluations as files beside a report, so that each run is evaluated once: a measurement that was interrupted goes on
there, one that gets more seeds evaluates these alone, and another report of the same runs evaluates none.

One file a run, `<report>/evaluations/<run>.npz`. It counts only where all that its numbers follow from is the
same: weights and model, held-out windows, texts, tokenizer, the code that evaluates, torch and the device. Otherwise
the run is evaluated again, and the file replaced.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from modules.data.windows import Windows
from modules.measurement.evaluation import Evaluation, evaluate, held_out_ids, load_model
from modules.measurement.loss_files import read_arrays
from modules.measurement.pairing import Trained
from modules.models import LanguageModel
from modules.system.console import reason, tell
from modules.system.errors import UserError
from modules.system.files import replacing
from modules.system.names import file_name
from modules.tokenizer import Tokenizer
from modules.training.devices import in_words
from modules.training.initial import fingerprint_of

MODULES = Path(__file__).resolve().parents[1]
# What evaluates: a change in any of these files may change a number.
CODE = ("models", "kernels", "data", "tokenizer.py", "measurement/evaluation.py", "measurement/text_losses.py")


def evaluate_once(
    run: Trained,
    windows: Windows,
    device: torch.device,
    texts: Sequence[np.ndarray],
    toki: Tokenizer | None,
    report: Path,
) -> list[Evaluation]:
    """What `evaluate` says of a run, from the folder of the `report` where that has it."""
    model = load_model(run, device)
    path, key = path_of(report, run), key_of(run, model, windows, texts, toki, device)
    found = kept(path, key, run, windows)
    if found is None:
        found = evaluate(run, model, windows, device, texts, toki)
        keep(path, key, found)
    return found


def path_of(report: Path, run: Trained) -> Path:
    return report / "evaluations" / file_name(run.path.stem, ".npz")


def key_of(
    run: Trained,
    model: LanguageModel,
    windows: Windows,
    texts: Sequence[np.ndarray],
    toki: Tokenizer | None,
    device: torch.device,
) -> str:
    """A digest of all that the numbers of an evaluation follow from."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    facts = [
        [run.config.trained_model, run.config.model_arguments, fingerprint_of(weights)],
        [windows.reading.name, digest_of(held_out_ids(windows)), windows.token_file.bos_id],
        [run.config.valid_batch_size],
        [digest_of(ids) for ids in texts],
        [toki.fingerprint, run.seed] if toki else None,
        [code_fingerprint(), torch.__version__, in_words(device)],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def digest_of(ids: np.ndarray) -> str:
    return hashlib.sha256(f"{ids.shape} ".encode() + ids.tobytes()).hexdigest()


@functools.cache
def code_fingerprint() -> str:
    digest = hashlib.sha256()
    for place in CODE:
        for file in sorted((MODULES / place).rglob("*.py")) or [MODULES / place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def keep(path: Path, key: str, evaluations: Sequence[Evaluation]) -> None:
    """Write the evaluations of a run, one for each of its orders. Where there is no room the user is told, and no
    more is lost than the time to evaluate again."""
    arrays = {"key": np.array(key)}
    for number, each in enumerate(evaluations):
        arrays[f"{number} losses"] = narrow(each.losses_WT)
        arrays |= {f"{number} length {length}": losses for length, losses in each.by_length.items()}
        arrays |= {f"{number} text {place}": losses for place, losses in enumerate(each.texts)}
        if each.snippet is not None:
            arrays[f"{number} snippet"] = np.frombuffer(json.dumps(each.snippet).encode(), np.uint8)
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        tell(f"warning: {path.stem}: evaluation not kept ({reason(error)}); a later report evaluates again", sys.stderr)


def narrow(losses: np.ndarray) -> np.ndarray:
    """The same numbers in 32 bits, where these hold them."""
    in_32 = losses.astype(np.float32)
    return in_32 if np.array_equal(in_32, losses) else losses


def kept(path: Path, key: str, run: Trained, windows: Windows) -> list[Evaluation] | None:
    """What `keep` wrote under this key; None where it did not, or the file is no longer whole."""
    try:
        arrays = read_arrays(path)
    except (OSError, UserError):
        return None
    if str(arrays.get("key")) != key:
        return None

    def numbered(start: str) -> dict[int, np.ndarray]:
        return {int(name.removeprefix(start)): array for name, array in arrays.items() if name.startswith(start)}

    found = []
    for number, (one_run, one) in enumerate(zip(run.in_each_order(), windows.in_each_order(), strict=True)):
        losses_WT, snippet = arrays[f"{number} losses"].astype(np.float64), arrays.get(f"{number} snippet")
        by_length, texts = numbered(f"{number} length "), list(numbered(f"{number} text ").values())
        made_up = None if snippet is None else json.loads(snippet.tobytes())
        found.append(Evaluation(one_run, one, losses_WT, by_length, texts, made_up))
    return found
