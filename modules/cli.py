"""The command line: types of arguments for all scripts, and the arguments that the four training scripts share.

An argument is checked where it is read, before anything is written: its type says the bounds, and a mistake is one line
and status 2.
"""

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from modules.fields import MAX_SEED, MAX_STEPS, WHY_64_BITS, WHY_STEPS, expanded
from modules.system.children import end_with_launcher
from modules.system.errors import UserError
from modules.system.processes import available_cores
from modules.system.schema import shown

if TYPE_CHECKING:
    from modules.config import Config
    from modules.tok_utils.readers import Reading


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, as everything here does, and leaves the usage to --help."""

    def error(self, message: str):
        self.exit(2, f"error: {message}; {self.prog} --help shows what there is\n")


def integer(least: int, most: int, reason: str = "") -> Callable[[str], int]:
    """The type of an argument that must be an integer of `least` to `most`."""

    def integer_in_bounds(text: str) -> int:
        try:
            if least <= (number := int(text)) <= most:
                return number
        except ValueError:  # no number, or one of more digits than Python reads
            pass
        because = f" ({reason})" if reason else ""
        raise argparse.ArgumentTypeError(f"expected an integer of {least:,} to {most:,}{because}, found {shown(text)}")

    return integer_in_bounds


def number_above_zero(most: float, reason: str, or_zero: bool = False) -> Callable[[str], float]:
    """The type of an argument that must be a number above 0, or with `or_zero` of at least 0, and at most `most`."""

    def number_in_bounds(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (0 < number <= most or or_zero and number == 0):
            least = "of at least 0" if or_zero else "above 0"
            raise argparse.ArgumentTypeError(
                f"expected a number {least} and at most {most:g} ({reason}), found {shown(text)}"
            )
        return number

    return number_in_bounds


def path(text: str) -> str:
    """The type of an argument that is a path: not empty, `~` and `$VARIABLE` replaced where the shell left them."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, found {shown(text)}")
    try:
        return expanded(text, "path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


seed = integer(0, MAX_SEED, WHY_64_BITS)
steps = integer(1, MAX_STEPS, WHY_STEPS)
megabytes = number_above_zero(1e7, "ten terabytes")
processes_here = integer(1, 16 * available_cores(), "16 for each core that there is")
jobs_of_a_number = integer(1, 16 * available_cores(), "16 for each core that there is; or auto")


def jobs(text: str) -> int | None:
    """The type of `--jobs`: a number of runs at a time, or "auto" (None) for as many as the machine is good for."""
    return None if text == "auto" else jobs_of_a_number(text)


def training_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of a training script."""
    parser = Parser(description=description)
    parser.add_argument(
        "file_location", type=path, help="Path to the JSON config file. Relative to where you launch the script from."
    )
    parser.add_argument(
        "-d", "--device", help="Device string, e.g. 'cuda:0' or 'cpu'. Default: the first GPU, or else the CPU."
    )
    parser.add_argument(
        "-t",
        "--tokenizer_path",
        type=path,
        help="Folder of the tokenizer that made the data; with it, each "
        "validation logs a generated snippet. Relative to where you launch the script from, or to the script's folder.",
    )
    parser.add_argument(
        "-p",
        "--project_name",
        default="BackPerplexityResilient",
        help="Name of the project to log to. Default is '%(default)s'.",
    )
    parser.add_argument(
        "-s",
        "--no_step_pickup",
        action="store_true",
        help="If set, train steps_to_train steps more. Otherwise, train UP TO steps_to_train TOTAL steps.",
    )
    parser.add_argument(
        "-r", "--run_name", help="Name of the run, and of its files. Default: the config file's, without .json."
    )
    parser.add_argument(
        "-c",
        "--cooldown",
        type=steps,
        nargs="?",
        const=0,
        metavar="N",
        help="End the run: from the step that it is at, let the learning rate fall to zero over N steps, or, without N,"
        " over the config's cooldown_finish of all steps. The state before is kept as a backup.",
    )
    parser.add_argument(
        "--accept_changes",
        action="store_true",
        help="Go on although the config's learning rate, schedule, optimizer or precision are not those that the state "
        "was trained with. The state records from which step on, and measure_arrow.py compares it.",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Train nothing: print parameters, tokens per step, memory, steps in an epoch and the "
        "expected time, from a few steps that leave no trace.",
    )
    return parser


def config_of(args: argparse.Namespace, model: str | None) -> "Config":
    """The config that the arguments name, for the script that trains `model` (None: for any, a GPT by default)."""
    from modules.config import load_config  # and the models with it: seconds, which --help need not wait for

    config = load_config(args.file_location)
    config = config.with_model(model or config.model or "gpt")
    return config.with_name(args.run_name) if args.run_name is not None else config


def train_from_arguments(args: argparse.Namespace, config: "Config") -> int:
    """Train, or show what would be trained; the exit status."""
    # Imports that a mistake in the config and a launcher need not wait for.
    from modules.training.dry_run import dry_run
    from modules.training.parallel import joined
    from modules.training.run import Request, run

    with joined(args.device) as processes:
        if args.dry_run:
            dry_run(config, processes)
            return 0
        return run(
            config,
            Request(
                args.project_name,
                args.tokenizer_path or config.tokenizer_path,
                args.no_step_pickup,
                args.cooldown,
                args.accept_changes,
            ),
            processes,
        )


def train_on_one_device(model: str | None, description: str) -> None:
    """The whole of train_script.py, train_gru.py and train_lstm.py, which wrap it in `one_line_errors`.

    model: what the script trains; None for what the config names, a GPT where it names none.
    """
    end_with_launcher()
    args = training_parser(description).parse_args()
    raise SystemExit(train_from_arguments(args, config_of(args, model)))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of scripts that use trained models: their tokenizer, and a device."""
    parser.add_argument("-t", "--tokenizer_path", type=path, help="folder of the tokenizer that made the models' data")
    parser.add_argument(
        "--data",
        type=path,
        metavar="H5",
        help="in place of -t: the .h5 that the models were trained on, whose tokenizer is looked for near it",
    )
    parser.add_argument(
        "-d", "--device", help="device, e.g. 'cuda:0' or 'cpu' (default: the first GPU, or else the CPU)"
    )


def add_reading_arguments(parser: argparse._ActionsContainer) -> None:
    """The arguments that say how files become text; `reading_of` has what they say."""
    from modules.tok_utils.readers import FASTA_N  # training scripts need not wait for these

    parser.add_argument(
        "--text_field", default="text", help="field of JSON lines, or column of Parquet, with the text (%(default)s)"
    )
    parser.add_argument(
        "--document_separator",
        help=r"what is put between documents, and in a .txt stands between them; \n and \t are a line end and a tab "
        "(default: a blank line, a line end for FASTA; a .txt is not divided)",
    )
    parser.add_argument(
        "--fasta_n",
        choices=FASTA_N,
        default="keep",
        help="N in FASTA: a symbol like others, or left out, with a new document behind (default: %(default)s)",
    )


def reading_of(args: argparse.Namespace) -> "Reading":
    """How files become text, as the arguments say."""
    from modules.tok_utils.readers import Reading

    separator = args.document_separator
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    return Reading(args.text_field, separator, args.fasta_n)
