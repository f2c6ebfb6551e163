"""Models and loss against independent truths: transformers' GPT-2, torch's cross-entropy, ln(V)."""

import math

import pytest
import torch
import torch.nn.functional as F

from modules.kernels.cross_entropy import mean_loss, token_losses
from modules.models import build_model

GPT_PARAMS = dict(vocab_size=211, n_layers=3, n_heads=4, embed_dim=48, attn_length=20, dropout=0.0)
RNN_PARAMS = dict(vocab_size=211, n_layers=2, embed_dim=48, desired_attn_length=20, dropout=0.0)
PARAMS = {"gpt": GPT_PARAMS, "gru": RNN_PARAMS, "lstm": RNN_PARAMS}


def some_tokens(*shape, vocab_size=211, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_gpt_gives_the_logits_of_transformers_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    peer = GPT2LMHeadModel(
        GPT2Config(vocab_size=211, n_positions=20, n_embd=48, n_layer=3, n_head=4, tie_word_embeddings=False)
    ).eval()
    with torch.no_grad():  # random biases and norms: at their initial zeros and ones a mix-up would not show
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = {
        "transformer.wte": "embedding",
        "transformer.wpe": "position",
        "transformer.ln_f": "norm",
        "lm_head": "head",
    }
    parts = {
        "ln_1": "norm_1",
        "attn.c_attn": "attention.query_key_value",
        "attn.c_proj": "attention.out",
        "ln_2": "norm_2",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.out",
    }
    names |= {f"transformer.h.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(3) for theirs, ours in parts.items()}
    weights = {}
    for key, tensor in peer.state_dict().items():
        module, kind = key.rsplit(".", 1)
        transposed = kind == "weight" and ("attn" in module or "mlp" in module)  # their Conv1D keeps [in, out]
        weights[f"{names[module]}.{kind}"] = tensor.T if transposed else tensor
    model = build_model("gpt", 0, **GPT_PARAMS).eval()
    model.load_state_dict(weights)

    tokens = some_tokens(5, 20)
    with torch.no_grad():
        assert (model(tokens) - peer(tokens).logits).abs().max() < 1e-4
        assert model(tokens).std() > 1, "logits that differ"


@pytest.mark.parametrize("name", PARAMS)
def test_loss_and_losses_are_the_cross_entropy_of_the_logits(name):
    model = build_model(name, 0, **PARAMS[name])
    inputs, targets = some_tokens(3, 20), some_tokens(3, 20, seed=1)
    logits = model(inputs)
    assert logits.shape == (3, 20, 211)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(3, 20)
    torch.testing.assert_close(model.losses(inputs, targets), expected.detach())
    torch.testing.assert_close(model.loss(inputs, targets), expected.mean())


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("vocab_size, embed_dim", [(211, 48), (50_257, 64), (1_024, 768)])
def test_the_first_loss_is_that_of_a_uniform_guess(name, vocab_size, embed_dim):
    model = build_model(name, 0, **PARAMS[name] | {"vocab_size": vocab_size, "embed_dim": embed_dim, "n_layers": 1})
    inputs, targets = some_tokens(8, 20, vocab_size=vocab_size), some_tokens(8, 20, vocab_size=vocab_size, seed=1)
    assert abs(model.loss(inputs, targets).item() - math.log(vocab_size)) < 0.1


@pytest.mark.parametrize("name", PARAMS)
def test_weights_follow_from_the_seed_alone(name):
    torch.manual_seed(1)
    first = build_model(name, 7, **PARAMS[name])
    after_first = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after_first, "building a model leaves the program's random state alone"
    second, other = build_model(name, 7, **PARAMS[name]), build_model(name, 8, **PARAMS[name])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("name", PARAMS)
def test_a_token_is_predicted_from_those_before_it_only(name):
    model = build_model(name, 0, **PARAMS[name]).eval()
    tokens = some_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12] = (tokens[0, 12] + 1) % 211
    with torch.no_grad():
        difference = (model(tokens) - model(changed)).abs().amax((0, 2))
    assert difference[:12].max() == 0 and (difference[12:] > 0).all()


def test_activation_checkpointing_changes_memory_and_no_number():
    inputs, targets = some_tokens(3, 20), some_tokens(3, 20, seed=1)
    gradients = []
    for checkpointed in (False, True):
        model = build_model("gpt", 0, **GPT_PARAMS | {"dropout": 0.2}, checkpoint_activations=checkpointed)
        torch.manual_seed(0)
        model.loss(inputs, targets).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_has_the_value_and_gradients_of_the_plain_one(chunk_tokens, dtype):
    chunk_bytes = dtype.itemsize * 300 * chunk_tokens
    torch.manual_seed(0)
    hidden, weight, targets = (
        torch.randn(64, 32, dtype=dtype),
        torch.randn(300, 32, dtype=dtype),
        torch.randint(300, (64,)),
    )
    results = []
    for function in (
        lambda h, w: F.cross_entropy((h @ w.T).float(), targets),
        lambda h, w: mean_loss(h, w, targets, chunk_bytes=chunk_bytes),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h, w)
        (3 * loss).backward()
        results.append((loss.detach(), h.grad, w.grad))
    tolerance = {} if dtype == torch.float32 else dict(rtol=0.02, atol=2e-3)  # bf16 has three digits
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)
    assert results[1][0].dtype == torch.float32, "the loss keeps its digits in bf16 too"
    of_tokens = token_losses(hidden, weight, targets, chunk_bytes)
    torch.testing.assert_close(of_tokens.mean(), results[1][0], rtol=1e-5, atol=1e-6)


def test_autocast_computes_products_in_bf16_and_the_loss_in_fp32():
    torch.manual_seed(0)
    hidden, weight, targets = (
        torch.randn(64, 32, requires_grad=True),
        torch.randn(300, 32, requires_grad=True),
        torch.randint(300, (64,)),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean_loss(hidden, weight, targets)
    loss.backward()
    rounded = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets)
    torch.testing.assert_close(loss, rounded)
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_a_hopeless_token_has_a_finite_loss_and_its_gradient():
    """A probability that fp32 cannot hold: 200 nats count as 87 in training, and the gradient is softmax minus one-hot;
    held-out losses are exact."""
    logits = torch.tensor([[0.0, 200.0, 0.0]])
    hidden, weight, target = torch.ones(1, 1), logits.T.clone().requires_grad_(), torch.tensor([0])
    loss = mean_loss(hidden, weight, target)
    loss.backward()
    assert 87 < loss.item() < 88
    torch.testing.assert_close(weight.grad, torch.tensor([[-1.0], [1.0], [0.0]]))
    torch.testing.assert_close(token_losses(hidden, weight, target), torch.tensor([200.0]))
    assert mean_loss(hidden, weight * float("nan"), target).isnan()
