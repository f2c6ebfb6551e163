"""Checkpoints of the authors' layout, built here from random weights, give the logits of models written out here: what
their code saves is read exactly, without running any of it, or refused."""

import json
import math
import re

import pytest
import torch

from modules.config import load_config, parse_config
from modules.data.token_file import open_tokens
from modules.measurement.measure import Wish, measured_states, report_on
from modules.measurement.pairing import read_run
from modules.models import build_model
from modules.system.errors import UserError
from modules.training.checkpoint import load_state
from modules.training.initial import initial_of
from modules.training.parallel import Processes
from modules.training.run import Request, new_model, run
from tests.toy import PROJECT, state_path, write_config, write_tokens

HERE = Processes(0, 1, torch.device("cpu"))
V, D, L, H, T, M = 64, 32, 2, 4, 16, 96  # vocabulary, width, layers, heads, context, hidden width of the MLP
GPT = dict(vocab_size=V, n_layers=L, embed_dim=D, n_heads=H, attn_length=T, mlp_ratio=3, dropout=0.1, embd_dropout=None)
RNN = dict(vocab_size=V, n_layers=L, embed_dim=D, desired_attn_length=T, dropout=0.0, embd_dropout=0.05)
TRAIN = dict(
    dataset_folder="english/english.h5",
    batch_size=8,
    aggregate=1,
    backwards=False,
    steps_to_train=None,
    save_every=3000,
    backup_every=15000,
    step_log=400,
    valid_steps=2,
    save_loc="datavol/runs",
    fast_scrambling=True,
)
OPTI = dict(lr=1e-4, warmup_steps=4000, oscil_steps=300000, lr_shrink=0.85, lr_init=1e-7, lr_min=1e-6)


def random(generator, *shape):
    return 0.3 * torch.randn(shape, generator=generator)


