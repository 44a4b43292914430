"""What the numbers of a table are: means over seeds, differences and their test, ranks, which are best, how exact."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from statistics import fmean, stdev

from analysis.names import METRIC_NAMES
from analysis.table import Cell, Table

LEAST_SEEDS = 3  # for the paired test
# Metrics that count images: each image is right or wrong, and weighs as much as any other.
COUNTS = {METRIC_NAMES[name] for name in ("top1", "top5", "best_top1", "best_top5", "accuracy")}


def mean(by_seed: Mapping[int, float]) -> Cell:
    """Return the cell of a number's values by seed; of none, a hole."""
    values = list(by_seed.values())
    if not values:
        return Cell()
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, len(values), by_seed=by_seed)


def mark_best(column: Mapping[str, Cell], lower: bool) -> dict[str, Cell]:
    """Return a column's cells (by model) with the best marked, and those within its standard deviation.

    Numbers of one seed or with unusual settings do not compete, and a number alone is not best. Numbers that look
    equal when printed are equally best.
    """
    sign = -1 if lower else 1
    shown = {m: round(sign * c.mean, 2) for m, c in column.items() if c.mean is not None and c.usual and c.n > 1}
    if len(shown) < 2:
        return dict(column)
    top = max(shown.values())
    best = {model for model, value in shown.items() if value == top}
    reach = max((column[model].std or 0.0 for model in best), default=0.0)
    tied = {m for m in shown if m not in best and shown[m] >= top - reach} if reach else set()
    return {m: replace(cell, best=m in best, tied=m in tied) for m, cell in column.items()}


def difference(cell: Cell, base: Cell) -> Cell:
    """Return cell minus base over the seeds that both have, or the difference of the means if they share none."""
    if cell.mean is None or base.mean is None:
        return Cell()
    if cell.settings != base.settings:
        return Cell(notes=("no difference of numbers with different settings",))
    seeds = sorted(set(cell.by_seed) & set(base.by_seed))
    if not seeds:
        return Cell(cell.mean - base.mean, n=1)
    paired = mean({seed: cell.by_seed[seed] - base.by_seed[seed] for seed in seeds})
    return replace(paired, p=paired_test(list(paired.by_seed.values())))


def paired_test(differences: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided paired t-test, or None for too few seeds or equal differences.

    >>> round(paired_test([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if len(differences) < LEAST_SEEDS or (spread := stdev(differences)) == 0:
        return None
    from scipy.special import stdtr  # scipy.stats takes a second to import

    t = fmean(differences) / (spread / sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def resolution(table: Table) -> list[tuple[str, list[str]]]:
    """Return the rows below a table that say how exact it is: the head of each, and a text per column.

    They are the number of test images and, of metrics that count images, what one of them is worth in points and the
    standard error of the column's mean over the draw of the test images (Agresti and Coull, 1998), from the numbers
    with the column's usual settings. If no record says its test images, there are no rows.
    """
    of_columns = []
    for k, (_, metric) in enumerate(table.columns):
        models = (row.cells[k] for row in table.rows if row.baseline is None)
        cells = [cell for cell in models if len(cell.settings) == 1 and cell.usual]
        n = next((dict(cell.settings[0]).get("n_test") for cell in cells), None)
        if not isinstance(n, int) or n < 1:
            of_columns.append(("", "", ""))
        elif metric not in COUNTS:
            of_columns.append((f"{n:,}", "", ""))
        else:
            share = (fmean(cell.mean or 0.0 for cell in cells) / 100 * n + 2) / (n + 4)
            of_columns.append((f"{n:,}", f"{100 / n:.2g}", f"± {100 * sqrt(share * (1 - share) / (n + 4)):.2g}"))
    if not any(size for size, *_ in of_columns):
        return []
    heads = ("test images", "points per image", "standard error over images")
    return [(head, list(texts)) for head, texts in zip(heads, zip(*of_columns, strict=True), strict=True) if any(texts)]


def append_average(rows: list[list[Cell]], averaged: Sequence[int]) -> None:
    """Append to each row its average over the columns `averaged` and its average rank; a row with a hole gets holes.

    Ranks are among the rows without a hole: 1 is best, and equal numbers share the mean of their ranks.
    """
    complete = [row for row in rows if all(row[k].n for k in averaged)]
    columns = [[cell.mean or 0.0 for cell in column] for column in zip(*complete, strict=True)]
    for row in rows:
        if row not in complete:
            row += [Cell(), Cell()]
            continue
        parts = [row[k] for k in averaged]
        seeds = set.intersection(*(set(part.by_seed) for part in parts))
        average = mean({seed: fmean(part.by_seed[seed] for part in parts) for seed in sorted(seeds)})
        if any(part.n != len(seeds) for part in parts):
            # Some seeds lack some columns: average the numbers shown, without a deviation.
            average = Cell(fmean(part.mean or 0.0 for part in parts), n=1)
        ranks = [1 + sum(v > (row[k].mean or 0.0) for v in columns[k]) for k in averaged]
        shared = [(sum(v == row[k].mean for v in columns[k]) - 1) / 2 for k in averaged]
        notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        sources = tuple(source for part in parts for source in part.sources)
        about = {
            "notes": notes,
            "sources": sources,
            "settings": tuple(s for part in parts for s in part.settings),
            "usual": all(part.usual for part in parts),
        }
        rank = Cell(fmean(r + s for r, s in zip(ranks, shared, strict=True)), n=average.n)
        row += [replace(average, **about), replace(rank, **about)]  # type: ignore[arg-type]
