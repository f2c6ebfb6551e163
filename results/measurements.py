"""What is measured for this folder, what was found, and what others found."""

import json
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "results"


class Result(NamedTuple):
    title: str
    configs: list[str]  # of configs/results, without _forward
    tokenizer: str | None  # of data/tokenizers, where all configs have the same
    texts: list[str]  # of data/
    seeds: int = 5
    options: tuple[str, ...] = ()  # of measure_arrow.py
    floors: dict[str, float] = {}  # of made texts: config -> their entropy, which no model passes, nats per token


# Entropies of made texts, nats a token (`modules/corpora/synthetic.py`; a test computes them): no model passes them.
PRIMES_FLOOR = 0.767136
CIRCUIT_FLOORS = {0: 0.380003, 10: 0.381946, 20: 0.382831, 30: 0.384798, 50: 0.385843}  # of 25 bits, by ones
# What the paper's models of such circuits lose, forward, by ones, nats a token of its lines of 57 (from a drawing). Its
# matrices are not known; others than ours change the floor by 0.0003.
PAPER_CIRCUITS = {0: 0.347, 10: 0.366, 20: 0.403, 30: 0.442, 50: 0.532}
CIRCUIT_LINE, PAPER_CIRCUIT_LINE = 52, 57  # tokens

LANGUAGES = ("en", "fr", "de", "es", "it")
ORDERS = ("forward", "backward", "even_odd", "random:1", "mallows:2,1", "mallows:0.5,1", "mallows:0.1,1")
TO_ORDERS = ("--orders", *ORDERS, "--no_control")  # of an order that is no mirror image there is no arrow to control

RESULTS = {
    "docstrings": Result(
        "English docstrings, by size",
        [f"docstrings_width{width}" for width in (32, 64, 128)],
        "docstrings",
        ["docstrings"],
        seeds=10,
    ),
    "english": Result(
        "Long English prose, by size",
        [f"english_width{width}" for width in (32, 64, 128, 256)],
        "english",
        ["english"],
        seeds=10,
    ),
    "help": Result(
        "The same manuals in five languages",
        [f"help_{language}_folds" for language in LANGUAGES],
        None,
        [f"help_{language}" for language in LANGUAGES],
    ),
    "bpe": Result(
        "The Bible and manuals by a usual tokenizer, which has a direction: the control is trained",
        [f"{text}_{language}_bpe" for text in ("bible", "help") for language in ("en", "es")],
        None,
        [f"{text}_{language}" for text in ("bible", "help") for language in ("en", "es")],
        seeds=10,
    ),
    "genres": Result(
        "The same handbooks and the same Bible in two languages",
        [f"{text}_{language}_folds" for text in ("guides", "bible") for language in ("es", "en")],
        None,
        [f"{text}_{language}" for text in ("guides", "bible") for language in ("es", "en")],
        seeds=10,
    ),
    "longer": Result(
        "The same Bible, trained four times as long",
        ["bible_en_long", "bible_es_long"],
        None,
        ["bible_en", "bible_es"],
        seeds=10,
    ),
    "code": Result("Source code", ["code"], "code", ["code"], seeds=10),
    "umaydis": Result("A genome", ["umaydis"], "umaydis", ["umaydis"]),
    "tunes": Result("Music: folk tunes, by character", ["tunes_folds"], "tunes", ["tunes"]),
    "positions": Result(
        "Learned positions, rotary ones and none",
        [f"{text}{position}" for text in ("help_en_folds", "code") for position in ("", "_rope", "_none")],
        None,
        ["help_en", "code"],
    ),
    "gru": Result("A GRU", ["docstrings_gru"], "docstrings", ["docstrings"]),
    "orders_help": Result("Orders of reading: manuals", ["help_en_folds"], "help_en", ["help_en"], options=TO_ORDERS),
    "orders_code": Result("Orders of reading: source code", ["code"], "code", ["code"], options=TO_ORDERS),
    "primes": Result(
        "Products of primes of one to five digits, from the first digit and from the last",
        ["primes_first", "primes_last"],
        None,
        ["primes_first", "primes_last"],
        floors={"primes_first": PRIMES_FLOOR, "primes_last": PRIMES_FLOOR},
    ),
    "circuits": Result(
        "The paper's circuits of 25 bits, by the ones beside the identity",
        [f"circuit25_{ones}" for ones in CIRCUIT_FLOORS],
        None,
        [f"circuit25_{ones}" for ones in CIRCUIT_FLOORS],
        floors={f"circuit25_{ones}": floor for ones, floor in CIRCUIT_FLOORS.items()},
    ),
    "circuit20": Result(
        "The paper's circuit of 20 bits, six ones beside the identity",
        ["circuit20_6"],
        "circuit20_6",
        ["circuit20_6"],
        floors={"circuit20_6": 0.378172},
    ),
}
TOGETHER, SAME_SIZE = ("docstrings", "english", "help", "genres", "code"), 235_264  # parameters
MADE = {"package": "generate_text.py", "licence": "none: it is made"}
# What stands in no .source.json, as these texts are not collected from packages with a licence each.
SOURCES = {
    "docstrings": {
        "package": "the installed packages of requirements-dev.txt and the standard library, 12.3 MB on this machine",
        "licence": "the packages' own: BSD, MIT, Apache-2.0, PSF-2.0 mostly",
    },
    "umaydis": {
        "package": "the genome of Ustilago maydis, 20 million bases without runs of N, of Debian's maffilter-examples",
        "licence": "CeCILL",
    },
} | {text: MADE for result in RESULTS.values() if result.floors for text in result.texts}


