"""What to train on a text: model, steps and held-out part, chosen from how long the text is, how much time there is and
a few measured steps.

The rules, each with what it was taken from (docs/texts.md has them for readers):

- A fifth of the text is held out, at most 2**20 tokens: of these the interval is 0.06 % wide to either side, little
  beside what seeds add.
- A run reads 20 tokens for each parameter of its model (Hoffmann et al. 2022), but the text at most 1.5 times; a model
  for which that is not even 15 tokens is too large for the text. Two to four thousand steps: with fewer and larger ones
  the arrow of the same tokens has not converged (benchmarks/recipes.py).
- The learning rate falls with the width: 3e-3 at 64.
- Of the models that the text can feed, the largest whose five seeds are trained within the minutes that there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from modules.measurement.noise import Noise, seeds_needed
from modules.models import count_parameters
from modules.system.errors import UserError

HELD_OUT_SHARE, MOST_HELD_OUT = 1 / 5, 1 << 20
TOKENS_A_PARAMETER, FEWEST_TOKENS_A_PARAMETER = 20, 15
PASSES = 1.5
STEPS = 3_000  # aimed at; batches are powers of two, so there are 2,100 to 4,300
SMALLEST_BATCH = 8
LR_OF_WIDTH_64 = 3e-3
CHECKPOINTS = 4
FEWEST_SEEDS = 2  # one has no verdict

# Standard deviations of an arrow in percent: over the seeds of a model of so many parameters, and of the mean over
# 2**20 held-out tokens. Recipes had 0.32, 0.32 and 0.31 over seeds, a model a fifth of the size 0.68
# (benchmarks/RESULTS.md); so it is taken to fall with the root of the parameters, as far as that was seen.
SEED_SD, SEED_SD_PARAMETERS, SMALLEST_SEED_SD = 0.32, 235_264, 0.15
TEXT_SE = 0.03
TEXT_DF = 40

# Bytes of text up to which a tokenizer has so many ids: more of them leave less of a small model to its layers.
VOCABULARIES = ((5e6, 512), (50e6, 1_024), (500e6, 4_096), (5e9, 16_384), (math.inf, 50_257))


class Size(NamedTuple):
    """A model of the ladder: from what two cores train in seconds to the paper's medium."""

    n_layers: int
    n_heads: int
    embed_dim: int
    context: int

    @property
    def lr(self) -> float:
        return rounded(LR_OF_WIDTH_64 * 64 / self.embed_dim)

    def model_params(self, vocab_size: int) -> dict:
        """As a config has them."""
        return {
            "vocab_size": vocab_size,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "embed_dim": self.embed_dim,
            "attn_length": self.context,
            "mlp_ratio": 4.0,
            "dropout": 0.0,
        }


LADDER = (
    Size(1, 2, 32, 64),
    Size(2, 2, 64, 64),
    Size(3, 3, 96, 64),
    Size(4, 4, 128, 128),  # the paper's micro, mini, small, gpt1 and medium
    Size(6, 6, 192, 256),
    Size(10, 10, 380, 256),
    Size(12, 12, 768, 256),
    Size(24, 16, 1024, 256),
)


