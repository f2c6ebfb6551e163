"""Measure the arrow of time: train both directions of each config, or other orders of reading, compare them on the
same held-out text, write a report.

    python measure_arrow.py configs/sweep/*.json --jobs auto
    python measure_arrow.py configs/sweep/*.json --commands slurm
    python measure_arrow.py config.json --until 0.2
    python measure_arrow.py config.json --orders forward backward even_odd random:1 both
    python measure_arrow.py --states runs/demo/state/demo_forward.state runs/demo/state/demo_backward.state
    python measure_arrow.py --states forward.state backward.state -t tokenizers/english --text letter.txt
    python measure_arrow.py --losses losses.npz
    torchrun --nproc_per_node 4 measure_arrow.py config.json

Interrupted, the same command goes on where it was. What is finished is used as it is.
"""

import argparse
import shlex
import sys
from pathlib import Path

from modules.system.console import tell
from modules.system.errors import UserError, one_line_errors


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, integer, jobs, number_above_zero, path

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "configs", nargs="*", type=path, help="JSON config files; of a forward and backward pair one is enough"
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
        help="where the datasets of --states lie now, if they were moved",
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
        "-p", "--project_name", default="BackPerplexityResilient", help="project of the runs (default %(default)s)"
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
        default=1,
        metavar="N",
        help="train so many runs side by side, on the machine's GPUs or in processes that share the CPU's cores; auto: "
        "as many as its memory and cores are good for",
    )
    parser.add_argument(
        "--commands",
        nargs="?",
        const="runs",
        choices=["runs", "compare", "slurm"],
        help="train nothing here: write the config of each run and print a shell command for each (docs/cluster.md), "
        "or, compare: that which compares them then, or, slurm: that which submits both, whose sbatch scripts are "
        "written; behind the configs",
    )
    arguments = parser.parse_args()
    if sum(map(bool, (arguments.configs, arguments.states, arguments.losses))) != 1:
        parser.error("give config files, --states or --losses: one of the three")
    if arguments.data and not arguments.states:
        parser.error("--data goes with --states; a config says itself where its data are")
    if arguments.orders and not arguments.configs:
        parser.error("--orders goes with config files; states and losses say themselves in which order they are")
    if arguments.commands and (arguments.until or arguments.jobs != 1 or not arguments.configs):
        parser.error("--commands goes with config files, and without --until and --jobs, which train here")
    if arguments.text and not arguments.tokenizer_path:
        parser.error("--text needs the tokenizer of the data: give -t")
    return arguments


@one_line_errors
def main() -> None:
    arguments = parse_arguments()
    from modules.training.parallel import leave  # seconds of imports, in which Ctrl-C is one line as well

    leave(measured(arguments))


def measured(arguments: argparse.Namespace) -> int:
    """Train, compare and report; the exit status."""
    from modules.measurement.measure import Wish, measured_states, read_texts, report_on, report_on_losses
    from modules.measurement.runs import seeds_after
    from modules.system.processes import this_process
    from modules.training.devices import pick_device

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
    if this_process().launched and (arguments.jobs != 1 or arguments.until):
        raise UserError(
            "--jobs and --until: expected no launcher (torchrun, RANK in the environment), which shares out the work "
            "itself"
        )
    if arguments.commands:
        tell_commands(arguments)
        return 0
    states, seeds, device = arguments.states, arguments.seeds, pick_device(arguments.device)
    while True:
        if arguments.configs:
            status, states = train(arguments, seeds)
            if status or not states:
                return status
        measurements = measured_states(states, device, wish, arguments.data)
        tell(report_on(measurements, wish))
        if not (arguments.until and arguments.configs):
            return 0
        more = seeds_after(measurements, arguments.until, arguments.max_seeds)
        if more <= seeds:
            return 0
        tell(f"{seeds} seeds do not give ±{arguments.until:g} %: going on to {more}")
        seeds = more


def runs_of(arguments: argparse.Namespace, seeds: int) -> list:
    """The runs to train for so many seeds, the controls' among them, whose data are made."""
    from modules.measurement.runs import planned_runs, with_controls_of

    planned = planned_runs(arguments.configs, seeds, arguments.orders, arguments.reference)
    return with_controls_of(planned, arguments.project_name, arguments.control)


def tell_commands(arguments: argparse.Namespace) -> None:
    """Print the commands by which the measurement is made elsewhere."""
    from modules.measurement.commands import compare_command, run_commands, write_sbatch
    from modules.training.run import Request

    runs, request = runs_of(arguments, arguments.seeds), Request(arguments.project_name)
    compare = compare_command(runs, request, arguments)
    if arguments.commands == "slurm":
        tell(write_sbatch(runs, request, arguments.device, compare))
    elif arguments.commands == "compare":
        tell(compare)
    else:
        tell("\n".join(run_commands(runs, request, arguments.device)))
        tell(f"# {len(runs)} runs, in any order, any number at a time; when all have ended:\n# {compare}", sys.stderr)


def train(arguments: argparse.Namespace, seeds: int) -> tuple[int, list[Path]]:
    """Train what is missing for so many seeds; the exit status, and the states: none where this process is not the one
    to report."""
    from modules.measurement.runs import train_in_turn
    from modules.training.resume import files_of
    from modules.training.run import Request
    from modules.training.side_by_side import train_side_by_side

    request = Request(arguments.project_name)
    runs = runs_of(arguments, seeds)
    if arguments.jobs != 1:
        status, is_main = train_side_by_side(runs, request, arguments.device, arguments.jobs), True
    else:
        status, is_main = train_in_turn(runs, request, arguments.device)
    return status, [files_of(run, request.project).state for run in runs] if is_main else []


if __name__ == "__main__":
    main()
