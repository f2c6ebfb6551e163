"""What a run leaves while it trains: metrics, the picture of the loss, snippets, states and backups."""
import contextlib
import platform
import time

import torch
from tqdm import tqdm

from modules import checkpoint, figures
from modules.errors import UserError
from modules.evaluate import autocast_for
from modules.interruption import Stop
from modules.metrics import Metrics, read_metrics
from modules.resume import Files
from modules.sharded import export_sharded, save_sharded, sharded_path
from modules.tokenizer import Tokenizer
from modules.trainer import Training, train

SNIPPET_TOKENS = 60


def record(training: Training, last_step: int, files: Files, project: str, tokenizer: Tokenizer | None, stop: Stop) -> bool:
    """Train up to `last_step`, writing metrics, the picture of the loss, states and backups; False where it was stopped before."""
    config, processes = training.config, training.processes
    sharded = config.training_params.parallel == "fsdp"
    writer = checkpoint.StateWriter()
    metrics = Metrics(files.metrics, training.step, project, config.name, files.folder, config.to_dict()) if processes.is_main else None

    def log(entry: dict) -> None:
        writer.check()
        text = snippet(training, tokenizer) if tokenizer and entry["split"] == "valid" and (sharded or processes.is_main) else None
        if processes.is_main:
            metrics.log(entry, text)
            if entry["split"] == "valid":
                figures.save(figures.run_curve(config.name, config.direction, read_metrics(files.metrics)), files.metrics.with_suffix(""))
                tqdm.write(f"step {entry['step']:,}: held-out loss {entry['loss']:.4f} nats/token" + (f"\n  {text!r}" if text else ""))

    def save(backup: bool) -> None:
        paths = [files.state] + ([checkpoint.backup_path(files.state, training.step)] if backup else [])
        if sharded:
            folder = sharded_path(files.state)
            save_sharded(facts(training), training.model, training.optimizer, folder, processes)
            if processes.is_main and (backup or training.step == last_step):
                for path in paths:
                    export_sharded(folder, path)
        elif processes.is_main:
            writer.write(facts(training) | checkpoint.snapshot(training.model, training.optimizer), *paths)

    try:
        finished = train(training, last_step, log, save, stop.asked)
        writer.wait()
        return finished
    except UserError as error:
        with contextlib.suppress(UserError):
            writer.wait()  # what is being written is good, and stays
        raise UserError(f"{error}; {'the last good state, ' + str(files.state) + ', stays' if files.state.exists() else 'no state was saved'}") from None
    finally:
        if metrics:
            metrics.close()


def facts(training: Training) -> dict:
    """All of a state but its model and optimizer; see checkpoint.py."""
    token_file = training.windows.token_file
    return {
        "step": training.step,
        "tokens": training.step * training.step_tokens,
        "run": training.config.name,
        "config": training.config.to_dict(),
        "precision": training.precision,
        "validated": training.validated,
        "unlogged": torch.stack(training.unlogged).cpu() if training.unlogged else torch.zeros(0),
        "dataset": {"fingerprint": token_file.fingerprint, "n_tokens": len(token_file.tokens), "text_bytes": token_file.text_bytes,
                    "vocab_size": token_file.vocab_size, "tokenizer_fingerprint": token_file.tokenizer_fingerprint},
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "saved_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def snippet(training: Training, tokenizer: Tokenizer) -> str:
    """A text that the model makes up from BOS alone, in reading order whichever way it was made. The same draws at every validation."""
    device = training.processes.device
    bos = torch.full((1, 1), training.windows.token_file.bos_id, device=device)
    generator = torch.Generator(device).manual_seed(training.config.training_params.seed)
    with autocast_for(device, training.precision)():
        tokens_BT = training.model.generate(bos, SNIPPET_TOKENS, top_k=50, generator=generator)[:, 1:]
    return tokenizer.detokenize(tokens_BT.flip(1) if training.config.training_params.backwards else tokens_BT)
