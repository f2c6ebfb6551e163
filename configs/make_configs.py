"""Write every config of this folder from one description of the paper's grid, so that two configs differ only where
they should.

Edit here, not there: `python -m configs.make_configs` (from the top folder) rewrites
the files, and a test holds that they are what this script writes.
"""

import json
from pathlib import Path

from modules.system.files import replacing

LANGUAGES = ["en", "fr", "de", "fi", "el", "tr", "vi", "id", "ar", "he", "tl"]
FULL_GRID = ["en", "fr"]  # all sizes, contexts and recurrent models; the others have gpt1 and medium
REVERSED_TEXT = [
    "el_reversed",
    "fr_reversed",
]  # controls: the characters of the text in reverse order, tokenized afresh

# layers, heads, width, batch, aggregate. All are the paper's, but for the batch of large, of which it says only
# "smaller, aggregated".
SIZES = {
    "nano": (3, 3, 48, 250, 1),
    "micro": (4, 4, 128, 250, 1),
    "mini": (6, 6, 192, 250, 1),
    "small": (10, 10, 380, 250, 1),
    "gpt1": (12, 12, 768, 180, 1),
    "medium": (24, 16, 1024, 90, 2),
    "large": (36, 20, 1280, 45, 4),
    "xl": (48, 25, 1600, 25, 7),
}
MEDIUM_CONTEXTS = {
    16: (500, 1),
    32: (500, 1),
    64: (250, 2),
    128: (200, 2),
    512: (78, 2),
}  # batch, aggregate; 256 is among the sizes
# layers, width, batch, embd_dropout: the last two the paper gives as ranges (200-250, 0.05-0.1)
RECURRENT = {"small": (1, 256, 250, 0.05), "med": (3, 512, 250, 0.05), "big": (5, 768, 200, 0.1)}

VOCAB_SIZE = 50257
CONTEXT = 256
SMALL_HELD_OUT_TOKENS = 2**20
HELD_OUT_TOKENS = 45_000 * CONTEXT  # the same end of the text for every size and context, so that their losses compare
XL_SCHEDULE = {"warmup_steps": 8000, "oscil_steps": 540000}


def optim_params(**changes) -> dict:
    return {
        "lr": 1e-4,
        "warmup_steps": 4000,
        "oscil_steps": 300000,
        "lr_shrink": 0.85,
        "lr_init": 1e-7,
        "lr_min": 1e-6,
    } | changes


def training_params(data: str, batch_size: int, aggregate: int) -> dict:
    """The loop of a run of the grid."""
    return {
        "dataset_folder": f"data/{data}/{data}.h5",
        "batch_size": batch_size,
        "aggregate": aggregate,
        "backwards": False,
        "steps_to_train": None,
        "save_every": 3000,
        "backup_every": 15000,
        "step_log": 400,
        "held_out_tokens": HELD_OUT_TOKENS,
        "state_save_loc": "runs",
    }


def gpt(data: str, size: str, context: int = CONTEXT, batch: tuple[int, int] | None = None) -> dict:
    layers, heads, width, *usual_batch = SIZES[size]
    model = {
        "vocab_size": VOCAB_SIZE,
        "n_layers": layers,
        "n_heads": heads,
        "embed_dim": width,
        "attn_length": context,
        "mlp_ratio": 4.0,
        "dropout": 0.1,
        "embd_dropout": None,
    }
    return {
        "model_params": model,
        "training_params": training_params(data, *(batch or usual_batch)),
        "optim_params": optim_params(**XL_SCHEDULE if size == "xl" else {}),
    }


def recurrent(data: str, model: str, size: str) -> dict:
    layers, width, batch_size, embd_dropout = RECURRENT[size]
    params = {
        "vocab_size": VOCAB_SIZE,
        "n_layers": layers,
        "embed_dim": width,
        "desired_attn_length": CONTEXT,
        "dropout": 0.0,
        "embd_dropout": embd_dropout,
    }
    return {
        "model": model,
        "model_params": params,
        "training_params": training_params(data, batch_size, 1),
        "optim_params": optim_params(),
    }


