"""score.py: every number against the model's own logits, one token at a time."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import score
from modules.data.orders import positions
from modules.measurement.evaluation import load_model
from modules.measurement.text_losses import central_windows, text_losses
from modules.usage.opened import runs_of
from modules.usage.scoring import losses_of
from tests.usage.states import CONTEXT, TEXT, told_by

CPU = torch.device("cpu")


def score_it(made, *arguments, stdin=b""):
    return told_by(score.main, *arguments, "-t", made.toki.folder, "-d", "cpu", stdin=stdin)


def run_of(made, name, number=0):
    return runs_of([str(made.states[name])])[number]


def by_hand(made, run, ids):
    """The truth for a text that fits a window: -log softmax of the logits after what was read, a token at a time."""
    model, places = load_model(run, CPU), positions(run.config.orders[run.number], len(ids))
    start_id = run.config.reading.start_ids[run.number]
    read, losses = [made.toki.bos_id if start_id is None else start_id], np.zeros(len(ids))
    for place in places:
        with torch.no_grad():
            losses[place] = -model(torch.tensor([read]))[0, -1].double().log_softmax(-1)[ids[place]]
        read.append(ids[place])
    return losses


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def figures_of(told):
    """The rows of the table, by label."""
    rows = [
        line.rsplit(maxsplit=4) for line in told.splitlines()[2:] if line.startswith("  ") and "backward -" not in line
    ]
    return {label.strip(): [float(cell.replace(",", "")) for cell in cells] for label, *cells in rows}


@pytest.mark.parametrize("name, number", [("forward", 0), ("backward", 0), ("both", 1), ("even_odd", 0), ("lstm", 0)])
def test_the_losses_of_a_short_text_are_those_of_the_logits(made, tmp_path, name, number):
    text = " the mat; 12 Ελ"
    ids = made.toki.encode(text)
    assert len(ids) < CONTEXT
    run = run_of(made, name, number)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    done = score_it(made, made.states[name], tmp_path / "a.txt", "--tokens", tmp_path / "tokens.csv")
    assert done.returncode == 0, done.stderr
    rows, truth = read_csv(tmp_path / "tokens.csv"), by_hand(made, run, ids)
    np.testing.assert_allclose([float(row[run.order]) for row in rows], truth, atol=1e-4)
    assert [int(row["position"]) for row in rows] == list(range(len(ids)))
    pieces = [made.toki.token_bytes()[i].decode("utf-8", "backslashreplace") for i in ids]
    assert [row["text"] for row in rows] == pieces
    context, nats, bits, perplexity = figures_of(done.stdout)[run.order]
    assert (context, nats) == (CONTEXT, pytest.approx(truth.mean(), abs=1e-4))
    assert bits == pytest.approx(truth.sum() / math.log(2) / len(text.encode("utf-8")), abs=1e-3)
    assert perplexity == pytest.approx(math.exp(truth.mean()), rel=1e-3)


def test_a_long_text_is_read_where_each_token_is_most_central_the_same_way_in_both_directions(made, tmp_path):
    (tmp_path / "long.txt").write_text(TEXT[:3000], encoding="utf-8")
    ids = np.array(made.toki.encode(TEXT[:3000]))
    done = score_it(
        made, made.states["forward"], made.states["backward"], tmp_path / "long.txt", "--tokens", tmp_path / "t.csv"
    )
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "t.csv")
    assert "".join(row["text"] for row in rows).count("mat") == TEXT[:3000].count("mat") and len(rows) == len(ids)
    starts, chosen, offset = central_windows(len(ids), CONTEXT)
    for name in ("forward", "backward"):
        run = run_of(made, name)
        windows = np.stack([by_hand(made, run, ids[start : start + CONTEXT]) for start in starts[:20]])
        known = chosen < 20
        found = np.array([float(row[name]) for row in rows])
        np.testing.assert_allclose(found[known], windows[chosen[known], offset[known]], atol=1e-4)
        same = text_losses(load_model(run, CPU), ids, CONTEXT, run.config.reading, made.toki.bos_id)
        np.testing.assert_allclose(found, same, atol=1e-5)
    means = {name: np.mean([float(row[name]) for row in rows]) for name in ("forward", "backward")}
    assert f"{means['backward'] - means['forward']:+.4f} nats/token" in done.stdout
    assert f"{len(ids):,} tokens, {len(TEXT[:3000].encode('utf-8')):,} bytes" in done.stdout


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(0, 3 * CONTEXT), max_size=8))
def test_documents_have_the_losses_that_each_has_alone(made, lengths):
    ids = np.array(made.toki.encode(TEXT[:4000]))
    documents = [ids[start : start + length] for start, length in zip(range(0, 400, 50), lengths, strict=False)]
    for name in ("backward", "even_odd"):
        run = run_of(made, name)
        model = load_model(run, CPU)
        found = losses_of(model, documents, run.config.reading, made.toki.bos_id, CPU)
        for document, losses in zip(documents, found, strict=True):
            alone = text_losses(model, document, CONTEXT, run.config.reading, made.toki.bos_id)
            np.testing.assert_allclose(losses, alone, atol=1e-5)


def test_gpt2_of_transformers_gives_the_same_losses(made, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    run = run_of(made, "forward")
    model, params = load_model(run, CPU), run.config.model_params
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=params.vocab_size,
            n_positions=CONTEXT,
            n_embd=params.embed_dim,
            n_layer=params.n_layers,
            n_head=params.n_heads,
            tie_word_embeddings=False,
        )
    ).eval()
    names = {"transformer.wte": "embedding", "transformer.wpe": "position", "transformer.ln_f": "norm"}
    parts = {"ln_1": "norm_1", "attn.c_attn": "attention.query_key_value", "attn.c_proj": "attention.out"}
    parts |= {"ln_2": "norm_2", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.out"}
    names |= {f"transformer.h.{i}.{k}": f"blocks.{i}.{v}" for i in range(2) for k, v in parts.items()}
    names["lm_head"], ours, theirs = "head", model.state_dict(), {}
    for key in peer.state_dict():
        module, kind = key.rsplit(".", 1)
        tensor = ours[f"{names[module]}.{kind}"]
        theirs[key] = tensor.T if kind == "weight" and ("attn" in module or "mlp" in module) else tensor
    peer.load_state_dict(theirs)
    ids = made.toki.encode(TEXT)[:CONTEXT]
    with torch.no_grad():
        logits = peer(torch.tensor([[made.toki.bos_id, *ids[:-1]]])).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")
    (found,) = losses_of(model, [np.array(ids)], run.config.reading, made.toki.bos_id, CPU)
    np.testing.assert_allclose(found, expected, atol=1e-4)


# Documents
# ----------------------------------------------------------------------------------------------------------------


def test_documents_are_sorted_by_their_arrow_and_read_alone(made, tmp_path):
    texts = [TEXT[i * 90 : i * 90 + 20 + 7 * i] for i in range(15)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    states = [made.states["forward"], made.states["backward"]]
    done = score_it(made, *states, tmp_path / "d.jsonl", "--by_document", tmp_path / "d.csv")
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "d.csv")
    assert sorted(int(row["document"]) for row in rows) == list(range(15))
    arrows = [float(row["arrow"]) for row in rows]
    assert arrows == sorted(arrows, reverse=True)
    for row in rows:
        text = texts[int(row["document"])]
        ids = np.array(made.toki.encode(text))
        assert (int(row["tokens"]), int(row["bytes"])) == (len(ids), len(text.encode("utf-8")))
        for name in ("forward", "backward"):
            run = run_of(made, name)
            truth = text_losses(load_model(run, CPU), ids, CONTEXT, run.config.reading, made.toki.bos_id).mean()
            assert float(row[name]) == pytest.approx(truth, abs=1e-4)
        assert float(row["arrow"]) == pytest.approx(float(row["backward"]) - float(row["forward"]), abs=2e-6)
        assert float(row["arrow in percent"]) == pytest.approx(
            100 * float(row["arrow"]) / float(row["forward"]), abs=1e-3
        )
    assert "15 documents, " in done.stdout and f"\n  {rows[0]['document']} " in done.stdout
    total = sum(len(text.encode("utf-8")) for text in texts)
    assert f"{total:,} bytes" in done.stdout, "separators are no part of a document"


def test_a_plain_text_is_divided_where_it_is_said(made, tmp_path):
    (tmp_path / "p.txt").write_text("The cat\n\n\n\nthe mat\n\nx\n\n")
    arguments = (made.states["lstm"], tmp_path / "p.txt", "--by_document", tmp_path / "p.csv")
    done = score_it(made, *arguments)
    assert done.returncode == 1 and "expected several documents for --by_document, found one" in done.stderr
    done = score_it(made, *arguments, "--document_separator", r"\n\n")
    assert "3 documents, " in done.stdout and " 15 bytes" in done.stdout
    losses = [float(row["backward"]) for row in read_csv(tmp_path / "p.csv")]
    assert losses == sorted(losses, reverse=True)


def test_standard_input_and_a_file_are_scored_alike(made, tmp_path):
    (tmp_path / "name $HOME [x] .txt").write_text("The cat; 12")
    one = score_it(made, made.states["both"], tmp_path / "name $HOME [x] .txt")
    other = score_it(made, made.states["both"], "-", stdin=b"The cat; 12")
    assert one.stdout.splitlines()[1:] == other.stdout.splitlines()[1:] and other.stdout.startswith("standard input: ")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.txt", b"", "the text is empty"),
        ("junk.txt", bytes(range(1, 256)) * 9, "expected UTF-8 text, found invalid start byte at byte 127"),
        ("nul.txt", bytes(900), "null bytes"),
        ("a.jsonl", b'{"txt": "x"}\n', "expected a field 'text'"),
        ("cut.txt.gz", b"\x1f\x8b\x08", "damaged or cut off"),
        ("d", None, "in this folder, found none"),
    ],
)
def test_what_is_no_text_is_refused_in_a_line(made, tmp_path, name, content, words):
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_bytes(content)
    done = score_it(made, made.states["forward"], tmp_path / name, "--tokens", tmp_path / "t.csv")
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "t.csv").exists() and done.stdout == ""


def test_listed_positions_need_a_whole_window(made, tmp_path):
    (tmp_path / "a.txt").write_text("The cat")
    done = score_it(made, made.states["listed"], tmp_path / "a.txt")
    assert done.returncode == 1 and f"expected at least the context's {CONTEXT}" in done.stderr
    (tmp_path / "b.txt").write_text(TEXT[:2000], encoding="utf-8")
    assert score_it(made, made.states["listed"], made.states["fresh"], tmp_path / "b.txt").returncode == 0


def test_unlike_models_are_compared_with_a_warning(made, tmp_path):
    (tmp_path / "a.txt").write_text("The cat")
    done = score_it(made, made.states["forward"], made.states["lstm"], tmp_path / "a.txt")
    assert "no fair comparison of directions" in done.stderr and "differ in model_params" in done.stderr


# Choices
# ----------------------------------------------------------------------------------------------------------------

QUESTIONS = [
    {"context": "The cat isn't", "choices": ["on the mat", "12", "friends'll come, 99"], "gold": 0},
    {"query": "The cat isn't ", "choices": ["on", "12"], "gold": 1},
    {"context": "", "choices": ["The cat", "cat The"], "gold": 0},
    {"context": "12", "choices": [" the", "\n\n"]},
    {
        "context": "The cat isn't on the mat; its 12 friends'll come, they've said.",
        "choices": ["on", "come"],
        "gold": 1,
    },
]


def parts_of(made, question, choice):
    """The tokens of the context and of the choice, as the head of choices.py says."""
    context = question.get("context", question.get("query"))
    blank = "" if not context or context[-1].isspace() or choice[0].isspace() else " "
    ids, split = made.toki.encode(context + blank + choice), len(made.toki.encode(context.rstrip()))
    return ids[:split], ids[split:], len(context.rstrip()), len(choice)


def test_choices_are_ranked_by_the_losses_that_the_logits_give(made, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n\n")
    states = [made.states["forward"], made.states["backward"]]
    done = score_it(made, *states, "--choices", path, "--ranked", tmp_path / "r.csv")
    assert done.returncode == 0, done.stderr
    rows, truth = read_csv(tmp_path / "r.csv"), {"forward": [], "backward": [], "summed": []}
    for question in QUESTIONS:
        parts = [parts_of(made, question, choice) for choice in question["choices"]]
        room = CONTEXT - max(len(choice) for _, choice, *_ in parts)
        found = {"forward": [], "backward": []}
        for context, choice, of_context, of_choice in parts:
            context = context[-room:] if room < len(context) else context
            for name in found:
                losses = by_hand(made, run_of(made, name), context + choice)
                of_the_choice = name == "forward" or not context
                loss = losses[len(context) :].sum() if of_the_choice else losses[: len(context)].sum()
                found[name].append((loss, loss / (of_choice if of_the_choice else of_context)))
        found["summed"] = np.sum([found["forward"], found["backward"]], axis=0)
        for name, losses in found.items():
            truth[name].append(np.array(losses))
    for name, of_questions in truth.items():
        expected = np.concatenate(of_questions)
        np.testing.assert_allclose([float(row[name]) for row in rows], expected[:, 0], atol=1e-3)
        np.testing.assert_allclose([float(row[f"{name} per character"]) for row in rows], expected[:, 1], atol=1e-3)
        ranks = [rank for losses in of_questions for rank in 1 + losses[:, 0].argsort().argsort()]
        assert [int(row[f"{name} rank"]) for row in rows] == ranks
        right = [
            [losses[:, column].argmin() == question["gold"] for column in (0, 1)]
            for question, losses in zip(QUESTIONS, of_questions, strict=True)
            if "gold" in question
        ]
        cells = next(line.split() for line in done.stdout.splitlines() if line.split()[0] == name)
        assert [float(cells[1]), float(cells[3])] == np.mean(right, axis=0).tolist()
    assert [row["text"] for row in rows] == [choice for question in QUESTIONS for choice in question["choices"]]
    assert "5 questions, 11 choices, 4 with a right one; a guess has 0.4583" in done.stdout


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"context": "a", "choices": ["b"]}', "line 2: choices: expected "),
        ('{"context": "a", "choices": ["b", "c"], "gold": 2}', "line 2: gold: expected 0 to 1, found 2"),
        ('{"choices": ["b", "c"]}', "line 2: context: missing"),
        ("not JSON", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected an object"),
        (json.dumps({"context": "a", "choices": ["b", TEXT[:400]]}), "expected a choice of at most 15 tokens"),
    ],
)
def test_questions_that_are_none_are_refused_with_their_line(made, tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text('{"context": "a", "choices": ["b", "c"]}\n' + line + "\n", encoding="utf-8")
    done = score_it(made, made.states["forward"], "--choices", tmp_path / "q.jsonl")
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_choices_in_other_orders_and_arguments_that_do_not_go_together_are_refused(made, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"context": "a", "choices": ["b", "c"]}\n')
    done = score_it(made, made.states["even_odd"], "--choices", tmp_path / "q.jsonl")
    assert done.returncode == 1 and "reads even_odd: expected a model that reads forward or backward" in done.stderr
    for arguments in (
        [made.states["forward"]],
        [made.states["forward"], "--choices", "x", "--tokens", "y"],
        [made.states["forward"], "a.txt", "--ranked", "y"],
    ):
        assert score_it(made, *arguments).returncode == 2
    assert (
        "none says which choice is right"
        in score_it(made, made.states["forward"], "--choices", tmp_path / "q.jsonl").stdout
    )


def test_a_closed_input_is_told(made, monkeypatch):
    from modules.system.errors import UserError
    from modules.usage.scoring import read_documents

    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input: expected a text, found it closed"):
        read_documents("-", made.toki)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(UserError, match="^standard input: expected UTF-8 text, found invalid start byte at byte 2"):
        read_documents("-", made.toki)


def test_files_that_cannot_be_written_are_told_before_the_work(made, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"context": "a", "choices": ["b", "c"]}\n')
    (tmp_path / "a.txt").write_text("The cat")
    for arguments in (["--choices", tmp_path / "q.jsonl", "--ranked"], [tmp_path / "a.txt", "--tokens"]):
        done = score_it(made, made.states["forward"], *arguments, tmp_path)
        assert done.returncode == 1 and "found a folder of that name" in done.stderr and done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "q.jsonl"]