class Published(NamedTuple):
    """What others found, in English, in percent of the forward loss, with its interval where one is known."""

    study: str
    parameters: float  # millions
    percent: float
    interval: tuple[float, float] | None


PAPER, NEUROSCIENCE = "Papadopoulos et al. 2024, CC100", "arXiv 2505.08739, neuroscience"
PUBLISHED = [
    Published(PAPER, 4.9, -0.35, None),  # the paper's are read from a drawing, ±0.05
    Published(PAPER, 55.6, 0.20, None),
    Published(PAPER, 405, 0.76, None),
    Published(NEUROSCIENCE, 124, 0.29, (-0.21, 0.80)),  # our statistics (measure_arrow.py --losses) on its losses
    Published(NEUROSCIENCE, 355, 0.75, (0.61, 0.89)),
    Published(NEUROSCIENCE, 774, 1.24, (1.13, 1.35)),
]
# The paper's 405 M, trained for each context: context -> percent, from its figure.
PUBLISHED_CONTEXTS = {16: 0.07, 32: 0.18, 64: 0.48, 128: 0.84, 256: 0.90, 512: 1.02}


def report_of(name: str) -> dict:
    """What the report here found, as its arrow.json has it; empty where there is none."""
    path = HERE / name / "arrow.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def comparisons_of(name: str) -> list[dict]:
    return report_of(name).get("comparisons", [])


def arrow_of_time(comparison: dict) -> dict:
    """The half of an arrow that turns round with the text; all of it where the tokenizer has no direction, or without
    a control."""
    control = comparison["control"]
    return control["turns"] if control else comparison["arrow"]["percent"]


def above_floor(name: str, comparison: dict, direction: str) -> list[float]:
    """What each seed of a made text's models loses above its floor, nats per token."""
    floor = RESULTS[name].floors[comparison["name"]]
    return [seed[direction] - floor for seed in comparison["arrow"]["per_seed"]]


def measured(orders: bool) -> list[tuple[str, dict]]:
    """The comparisons of texts that were not made, of orders of reading or else of directions, with the name of their
    report. What is in two reports is taken from the first; controls are left out."""
    found = {}
    for name, result in RESULTS.items():
        if not result.floors and ("--orders" in result.options) == orders:
            comparisons = comparisons_of(name)
            controls = {each["control"]["name"] for each in comparisons if each["control"]}
            for each in comparisons:
                if each["name"] not in controls:
                    found.setdefault((each["name"], each["order"]), (name, each))
    return list(found.values())
