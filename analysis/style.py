"""How every figure looks, and how it is saved."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from analysis.products import figure_files
from common.files import atomic_path

plt.rcParams.update(
    {
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
        "savefig.bbox": "tight",
        "savefig.dpi": 150,
    }
)


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.png` and `<stem>.pdf`, each atomically, and close the figure. The same data give the same bytes."""
    for path in figure_files(stem):
        kind = path.suffix.removeprefix(".")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})
    plt.close(figure)
