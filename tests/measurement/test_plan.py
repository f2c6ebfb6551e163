"""What is trained on a text: the rules of plan.py, against brute force and formulas."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.config import parse_config
from modules.measurement import plan as rules
from modules.measurement.noise import t_quantile
from modules.measurement.plan import LADDER, Budget, Plan, choose, plan_of, tokens_needed, vocabulary_for
from modules.models import build_model
from modules.system.errors import UserError

tokens = st.integers(10_000, 10**10)
vocabularies = st.sampled_from([300, 512, 1_024, 50_257])
sizes = st.sampled_from(LADDER)


@settings(deadline=None)  # the first of a size counts its parameters
@given(sizes, tokens, vocabularies)
def test_a_run_reads_the_tokens_that_the_rules_say(size, n_tokens, vocab_size):
    plan = plan_of(size, n_tokens, vocab_size)
    if plan is None:
        return
    assert plan.held_out_tokens % size.context == 0
    assert plan.held_out_tokens <= min(n_tokens / 5, 2**20)
    assert plan.held_out_tokens > min(n_tokens / 5, 2**20) - size.context
    assert plan.tokens <= 1.5 * (n_tokens - plan.held_out_tokens)
    assert plan.tokens <= 20 * plan.parameters
    assert plan.tokens > 15 * plan.parameters - rules.CHECKPOINTS * plan.step_tokens
    assert plan.steps % rules.CHECKPOINTS == 0
    assert plan.batch_size == 8 or 2_100 <= plan.steps <= 4_300


@pytest.mark.parametrize("size", LADDER[:4])
def test_parameters_are_those_of_the_model(size):
    plan = plan_of(size, 10**9, 512)
    assert plan is not None
    model = build_model("gpt", 0, **parse_config(plan.config("a.h5", "t", "runs"), "a").model_arguments)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())


@settings(deadline=None)  # the first of a size counts its parameters
@given(sizes, tokens, vocabularies)
def test_a_plan_is_a_config(size, n_tokens, vocab_size):
    plan = plan_of(size, n_tokens, vocab_size)
    if plan is None:
        return
    config = parse_config(plan.config("a.h5", "t", "runs"), "a")
    assert config.held_out_windows * size.context == plan.held_out_tokens
    assert config.optim_params.lr == pytest.approx(3e-3 * 64 / size.embed_dim, rel=0.05)
    assert config.optim_params.warmup_steps + config.optim_params.oscil_steps == plan.steps
    assert config.training_params.steps_to_train == plan.steps


@pytest.mark.parametrize("vocab_size", [300, 1_024, 4_096])
def test_how_much_text_is_needed(vocab_size):
    needed = tokens_needed(vocab_size)
    assert plan_of(LADDER[0], needed, vocab_size) is not None
    assert plan_of(LADDER[0], needed - 20_000, vocab_size) is None


@settings(deadline=None)
@given(
    st.integers(600_000, 10**9),
    st.floats(60, 1e6),
    st.integers(1, 16),
    st.integers(2, 12),
    st.integers(2, 8),
    st.floats(1e9, 1e14),
)
def test_the_largest_model_whose_seeds_fit_is_chosen(n_tokens, seconds, jobs, runs_a_seed, seeds, speed):
    budget = Budget(seconds, jobs, runs_a_seed, seeds)

    def run_seconds(plan: Plan) -> float:
        return 5 + 6 * plan.tokens * plan.parameters / speed

    def fits(plan: Plan, wanted: int) -> bool:
        return wanted * runs_a_seed <= jobs * math.floor(seconds / run_seconds(plan))

    plans = [plan for size in LADDER if (plan := plan_of(size, n_tokens, 512)) is not None]
    fitting = [plan for plan in plans if fits(plan, seeds)]
    if fitting:
        assert choose(n_tokens, 512, budget, run_seconds) == (fitting[-1], seeds, run_seconds(fitting[-1]))
    elif fits(plans[0], 2):
        plan, number, _ = choose(n_tokens, 512, budget, run_seconds)
        assert plan == plans[0]
        assert fits(plan, number)
        assert not fits(plan, number + 1)
    else:
        with pytest.raises(UserError, match="give more --minutes"):
            choose(n_tokens, 512, budget, run_seconds)


def test_a_model_that_does_not_fit_the_device_is_not_chosen():
    plan, _, _ = choose(10**9, 512, Budget(1e9, 1, 2, 5), lambda plan: math.inf if plan.parameters > 1e6 else 10.0)
    assert plan.parameters < 1e6 < plan_of(LADDER[LADDER.index(plan.size) + 1], 10**9, 512).parameters


def test_a_device_without_memory_is_told():
    with pytest.raises(UserError, match="expected memory for the smallest model"):
        choose(10**9, 512, Budget(1e6, 2, 2, 5), lambda plan: math.inf)


def test_too_short_a_text_is_told_how_much_is_needed():
    with pytest.raises(UserError, match=f"at least {tokens_needed(512):,} tokens.*found 100,000"):
        choose(100_000, 512, Budget(1e6, 2, 2, 5), lambda plan: 1.0)


def test_the_interval_that_is_promised():
    """With as much held-out text as makes no difference it is Student's, a little wider for skewed seeds; five seeds of
    the recipe table (benchmarks/RESULTS.md) had half-widths of 0.44 to 0.46 %."""
    plan = plan_of(LADDER[1], 10**7, 1_024)
    assert plan is not None
    assert (plan.parameters, plan.held_out_tokens) == (235_264, 2**20)
    students = t_quantile(4) * 0.32 / math.sqrt(5)
    assert students < plan.noise(5).half_width < 1.25 * students
    assert 0.4 < plan.noise(5).half_width < 0.5
    smaller = plan_of(LADDER[0], tokens_needed(512), 512)
    assert smaller is not None
    assert smaller.noise(5).half_width > plan.noise(5).half_width > plan.noise(20).half_width


@given(st.floats(0.1, 1), st.integers(2, 50), st.integers(1, 8))
def test_how_many_seeds_a_width_takes(until, most, seeds):
    plan = plan_of(LADDER[1], 10**7, 1_024)
    assert plan is not None
    needed = next((n for n in range(2, most + 1) if plan.noise(n).half_width <= until), most)
    assert Budget(1.0, 1, 2, seeds, until, most).wanted(plan) == min(max(seeds, needed), most)
    assert Budget(1.0, 1, 2, seeds).wanted(plan) == seeds


def test_longer_texts_have_larger_vocabularies():
    ids = [vocabulary_for(size) for size in (1, 4e6, 6e6, 60e6, 1e9, 1e12)]
    assert ids == sorted(ids)
    assert ids[0] == 512
    assert ids[-1] == 50_257