def gpt_weights(seed=0, first_version=False):
    """Their GPT's state_dict: attention is torch's MultiheadAttention, or, in the first version, two linear layers."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        "_devtens": torch.empty(0),
        "transformer.token_embedder.weight": random(g, V, D),
        "transformer.position_embedder.weight": random(g, T, D),
    }
    names = ("attn.attn.in_proj_", "attn.attn.out_proj.") if not first_version else ("attn.c_attn.", "attn.c_proj.")
    for layer in range(L):
        at = f"transformer.h.{layer}."
        tensors |= {f"{at}_devtens": torch.empty(0), f"{at}attn._devtens": torch.empty(0)}
        tensors[f"{at}attn.bias" if first_version else f"{at}attn.cant_attend"] = torch.ones(T, T).tril()
        for name, out, into in ((names[0], 3 * D, D), (names[1], D, D), ("mlp.c_fc.", M, D), ("mlp.c_proj.", D, M)):
            tensors |= {f"{at}{name}weight": random(g, out, into), f"{at}{name}bias": random(g, out)}
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{at}{norm}.weight": 1 + random(g, D), f"{at}{norm}.bias": random(g, D)}
    tensors |= {"transformer.ln_f.weight": 1 + random(g, D), "transformer.ln_f.bias": random(g, D)}
    return tensors | {"lm_head.weight": random(g, V, D)}


def gpt_logits(w, tokens):
    """What their GPT computes, written out."""

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, weight, bias):
        return x @ w[weight].T + w[bias]

    length = tokens.shape[1]
    future = torch.ones(length, length).triu(1).bool()
    x = w["transformer.token_embedder.weight"][tokens] + w["transformer.position_embedder.weight"][:length]
    for layer in range(L):
        at = f"transformer.h.{layer}."
        into, out = ("attn.attn.in_proj_", "attn.attn.out_proj.")
        if f"{at}attn.c_attn.weight" in w:
            into, out = "attn.c_attn.", "attn.c_proj."
        qkv = linear(norm(x, f"{at}ln_1"), f"{at}{into}weight", f"{at}{into}bias")
        mixed = []
        for head in range(H):
            q, k, v = (qkv[..., part * D + head * D // H : part * D + (head + 1) * D // H] for part in range(3))
            scores = (q @ k.mT / math.sqrt(D / H)).masked_fill(future, -math.inf)
            mixed.append(scores.softmax(-1) @ v)
        x = x + linear(torch.cat(mixed, -1), f"{at}{out}weight", f"{at}{out}bias")
        hidden = linear(norm(x, f"{at}ln_2"), f"{at}mlp.c_fc.weight", f"{at}mlp.c_fc.bias")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"{at}mlp.c_proj.weight", f"{at}mlp.c_proj.bias")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


def rnn_weights(kind, seed=0):
    g = torch.Generator().manual_seed(seed)
    gates = {"gru": 3, "lstm": 4}[kind] * D
    tensors = {"_devtens": torch.empty(0), "token_embedder.weight": random(g, V, D), "lm_head.weight": random(g, V, D)}
    for layer in range(L):
        for name in ("ih", "hh"):
            tensors[f"{kind}.weight_{name}_l{layer}"] = random(g, gates, D)
            tensors[f"{kind}.bias_{name}_l{layer}"] = random(g, gates)
    return tensors | {"ln_f.weight": 1 + random(g, D), "ln_f.bias": random(g, D)}


def rnn_logits(w, tokens):
    """The equations of the two cells, token by token."""
    kind = "gru" if "gru.weight_ih_l0" in w else "lstm"
    rows = []
    for ids in tokens:
        xs = [w["token_embedder.weight"][i] for i in ids]
        for layer in range(L):
            h, c, out = torch.zeros(D), torch.zeros(D), []
            for x in xs:
                i = w[f"{kind}.weight_ih_l{layer}"] @ x + w[f"{kind}.bias_ih_l{layer}"]
                s = w[f"{kind}.weight_hh_l{layer}"] @ h + w[f"{kind}.bias_hh_l{layer}"]
                if kind == "gru":
                    (ir, iz, inew), (sr, sz, snew) = i.chunk(3), s.chunk(3)
                    z = (iz + sz).sigmoid()
                    h = (1 - z) * (inew + (ir + sr).sigmoid() * snew).tanh() + z * h
                else:
                    into, forget, cell, gate = (i + s).chunk(4)
                    c = forget.sigmoid() * c + into.sigmoid() * cell.tanh()
                    h = gate.sigmoid() * c.tanh()
                out.append(h)
            xs = out
        rows.append(torch.stack(xs))
    x = torch.stack(rows)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (x * w["ln_f.weight"] + w["ln_f.bias"]) @ w["lm_head.weight"].T


def write_theirs(path, weights, name="MinGPT", params=GPT, train=TRAIN, **entries):
    """A .state with all that their Trainer saves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-4)
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = dict(
        optim_state=optimizer.state_dict(),
        scheduler_state=dict(
            T_0=300000, T_i=300000, T_cur=-1, base_lrs=[1e-4], last_epoch=5, _last_lr=[1e-7], verbose=False
        ),
        model_state=weights,
        model_name=name,
        optim_name="AdamW",
        scheduler_name="CosineWarmup",
        model_config=params,
        session="10-11_12_01",
        run_id="1a2b3c4d",
        steps_done=1000,
        epochs=0,
        samples=8000,
        batches=1000,
        run_config=dict(model=name, model_params=params, train=train, opti=OPTI),
    )
    torch.save(state | entries, path)
    return path


def model_of(path):
    state = load_state(path)
    config = parse_config(state["config"], state["run"])
    model = build_model(config.trained_model, 0, **config.model_arguments).eval()
    model.load_state_dict(state["model"])
    return model


KINDS = {
    "gpt": (gpt_weights(), "MinGPT", GPT, gpt_logits),
    "first gpt": (gpt_weights(1, first_version=True), "MinGPT", GPT, gpt_logits),
    "gru": (rnn_weights("gru"), "MinGRU", RNN, rnn_logits),
    "lstm": (rnn_weights("lstm"), "MinLSTM", RNN, rnn_logits),
}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_theirs_gives_their_logits(tmp_path, kind, parallel):
    weights, name, params, logits = KINDS[kind]
    saved = {f"module.{key}": tensor for key, tensor in weights.items()} if parallel else weights
    path = write_theirs(tmp_path / "en $1 [medium] 256.state", saved, name, params)
    tokens = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = logits(weights, tokens), model_of(path)(tokens)
    assert (expected - found).abs().max() < 1e-4 and expected.std() > 0.5


