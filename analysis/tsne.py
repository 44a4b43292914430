"""t-SNE of test images' features, a panel a method (paper, appendix E): `python -m analysis.tsne`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.names import CLASS_COLOURS, model_name
from analysis.products import arguments, figure_files, folder, make_once
from common import cli
from common.cli import UserError
from common.files import sha256_of_file, write_json

if TYPE_CHECKING:
    import numpy as np

    from common.data import LabelledImages

MODULE = "analysis.tsne"
PERPLEXITY = 30
SEED = 0  # of t-SNE; the same for all panels
SIZE = 32  # both test sets are of 32 x 32 pixels and stay so
SMALL = 2000  # images, below which threads wait for each other longer than they compute
SETTINGS = (
    f"perplexity {PERPLEXITY}, init pca, learning_rate auto, seed {SEED}, crop {SIZE}, silhouette of the features"
)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    build(arguments(MODULE, __doc__ or "", argv))


def build(args: argparse.Namespace) -> Path:
    """Draw the figure of the methods whose checkpoints exist, unless it is up to date; return its PNG.

    `tsne.json` beside it holds each method's silhouette score. Raises UserError when no checkpoint exists.
    """
    if args.profile == "imagenet":
        raise UserError("t-SNE shows the CIFAR-10 test set (paper, appendix E): use PROFILE=cifar10, or demo")
    subjects = cli.subjects(argparse.Namespace(**{**vars(args), "checkpoint": None, "name": None}))
    found = [subject for subject in subjects if subject.path.is_file()]
    if not found:
        raise UserError(
            f"t-SNE: no checkpoint in {args.checkpoints / args.profile}; make one with `{subjects[0].make_it}`"
        )
    stem = folder(args) / "tsne"
    inputs = [SETTINGS, sha256_of_file(Path(__file__)), *(f"{s.name}:{sha256_of_file(s.path)}" for s in found)]
    files = [*figure_files(stem), stem.with_suffix(".json")]
    make_once(folder(args), "tsne", inputs, files, lambda: _make(found, args, stem))
    return files[0]


def embed(x: "np.ndarray") -> "np.ndarray":
    """Return the t-SNE (N, 2) of features (N, D). Few samples lower the perplexity to a third of their number."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    perplexity = min(PERPLEXITY, max(1.0, (len(x) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=SEED)
    with threadpool_limits(1 if len(x) < SMALL else None):
        return tsne.fit_transform(x)


def _test_images(args: argparse.Namespace) -> "LabelledImages":
    if args.profile == "demo":
        from common.embedded import digits

        return digits(args.data, "test")
    from common.cifar import cifar10

    return cifar10(args.data, "test")


def _make(subjects: list[cli.Subject], args: argparse.Namespace, stem: Path) -> None:
    import numpy as np
    from sklearn.metrics import silhouette_score
    from tqdm import tqdm

    from common.checkpoint import load_checkpoint
    from common.data import evaluation_transform
    from common.features import extract_features

    images = _test_images(args)
    panels, scores = [], {}
    for subject in tqdm(subjects, desc="t-SNE", unit="panel", leave=False):
        checkpoint = load_checkpoint(subject.path, make_it=subject.make_it)
        cache = args.runs / args.profile / "features"
        x = np.array(extract_features(checkpoint, images, evaluation_transform(SIZE), cache).x)
        if not np.isfinite(x).all():
            raise UserError(f"the features of {subject.path} are not finite; make it again with `{subject.make_it}`")
        scores[subject.name] = round(float(silhouette_score(x, images.labels)), 4)
        panels.append((f"{model_name(subject.name)}\nsilhouette {scores[subject.name]:.3f}", embed(x)))
    _draw(panels, images.labels, list(images.classes), stem)
    write_json(stem.with_suffix(".json"), scores)


def _draw(panels: list[tuple[str, "np.ndarray"]], labels: "np.ndarray", classes: list[str], stem: Path) -> None:
    import numpy as np

    from analysis.style import plt, save

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 4.4 * rows), squeeze=False, layout="constrained")
    for axis, (title, points) in zip(axes.flat, panels, strict=False):
        axis.set_title(title)
        for label, name in enumerate(classes):
            colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            mine = points[labels == label]
            axis.scatter(
                *mine.T, s=max(2, 6000 / len(points) ** 0.9), color=colour, label=name, linewidths=0, alpha=0.85
            )
            if len(mine):  # the name in place too: ten colours are many
                at = np.median(mine, axis=0)
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
                axis.text(*at, name, fontsize=9, ha="center", va="center", bbox=box)
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), markerscale=2)
    save(figure, stem)


if __name__ == "__main__":
    cli.run(main)
