"""What tables and figures call things, and in which order and colour."""

from collections.abc import Iterable

from common.cli import METHODS
from common.records import METRICS, TASKS

MODELS = {"simsiam": "SimSiam", "simsiam_gsg": "SimSiam w/ GSG", "byol": "BYOL", "byol_gsg": "BYOL w/ GSG"}
# Okabe and Ito's colours, which colour-blind readers tell apart: a hue a family, its darker shade with GSG.
COLOURS = {"simsiam": "#56B4E9", "simsiam_gsg": "#0072B2", "byol": "#E69F00", "byol_gsg": "#D55E00"}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#555555")
# Ten classes: Paul Tol's "muted" scheme, its pale grey darkened.
CLASS_COLOURS = (
    *("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#777777"),
)
METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "best_top1": "best top-1",
    "best_top5": "best top-5",
    "accuracy": "acc.",
    "mean_per_class_accuracy": "mean per class",
    "mAP11": "mAP",
}
# In the order of the columns; others follow alphabetically.
DATASETS = {
    "aircraft": "Aircraft",
    "caltech101": "Caltech-101",
    "caltech101-sst": "Caltech-101 (ssl-transfer's split)",
    "cars": "Cars",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "dtd": "DTD",
    "flowers": "Flowers",
    "food": "Food",
    "pets": "Pets",
    "sun397": "SUN397",
    "voc2007": "VOC2007",
    "imagenet": "ImageNet",
    "voc": "VOC",
    "coco": "COCO",
    "ade20k": "ADE20K",
    "digits": "Digits",
    "scenes": "Scenes",
}


def model_order(models: Iterable[str]) -> list[str]:
    """Return the models without repeats: ours in the paper's order, then the others alphabetically."""
    return sorted(set(models), key=lambda model: (METHODS.index(model) if model in METHODS else len(METHODS), model))


def model_name(model: str) -> str:
    """Return a model's display name; a user's label stays as it is."""
    return MODELS.get(model, model)


def model_colour(model: str, position: int = 0) -> str:
    """Return a model's colour; others than ours take one by their position."""
    return COLOURS.get(model, OTHER_COLOURS[position % len(OTHER_COLOURS)])


def column_order(task: str, dataset: str, variant: str, metric: str) -> tuple[int, int, str, str, int]:
    """Return the sort key of a table's column."""
    place = list(DATASETS).index(dataset) if dataset in DATASETS else len(DATASETS)
    return TASKS.index(task), place, dataset, variant, METRICS.index(metric)


def column_name(task: str, dataset: str, variant: str) -> str:
    """Return what stands above a column's metric: data set, variant and, where it differs, task."""
    name = DATASETS.get(dataset, dataset) + (f" ({variant})" if variant else "")
    prefix = {"knn": "kNN ", "linear": "Linear "}.get(task, "")
    suffix = f" {task}" if task in ("detection", "segmentation") else ""
    return prefix + name + suffix
