"""Write text of a synthetic source, whose arrow or entropy is known, to a file: see modules/corpora/synthetic.py.

python generate_text.py primes data/primes/primes.txt --lines 200000 --digits 3
python generate_text.py primes data/primes5/primes5.txt --digits 5 --from_digits 1 --ordered --least_first
python generate_text.py circuit data/circuit/circuit.txt --lines 200000 --bits 10
python generate_text.py noisy_circuit data/noisy/noisy.txt --lines 1000000 --bits 20 --ones 6 --flips 0.01
python generate_text.py markov data/markov/markov.txt --characters 2000000 --symbols 8
python generate_text.py iid data/iid/iid.txt --characters 2000000 --symbols 8
python generate_text.py mirror data/mirrored/mirrored.txt --text data/english/english.txt
"""

import argparse
import os

from modules.system.console import tell
from modules.system.errors import UserError, one_line_errors


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, integer, number_above_zero, path, seed
    from modules.corpora import synthetic as sources

    parser = Parser(description="Write text of a synthetic source with a known arrow of time or a known entropy.")
    kinds = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    kind_help = {
        "primes": "products of two primes, 'p q n'",
        "circuit": "sparse linear circuits over F2, 'x y'",
        "noisy_circuit": "circuits of the identity and some ones more, with flipped bits, 'x y'",
        "markov": "a reversible Markov chain",
        "iid": "independent symbols",
        "mirror": "a text together with its mirror image",
    }
    kind = {name: kinds.add_parser(name, help=text, description=text) for name, text in kind_help.items()}
    for name, parser_of_kind in kind.items():
        parser_of_kind.add_argument("out", type=path, help="the .txt file to write")
        if name != "mirror":
            parser_of_kind.add_argument(
                "--seed", type=seed, default=0, help="decides the rule and the sample (default 0)"
            )
    for name in ("primes", "circuit", "noisy_circuit"):
        kind[name].add_argument("--lines", type=integer(1, 10**12, "terabytes"), default=200_000, help="default 200000")
    for name in ("markov", "iid"):
        kind[name].add_argument(
            "--characters", type=integer(1, 10**13, "ten terabytes"), default=1_000_000, help="default 1000000"
        )
        kind[name].add_argument(
            "--symbols", type=integer(2, len(sources.SYMBOLS)), default=8, help="size of the alphabet (default 8)"
        )
    kind["primes"].add_argument(
        "--digits", type=integer(1, sources.MOST_DIGITS), default=3, help="decimal digits of each prime (default 3)"
    )
    kind["primes"].add_argument(
        "--from_digits",
        type=integer(1, sources.MOST_DIGITS),
        help="primes of so many digits up to DIGITS, with zeros in front (default: DIGITS)",
    )
    kind["primes"].add_argument(
        "--ordered", action="store_true", help="the smaller prime first, every pair as probable (default: in any order)"
    )
    kind["primes"].add_argument(
        "--least_first", action="store_true", help="the digits of the product from the last to the first"
    )
    kind["circuit"].add_argument(
        "--bits", type=integer(1, sources.MOST_BITS), default=10, help="bits of x and of y (default 10)"
    )
    kind["noisy_circuit"].add_argument(
        "--bits", type=integer(1, sources.MOST_BITS), default=20, help="bits of x and of y (default 20)"
    )
    kind["noisy_circuit"].add_argument(
        "--ones", type=integer(0, 10**5), default=6, help="ones beside the diagonal (default 6)"
    )
    kind["noisy_circuit"].add_argument(
        "--flips", type=number_above_zero(0.5, "a fair coin"), default=0.01, help="share of flipped bits (default 0.01)"
    )
    kind["mirror"].add_argument("--text", type=path, required=True, help="the .txt file to mirror")
    kind["mirror"].add_argument(
        "--block",
        type=integer(1, 10**8, "a block is held in memory"),
        default=sources.MIRROR_BLOCK,
        help="characters to mirror at a time",
    )
    return parser.parse_args()


@one_line_errors
def main() -> None:
    from modules.corpora import synthetic as sources  # an import in which Ctrl-C is one line as well

    settings = vars(parse_arguments())
    out = settings.pop("out")
    if "text" in settings and os.path.realpath(settings["text"]) == os.path.realpath(out):
        raise UserError(f"{out}: expected another file than the text to mirror")
    source = sources.open_source(**settings)
    written = sources.write_text(out, source.text, source.characters)
    tell(
        f"{out}: {written} characters"
        + (f", {source.entropy:.6f} nats a character" if source.entropy is not None else "")
    )


if __name__ == "__main__":
    main()
