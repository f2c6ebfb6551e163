"""The command line that the four training scripts share."""
import argparse

from modules.config import Config, load_config
from modules.errors import one_line_errors
from modules.parallel import joined


def training_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of a training script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("file_location", help="Path to the JSON config file. Relative to where you launch the script from.")
    parser.add_argument("-d", "--device", help="Device string, e.g. 'cuda:0' or 'cpu'. Default: the first GPU, or else the CPU.")
    parser.add_argument("-t", "--tokenizer_path", help="Folder of the tokenizer that made the data; with it, each validation logs a generated snippet. "
                        "Relative to where you launch the script from, or to the script's folder.")
    parser.add_argument("-p", "--project_name", default="BackPerplexityResilient", help="Name of the project to log to. Default is '%(default)s'.")
    parser.add_argument("-s", "--no_step_pickup", action="store_true",
                        help="If set, train steps_to_train steps more. Otherwise, train UP TO steps_to_train TOTAL steps.")
    parser.add_argument("--run_name", help="Name of the run, and of its files. Default: the config file's, without .json.")
    parser.add_argument("--cooldown", type=positive, metavar="N", help="End the run: from the step that it is at, let the learning rate fall "
                        "to zero over N steps. The state before is kept as a backup.")
    parser.add_argument("--accept_changes", action="store_true", help="Go on although the config's learning rate, schedule, optimizer or precision "
                        "are not those that the state was trained with. The state records from which step on, and measure_arrow.py compares it.")
    parser.add_argument("--dry_run", action="store_true", help="Train nothing: print parameters, tokens per step, memory, steps in an epoch and the "
                        "expected time, from a few steps that leave no trace.")
    return parser


def positive(text: str) -> int:
    """An argument that must be an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text}")
    return number


def config_of(args: argparse.Namespace, model: str | None) -> Config:
    """The config that the arguments name, for the script that trains `model` (None: for any, a GPT by default)."""
    config = load_config(args.file_location)
    config = config.with_model(model or config.model or "gpt")
    return config.with_name(args.run_name) if args.run_name is not None else config


def train_from_arguments(args: argparse.Namespace, config: Config) -> int:
    """Train, or show what would be trained; the exit status."""
    from modules.dry_run import dry_run  # seconds of imports, which --help, a mistake in the config and a launcher need not wait for
    from modules.run import Request, run

    with joined(args.device) as processes:
        if args.dry_run:
            dry_run(config, processes)
            return 0
        return run(config, Request(args.project_name, args.tokenizer_path, args.no_step_pickup, args.cooldown, args.accept_changes), processes)


@one_line_errors
def train_on_one_device(model: str, description: str) -> None:
    """The whole of train_script.py, train_gru.py and train_lstm.py."""
    args = training_parser(description).parse_args()
    raise SystemExit(train_from_arguments(args, config_of(args, model)))
