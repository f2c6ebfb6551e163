"""From text to a dataset, in three steps that can each be repeated or resumed:

    create_tokenizer   text -> tokenizer folder       create_custom_tokenizer.py
    tokenize_folder    text -> chunks of ids (.pt)     chunks.py; encoder.py does the encoding
    make_h5            chunks -> one .h5               h5.py

`readers.py` and `text_source.py` read the text (plain, compressed, JSON lines, Parquet, FASTA), `symbols.py` has what
may stand in place of learned tokens, `ids.py` takes ids that are there already, `cuts.py` says where a text may be cut,
`job.py` which chunks are there, `pt_file.py` how they are written; `inspection.py` looks at the texts before the work,
`disk.py` sees to room on the disk, `progress.py` to the bar. `symmetric.py` has the tokenizer to which the direction is
all the same.
"""

from modules.tok_utils.chunks import tokenize_folder
from modules.tok_utils.create_custom_tokenizer import create_tokenizer
from modules.tok_utils.h5 import make_h5

__all__ = ["create_tokenizer", "make_h5", "tokenize_folder"]
