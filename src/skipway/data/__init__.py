"""Labelled images: where they come from, how they are augmented, and batches of them.

What is named here needs no torch; `data.feed` and `data.augment` do.
"""

from skipway.data.keyed import Key
from skipway.data.sources import open_data, open_split
from skipway.data.split import DataSet, Skipped, Split

__all__ = ["DataSet", "Key", "Skipped", "Split", "open_data", "open_split"]
