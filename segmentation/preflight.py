"""The check of class maps and their images before training."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.preflight import check_once, decoded_size
from segmentation.labels import Labels, read_indices

if TYPE_CHECKING:
    from mmengine.config import ConfigDict

CLASSES = 150  # ADE20K's, for a config that names no others


def check(dataset: "ConfigDict", cache: Path) -> dict[str, tuple[int, int]]:
    """Check that each image of a config's data set has one class map of the same size with valid labels.

    Returns (width, height) by the path of the image. Every map is decoded, and every image far enough to notice a
    truncation, once (`common.preflight.check_once`). Raises UserError naming the first file that is wrong.
    """
    folders = [Path(dataset.data_root) / dataset.data_prefix[key] for key in ("img_path", "seg_map_path")]
    ending = dataset.get("img_suffix", ".jpg")
    images, maps = (
        {path.relative_to(folder).with_suffix(""): path for path in sorted(folder.rglob(f"*{suffix}"))}
        for folder, suffix in zip(folders, (ending, ".png"), strict=True)
    )
    if not images:
        raise UserError(f"data set folder {folders[0]} holds no {ending} images; restore the data set")
    for name, path in images.items():
        if name not in maps:
            raise UserError(f"image {path} has no annotation {folders[1] / name}.png; restore the data set")
    for name, path in maps.items():
        if name not in images:
            raise UserError(f"annotation {path} has no image {folders[0] / name}{ending}; restore the data set")
    classes = len(dataset.metainfo.classes) if "metainfo" in dataset else CLASSES
    labels = Labels(dataset.get("values", range(1, classes + 1)), dataset.get("ignored", 0))
    sizes = check_once(
        f"ade20k-{folders[0].name}",
        lambda: [(path, maps[name]) for name, path in images.items()],
        partial(check_pair, labels=labels),
        files=[*images.values(), *maps.values()],
        settings=str(classes if "values" not in dataset else labels),
        cache=cache,
    )
    return {str(path): (width, height) for path, (width, height) in zip(images.values(), sizes, strict=True)}


def check_pair(pair: tuple[Path, Path], labels: Labels) -> tuple[int, int]:
    """Return (width, height) of an image. Raises UserError naming what is wrong with it or its class map."""
    image, path = pair
    width, height = decoded_size(image)
    read_indices(path, (height, width), labels)
    return width, height
