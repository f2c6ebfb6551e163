"""Measure the arrow of time: train both directions of each config, compare them on the same held-out text, write a report.

    python measure_arrow.py configs/sweep/*.json --seeds 3 --jobs 2
    python measure_arrow.py --states runs/demo/state/demo_forward.state runs/demo/state/demo_backward.state
    python measure_arrow.py --states forward.state backward.state -t tokenizers/english --text letter.txt
    torchrun --nproc_per_node 4 measure_arrow.py config.json

Interrupted, the same command goes on where it was. What is finished is used as it is.
"""
import argparse
import shlex
import sys
from pathlib import Path

from modules.console import tell
from modules.errors import UserError, one_line_errors


def parse_arguments() -> argparse.Namespace:
    from modules.cli import Parser, integer, path, processes_here

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=path, help="JSON config files; of a forward and backward pair one is enough")
    parser.add_argument("--states", nargs="+", type=path, metavar="STATE", help="compare runs that exist, by their .state files, and train nothing")
    parser.add_argument("--data", nargs="+", type=path, default=[], metavar="H5", help="where the datasets of --states lie now, if they were moved")
    parser.add_argument("--seeds", type=integer(1, 1000), default=1, help="train each config for so many seeds, to measure the noise of training")
    parser.add_argument("-d", "--device", help="device, e.g. 'cuda:0' or 'cpu' (default: the first GPU, or else the CPU)")
    parser.add_argument("-t", "--tokenizer_path", type=path, help="tokenizer folder: adds snippets, classes of tokens and a coloured page")
    parser.add_argument("--text", nargs="+", type=path, default=[], metavar="FILE", help="plain texts of yours, each to be shown as a coloured page too; needs -t")
    parser.add_argument("-p", "--project_name", default="BackPerplexityResilient", help="project of the runs (default %(default)s)")
    parser.add_argument("-o", "--out", type=lambda text: Path(path(text)), help="folder of the report (default: report/ in the project's folder of runs)")
    parser.add_argument("--jobs", type=processes_here, default=1, help="train so many runs side by side, in processes that share the CPU's cores")
    arguments = parser.parse_args()
    if bool(arguments.configs) == bool(arguments.states):
        parser.error("give either config files or --states")
    if arguments.data and not arguments.states:
        parser.error("--data goes with --states; a config says itself where its data are")
    if arguments.text and not arguments.tokenizer_path:
        parser.error("--text needs the tokenizer of the data: give -t")
    return arguments


@one_line_errors
def main() -> None:
    arguments = parse_arguments()
    from modules.parallel import leave  # seconds of imports, in which Ctrl-C is one line as well
    leave(measured(arguments))


def measured(arguments: argparse.Namespace) -> int:
    """Train, compare and report; the exit status."""
    from modules.devices import pick_device
    from modules.measure import measure_states, planned_runs, read_texts, train_in_turn
    from modules.resume import files_of
    from modules.run import Request
    from modules.side_by_side import train_side_by_side
    from modules.tok_utils.processes import this_process

    states, out = arguments.states, arguments.out
    texts = read_texts(arguments.text, arguments.tokenizer_path)  # a mistake in them is told before hours of training
    if arguments.jobs > 1 and this_process().launched:
        raise UserError("--jobs and a launcher (torchrun, RANK in the environment) both share out the work: expected one of them")
    if arguments.configs:
        runs, request = planned_runs(arguments.configs, arguments.seeds), Request(arguments.project_name)
        if arguments.jobs > 1:
            status, is_main = train_side_by_side(runs, request, arguments.device, arguments.jobs), True
        else:
            status, is_main = train_in_turn(runs, request, arguments.device)
        if status or not is_main:
            return status
        states, out = [files_of(run, request.project).state for run in runs], out or files_of(runs[0], request.project).folder / "report"
    command = shlex.join(["python", *sys.argv])
    tell(measure_states(states, pick_device(arguments.device), out, arguments.tokenizer_path, command, texts, arguments.data))
    return 0


if __name__ == "__main__":
    main()
