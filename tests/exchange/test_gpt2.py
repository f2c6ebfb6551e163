"""Our GPT and those of transformers compute the same from the same numbers, whatever the shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.exchange.gpt2 import as_transformers
from modules.models import GPTParams, build_model


@st.composite
def gpt_params(draw) -> GPTParams:
    n_heads, channels = draw(st.integers(1, 5)), 2 * draw(st.integers(1, 6))
    return GPTParams(
        vocab_size=draw(st.integers(2, 90)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        embed_dim=n_heads * channels,
        attn_length=draw(st.integers(2, 40)),
        mlp_ratio=draw(st.sampled_from([1.0, 2.5, 4.0])),
        position=draw(st.sampled_from(["learned", "rope", "none"])),
        gelu=draw(st.sampled_from(["tanh", "exact"])),
    )


@given(gpt_params(), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_gpt_is_theirs(params, seed):
    import transformers

    generator = torch.Generator().manual_seed(seed)
    model = build_model("gpt", 0, **params.model_dump()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    tensors, config = as_transformers(model.state_dict(), params, bos_id=0)
    kind = getattr(transformers, config["architectures"][0])
    peer = kind(kind.config_class(**config)).eval()
    if "embed_out.weight" in tensors.keys() - peer.state_dict().keys():  # files have this name, models since version 5
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    peer.load_state_dict(tensors)
    tokens = torch.randint(params.vocab_size, (2, params.attn_length), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(peer(tokens).logits, model(tokens), atol=1e-4, rtol=1e-4)
    assert (peer.config.bos_token_id, peer.config.eos_token_id) == (0, 0)


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
def test_the_weights_that_were_given_are_left_alone(position):
    params = GPTParams(vocab_size=9, n_layers=1, n_heads=2, embed_dim=8, attn_length=4, position=position)
    weights = build_model("gpt", 0, **params.model_dump()).state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    as_transformers(weights, params, bos_id=0)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