def small_gpt(
    dataset: str,
    *,
    vocab_size: int,
    width: int,
    context: int,
    batch_size: int,
    steps: int,
    save_every: int,
    heads: int = 2,
    lr: float = 3e-3,
    **training,
) -> dict:
    """Two layers without dropout, trained fast: minutes on a CPU."""
    return {
        "model_params": {
            "vocab_size": vocab_size,
            "n_layers": 2,
            "n_heads": heads,
            "embed_dim": width,
            "attn_length": context,
            "mlp_ratio": 4.0,
            "dropout": 0.0,
            "embd_dropout": None,
        },
        "training_params": {
            "dataset_folder": dataset,
            "batch_size": batch_size,
            "aggregate": 1,
            "backwards": False,
            "steps_to_train": steps,
            "save_every": save_every,
            "backup_every": steps,
            "step_log": 20,
        }
        | training,
        "optim_params": optim_params(
            lr=lr, warmup_steps=100, oscil_steps=steps - 100, lr_init=round(lr / 100, 9), lr_min=round(lr / 10, 9)
        ),
    }


def demo() -> dict:
    """A small GPT on some 10 MB of text, in minutes on two cores.

    Many steps of few windows: with 1,000 steps of 64, as many tokens, the loss is 0.06 nats higher and the arrow of
    docstrings +0.64 % in place of +0.05 % (five seeds), since the model is still learning.
    """
    return small_gpt(
        "demo/runs/demo/data/docstrings.h5",
        vocab_size=1024,
        width=64,
        context=64,
        batch_size=32,
        steps=2000,
        save_every=500,
        held_out_tokens=SMALL_HELD_OUT_TOKENS,
        state_save_loc="demo/runs",
    )


def sweep() -> dict[str, dict]:
    """The paper's two trends at a laptop's scale: the demo's text, and the same tokens a step and held-out text
    everywhere."""
    return {
        f"sweep/docstrings_width{width}_context{context}": small_gpt(
            "demo/runs/demo/data/docstrings.h5",
            vocab_size=1024,
            width=width,
            context=context,
            batch_size=2048 // context,
            steps=2000,
            save_every=500,
            held_out_tokens=SMALL_HELD_OUT_TOKENS,
            state_save_loc="runs",
            precision="fp32",
        )
        for width in (64, 128)
        for context in (16, 64, 128)
    }


def languages() -> dict[str, dict]:
    """The same manual pages in three languages (collect_manpages.py), 1.5 passes over each, and the demo's model."""
    return {
        f"languages/manpages_{language}": small_gpt(
            f"data/manpages_{language}/manpages_{language}.h5",
            vocab_size=1024,
            width=64,
            context=64,
            batch_size=16,
            steps=steps,
            save_every=steps // 4,
            held_out_tokens=102_400,
            state_save_loc="runs",
            precision="fp32",
        )
        for language, steps in (("en", 1600), ("fr", 2300), ("de", 2200))
    }


def synthetic() -> dict[str, dict]:
    """Sources with a strong arrow (see modules/corpora/synthetic.py): a character is a token, an example a window.

    Steps of half as many windows cost half and give primes as large an arrow, but do not teach the circuit
    (benchmarks/RESULTS.md).
    """
    return {
        f"synthetic/{name}": small_gpt(
            f"data/{name}/{name}.h5",
            vocab_size=257,
            width=64,
            context=line,
            batch_size=batch_size,
            steps=3000,
            save_every=750,
            heads=8,
            lr=1.5e-3,
            stride=line,
            valid_steps=2560 // batch_size,
            state_save_loc="runs",
        )
        for name, line, batch_size in (("primes", 15, 32), ("circuit", 22, 64))
    }


