"""Train one model on many devices:  python train_parallel.py config.json   (all GPUs here; torchrun for more machines)

Every process gets a part of each batch, so a config means the same windows in the same steps on any number of devices.
"""

from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.system.children import end_with_launcher

    end_with_launcher()
    from modules.cli import config_of, processes_here, train_from_arguments, training_parser

    parser = training_parser(
        "Starts training on all visible GPUs of this machine (or on N processes on the CPU), given a JSON config file. "
        "Launched by torchrun, on all of its machines."
    )
    parser.add_argument(
        "--nproc",
        type=processes_here,
        metavar="N",
        help="Number of processes, one a device. Default: the number of GPUs, or 1 without any.",
    )
    args = parser.parse_args()
    config = config_of(args, model=None)  # a mistake in it is told once, before there are many processes
    import torch  # seconds, which --help and a mistake need not wait for

    from modules.system.processes import this_process
    from modules.training.parallel import launch, leave

    if this_process().launched:  # by this script or by torchrun
        leave(train_from_arguments(args, config))
    n_gpus = torch.cuda.device_count()
    default = max(1, n_gpus) if args.device in (None, "cuda") else 1
    raise SystemExit(launch(args.nproc or default, args.device, n_gpus))


if __name__ == "__main__":
    main()