def test_what_it_says_of_its_run_is_taken_as_recorded(tmp_path):
    path = write_theirs(tmp_path / "fr_backward.state", gpt_weights(), train=TRAIN | {"backwards": True})
    state = load_state(path)
    config = parse_config(state["config"], state["run"])
    assert (config.order, state["step"], state["tokens"], state["run"]) == ("backward", 1000, 8000 * T, "fr_backward")
    assert (config.model_params.gelu, config.model_params.embd_dropout, config.trained_model) == ("exact", 0.1, "gpt")
    assert state["dataset"]["fingerprint"] == "not recorded" and len(state["notes"]) == 2
    assert state["held_out_tokens"] == 2 * 8 * T and "optimizer" not in state
    permuted = list(range(1, T)) + [0]
    train = TRAIN | {"backwards": None, "permutation": permuted}
    state = load_state(write_theirs(tmp_path / "permuted.state", gpt_weights(), train=train))
    assert parse_config(state["config"], "permuted").orders == (tuple(permuted),)


def nothing_like_it(**entries):
    return dict(weights=gpt_weights()) | entries


@pytest.mark.parametrize(
    "entries, expected",
    [
        (nothing_like_it(name="ViT"), "expected one of MinGPT"),
        (nothing_like_it(weights=gpt_weights() | {"extra.weight": torch.zeros(2)}), "'extra.weight' is no tensor"),
        (nothing_like_it(train={}), "its order is not known"),
        (nothing_like_it(run_config={"model": "MinGPT"}), "run_config.train: missing"),
        (nothing_like_it(params=GPT | {"n_layers": "two"}), "model_params.n_layers: expected an integer"),
        (nothing_like_it(params=None), "model_config: expected a dictionary"),
        (nothing_like_it(weights={}), "model_state"),
        (nothing_like_it(steps_done=-1), "steps_done"),
        (nothing_like_it(scheduler_state={"lr_lambdas": [print]}), "print, which is read by running code"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_none_of_theirs_is_one_line(tmp_path, entries, expected):
    path = write_theirs(tmp_path / "x.state", **entries)
    with pytest.raises(UserError, match=expected) as error:
        load_state(path)
    assert len(str(error.value).splitlines()) == 1 and str(path) in str(error.value)


def test_a_truncated_one_and_one_of_other_shapes_are_one_line(tmp_path):
    path = write_theirs(tmp_path / "x.state", gpt_weights())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_state(path)
    data, params = write_tokens(tmp_path / "text.h5", 4_000), GPT | {"embed_dim": 16}
    paths = [
        write_theirs(tmp_path / f"{back}.state", gpt_weights(), params=params, train=TRAIN | {"backwards": back})
        for back in (False, True)
    ]
    with pytest.raises(UserError, match=r"False.state: model: \S+: expected"):
        measured_states(paths, HERE.device, Wish(tmp_path / "report"), [str(data)])


def test_both_directions_are_measured_on_the_text_that_is_given(tmp_path):
    data, other = write_tokens(tmp_path / "english.h5", 4_000), write_tokens(tmp_path / "french.h5", 4_000, seed=1)
    weights = {"forward": gpt_weights(1), "backward": gpt_weights(2)}
    paths = [
        write_theirs(tmp_path / f"en_{order}.state", tensors, train=TRAIN | {"backwards": order == "backward"})
        for order, tensors in weights.items()
    ]
    with pytest.raises(UserError, match="no longer there; say where they are with --data"):
        measured_states(paths, HERE.device, Wish(tmp_path / "report"))
    train = TRAIN | {"backwards": True, "dataset_folder": str(other)}
    elsewhere = write_theirs(tmp_path / "elsewhere_backward.state", weights["backward"], train=train)
    with pytest.raises(UserError, match=re.escape(f"data (english/english.h5 and {other})")):
        measured_states([paths[0], elsewhere], HERE.device, Wish(tmp_path / "report"))
    (measurement,) = measured_states(paths, HERE.device, Wish(tmp_path / "report"), [str(other), str(data)])
    ids = torch.from_numpy(open_tokens(data).gather([4_000 - 16 * T + T * w for w in range(16)], T).astype("int64"))
    for evaluation, (order, tensors) in zip(measurement.pairs[0], weights.items(), strict=True):
        targets = ids.flip(1) if order == "backward" else ids
        inputs = torch.cat([torch.zeros(16, 1, dtype=torch.int64), targets[:, :-1]], 1)
        losses = torch.nn.functional.cross_entropy(gpt_logits(tensors, inputs).mT, targets, reduction="none")
        expected = losses.flip(1) if order == "backward" else losses
        torch.testing.assert_close(torch.from_numpy(evaluation.losses_WT), expected.double(), atol=1e-4, rtol=1e-4)
    report_on([measurement], Wish(tmp_path / "report", command="the command"))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "records neither the data's fingerprint nor the seed" in text and "mostly trained on" in text

    two = [open_tokens(path) for path in (other, write_tokens(tmp_path / "greek.h5", 4_000, seed=2))]
    with pytest.raises(UserError, match="expected one --data, or one called english.h5, found 2"):
        read_run(paths[0], two)
    assert read_run(paths[0], two[:1]).data_path == str(other)


def test_of_a_short_text_as_much_is_held_out_as_there_is(tmp_path):
    data = write_tokens(tmp_path / "any.h5", 1_000)
    paths = [
        write_theirs(
            tmp_path / f"en_{back}.state", gpt_weights(), train=TRAIN | {"backwards": back, "valid_steps": 1000}
        )
        for back in (False, True)
    ]
    (measurement,) = measured_states(paths, HERE.device, Wish(tmp_path / "report"), [str(data)])
    assert measurement.pairs[0][0].losses_WT.shape == ((1_000 - 8 * T) // T, T)


def test_a_run_begins_with_it_and_none_goes_on_with_it(tmp_path):
    weights = gpt_weights(3)
    path = write_theirs(tmp_path / "theirs.state", weights)
    shape = {"model_params__n_heads": H, "model_params__mlp_ratio": 3.0, "training_params__steps_to_train": 3}
    refused = load_config(write_config(tmp_path, "tanh", **shape, training_params__init_from=str(path)))
    with pytest.raises(UserError, match="gelu exact there and tanh here"):
        initial_of(refused.with_model("gpt"))
    shape |= {"model_params__gelu": "exact"}
    config = load_config(
        write_config(tmp_path, "ours", **shape, training_params__init_from=str(path), training_params__backwards=True)
    ).with_model("gpt")
    tokens = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model = new_model(config, HERE.device, initial_of(config)).eval()
        assert (model(tokens) - gpt_logits(weights, tokens)).abs().max() < 1e-4
    assert run(config, Request(PROJECT), HERE) == 0
    assert load_state(state_path(tmp_path, "ours"))["step"] == 3

    before = write_theirs(state_path(tmp_path, "own"), weights, train=TRAIN | {"valid_steps": 1}).read_bytes()
    own = load_config(write_config(tmp_path, "own", **shape)).with_model("gpt")
    with pytest.raises(UserError, match="a state of another run"):
        run(own, Request(PROJECT), HERE)
    assert state_path(tmp_path, "own").read_bytes() == before


def test_it_is_exported_for_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    from modules.export import export
    from modules.tok_utils import create_tokenizer

    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 100)
    toki = create_tokenizer(tmp_path / "text.txt", tmp_path, "toki", vocab_size=300)
    weights = gpt_weights(5)
    path = write_theirs(tmp_path / "theirs.state", weights)
    with pytest.raises(UserError, match="ids, the model 64"):
        export(path, tmp_path / "out", str(toki), "the command")
    for name in ("transformer.token_embedder.weight", "lm_head.weight"):
        weights[name] = random(torch.Generator().manual_seed(6), 300, D)
    path = write_theirs(tmp_path / "theirs.state", weights, params=GPT | {"vocab_size": 300})
    export(path, tmp_path / "out", str(toki), "the command")
    tokens = torch.randint(300, (2, T), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        peer = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert (peer(tokens).logits - gpt_logits(weights, tokens)).abs().max() < 1e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not recorded" in card and "mostly trained on" in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["activation_function"] == "gelu"
