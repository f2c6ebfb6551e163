"""A run while it trains: step, log, validate, save, tell, in this order, in one loop.

What is measured goes to the disk first, the state next, and only then is anybody told: no bar, picture, snippet or W&B
call can cost what it tells of.
"""

import contextlib
import platform
import time

import torch

from modules.config import Config
from modules.models import evaluate
from modules.models.evaluate import autocast_for
from modules.system import console
from modules.system.errors import UserError
from modules.tokenizer import Tokenizer
from modules.training import checkpoint, validations
from modules.training.history import as_data
from modules.training.interruption import Stop
from modules.training.loop import Clock, Training, finite_mean, log_entry, steps, validate
from modules.training.metrics import Metrics, read_metrics
from modules.training.resume import Files
from modules.training.sharded import export_sharded, save_sharded, sharded_path

SNIPPET_TOKENS = 60


def record(
    training: Training, last_step: int, files: Files, project: str, tokenizer: Tokenizer | None, stop: Stop
) -> bool:
    """Train up to `last_step`, leaving metrics, pictures, states and backups; False where it was asked to stop before
    all was done.

    A checkpoint (a validation and a save) comes every `save_every` steps, at each backup and at the end.
    Raises UserError where a loss is not finite or a file cannot be written; the last good state stays.
    """
    config, params = training.config, training.config.training_params
    recorder = Recorder(training, last_step, files, project, tokenizer)
    bar = console.bar(
        total=last_step,
        initial=training.step,
        desc=config.name,
        unit="step",
        dynamic_ncols=True,
        mininterval=0.5,
        disable=not training.processes.is_main,
    )
    try:
        with bar:
            if checkpoint_owed(
                training.step, training.validated, last_step, config
            ):  # the run was stopped between this step and its validation
                recorder.checkpoint(stop)
            clock = Clock(training.step * training.step_tokens)
            for loss in steps(training, last_step, stop.asked):
                bar.update()
                if training.step % params.step_log == 0:
                    entry = log_entry(
                        training, "train", finite_mean(training), clock.rate(training.step * training.step_tokens)
                    )
                    training.unlogged.clear()
                    recorder.log(entry)
                    bar.set_postfix_str(
                        f"loss {entry['loss']:.4f}, lr {training.lr:.2e}, {clock.last_rate:,.0f} tokens/s",
                        refresh=False,
                    )
                elif training.processes.device.type == "cpu":  # there it is at hand; a GPU would have to be waited for
                    bar.set_postfix_str(
                        f"loss {loss:.4f}, lr {training.lr:.2e}, {clock.last_rate:,.0f} tokens/s", refresh=False
                    )
                if checkpoint_owed(training.step, training.validated, last_step, config):
                    with clock.paused():
                        recorder.checkpoint(stop)
        finished = training.step >= last_step and training.validated == training.step
        if not finished and training.step:
            finite_mean(training)
            recorder.save()
        recorder.wait()
        return finished
    except UserError as error:
        with contextlib.suppress(UserError):
            recorder.wait()  # what is being written is good, and stays
        kept = f"the last good state, {files.state}, stays" if files.state.exists() else "no state was saved"
        raise UserError(f"{error}; {kept}") from None
    finally:
        recorder.close()


def checkpoint_owed(step: int, validated: int, last_step: int, config: Config) -> bool:
    """Whether a checkpoint belongs to this step and has not been made."""
    params = config.training_params
    due = step % params.save_every == 0 or step % params.backup_every == 0 or step == last_step
    return step > 0 and due and validated != step


