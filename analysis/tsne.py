"""t-SNE of test images' features, a panel a method (paper, appendix E): `python -m analysis.tsne`.

The paper shows CIFAR-10's test set; any checkpoint and any labelled images will do.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import features
from analysis.names import CLASS_COLOURS, model_name
from analysis.products import arguments, figure_files, folder, make_once
from common import cli
from common.errors import UserError
from common.files import atomic_path, atomic_write, sha256_of_file

if TYPE_CHECKING:
    import numpy as np

    from common.images import LabelledImages

MODULE = "analysis.tsne"
PERPLEXITY = 30.0
SEED = 0  # the same for all panels
NEIGHBOURS = 10  # of trustworthiness and purity
SMALL = 2000  # images, below which threads wait for each other longer than they compute
LEGEND_UP_TO = 20  # classes; more are drawn without names, in colours that repeat
GRID = 4095  # the page's coordinates are whole numbers from 0
THUMBNAIL = 32  # pixels


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, (__doc__ or "").splitlines()[0], argv, reads_checkpoint=True, more=add_arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own arguments."""
    features.add_arguments(parser)
    parser.add_argument("--perplexity", default=PERPLEXITY, type=_perplexity, help="of t-SNE")


def build(args: argparse.Namespace) -> Path:
    """Draw the figure of the checkpoints that exist, unless it is up to date; return its PNG.

    Beside it lie the PDF, a JSON file of points, labels and scores, and the images as one picture, for the page.
    Raises UserError when no checkpoint exists.
    """
    found = features.found_subjects(args, "t-SNE")
    images, transform = features.open_images(args)
    if images.labels.ndim != 1:
        raise UserError(f"t-SNE colours points by their class, and images of {images.name} have several")
    stem = folder(args) / features.stem(args, "tsne")
    code = [sha256_of_file(Path(file)) for file in (__file__, features.__file__)]
    settings = f"perplexity {args.perplexity}, seed {SEED}, {transform!r}, {images.fingerprint}"
    inputs = [settings, *code, *(f"{s.name}:{sha256_of_file(s.path)}" for s in found)]
    files = [*figure_files(stem), stem.with_suffix(".json"), stem.with_suffix(".webp")]

    def make() -> None:
        from tqdm import tqdm

        panels = []
        for subject in tqdm(found, desc="t-SNE", unit="panel", leave=False):
            x = features.extract(subject, images, transform, args)
            points = embed(x, args.perplexity)
            panels.append((subject.name, points, scores(x, points, images.labels)))
        _draw(panels, images.labels, list(images.classes), stem)
        with atomic_path(stem.with_suffix(".webp")) as temporary:
            _thumbnails(images, temporary)
        content = {
            "data": features.label(args),
            "perplexity": args.perplexity,
            "classes": list(images.classes),
            "labels": images.labels.tolist(),
            "panels": [{"model": m, "scores": s, "points": _whole(points)} for m, points, s in panels],
        }
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        atomic_write(stem.with_suffix(".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    make_once(folder(args), stem.name, inputs, files, make)
    return files[0]


def embed(x: "np.ndarray", perplexity: float = PERPLEXITY) -> "np.ndarray":
    """Return the t-SNE (N, 2) of features (N, D): exact neighbours, PCA initialisation, a fixed seed.

    Few samples lower the perplexity to a third of their number. Of 10,000 x 512 features on two cores, openTSNE with
    exact neighbours took 12 s, with approximate ones 24 s, scikit-learn 48 s, and scikit-learn's KL divergence was
    the highest.
    """
    import numpy as np
    from openTSNE import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    few = len(x) < SMALL
    tsne = TSNE(
        perplexity=min(perplexity, max(1.0, (len(x) - 1) / 3)),
        initialization="pca",
        neighbors="exact",
        random_state=SEED,
        n_jobs=1 if few else -1,
    )
    with threadpool_limits(1 if few else None):
        return np.asarray(tsne.fit(x))


def scores(x: "np.ndarray", points: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
    """Return what can be said of a panel in numbers, of the features x (N, D) and of their map `points` (N, 2).

    trustworthiness: how far neighbours on the map are neighbours among the features (Venna and Kaski, 2001), at most
    1. silhouette, purity: of the features; map_silhouette, map_purity: of the map. Silhouette (Rousseeuw, 1987) is in
    [-1, 1]; purity is the share of the nearest neighbours that have the point's own class.
    """
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import silhouette_score

    k = min(NEIGHBOURS, max(1, (len(x) - 1) // 2))
    found = {"trustworthiness": trustworthiness(x, points, n_neighbors=k)} if len(x) > 2 else {}
    for prefix, data in (("", x), ("map_", points)):
        if 1 < len(set(labels.tolist())) < len(labels):
            found[f"{prefix}silhouette"] = silhouette_score(data, labels)
        found[f"{prefix}purity"] = purity(data, labels, k)
    return {name: round(float(value), 4) for name, value in found.items()}


def purity(x: "np.ndarray", labels: "np.ndarray", k: int = NEIGHBOURS) -> float:
    """Return the share of points of the same class among each point's k nearest, itself left out.

    >>> import numpy as np
    >>> purity(np.array([[0.0], [1.0], [9.0], [10.0]]), np.array([0, 0, 1, 0]), k=1)
    0.5
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    return float((labels[nearest] == labels[:, None]).mean())


def caption(content: dict[str, float]) -> str:
    """Return a panel's scores in two lines."""

    def number(name: str) -> str:
        return f"{content[name]:.2f}" if name in content else "undefined"

    return (
        f"features: silhouette {number('silhouette')}, kNN purity {number('purity')}\n"
        f"map: silhouette {number('map_silhouette')}, kNN purity {number('map_purity')}, "
        f"trustworthiness {number('trustworthiness')}"
    )


def _perplexity(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise UserError(f"--perplexity is '{text}'; choose a number from 1 on, usually 5 to 50")
    return value


def _whole(points: "np.ndarray") -> list[int]:
    """Return the points as whole numbers x0, y0, x1, ... from 0 to GRID, centred, in their proportions."""
    low, high = points.min(0), points.max(0)
    span = float((high - low).max()) or 1.0
    return (((points - (low + high) / 2) / span + 0.5) * GRID).round().astype(int).ravel().tolist()


def _thumbnails(images: "LabelledImages", path: Path) -> None:
    """Write the images, small, row by row into one square picture."""
    from math import ceil, sqrt

    from PIL import Image

    columns = ceil(sqrt(len(images.labels)))
    sheet = Image.new("RGB", (columns * THUMBNAIL, -(-len(images.labels) // columns) * THUMBNAIL))
    for k in range(len(images.labels)):
        image = images.image(k)
        side = min(image.size)
        left, top = ((edge - side) // 2 for edge in image.size)
        small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        sheet.paste(small, (k % columns * THUMBNAIL, k // columns * THUMBNAIL))
    sheet.save(path, format="WEBP", quality=60)


def _draw(
    panels: list[tuple[str, "np.ndarray", dict[str, float]]], labels: "np.ndarray", classes: list[str], stem: Path
) -> None:
    import numpy as np

    from analysis.style import WIDTH, plt, save

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    side = WIDTH / 2
    figure, axes = plt.subplots(
        rows, columns, figsize=(side * columns, (side + 0.35) * rows + 0.4), squeeze=False, layout="constrained"
    )
    named = len(classes) <= LEGEND_UP_TO
    for axis, (model, points, found) in zip(axes.flat, panels, strict=False):
        axis.set_title(model_name(model))
        axis.set_xlabel(caption(found), fontsize=6)
        for label, name in enumerate(classes):
            mine = points[labels == label]
            colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            size = max(0.6, 2500 / len(points) ** 0.95)
            axis.scatter(*mine.T, s=size, color=colour, label=name, linewidths=0, alpha=0.85, rasterized=True)
            if named and len(mine):  # the name in place too: ten colours are many
                at = np.median(mine, axis=0)
                box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
                axis.text(*at, name, fontsize=6, ha="center", va="center", bbox=box)
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    if named:
        handles, names = axes.flat[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)))
        for handle in legend.legend_handles:
            handle.set_sizes([14])  # type: ignore[union-attr]
    save(figure, stem)


if __name__ == "__main__":
    cli.run(main)
