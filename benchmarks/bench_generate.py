"""Generation with the cache, beside reading the window again for each token.

    python -m benchmarks.bench_generate

Prints a Markdown row for each model: ms a token, once the context is full, of ways that take turns. "the last context
again": all of the last tokens are read for each new one, the usual way without a cache; by ours, and, for a GPT, by
`transformers`' GPT-2 of the same sizes. "the same windows again": the
windows of modules/models/generate.py without its cache; the tokens are compared, and must be the same. Of each token
the fastest of all turns counts, as the machine may be shared, and the mean is over a whole number of windows.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.records import recording
from modules.config import load_config
from modules.models import GPTParams, LanguageModel, build_model
from modules.models.generate import Sampling, continued

CONFIGS = Path(__file__).parents[1] / "configs" / "en"
MODELS = {"mini": "en_mini_256_forward", "gpt1": "en_gpt1_256_forward", "lstm_small": "en_lstm_small_256_forward"}


def last_context_again(
    model: LanguageModel, tokens_BT: torch.Tensor, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """What `continued` does, from a window that moves on by a token."""
    while True:
        next_B = Sampling().drawn(model.next_logits(tokens_BT[:, -model.context :]), generator)
        tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
        yield next_B


def by_transformers(params: GPTParams) -> Callable[..., Iterator[torch.Tensor]]:
    """The same by GPT-2 of these sizes, with weights of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=params.vocab_size,
        n_positions=params.context,
        n_embd=params.embed_dim,
        n_layer=params.n_layers,
        n_head=params.n_heads,
        tie_word_embeddings=False,
    )
    theirs = GPT2LMHeadModel(sizes).eval()

    def of_way(model: LanguageModel, tokens_BT: torch.Tensor, generator: torch.Generator) -> Iterator[torch.Tensor]:
        while True:
            read_BT = tokens_BT[:, -model.context :]
            logits_BV = theirs(read_BT, logits_to_keep=1, use_cache=False).logits[:, -1]
            next_B = Sampling().drawn(logits_BV, generator)
            tokens_BT = torch.cat([tokens_BT, next_B[:, None]], dim=1)
            yield next_B

    return of_way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mini"])
    parser.add_argument("--samples", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=128, help="in a turn: whole windows (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with recording("generate"), torch.inference_mode():
        compare(options)


def compare(options: argparse.Namespace) -> None:
    print(f"{options.threads} threads, {options.rounds} turns of {options.tokens} tokens, the context full\n")
    header = ["model", "samples", "cached, ms/token", "the same windows again", "times"]
    header += ["the last context again", "times", "by transformers", "times"]
    print(f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", sep="\n")
    for name, samples in itertools.product(options.models, options.samples):
        config = load_config(CONFIGS / f"{MODELS[name]}.json")
        kind = "lstm" if name.startswith("lstm") else "gpt"
        model = build_model(kind, 0, **config.model_arguments).eval()
        prompt_BT = torch.randint(
            config.model_params.vocab_size, (samples, model.context), generator=torch.Generator().manual_seed(0)
        )
        ways = {
            "cached": lambda *given: continued(*given[:2], generator=given[2]),
            "same": lambda *given: continued(*given[:2], generator=given[2], cached=False),
            "last": last_context_again,
        } | ({"theirs": by_transformers(config.model_params)} if kind == "gpt" else {})
        seconds, made = {way: [math.inf] * options.tokens for way in ways}, {}
        for _ in range(options.rounds):
            for way, of_way in ways.items():
                made[way], steps = [], of_way(model, prompt_BT, torch.Generator().manual_seed(0))
                for number in range(options.tokens):
                    start = time.perf_counter()
                    made[way].append(next(steps))
                    seconds[way][number] = min(seconds[way][number], time.perf_counter() - start)
        assert torch.stack(made["cached"]).equal(torch.stack(made["same"])), "the cache changes no token"
        ms = {way: 1e3 * statistics.mean(of_tokens) for way, of_tokens in seconds.items()}
        times = {way: of_way / ms["cached"] for way, of_way in ms.items()}
        cells = [f"{ms[way]:.2f} | {times[way]:.1f}" for way in list(ways)[1:]] + ["| "] * ("theirs" not in ways)
        print(f"| {name} | {samples} | {ms['cached']:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
