"""Measure the arrow of time: train both directions on a text or by a config, or other orders of reading, compare them
on the same held-out text, write a report.

    python measure_arrow.py mytext.txt
    python measure_arrow.py english.txt french.txt --minutes 120
    python measure_arrow.py configs/sweep/*.json --jobs auto
    python measure_arrow.py configs/sweep/*.json --commands slurm
    python measure_arrow.py config.json --until 0.2
    python measure_arrow.py config.json --orders forward backward even_odd random:1 both
    python measure_arrow.py --states runs/demo/state/demo_forward.state runs/demo/state/demo_backward.state
    python measure_arrow.py --states forward.state backward.state -t tokenizers/english --text letter.txt
    python measure_arrow.py --losses losses.npz
    torchrun --nproc_per_node 4 measure_arrow.py config.json

Of a text (a file or a folder of .txt, JSON lines, Parquet or FASTA) it chooses tokenizer, model and steps
(docs/texts.md) and writes them as a config, which can be edited. Interrupted, the same command goes on where it was.
What is finished is used as it is.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modules.system.console import tell
from modules.system.errors import UserError, one_line_errors

if TYPE_CHECKING:
    import torch

    from modules.config import Config

MINUTES = 30  # for texts


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, add_reading_arguments, integer, jobs, number_above_zero, path
    from modules.tok_utils.create_custom_tokenizer import SPLITS

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "inputs",
        nargs="*",
        type=path,
        metavar="TEXT|CONFIG",
        help="texts, files or folders of them; or config files (.json): of a forward and backward pair one is enough",
    )
    parser.add_argument(
        "--states",
        nargs="+",
        type=path,
        metavar="STATE",
        help="compare runs that exist, by their .state files, and train nothing",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        type=path,
        default=[],
        metavar="H5",
        help="where the datasets of --states lie now, if they were moved, or are not recorded",
    )
    parser.add_argument(
        "--losses",
        type=path,
        metavar="NPZ",
        help="report on held-out losses that somebody measured (as --save_losses writes them)",
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        metavar="ORDER",
        default=[],
        help="train and compare these orders of reading (docs/orders.md) instead of forward and backward; both: one "
        "model of the two, A+B: one model of any",
    )
    parser.add_argument(
        "--reference",
        metavar="ORDER",
        default="forward",
        help="the order to which the others are compared (default %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=integer(1, 1000), default=5, help="train each config for so many seeds (default %(default)s)"
    )
    parser.add_argument(
        "--until",
        type=number_above_zero(100, "percent"),
        metavar="PERCENT",
        help="go on with more seeds until the interval of the arrow reaches no further than this to either side",
    )
    parser.add_argument(
        "--max_seeds", type=integer(1, 1000), default=20, help="with --until: at most so many (default %(default)s)"
    )
    parser.add_argument(
        "--minutes",
        type=number_above_zero(1e6, "two years"),
        help=f"begin no more seeds that would end later (default for texts: {MINUTES}); the model for a text is chosen "
        "so that --seeds fit in",
    )
    parser.add_argument(
        "--control",
        action="store_true",
        default=None,
        help="also train each run on the reversed text, tokenized afresh, to tell what "
        "turns round with the text from what does not (default: where the text is at hand)",
    )
    parser.add_argument(
        "--no_control", dest="control", action="store_false", help="leave the control out: half the time"
    )
    parser.add_argument(
        "--save_losses",
        action="store_true",
        help="write every held-out loss to losses.npz, and the means of windows to losses.csv",
    )
    parser.add_argument(
        "-d", "--device", help="device, e.g. 'cuda:0' or 'cpu' (default: the first GPU, or else the CPU)"
    )
    parser.add_argument(
        "-t",
        "--tokenizer_path",
        type=path,
        help="tokenizer folder: adds snippets, classes of tokens and a coloured page",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        type=path,
        default=[],
        metavar="FILE",
        help="plain texts of yours, each to be shown as a coloured page too; needs -t",
    )
    parser.add_argument(
        "-p",
        "--project_name",
        help="project of the runs (default: the text's name, or BackPerplexityResilient for configs)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=lambda text: Path(path(text)),
        help="folder of the report (default: report/ in the project's folder of runs)",
    )
    parser.add_argument(
        "--jobs",
        type=jobs,
        default=0,
        metavar="N",
        help="train so many runs side by side, on the machine's GPUs or in processes that share the CPU's cores; auto: "
        "as many as its memory and cores are good for (default: auto for texts, 1 for configs)",
    )
    parser.add_argument(
        "--commands",
        nargs="?",
        const="runs",
        choices=["runs", "compare", "slurm"],
        help="train nothing here: write the config of each run and print a shell command for each (docs/cluster.md), "
        "or, compare: that which compares them then, or, slurm: that which submits both, whose sbatch scripts are "
        "written; behind the texts or configs",
    )
    of_text = parser.add_argument_group("for texts", "what is not said is chosen by docs/texts.md")
    of_text.add_argument("--config_only", action="store_true", help="tokenize, choose and write the configs, and end")
    of_text.add_argument(
        "--state_save_loc", type=path, default="runs", help="folder in which the project's is (default: %(default)s)"
    )
    of_text.add_argument("--vocab_size", type=int, help="number of ids of the tokenizer")
    of_text.add_argument(
        "--split",
        choices=SPLITS,
        default="symmetric",
        help="how the tokenizer splits a text: symmetric makes the control exact and free (default: %(default)s)",
    )
    of_text.add_argument("--symbols", help="no learned tokens: characters, bytes, words or kmers:6")
    add_reading_arguments(of_text)
    arguments = parser.parse_args()
    arguments.configs = [each for each in arguments.inputs if each.lower().endswith(".json")]
    arguments.texts = [each for each in arguments.inputs if each not in arguments.configs]
    if sum(map(bool, (arguments.configs, arguments.texts, arguments.states, arguments.losses))) != 1:
        parser.error("give texts, config files (.json), --states or --losses: one of the four")
    if not arguments.texts:
        for name in ("config_only", "vocab_size", "symbols"):
            if getattr(arguments, name):
                parser.error(f"--{name} goes with texts")
    if arguments.minutes and not arguments.inputs:
        parser.error("--minutes goes with texts and config files: states and losses are there already")
    if arguments.data and not arguments.states:
        parser.error("--data goes with --states; a config says itself where its data are")
    if arguments.orders and not arguments.inputs:
        parser.error(
            "--orders goes with texts and config files; states and losses say themselves in which order they are"
        )
    if arguments.commands and (arguments.until or arguments.jobs != 0 or not arguments.inputs):
        parser.error("--commands goes with texts and config files, without --until and --jobs, which train here")
    if arguments.text and not arguments.tokenizer_path:
        parser.error("--text needs the tokenizer of the data: give -t")
    if arguments.texts and arguments.minutes is None:
        arguments.minutes = MINUTES
    if arguments.jobs == 0:
        arguments.jobs = None if arguments.texts else 1
    return arguments


@one_line_errors
def main() -> None:
    arguments = parse_arguments()
    from modules.training.parallel import leave  # seconds of imports, in which Ctrl-C is one line as well

    leave(measured(arguments))


def measured(arguments: argparse.Namespace) -> int:
    """Train, compare and report; the exit status."""
    from modules.measurement.held_out import check_folds
    from modules.measurement.measure import Wish, measured_states, read_texts, report_on, report_on_losses
    from modules.measurement.rounds import Limits, Work, measured_in_rounds
    from modules.measurement.runs import Controls, planned_runs, with_controls_of
    from modules.system.processes import this_process
    from modules.training.devices import pick_device

    end = arguments.minutes and time.monotonic() + 60 * arguments.minutes
    # a mistake in them is told before hours of training
    texts = read_texts(arguments.text, arguments.tokenizer_path) if arguments.text else {}
    wish = Wish(
        arguments.out,
        arguments.tokenizer_path,
        shlex.join(["python", *sys.argv]),
        texts,
        arguments.save_losses,
        arguments.reference,
    )
    if arguments.losses:
        tell(report_on_losses(arguments.losses, wish))
        return 0
    if arguments.states:
        tell(report_on(measured_states(arguments.states, pick_device(arguments.device), wish, arguments.data), wish))
        return 0
    if this_process().launched and (arguments.jobs != 1 or arguments.until or arguments.minutes):
        raise UserError(
            "--jobs, --until, --minutes and texts: expected no launcher (torchrun, RANK in the environment), which "
            "shares out the work itself; --config_only without one writes the configs of texts"
        )
    configs, project = arguments.configs, arguments.project_name or "BackPerplexityResilient"
    if arguments.texts:
        configs, project = configs_of_texts(arguments, pick_device(arguments.device), end)
        if arguments.config_only:
            return 0
    controls: Controls = {}

    def runs_of(seeds: int) -> "list[Config]":
        planned = planned_runs(configs, seeds, arguments.orders, arguments.reference)
        runs = with_controls_of(planned, project, arguments.control, controls)
        check_folds(runs)
        return runs

    if arguments.until:
        check_folds(planned_runs(configs, arguments.max_seeds, arguments.orders, arguments.reference))
    if arguments.commands:
        tell_commands(arguments, runs_of(arguments.seeds), project)  # for machines that may have another device
        return 0
    device = pick_device(arguments.device)
    limits = Limits(arguments.seeds, arguments.until, arguments.max_seeds, end)
    return measured_in_rounds(Work(runs_of, project, arguments.device, arguments.jobs), device, wish, limits)


def configs_of_texts(arguments: argparse.Namespace, device: "torch.device", end: float) -> tuple[list[str], str]:
    """Tokenize the texts and write their configs; these and the name of their project."""
    from modules.cli import reading_of
    from modules.measurement.plan import Budget
    from modules.measurement.prepare import Tokenization, name_of, prepared_texts, written_configs
    from modules.system.names import check_name
    from modules.training.placement import at_a_time

    texts = arguments.texts
    project = arguments.project_name or (name_of(texts[0]) if len(texts) == 1 else "texts")
    folder = Path(arguments.state_save_loc) / check_name(project, "-p")
    wanted = Tokenization(
        arguments.tokenizer_path, arguments.vocab_size, arguments.split, arguments.symbols, reading_of(arguments)
    )
    prepared = prepared_texts(texts, folder, wanted)
    models = max(2, len(arguments.orders) + (arguments.reference not in arguments.orders))
    with_control = arguments.control is not False and not all(text.token_file.symmetric for text in prepared)
    budget = Budget(
        end - time.monotonic(),
        at_a_time(arguments.jobs, arguments.device, device),
        models * len(texts) * (2 if with_control else 1),
        arguments.seeds,
        arguments.until,
        arguments.max_seeds,
    )
    paths = [str(path) for path in written_configs(prepared, folder, budget, device)]
    tell(f"configs: {', '.join(paths)}; they are trained as written, and can be edited before", sys.stderr)
    return paths, project


def tell_commands(arguments: argparse.Namespace, runs: "Sequence[Config]", project: str) -> None:
    """Print the commands by which the measurement is made elsewhere."""
    from modules.measurement.commands import compare_command, run_commands, write_sbatch
    from modules.training.run import Request

    request = Request(project)
    compare = compare_command(runs, request, arguments)
    if arguments.commands == "slurm":
        tell(write_sbatch(runs, request, arguments.device, compare))
    elif arguments.commands == "compare":
        tell(compare)
    else:
        tell("\n".join(run_commands(runs, request, arguments.device)))
        tell(f"# {len(runs)} runs, in any order, any number at a time; when all have ended:\n# {compare}", sys.stderr)


if __name__ == "__main__":
    main()
