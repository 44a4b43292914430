"""How every figure looks, and how it is saved."""

import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from analysis.products import figure_files
from common.files import atomic_path, atomic_write

GRID = "#dddddd"
WIDTH = 5.5  # inches: the text of a NeurIPS page; figures are drawn at the size that they are printed at

plt.rcParams.update(
    {
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text stays text: journals refuse Type 3 fonts
        "savefig.bbox": "tight",
        "savefig.dpi": 220,
        "svg.fonttype": "none",
        "svg.hashsalt": "gsg",  # or the same figure has other ids each time
    }
)


def save(figure: Figure, stem: Path) -> None:
    """Write `<stem>.png` and `<stem>.pdf`, each atomically, and close the figure. The same data give the same bytes."""
    for path in figure_files(stem):
        kind = path.suffix.removeprefix(".")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {})
    plt.close(figure)


def save_for_page(figure: Figure, path: Path) -> None:
    """Write an SVG that takes the page's colours and fonts when it stands in the page's text, and close the figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor").replace(GRID, f"var(--line, {GRID})")
    for unwanted in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>", r' (width|height)="[\d.]*pt"'):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [\d.]*px)[^;\"]*", r"\1 sans-serif", svg)
    # Several of them stand in one page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\1{path.stem}-", svg)
    atomic_write(path, lambda temporary: temporary.write_text(svg, encoding="utf-8"))
