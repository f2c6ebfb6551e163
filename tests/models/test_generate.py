"""Generation: the window and the cache against reading everything again, and sampling against what it should draw."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.models import LanguageModel, build_model
from modules.models.generate import Sampling, continued, first_seen, generate

CONTEXT = 12
GPT = dict(vocab_size=53, n_layers=2, n_heads=2, embed_dim=24, attn_length=CONTEXT, dropout=0.2)
RNN = dict(vocab_size=53, n_layers=2, embed_dim=24, desired_attn_length=CONTEXT, dropout=0.2)
MODELS = {
    "learned": ("gpt", GPT),
    "rope": ("gpt", GPT | {"position": "rope"}),
    "none": ("gpt", GPT | {"position": "none"}),
    "two orders": ("gpt", GPT | {"start_tokens": 2}),
    "gru": ("gru", RNN),
    "lstm": ("lstm", RNN),
}


def model_of(kind, **changes):
    name, params = MODELS[kind]
    model = build_model(name, 0, **params | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # logits that differ
    return model


def some(*shape, seed=0):
    return torch.randint(53, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
@settings(deadline=None)
@given(data=st.data())
def test_reading_in_portions_gives_the_hidden_vectors_of_reading_at_once(kind, data):
    model = model_of(kind).eval()
    tokens, cache = some(3, CONTEXT), model.start_cache()
    cuts = sorted(data.draw(st.sets(st.integers(1, CONTEXT - 1))))
    with torch.no_grad():
        parts = [model.hidden(tokens[:, start:stop], cache) for start, stop in itertools.pairwise([0, *cuts, CONTEXT])]
        torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("prompt", [1, 5, CONTEXT, 3 * CONTEXT])
def test_the_cache_changes_no_token(kind, prompt):
    model, start = model_of(kind), some(2, prompt)

    def made(cached):
        return generate(model, start, 40, generator=torch.Generator().manual_seed(1), cached=cached)

    assert made(True).shape == (2, prompt + 40) and made(True)[:, :prompt].equal(start)
    assert made(True).equal(made(False))
    assert model.training, "the mode it was in"


@pytest.mark.parametrize("kind", MODELS)
def test_logits_with_and_without_the_cache_are_those_of_the_window(kind):
    """All that `continued` asks of the model, written down, against logits of the window that the tokens say."""
    model, start = model_of(kind).eval(), some(2, 4)
    asked = []

    def written_down(read, cache=None):
        asked.append(type(model).next_logits(model, read, cache))
        return asked[-1]

    model.next_logits = written_down
    tokens = generate(model, start, 50, generator=torch.Generator().manual_seed(0))
    sizes = set()
    for number, logits in enumerate(asked):
        seen = tokens[:, : 4 + number]
        first = first_seen(seen.shape[1], CONTEXT)
        window = torch.cat([seen[:, :1], seen[:, first:]], dim=1)
        sizes.add(window.shape[1])
        with torch.no_grad():
            assert (model(window)[:, -1] - logits).abs().max() < 1e-4
    assert sizes == {*range(4, CONTEXT + 1)} and asked[0].std() > 0.5


def test_the_cache_reads_each_token_twice_at_most():
    model, read = model_of("learned").eval(), []
    hidden = model.hidden
    model.hidden = lambda tokens, cache=None: read.append(tokens.shape[1]) or hidden(tokens, cache)
    generate(model, some(1, 1), 300)
    assert sum(read) <= 2.2 * 300 and max(read) <= CONTEXT


@given(count=st.integers(1, 200), context=st.integers(2, 40))
def test_a_window_has_half_a_context_or_more_and_never_more_than_one(count, context):
    seen = 1 + count - first_seen(count, context)
    assert seen == count if count <= context else context // 2 + 1 <= seen <= context
    assert first_seen(count + 1, context) >= first_seen(count, context)


def test_a_model_without_a_cache_is_read_again():
    class Means(LanguageModel):
        def hidden(self, tokens_BT):
            return self.embedding(tokens_BT).cumsum(1)

    model, start = Means(53, 8, CONTEXT), some(2, 3)
    made = generate(model, start, 5, Sampling(temperature=0))
    with torch.no_grad():
        assert made[:, -1].equal(model(made[:, :-1])[:, -1].argmax(-1))


def test_told_places_are_kept_with_the_cache():
    model = build_model("gpt", 0, **GPT, told_places=True).eval()
    places = torch.stack([torch.randperm(CONTEXT), torch.randperm(CONTEXT)])
    tokens = torch.stack([some(2, CONTEXT), places], dim=-1)
    cache = model.start_cache()
    with torch.no_grad():
        parts = [model.hidden(tokens[:, start:stop], cache) for start, stop in ((0, 5), (5, 6), (6, 12))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), rtol=1e-4, atol=1e-5)
    one, other = (
        generate(model, some(2, 1), CONTEXT, Sampling(temperature=0), places_BT=places, cached=cached)
        for cached in (True, False)
    )
    assert one.equal(other)


# Sampling
# ----------------------------------------------------------------------------------------------------------------


def shares(sampling, logits, draws=20_000):
    drawn = sampling.drawn(logits.expand(draws, -1), torch.Generator().manual_seed(0))
    return torch.bincount(drawn, minlength=logits.shape[-1]) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k, top_p", [(None, None), (3, None), (None, 0.7), (4, 0.5), (99, 1.0)])
def test_tokens_are_drawn_as_often_as_they_should(temperature, top_k, top_p):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.5, float("-inf")])
    expected = (logits / temperature).softmax(-1).tolist()
    order = sorted(range(6), key=lambda i: -expected[i])[:top_k]
    whole = sum(expected[i] for i in order)
    kept, before = [], 0.0
    for i in order:
        if top_p is None or before / whole < top_p:
            kept.append(i)
        before += expected[i]
    total = sum(expected[i] for i in kept)
    truth = torch.tensor([expected[i] / total if i in kept else 0.0 for i in range(6)])
    found = shares(Sampling(temperature, top_k, top_p), logits)
    assert (found[truth == 0] == 0).all()
    torch.testing.assert_close(found, truth, atol=0.015, rtol=0)


def test_last_digits_of_the_logits_change_hardly_a_draw():
    """As between computing with and without the cache."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)).expand(2000, -1)
    near = logits + 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    one, other = (Sampling().drawn(each, torch.Generator().manual_seed(2)) for each in (logits, near))
    assert (one != other).sum() <= 1 and len(one.unique()) > 500


def test_at_temperature_zero_the_likeliest_is_taken_and_seeds_repeat():
    logits = torch.randn(7, 53, generator=torch.Generator().manual_seed(0))
    assert Sampling(temperature=0).drawn(logits).equal(logits.argmax(-1))
    assert Sampling(top_k=1).drawn(logits).equal(logits.argmax(-1))
    model, start = model_of("gru").eval(), some(2, 1)

    def draw(seed):
        return list(itertools.islice(continued(model, start, generator=torch.Generator().manual_seed(seed)), 20))

    assert torch.stack(draw(0)).equal(torch.stack(draw(0))) and not torch.stack(draw(0)).equal(torch.stack(draw(1)))