# Of each long text of results.mk that is measured at one size: steps of a run.
LONG_TEXTS = {"code": 4000, "umaydis": 3000}
# Shorter texts, of so many tokens: each seed holds out another tenth, and passes 1.45 times over the rest.
FOLDED_TEXTS = {"bible_en": 1_413_780, "bible_es": 1_435_447, "guides_en": 2_405_078, "guides_es": 1_249_607}
FOLDED_TEXTS |= {"help_en": 2_599_552, "help_fr": 2_233_398, "help_de": 2_302_177, "help_es": 2_001_744}
FOLDED_TEXTS |= {"help_it": 2_317_711, "tunes": 2_203_325}
FOLDS, FOLDED_PASSES = 10, 1.45
LONGER_TRAINED, LONGER_PASSES = ("bible_en", "bible_es"), 4 * FOLDED_PASSES
# The same by a usual tokenizer, which has a direction.
USUAL_TOKENS = {"bible_en": 1_330_054, "bible_es": 1_358_388, "help_en": 2_321_619, "help_es": 1_832_343}
SYMBOLS = {"umaydis": 7, "tunes": 83}  # ids of texts without BPE
POSITIONS = ("rope", "none")  # beside the learned ones of the others
RESULT_SIZES = {  # layers, heads, width, learning rate
    "width32": (2, 2, 32, 3e-3),
    "width64": (2, 2, 64, 3e-3),
    "width128": (4, 4, 128, 2e-3),
    "width256": (4, 8, 256, 1e-3),
}
RESULT_CONTEXT = 64
# Of each made text: tokens of a line, ids, steps of 64 lines.
MADE_TEXTS = {f"circuit25_{ones}": (52, 6, 3000) for ones in (0, 10, 20, 30, 50)} | {"circuit20_6": (42, 6, 3000)}
MADE_TEXTS |= {text: (23, 14, 3000) for text in ("primes_first", "primes_last")}
ENGLISH_STEPS, ENGLISH_CYCLES = 7400, 1  # of a cycle, whose end is a result; a session that has the hours adds one


