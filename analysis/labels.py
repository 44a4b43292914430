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


def _overlap(a: Corners, b: Corners) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
