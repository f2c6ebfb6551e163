"""Write a trained model as a folder that `transformers` opens, with its tokenizer and a model card: docs/exchange.md.

python export_hf.py runs/demo/state/demo_backward.state backward_model -t tokenizers/english
"""

import shlex
import sys
from pathlib import Path

from modules.system.console import tell
from modules.system.errors import one_line_errors


@one_line_errors
def main() -> None:
    from modules.cli import Parser, path  # imports in which Ctrl-C is one line as well

    parser = Parser(description="Write a trained model as a folder that transformers opens.")
    parser.add_argument(
        "state", type=path, help="the .state of a run, the folder of a sharded one, or one of the authors' code"
    )
    parser.add_argument("out", type=path, help="the folder to write; it must be new, or empty")
    parser.add_argument("-t", "--tokenizer_path", type=path, required=True, help="tokenizer folder of the run's data")
    arguments = parser.parse_args()
    from modules.export import export

    command = shlex.join(["python", *sys.argv])
    tell(export(Path(arguments.state), Path(arguments.out), arguments.tokenizer_path, command))


if __name__ == "__main__":
    main()
