"""Training speed and memory of this project's step beside the usual one, in one run on one machine.

    python -m benchmarks.bench_training                                # mini and gpt1, fp32 and bf16, GRU and LSTM
    python -m benchmarks.bench_training --models gpt1 medium --precision bf16 --batch 90 --device cuda
    python -m benchmarks.bench_training --ways              # on a GPU: gpt1 and medium, and the same without compiling
    python -m benchmarks.bench_training --ways --models nano micro --batch 16 --context 64

Contenders train the same model (layers, heads, width, vocabulary, dropout, untied head) with the same optimizer (fused
AdamW, gradient norm clipped) on the same windows:
  ours            the trainer's own step, built from a config as a run builds it: on a CPU a batch goes through in
                  pieces
  transformers    GPT2LMHeadModel, logits then cross-entropy, the batch as a whole; eager, and with the whole forward
                  compiled
  plain           our model's logits then cross-entropy: on CUDA compiled as a whole, as nanoGPT does it, with the
                  vocabulary padded to a multiple of 64; for GRU and LSTM, eager, the only peer
With --ways the contenders are ours as "compile": "auto" makes it on a GPU (compiled, or of small models a CUDA graph),
ours with neither, and nanoGPT's step, in bf16 at the paper's batch, each with its MFU.
Each contender lives in a process of its own, so that peak memory is its own, and the processes take turns: a machine
that slows down slows all of them. Speeds are medians over the turns, ratios medians of the ratios within a turn. With
--clock cpu they are tokens a second of CPU time on one thread, for a machine that others are using.
"""

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.records import recording
from configs.make_configs import RECURRENT, SIZES, VOCAB_SIZE
from modules.config import Config, parse_config
from modules.data.orders import READ_FORWARD
from modules.data.token_file import open_tokens
from modules.data.windows import Cut, split
from modules.models import GPT, build_model
from modules.models.evaluate import autocast_for
from modules.training.batches import pieces_of_a_batch, training_batches
from modules.training.devices import in_words
from modules.training.loop import batches_of, train_step
from modules.training.parallel import Processes
from modules.training.run import data_of, prepare

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16; TF32 has half
PHASES = ("loading", "forward", "backward", "optimizer")
WARM_UP = 3  # steps
USUAL_MODELS = ["mini", "gpt1", "gru:small", "lstm:small"]
OURS, OURS_EAGER, NANOGPT = WAYS = ("ours", "ours eager", "plain compiled")


@dataclass(frozen=True)
class Task:
    """What one process trains, and how."""

    contender: str
    model: str  # "gpt", "gru" or "lstm"
    size: str
    precision: str
    batch: int
    context: int
    dropout: float
    device: str
    data: str
    clock: str  # "wall" or "cpu"

    @property
    def model_params(self) -> dict:
        if self.model == "gpt":
            layers, heads, width = SIZES[self.size][:3]
            return {
                "vocab_size": VOCAB_SIZE,
                "n_layers": layers,
                "n_heads": heads,
                "embed_dim": width,
                "attn_length": self.context,
                "dropout": self.dropout,
            }
        layers, width = RECURRENT[self.size][:2]
        return {"vocab_size": VOCAB_SIZE, "n_layers": layers, "embed_dim": width, "desired_attn_length": self.context}

    @property
    def config(self) -> Config:
        """The config that our run would have."""
        return parse_config(
            {
                "model": self.model,
                "model_params": self.model_params,
                "optim_params": {"lr": 1e-4},
                "training_params": {
                    "dataset_folder": self.data,
                    "batch_size": self.batch,
                    "valid_steps": 1,
                    "precision": self.precision,
                    "compile": {OURS: "auto", OURS_EAGER: False}.get(self.contender, True),
                },
            },
            self.size,
        )


def transformers_gpt2(params: dict) -> torch.nn.Module:
    """The same model from transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=params["vocab_size"],
            n_positions=params["attn_length"],
            n_embd=params["embed_dim"],
            n_layer=params["n_layers"],
            n_head=params["n_heads"],
            resid_pdrop=params["dropout"],
            attn_pdrop=params["dropout"],
            embd_pdrop=0.0,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


def whole_batch(batches, pieces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The next `pieces` of `batches` in one."""
    inputs, targets = zip(*itertools.islice(batches, pieces), strict=True)
    return torch.cat(inputs), torch.cat(targets)


