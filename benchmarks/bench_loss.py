"""The loss of a vocabulary head and its gradients beside the usual way, in one process.

    python -m benchmarks.bench_loss            # GPT-2's head in bf16; on a GPU a step's tokens of gpt1, on a CPU 4,096

Ours goes in chunks, and on a GPU has rows of zeros up to a multiple of 64 ids; the usual way is logits, then
cross-entropy, compiled as a whole, of 50,257 ids and of the 50,304 that nanoGPT trains. They take turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.records import recording
from configs.make_configs import VOCAB_SIZE
from modules.kernels import cross_entropy
from modules.training.devices import in_words

PADDED = -(-VOCAB_SIZE // 64) * 64


def usual(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden_ND, weight_VD).float(), targets_N)


def ways(device: str, tokens: int, width: int) -> dict[str, Callable[[], float]]:
    """By its name, what computes the loss and the gradients once."""
    hidden_ND = torch.randn(tokens, width, device=device, requires_grad=True)
    targets_N = torch.randint(VOCAB_SIZE, (tokens,), device=device)
    pointwise = torch.compile(cross_entropy.loss_and_gradient, dynamic=False) if device == "cuda" else None
    compiled = torch.compile(usual)

    def way(loss_of: Callable[..., torch.Tensor], ids: int, *more) -> Callable[[], float]:
        weight_VD = torch.nn.Parameter(torch.randn(ids, width, device=device) * 0.02)

        def once() -> float:
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(hidden_ND, weight_VD, targets_N, *more)
            loss.backward()
            hidden_ND.grad = weight_VD.grad = None
            return loss.item()  # waits for the GPU

        return once

    def without_padding(*given) -> torch.Tensor:
        with mock.patch.dict(cross_entropy.ROWS_MULTIPLE, {device: 1}):
            return cross_entropy.mean_loss(*given)

    return {
        "ours": way(cross_entropy.mean_loss, VOCAB_SIZE, pointwise),
        "ours, no rows of zeros": way(without_padding, VOCAB_SIZE, pointwise),
        f"usual, {VOCAB_SIZE:,} ids": way(compiled, VOCAB_SIZE),
        f"usual, {PADDED:,} ids": way(compiled, PADDED),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--tokens", type=int, default=46080 if device == "cuda" else 4096)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with recording("loss"):
        here = f"{in_words(torch.device(device))}, torch {torch.__version__}"
        print(f"{here}, {options.tokens:,} tokens, width {options.width}, bf16\n")
        print("| way | ms | of the usual with padding |\n|---|---|---|")
        contenders = ways(device, options.tokens, options.width)
        spent = {name: [] for name in contenders}
        for turn in range(options.rounds + 2):
            for name, once in contenders.items():
                start = time.perf_counter()
                once()
                if turn >= 2:  # before, it is compiled
                    spent[name].append(time.perf_counter() - start)
        peer = list(spent.values())[-1]
        for name, seconds in spent.items():
            ratio = statistics.median(one / other for one, other in zip(seconds, peer, strict=True))
            print(f"| {name} | {1000 * statistics.median(seconds):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
