"""From a checkpoint to features, nearest neighbours and a picture of them.

python docs/quickstart.py checkpoints/demo/simsiam_gsg.pth data/demo/digits/test --size 32
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from common import cli
from common.checkpoint import load_checkpoint
from common.features import evaluation_transform, extract_features
from common.images import image_folder
from pretrain.neighbours import nearest_neighbours, vote

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS, COLUMNS = 6, 5  # images shown, and neighbours of each


def main(argv: Sequence[str] | None = None) -> None:
    """Classify each image of a folder by its neighbours among the others, and draw some of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoint", type=Path, help="any file that holds a ResNet")
    parser.add_argument("images", type=Path, help="a folder with one folder of images per class")
    parser.add_argument("--size", type=int, default=224, help="side of the square that the network sees, in pixels")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for the features and the picture")
    args = parser.parse_args(argv)

    # 1. The backbone. A damaged or incomplete file is refused with one line that says why.
    checkpoint = load_checkpoint(args.checkpoint)
    print(checkpoint.loaded)

    # 2. Its features: an (N, D) float32 array, kept in --out, so that a second run reads it from there.
    images = image_folder(
        args.images, name=args.images.resolve().name, hint="place one folder of images per class there"
    )
    view = evaluation_transform(args.size, resize=args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    features = extract_features(checkpoint, images, view, args.out).x
    print(f"features: {features.shape[0]} images, {features.shape[1]} numbers each")

    # 3. Neighbours by cosine similarity. An image is its own nearest one, which does not count.
    labels = torch.as_tensor(images.labels)
    k = min(20, len(labels) - 1)
    similarity, index = nearest_neighbours(features, features, k + 1)
    own = index == torch.arange(len(labels))[:, None]
    others = similarity.masked_fill(own, -torch.inf)
    scores = vote(others, labels[index], temperature=0.1, num_classes=len(images.classes))
    percent = 100 * (scores.argmax(1) == labels).float().mean()
    print(f"kNN: the {k} nearest of the others name the class of {percent:.1f} % of {len(labels)} images")

    # 4. A picture: an image per row, then its neighbours, red where they are of another class.
    figure, axes = plt.subplots(ROWS, 1 + COLUMNS, figsize=(1 + COLUMNS, ROWS), squeeze=False)
    for row, query in zip(axes, np.linspace(0, len(labels) - 1, ROWS).astype(int), strict=True):
        near = index[query][~own[query]][:COLUMNS].tolist()
        for axis, number in zip(row, [query, *near], strict=False):
            axis.imshow(images.image(number))
            axis.set_title(
                images.classes[labels[number]], fontsize=7, color="black" if labels[number] == labels[query] else "red"
            )
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(args.out / "neighbours.png", dpi=150, bbox_inches="tight")
    print(f"picture: {args.out / 'neighbours.png'}")


if __name__ == "__main__":
    cli.run(main)
