"""Train an LSTM, forward or backward, on one device:  python train_lstm.py config.json -d cuda:0"""

from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import train_on_one_device  # seconds of imports, in which Ctrl-C is one line as well

    train_on_one_device(
        "lstm",
        "Starts training of an LSTM on one device, given a JSON config file; run again, it goes on from its last "
        "state.",
    )


if __name__ == "__main__":
    main()
