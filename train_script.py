"""Train a GPT (or what the config's "model" names) on one device:  python train_script.py config.json -d cuda:0"""

from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import train_on_one_device  # seconds of imports, in which Ctrl-C is one line as well

    train_on_one_device(
        None,
        'Starts training on one device of a GPT, or of what "model" in the config names, given a JSON config file; '
        "run again, it goes on from its last state.",
    )


if __name__ == "__main__":
    main()
