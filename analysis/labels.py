"""Where the labels of boxes stand in a picture."""

from collections.abc import Sequence

Corners = tuple[float, float, float, float]  # left, top, right, bottom


def label_places(
    boxes: Sequence[Corners], sizes: Sequence[tuple[float, float]], frame: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return the left and top pixel of each box's label of (width, height), inside a picture of (width, height).

    A label stands above its box, or at the first other place in and around it where it covers no label before it.
    """
    placed: list[Corners] = []
    for (x0, y0, x1, y1), (wide, high) in zip(boxes, sizes, strict=True):
        corners = [(x, y) for y in (y0 - high, y1, y0, y1 - high, y0 - 2 * high, y1 + high) for x in (x0, x1 - wide)]
        inside = [(max(0.0, min(x, frame[0] - wide)), max(0.0, min(y, frame[1] - high))) for x, y in corners]
        labels = [(x, y, x + wide, y + high) for x, y in inside]
        free = (label for label in labels if not any(_overlap(label, other) for other in placed))
        placed.append(next(free, labels[0]))
    return [(left, top) for left, top, _, _ in placed]


def shifts_apart(labels: Sequence[Corners], low: float, high: float) -> list[float]:
    """Return how far to move each label along y, between `low` and `high`, so that it covers none before it.

    It moves by multiples of its height, as few as possible, and stays where it is if no place is free.

    >>> shifts_apart([(0, 0, 4, 2), (3, 1, 9, 3)], 0, 5)
    [0, 2]
    """
    shifts: list[float] = []
    placed: list[Corners] = []
    for x0, y0, x1, y1 in labels:
        ways = [(y1 - y0) * k * sign for k in range(len(labels) + 1) for sign in (1, -1)]
        moved = [(way, (x0, y0 + way, x1, y1 + way)) for way in ways if not way or low <= y0 + way <= high - y1 + y0]
        free = (one for one in moved if not any(_overlap(one[1], other) for other in placed))
        shift, place = next(free, moved[0])
        shifts.append(shift)
        placed.append(place)
    return shifts


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
