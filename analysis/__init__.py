"""Tables, figures and the report page, all made from saved records, checkpoints and logs.

In a notebook: `analysis.load_records("results", "imagenet")` is a frame of every number, and
`analysis.load_tables("results", "imagenet")` holds the tables as frames, by name.
"""

from typing import TYPE_CHECKING

from analysis.records import load_records

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__all__ = ["load_records", "load_tables"]


def load_tables(results: "str | Path" = "results", profile: str = "demo") -> "dict[str, pd.DataFrame]":
    """Return the profile's tables that have numbers, each a frame (see `analysis.tables.Table.frame`)."""
    from analysis.tables import read_tables

    return {table.key: table.frame() for table in read_tables(results, profile)}
