"""Rows that do not fit in memory: read block by block, looked at once, scored as they come.

`NpyBlocks` and `ParquetBlocks` read. A `RowStream` of them is an iterable of batches, which
`Trainer.fit` takes like any other; on many ranks each reads the blocks of its share. `summarize`
looks at all rows once and keeps what scaling and radius need; `score_to_file` writes scores. None
of them needs more memory for a larger file.
"""

from drocc_ext.streams.blocks import Blocks, NpyBlocks, ParquetBlocks
from drocc_ext.streams.rows import RowStream
from drocc_ext.streams.scores import score_to_file
from drocc_ext.streams.summary import RowSummary, radius_among_all, summarize

__all__ = [
    "Blocks",
    "NpyBlocks",
    "ParquetBlocks",
    "RowStream",
    "RowSummary",
    "radius_among_all",
    "score_to_file",
    "summarize",
]