class Ours:
    """The trainer's step."""

    def __init__(self, task: Task, processes: Processes):
        self.training = prepare(task.config, data_of(task.config, None, processes), processes)
        self.model = self.training.model.train()
        self.batches = batches_of(self.training)
        self.pieces = self.training.pieces

    def step(self) -> None:
        train_step(self.training, self.batches)
        self.training.step += 1

    def passes(self) -> dict:
        """Passes over a batch without gradients: to the logits, and the per-token losses that validation takes."""
        pieces = list(itertools.islice(self.batches, self.pieces))
        return {
            "logits": lambda: [self.model(inputs_BT) for inputs_BT, _ in pieces],
            "losses": lambda: [self.model.losses(inputs_BT, targets_BT) for inputs_BT, targets_BT in pieces],
        }


class Peer:
    """The usual step."""

    def __init__(self, task: Task, processes: Processes):
        torch.set_float32_matmul_precision("high" if processes.device.type == "cuda" else "highest")
        self.autocast = autocast_for(processes.device, task.precision)
        params, compiled = task.model_params, task.contender.endswith("compiled")
        if task.contender.startswith("transformers"):
            self.model = transformers_gpt2(params)
        else:
            padding = -VOCAB_SIZE % 64 if compiled else 0
            self.model = build_model(task.model, seed=0, **params | {"vocab_size": VOCAB_SIZE + padding})
        self.model.to(processes.device).train()
        self.loss = torch.compile(self.plain_loss) if compiled else self.plain_loss
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        windows, _ = split(open_tokens(task.data), Cut(task.context, task.context // 2, 1, task.batch), READ_FORWARD)
        self.pieces = pieces_of_a_batch(task.config, processes)
        self.batches = training_batches(windows, task.config, processes, 0, self.pieces)

    def plain_loss(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = self.model(inputs_BT)
        logits_BTV = getattr(logits_BTV, "logits", logits_BTV)  # transformers wraps them
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())

    def step(self) -> None:
        inputs_BT, targets_BT = whole_batch(self.batches, self.pieces)
        with self.autocast():
            loss = self.loss(inputs_BT, targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def passes(self) -> dict:
        """The pass without gradients by which the peer validates: to its mean loss."""
        inputs_BT, targets_BT = whole_batch(self.batches, self.pieces)
        return {"mean": lambda: self.loss(inputs_BT, targets_BT)}


class Measured:
    """What is measured of a contender."""

    def __init__(self, task: Task):
        self.task, self.device = task, torch.device(task.device)
        self.clock = time.process_time if task.clock == "cpu" else time.perf_counter
        if task.clock == "cpu":
            torch.set_num_threads(1)  # several threads that wait for each other burn time
        self.contender = (Ours if task.contender.startswith("ours") else Peer)(task, Processes(0, 1, self.device))
        for _ in range(WARM_UP):
            self.contender.step()
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tokens_per_s(self, seconds: float) -> float:
        """Train for about that long."""
        start, steps = self.clock(), 0
        while steps == 0 or self.clock() - start < seconds:
            for _ in range(10 if self.device.type == "cuda" else 1):
                self.contender.step()
                steps += 1
            self.wait()
        return steps * self.task.batch * self.task.context / (self.clock() - start)

    def phases(self, seconds: float) -> dict[str, float]:
        """Share of our step that each phase takes, the device waited for after each; "optimizer" is all but the other
        three. Of our contender alone."""
        assert isinstance(self.contender, Ours)
        spent = dict.fromkeys(PHASES, 0.0)

        def clocked(phase: str, function):
            def wrapped(*arguments, **named):
                self.wait()
                start = self.clock()
                result = function(*arguments, **named)
                self.wait()
                spent[phase] += self.clock() - start
                return result

            return wrapped

        ours, start = self.contender, self.clock()
        waited_for = iter(clocked("loading", functools.partial(next, ours.batches)), None)
        training = dataclasses.replace(ours.training, loss_of=clocked("forward", ours.training.loss_of))
        with mock.patch.object(torch.Tensor, "backward", clocked("backward", torch.Tensor.backward)):
            while self.clock() - start < seconds:
                train_step(training, waited_for)
            self.wait()
        total = self.clock() - start
        spent["optimizer"] = total - sum(spent.values())
        return {phase: part / total for phase, part in spent.items()}

    def validation(self, seconds: float) -> dict[str, float]:
        """Tokens/s of the contender's passes without gradients, which take turns."""
        ways = self.contender.passes()
        spent, passes = dict.fromkeys(ways, 0.0), 0
        self.contender.model.eval()
        with torch.no_grad(), autocast_for(self.device, self.task.precision)():
            for way in ways.values():
                way()
            start = self.clock()
            while not passes or self.clock() - start < seconds:
                for name, way in ways.items():
                    self.wait()
                    before = self.clock()
                    way()
                    self.wait()
                    spent[name] += self.clock() - before
                passes += 1
        self.contender.model.train()
        return {
            name: passes * self.task.batch * self.task.context / seconds_spent for name, seconds_spent in spent.items()
        }

    def peak_memory(self) -> float:
        """MiB: of the device on CUDA, of the process on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def worker(task: Task, pipe) -> None:
    """The process of a contender: does what it is told through the pipe until it is told None."""
    measured = Measured(task)
    answer = None
    while True:
        if measured.device.type == "cuda":
            torch.cuda.empty_cache()  # the others need it for their turn
        pipe.send(answer)
        order = pipe.recv()
        if order is None:
            return
        method, *arguments = order
        answer = getattr(measured, method)(*arguments)


class Contender:
    """A worker process, seen from here."""

    def __init__(self, task: Task):
        context = multiprocessing.get_context("spawn")
        self.task = task
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=worker, args=(task, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()  # warmed up

    def do(self, method: str, *arguments):
        self.pipe.send((method, *arguments))
        return self.pipe.recv()

    def end(self) -> None:
        self.pipe.send(None)
        self.process.join()


def flops_per_token(task: Task) -> float:
    """Forward and backward, as nanoGPT and PaLM count: 6 a weight of a matrix product, 12 T D a layer for attention."""
    params = task.model_params
    with torch.device("meta"):
        model = GPT(**params)
    weights = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.dim() == 2 and name not in ("embedding.weight", "position.weight")
    )
    return 6 * weights + 12 * params["n_layers"] * params["embed_dim"] * task.context


def peers(model: str, device: str, eager: bool) -> list[str]:
    """The contenders beside ours; `eager`: transformers' eager step among them."""
    if model != "gpt":
        return ["plain eager"]
    return ["transformers eager"] * eager + ["transformers compiled"] + ["plain compiled"] * device.startswith("cuda")


def raced(contenders: list[Contender], rounds: int, seconds: float) -> tuple[list[list[float]], list[float], list]:
    """Tokens/s of each contender in each turn, their medians, and peak memory in MiB."""
    turns = [[one.do("tokens_per_s", seconds) for one in contenders] for _ in range(rounds)]
    speeds = [statistics.median(column) for column in zip(*turns, strict=True)]
    return turns, speeds, [one.do("peak_memory") for one in contenders]


def compare_ways(task: Task, rounds: int, seconds: float) -> list[str]:
    """Run WAYS in turns; a row of Markdown for each."""
    contenders = [Contender(dataclasses.replace(task, contender=name)) for name in WAYS]
    turns, speeds, memory = raced(contenders, rounds, seconds)
    for one in contenders:
        one.end()
    rows = []
    for number, way in enumerate(WAYS):
        ratio = statistics.median(turn[number] / turn[WAYS.index(NANOGPT)] for turn in turns)
        cells = [task.size, task.precision, f"{task.batch}", way, f"{speeds[number]:,.0f}", mfu(task, speeds[number])]
        rows.append("| " + " | ".join([*cells, f"{ratio:.2f}", f"{memory[number]:,.0f}"]) + " |")
    return rows


def compare(task: Task, rounds: int, seconds: float, eager: bool) -> str:
    """Run a task's contenders in turns; the result as a row of Markdown."""
    contenders = [Contender(task)]
    for name in peers(task.model, task.device, eager):
        contenders.append(Contender(dataclasses.replace(task, contender=name)))
    turns, speeds, memory = raced(contenders, rounds, seconds)
    ratios = [statistics.median(turn[0] / turn[i] for turn in turns) for i in range(len(contenders))]
    shares = contenders[0].do("phases", seconds)
    best = min(range(1, len(contenders)), key=lambda i: ratios[i])
    validation = contenders[0].do("validation", seconds) | contenders[best].do("validation", seconds)
    for one in contenders:
        one.end()
    others = ", ".join(
        f"{one.task.contender} {speed:,.0f} tokens/s {peak:,.0f} MiB"
        for one, speed, peak in list(zip(contenders, speeds, memory, strict=True))[1:]
    )
    name = task.size if task.model == "gpt" else f"{task.model} {task.size}"
    cells = [
        name,
        task.precision,
        f"{speeds[0]:,.0f}",
        f"{speeds[best]:,.0f} ({contenders[best].task.contender})",
        f"{ratios[best]:.2f}",
        f"{memory[0]:,.0f}",
        f"{memory[best]:,.0f}",
        f"{memory[0] / memory[best]:.2f}",
        " / ".join(f"{100 * shares[phase]:.1f}" for phase in PHASES),
        " / ".join(f"{validation['losses'] / validation[other]:.2f}" for other in ("logits", "mean")),
    ]
    if task.device.startswith("cuda"):
        cells.append(mfu(task, speeds[0]) + " / " + mfu(task, speeds[best]) if task.model == "gpt" else "")
    print(
        f"  {name} {task.precision}: ours {speeds[0]:,.0f} tokens/s {memory[0]:,.0f} MiB, {others}",
        file=sys.stderr,
        flush=True,
    )
    return "| " + " | ".join(cells) + " |"


def mfu(task: Task, tokens_per_s: float) -> str:
    """Share of the device's peak, in percent; "?" for a device whose peak is not written above."""
    if not task.device.startswith("cuda"):
        return "?"
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()]
    if not peaks:
        return "?"
    return (
        f"{100 * flops_per_token(task) * tokens_per_s / (peaks[0] if task.precision == 'bf16' else peaks[0] / 2):.1f}"
    )


def write_tokens(path: Path, count: int = 4_000_000) -> None:
    """A dataset file as make_h5 writes them, of random ids: speed does not depend on what the text says."""
    with h5py.File(path, "w") as file:
        file["tokens"] = np.random.default_rng(0).integers(1, VOCAB_SIZE, count).astype(np.uint16)
        file["tokens"].attrs["vocab_size"] = VOCAB_SIZE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="*",
        help=f"GPT sizes ({', '.join(SIZES)}), or gru:SIZE, lstm:SIZE ({', '.join(RECURRENT)}); by default mini, gpt1, "
        "gru:small and lstm:small, with --ways gpt1 and medium",
    )
    parser.add_argument(
        "--ways",
        action="store_true",
        help="ours, ours without compiling, and nanoGPT's compiled step; of GPTs, in bf16 by default",
    )
    parser.add_argument("--precision", nargs="*", choices=["fp32", "bf16"], help="by default both")
    parser.add_argument("--batch", type=int, help="windows in a step (default 16, with --ways the paper's)")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument(
        "--dropout",
        type=float,
        default=0.0,
        help="the paper trains with 0.1, for which torch has no fused attention on a CPU",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--no_eager",
        action="store_true",
        help="without transformers' eager step, which is slower than the compiled one and needs twice its memory",
    )
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a turn")
    options = parser.parse_args()
    options.precision = options.precision or (["bf16"] if options.ways else ["fp32", "bf16"])
    options.models = options.models or (["gpt1", "medium"] if options.ways else USUAL_MODELS)
    with recording("training-ways" if options.ways else "training"):
        print_table(options)


def print_table(options: argparse.Namespace) -> None:
    """A row for each model and precision."""
    batch = options.batch or ("the paper's" if options.ways else 16)
    print(
        f"{in_words(torch.device(options.device))}, torch {torch.__version__}, batch {batch}, "
        f"context {options.context}, dropout {options.dropout}, vocabulary {VOCAB_SIZE:,}; "
        f"{options.rounds} turns of {options.seconds:g} s of {options.clock} time\n"
    )
    columns = [
        "model",
        "precision",
        "ours, tokens/s",
        "best peer, tokens/s",
        "ratio",
        "ours, peak MiB",
        "peer, peak MiB",
        "ratio",
        "loading / forward / backward / optimizer, % of our step",
        "validation's tokens/s over our pass to the logits / the peer's to its loss",
    ]
    if options.device.startswith("cuda"):
        columns.append("MFU of a GPT, %: ours / peer")
    if options.ways:
        columns = ["model", "precision", "batch", "step", "tokens/s", "MFU, %", "over plain compiled", "peak MiB"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tokens.h5"
        write_tokens(data)
        for name in options.models:
            model, size = name.split(":") if ":" in name else ("gpt", name)
            for precision in options.precision:
                task = Task(
                    "ours",
                    model,
                    size,
                    precision,
                    options.batch or (SIZES[size][3] if options.ways else 16),
                    options.context,
                    options.dropout,
                    options.device,
                    str(data),
                    options.clock,
                )
                if options.ways:
                    print("\n".join(compare_ways(task, options.rounds, options.seconds)), flush=True)
                else:
                    print(compare(task, options.rounds, options.seconds, not options.no_eager), flush=True)


if __name__ == "__main__":
    main()