@dataclass(frozen=True)
class Budget:
    """What a plan may spend: seconds, in which `jobs` runs train side by side; `runs_a_seed` are all orders of all
    texts. seeds: that are wanted at least; with `until` as many as an interval of so many percent to either side will
    probably take, but no more than `max_seeds`."""

    seconds: float
    jobs: int
    runs_a_seed: int
    seeds: int
    until: float | None = None
    max_seeds: int = 20

    def wanted(self, plan: "Plan") -> int:
        """How many seeds of this plan there should be."""
        if self.until is None:
            return self.seeds
        needed = seeds_needed(plan.noise(FEWEST_SEEDS), self.until, self.max_seeds) or self.max_seeds
        return min(max(self.seeds, needed), self.max_seeds)

    def seeds_within(self, plan: "Plan", run_seconds: float) -> int:
        """How many of the wanted seeds are trained in it. Side by side runs end at about the same time, so there are
        whole rounds."""
        rounds = int(self.seconds / run_seconds)
        return min(self.wanted(plan), rounds * self.jobs // self.runs_a_seed)

    def fits(self, plan: "Plan", run_seconds: float) -> bool:
        """Whether all wanted seeds are trained in it."""
        return self.seeds_within(plan, run_seconds) == self.wanted(plan)

    def seconds_of(self, seeds: int, run_seconds: float) -> float:
        """How long so many seeds take."""
        return math.ceil(seeds * self.runs_a_seed / self.jobs) * run_seconds


def held_out_of(n_tokens: int) -> int:
    """How many of a text's tokens are held out."""
    return min(int(n_tokens * HELD_OUT_SHARE), MOST_HELD_OUT)


@dataclass(frozen=True)
class Plan:
    """What each run trains: `batch_size` windows in each of `steps` steps."""

    size: Size
    vocab_size: int
    parameters: int
    held_out_tokens: int
    batch_size: int
    steps: int

    @property
    def step_tokens(self) -> int:
        return self.batch_size * self.size.context

    @property
    def tokens(self) -> int:
        """Tokens that a run reads in training."""
        return self.steps * self.step_tokens

    @property
    def seed_sd(self) -> float:
        """The standard deviation that its arrow will probably have over seeds, in percent."""
        return max(SEED_SD * math.sqrt(SEED_SD_PARAMETERS / self.parameters), SMALLEST_SEED_SD)

    @property
    def text_se(self) -> float:
        """The standard error that its arrow will probably have for its held-out text, in percent."""
        return TEXT_SE * math.sqrt(MOST_HELD_OUT / self.held_out_tokens)

    def noise(self, seeds: int) -> Noise:
        """What its arrow in percent will probably have."""
        return Noise(self.seed_sd**2 / seeds, self.text_se**2, 0.0, seeds - 1, TEXT_DF)

    def config(self, dataset: str, tokenizer: str, state_save_loc: str) -> dict:
        """The config of a run forward, as a file has it."""
        warmup = self.steps // 20
        return {
            "model_params": self.size.model_params(self.vocab_size),
            "training_params": {
                "dataset_folder": dataset,
                "batch_size": self.batch_size,
                "steps_to_train": self.steps,
                "save_every": self.steps // CHECKPOINTS,
                "backup_every": self.steps,
                "step_log": max(1, self.steps // 100),
                "held_out_tokens": self.held_out_tokens,
                "valid_batch_size": max(self.batch_size, (1 << 14) // self.size.context),
                "state_save_loc": state_save_loc,
                "tokenizer_path": tokenizer,
            },
            "optim_params": {
                "lr": self.size.lr,
                "warmup_steps": warmup,
                "oscil_steps": self.steps - warmup,
                "lr_init": rounded(self.size.lr / 100),
                "lr_min": rounded(self.size.lr / 10),
            },
        }


def rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def vocabulary_for(text_bytes: float) -> int:
    """How many ids a tokenizer of so much text has."""
    return next(ids for most, ids in VOCABULARIES if text_bytes <= most)


def plan_of(size: Size, n_tokens: int, vocab_size: int) -> Plan | None:
    """How a model of this size is trained on `n_tokens`, the held-out ones among them; None where they are too few."""
    held_out = held_out_of(n_tokens) // size.context * size.context
    parameters = parameters_of(size, vocab_size)
    tokens = min(TOKENS_A_PARAMETER * parameters, int(PASSES * (n_tokens - held_out)))
    batch_size = max(SMALLEST_BATCH, 2 ** round(math.log2(max(1.0, tokens / (STEPS * size.context)))))
    steps = tokens // (batch_size * size.context) // CHECKPOINTS * CHECKPOINTS
    if tokens < FEWEST_TOKENS_A_PARAMETER * parameters:
        return None
    return Plan(size, vocab_size, parameters, held_out, batch_size, steps)


@cache
def parameters_of(size: Size, vocab_size: int) -> int:
    return count_parameters("gpt", **size.model_params(vocab_size))


def tokens_needed(vocab_size: int) -> int:
    """How many tokens of text the smallest model takes."""
    parameters = parameters_of(LADDER[0], vocab_size)
    return math.ceil(FEWEST_TOKENS_A_PARAMETER * parameters / PASSES / (1 - HELD_OUT_SHARE) / 1e4) * 10_000


def choose(
    n_tokens: int, vocab_size: int, budget: Budget, run_seconds: Callable[[Plan], float]
) -> tuple[Plan, int, float]:
    """The largest model that the text can feed and of which the wanted seeds are trained within the budget, how many
    seeds of it are, and the seconds of a run. Where not even the smallest has the wanted seeds: as many of it as are.

    n_tokens: of the shortest text. run_seconds: measures how long a run of a plan takes; asked from the smallest model
    up, and no more once one is too slow. Raises UserError where the text is too short for the smallest model, or the
    time for two seeds of it.
    """
    plan = plan_of(LADDER[0], n_tokens, vocab_size)
    if plan is None:
        raise UserError(
            f"expected at least {tokens_needed(vocab_size):,} tokens, which the smallest model reads {PASSES:g} times, "
            f"found {n_tokens:,}: so little text is learned by heart, and what then differs between directions is not "
            "the language's; give more text"
        )
    seconds = run_seconds(plan)
    chosen = (plan, budget.seeds_within(plan, seconds), seconds)
    if math.isinf(seconds):
        raise UserError("expected memory for the smallest model, found too little on this device")
    if chosen[1] < min(FEWEST_SEEDS, budget.seeds):
        minutes = math.ceil(budget.seconds_of(FEWEST_SEEDS, seconds) / 60)
        raise UserError(
            f"expected time for two seeds of the smallest model, {minutes} minutes of training, found "
            f"{max(0.0, budget.seconds) / 60:.1f}; give more --minutes"
        )
    for size in LADDER[1:]:
        plan = plan_of(size, n_tokens, vocab_size)
        if plan is None or not budget.fits(chosen[0], chosen[2]):
            break
        seconds = run_seconds(plan)
        if not budget.fits(plan, seconds):
            break
        chosen = (plan, budget.wanted(plan), seconds)
    return chosen