def result(
    text: str, size: str, steps: int, held_out_tokens: int = SMALL_HELD_OUT_TOKENS, cycles: int = 1, **training
) -> dict:
    """A run of results.mk: `cycles` cycles of the learning rate, the first of `steps` steps with its warm-up."""
    layers, heads, width, lr = RESULT_SIZES[size]
    warmup = steps // 20
    config = small_gpt(
        f"data/{text}/{text}.h5",
        vocab_size=SYMBOLS.get(text, 1024),
        width=width,
        context=RESULT_CONTEXT,
        batch_size=1024 // RESULT_CONTEXT,
        steps=steps + (cycles - 1) * (steps - warmup),
        save_every=steps // 4,
        heads=heads,
        lr=lr,
        held_out_tokens=held_out_tokens,
        state_save_loc="runs",
        precision="fp32",
    )
    config["model_params"]["n_layers"] = layers
    config["training_params"] |= {"step_log": steps // 100, "backup_every": steps} | training
    config["optim_params"] |= {"warmup_steps": warmup, "oscil_steps": steps - warmup}
    return config


def folded_result(text: str, n_tokens: int, passes: float = FOLDED_PASSES, **training) -> dict:
    """A run of results.mk of which each seed holds out another part of the text, of so many tokens."""
    held_out_tokens = n_tokens // FOLDS // RESULT_CONTEXT * RESULT_CONTEXT
    steps = int(passes * (n_tokens - held_out_tokens) / 1024) // 4 * 4
    return result(text, "width64", steps, held_out_tokens, held_out_fold="by_seed", **training)


def with_position(config: dict, position: str) -> dict:
    return config | {"model_params": config["model_params"] | {"position": position}}


def gru_result(text: str, steps: int) -> dict:
    """The same run by a GRU of about as many parameters."""
    config = result(text, "width64", steps)
    config["model_params"] = {
        "vocab_size": config["model_params"]["vocab_size"],
        "n_layers": 1,
        "embed_dim": 96,
        "desired_attn_length": RESULT_CONTEXT,
        "dropout": 0.0,
        "embd_dropout": None,
    }
    return {"model": "gru"} | config


def made_result(text: str) -> dict:
    """A run of results.mk on a made text, a line a window."""
    line, vocab_size, steps = MADE_TEXTS[text]
    return small_gpt(
        f"data/{text}/{text}.h5",
        vocab_size=vocab_size,
        width=64,
        context=line,
        batch_size=64,
        steps=steps,
        save_every=steps // 4,
        heads=8,
        lr=1.5e-3,
        stride=line,
        held_out_tokens=12_000 * line,
        state_save_loc="runs",
        precision="fp32",
    )


def results() -> dict[str, dict]:
    """The runs behind results/ (results.mk makes their texts)."""
    runs = {f"results/{text}": made_result(text) for text in MADE_TEXTS}
    texts = {text: result(text, "width64", steps) for text, steps in LONG_TEXTS.items()}
    folded = {text: folded_result(text, n_tokens) for text, n_tokens in FOLDED_TEXTS.items()}
    runs |= {f"results/{text}": config for text, config in texts.items()}
    runs |= {f"results/{text}_folds": config for text, config in folded.items()}
    for position in POSITIONS:
        runs[f"results/code_{position}"] = with_position(texts["code"], position)
        runs[f"results/help_en_folds_{position}"] = with_position(folded["help_en"], position)
    for text in LONGER_TRAINED:
        runs[f"results/{text}_long"] = folded_result(text, FOLDED_TEXTS[text], LONGER_PASSES)
    for text, n_tokens in USUAL_TOKENS.items():
        runs[f"results/{text}_bpe"] = folded_result(
            text, n_tokens, dataset_folder=f"data/{text}_bpe/{text}.h5", tokenizer_path=f"data/tokenizers/{text}_bpe"
        )
    runs["results/docstrings_gru"] = gru_result("docstrings", 6000)
    for size in RESULT_SIZES:
        if size != "width256":  # docstrings are too few for it
            runs[f"results/docstrings_{size}"] = result("docstrings", size, 6000)
        runs[f"results/english_{size}"] = result("english", size, ENGLISH_STEPS, cycles=ENGLISH_CYCLES)
    return runs


def grid() -> dict[str, dict]:
    """Every forward run: the path in this folder without its direction, and the config."""
    runs = {}
    for data in LANGUAGES + REVERSED_TEXT:
        sizes = SIZES if data in FULL_GRID else ["gpt1"] if data in REVERSED_TEXT else ["gpt1", "medium"]
        for size in sizes:
            runs[f"{data}/{data}_{size}_{CONTEXT}"] = gpt(data, size)
    for data in FULL_GRID:
        for context, batch in MEDIUM_CONTEXTS.items():
            runs[f"{data}/{data}_medium_{context}"] = gpt(data, "medium", context, batch)
        for model in ("gru", "lstm"):
            for size in RECURRENT:
                runs[f"{data}/{data}_{model}_{size}_{CONTEXT}"] = recurrent(data, model, size)
    return runs | {"demo/demo": demo()} | sweep() | languages() | synthetic() | results()


def config_files() -> dict[str, str]:
    """Path in this folder -> the text of the file, both directions of every run."""
    files = {}
    for path, config in grid().items():
        for direction, backwards in (("forward", False), ("backward", True)):
            both = config | {"training_params": config["training_params"] | {"backwards": backwards}}
            files[f"{path}_{direction}.json"] = json.dumps(both, indent=4) + "\n"
    return files


def main() -> None:
    folder = Path(__file__).parent
    files = config_files()
    for path, text in files.items():
        with replacing(folder / path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(files)} configs in {folder}")


if __name__ == "__main__":
    main()