class Recorder:
    """What a run leaves: its metrics, its states and backups, and what its user is told."""

    def __init__(self, training: Training, last_step: int, files: Files, project: str, tokenizer: Tokenizer | None):
        self._training, self._last_step, self._files, self._tokenizer = training, last_step, files, tokenizer
        self._sharded = training.config.training_params.parallel == "fsdp"
        self._writer = checkpoint.StateWriter()
        self._metrics = (
            Metrics(
                files.metrics, training.step, project, training.config.name, files.folder, training.config.to_dict()
            )
            if training.processes.is_main
            else None
        )

    def log(self, entry: dict) -> None:
        """Write down an entry of the training loss, and tell W&B."""
        self._writer.check()
        if self._metrics:
            self._metrics.write(entry)
            self._metrics.publish(entry)

    def checkpoint(self, stop: Stop) -> None:
        """Validate, save, tell; nothing of it where the run is asked to stop meanwhile, and all of it is owed."""
        training = self._training
        finite_mean(training)
        validated = validate(training, stop.asked)
        if validated is None:
            return
        entry, by_window = validated
        if self._metrics:
            validations.write(self._files.validations, training.step, by_window)
            self._metrics.write(entry)
        self.save()
        self._tell(entry)

    def save(self) -> None:
        """Save the state, and a backup where one belongs to this step. Plain states are written by a thread, while
        training goes on."""
        training, step = self._training, self._training.step
        backup = (
            [checkpoint.backup_path(self._files.state, step)]
            if step % training.config.training_params.backup_every == 0
            else []
        )
        if self._sharded:
            folder = sharded_path(self._files.state)
            save_sharded(facts(training), training.model, training.optimizer, folder, training.processes)
            if training.processes.is_main:
                for path in backup + ([self._files.state] if step == self._last_step else []):
                    export_sharded(folder, path)
        elif training.processes.is_main:
            self._writer.write(
                facts(training) | checkpoint.snapshot(training.model, training.optimizer), self._files.state, *backup
            )

    def _tell(self, entry: dict) -> None:
        """Show a validation: its line, a snippet, the picture of the loss so far, W&B. All processes of a sharded model
        make the snippet."""
        training = self._training
        text = snippet(training, self._tokenizer) if self._tokenizer and (self._sharded or self._metrics) else None
        if self._metrics:
            console.tell(
                f"step {entry['step']:,}: held-out loss {entry['loss']:.4f} nats/token{in_each_order(entry)}"
                + (f"\n  {text!r}" if text else "")
            )
            draw_loss(training.config, self._files)
            self._metrics.publish(entry, text)

    def wait(self) -> None:
        """Return when what was saved is on the disk. Raises UserError where it could not be written."""
        self._writer.wait()

    def close(self) -> None:
        """Close the log; W&B gets its time to upload."""
        if self._metrics:
            self._metrics.close()


def in_each_order(entry: dict) -> str:
    """The held-out loss of a model of several orders in each of them, in words."""
    losses = ", ".join(f"{order} {loss:.4f}" for order, loss in entry.get("losses", {}).items())
    return f" ({losses})" if losses else ""


def draw_loss(config: Config, files: Files) -> None:
    """Draw the losses logged so far; a warning where that fails."""

    def draw() -> None:
        from modules import plots  # matplotlib, on which training does not depend

        plots.save(plots.run_curve(config.name, config.order, read_metrics(files.metrics)), files.picture)

    console.attempt("the picture of the loss", draw)


def picture_is_behind(files: Files) -> bool:
    """Whether something was logged after the picture was drawn: a kill, or a disk, was in between."""
    picture = files.picture.with_name(f"{files.picture.name}.svg")
    return files.metrics.exists() and not (
        picture.exists() and picture.stat().st_mtime_ns >= files.metrics.stat().st_mtime_ns
    )


def facts(training: Training) -> dict:
    """All of a state but its model and optimizer; see checkpoint.Facts."""
    token_file = training.windows.token_file
    return {
        "step": training.step,
        "tokens": training.step * training.step_tokens,
        "run": training.config.name,
        "config": training.config.to_dict(),
        "precision": training.precision,
        "validated": training.validated,
        "unlogged": torch.stack(training.unlogged).cpu() if training.unlogged else torch.zeros(0),
        "held_out_tokens": len(training.held_out) * training.held_out.length,
        "stages": as_data(training.stages),
        "early_stages_unknown": training.early_stages_unknown,
        "initial_weights": training.initial_weights,
        "dataset": {
            "fingerprint": token_file.fingerprint,
            "n_tokens": len(token_file.tokens),
            "text_bytes": token_file.text_bytes,
            "vocab_size": token_file.vocab_size,
            "tokenizer_fingerprint": token_file.tokenizer_fingerprint,
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "saved_at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def snippet(training: Training, tokenizer: Tokenizer) -> str:
    """A text that the model makes up; the same draws at every validation."""
    device, seed = training.processes.device, training.config.training_params.seed
    with autocast_for(device, training.precision)():
        return evaluate.snippet(training.model, training.held_out, tokenizer, SNIPPET_TOKENS, seed, device)
