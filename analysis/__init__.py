"""Tables, figures and the report page, all made from saved records, checkpoints and logs.

In a notebook: `analysis.load_records("results", "imagenet")` is a frame of every number, and
`analysis.load_tables("results", "imagenet")` holds the tables as frames, by name.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.records import load_records

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_records", "load_tables"]


def load_tables(results: str | Path = "results", profile: str = "demo") -> "dict[str, pd.DataFrame]":
    """Return the profile's tables that have numbers, each as a frame (see `analysis.table.Table.frame`).

    A file that is not a valid record is named in a warning and left out.
    """
    from analysis.tables import read_tables

    tables, problems = read_tables(Path(results), profile)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return {table.key: table.frame() for table in tables}
