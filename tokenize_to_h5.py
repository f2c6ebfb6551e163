"""Text to a dataset ready for training: trains a tokenizer on a text, tokenizes the text with it, writes one .h5.

Edit the four names at the end of this file and run `python tokenize_to_h5.py`, or give them as flags. Run again after
an interruption, it goes on from where it was. On several machines with a shared folder: `torchrun ...
tokenize_to_h5.py`. Ids that are there already become an .h5 with `--ids`.
"""

import argparse
import os

from modules.system.console import tell
from modules.system.errors import UserError, one_line_errors


@one_line_errors
def main(txt_path: str, out_h5_folder: str, tokenizer_folder: str, tokenizer_name: str) -> None:
    """The four arguments are defaults: flags of the same names go before them."""
    from modules import tokenizer  # imports in which Ctrl-C is one line as well
    from modules.cli import Parser, add_reading_arguments, path, reading_of
    from modules.system.processes import this_process
    from modules.tok_utils import create_tokenizer, make_h5, tokenize_folder
    from modules.tok_utils.chunks import ENCODERS
    from modules.tok_utils.create_custom_tokenizer import SPLITS
    from modules.tok_utils.h5 import summary
    from modules.tok_utils.ids import ID_TYPES, ids_to_h5

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--txt_path",
        type=path,
        default=txt_path or None,
        help="text to tokenize: .txt, .jsonl (also .json.gz), .parquet, .fa (.fasta, .fna, .faa), or a folder of them; "
        "all but .parquet also with .gz, .xz or .zst",
    )
    parser.add_argument(
        "--out_h5_folder", type=path, default=out_h5_folder or None, help="folder that will contain the .h5"
    )
    parser.add_argument(
        "--tokenizer_folder", type=path, default=tokenizer_folder or None, help="folder in which the tokenizer is saved"
    )
    parser.add_argument(
        "--tokenizer_name",
        default=tokenizer_name,
        help="name of the tokenizer; one that is there already is used as it is",
    )
    parser.add_argument(
        "--vocab_size", type=int, help="number of ids of a new tokenizer (default: 50257), or of that of --ids"
    )
    parser.add_argument(
        "--sample_bytes",
        type=int,
        help="train the tokenizer on about so many bytes, taken evenly from the text (default: all)",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="gpt2",
        help="how a new tokenizer splits a text: gpt2, or symmetric: the tokens of the reversed text are the "
        "reversed tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--symbols",
        help="no learned tokens, but the text's symbols: characters, bytes, words (between white space), or kmers:6 "
        "(six letters at a time, or another number)",
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--num_workers", type=int, help="threads that encode, at most four a core (default: one a core)"
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default=ENCODERS[0],
        help="the library that encodes; the ids are the same, and compared (default: %(default)s)",
    )
    parser.add_argument(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="text that is not UTF-8: refuse it and say where, or replace it by U+FFFD (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        nargs="+",
        type=path,
        metavar="FILE.h5",
        help="make nothing: read these .h5 through, and compare all their tokens with the "
        "checksum and the vocabulary that they carry (files of up to 128 MB are checked whenever they are opened)",
    )
    parser.add_argument(
        "--ids", type=path, metavar="FILE", help="no text: ids in a .npy, or in a .bin such as nanoGPT's, become an .h5"
    )
    parser.add_argument(
        "--id_type", choices=ID_TYPES, default="uint16", help="how ids are stored in a .bin (default: %(default)s)"
    )
    parser.add_argument(
        "--bos_id",
        type=int,
        help="of --ids the one to stand before every window, such as <|endoftext|> (default: one more is added)",
    )
    args = parser.parse_args()
    if args.ids:
        for name in ("vocab_size", "out_h5_folder"):
            if not getattr(args, name):
                raise UserError(f"--ids: give --{name} as well")
        tell(ids_to_h5(args.ids, args.out_h5_folder, args.vocab_size, args.bos_id, args.id_type))
        return
    if args.check:
        from modules.data.token_file import check_file

        for h5_path in args.check:
            tell(check_file(h5_path))
        return
    for name in ("txt_path", "out_h5_folder", "tokenizer_folder", "tokenizer_name"):
        if not getattr(args, name):
            raise UserError(
                f"{name} is empty: edit the four names at the end of {os.path.basename(__file__)}, or give --{name}"
            )

    reading = reading_of(args)
    tokenizer_path = create_tokenizer(
        args.txt_path,
        args.tokenizer_folder,
        tokenizer_name=args.tokenizer_name,
        vocab_size=50257 if args.vocab_size is None else args.vocab_size,
        sample_bytes=args.sample_bytes,
        errors=args.errors,
        split=args.split,
        symbols=args.symbols,
        reading=reading,
    )
    chunks = tokenize_folder(
        args.txt_path,
        tokenizer_path,
        num_workers=args.num_workers,
        errors=args.errors,
        out_h5_folder=args.out_h5_folder,
        encoder=args.encoder,
        reading=reading,
    )
    toki = tokenizer.get_tokenizer(m_path=tokenizer_path)
    h5_path = make_h5(chunks, args.out_h5_folder, toki)
    if this_process().rank == 0:
        tell(summary(h5_path, toki))
        tell(f"  {chunks} is no longer needed once you are content with the .h5")


if __name__ == "__main__":
    txt_path = ""  # Path to the .txt file to be tokenized
    out_h5_folder = ""  # Folder that will contain the output .h5 file
    tokenizer_folder = ""  # Folder where the tokenizer will be saved
    tokenizer_name = ""  # Name of the tokenizer that will be saved
    main(txt_path, out_h5_folder, tokenizer_folder, tokenizer_name)
