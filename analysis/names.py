"""What tables and figures call things, and in which order and colour."""

from collections.abc import Iterable

from common.names import ABLATIONS, METHODS, UNTRAINED
from common.records import METRICS, TASKS
from common.sources import SOURCES, suite

MODELS = {
    UNTRAINED: "Untrained network",
    **{"simsiam": "SimSiam", "simsiam_gsg": "SimSiam w/ GSG", "byol": "BYOL", "byol_gsg": "BYOL w/ GSG"},
}
# Okabe and Ito's colours, which colour-blind readers tell apart: one hue per family, darker with GSG.
COLOURS = {
    UNTRAINED: "#777777",
    **{"simsiam": "#56B4E9", "simsiam_gsg": "#0072B2", "byol": "#E69F00", "byol_gsg": "#D55E00"},
}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#555555")
# Ten classes: Paul Tol's "muted" scheme, its pale grey darkened.
CLASS_COLOURS = (
    *("#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#777777"),
)
MINUTES = "minutes"  # of pretraining, which some publish; no record has it
METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "best_top1": "best top-1",
    "best_top5": "best top-5",
    "accuracy": "acc.",
    "mean_per_class_accuracy": "mean per class",
    "mAP11": "mAP",
    MINUTES: "pretraining (min)",
}
# What the settings of records are called where their own names would not be understood.
SETTING_NAMES = {
    "lr": "learning rate",
    "optimizer": "optimiser",
    "grid": "weight decays in the C grid",
    "n_train": "training images",
    "n_val": "validation images",
    "n_test": "test images",
}
# In the order of the columns; others follow alphabetically.
DATASETS = {name: source.title for name, source in SOURCES.items()}


# What each profile's tables always show; other columns follow where there are records of them.
_VOC = [("detection", "voc", "", metric) for metric in ("AP", "AP50", "AP75")]
_ADE20K = [("segmentation", "ade20k", "", metric) for metric in ("mIoU", "aAcc")]
EXPECTED: dict[str, list[tuple[str, str, str, str]]] = {
    "demo": [
        *(("knn", "digits", "", "top1"), ("linear", "digits", "", "top1")),
        *(("recognition", dataset, "", SOURCES[dataset].metric) for dataset in suite("demo")),
        *(*_VOC, *_ADE20K),
    ],
    "cifar10": [("knn", "cifar10", "", "top1"), ("linear", "cifar10", "", "top1")],
    "imagenet": [
        *(("knn", "imagenet", "", "top1"), ("linear", "imagenet", "", "top1")),
        *(("recognition", dataset, "", SOURCES[dataset].metric) for dataset in suite("imagenet")),
        *(*_VOC, ("detection", "coco", "", "AP"), *_ADE20K),
    ],
}


def model_order(models: Iterable[str]) -> list[str]:
    """Return the models without repeats: the untrained, ours with their ablations in the paper's order, others."""
    ours = (UNTRAINED, *METHODS)

    def place(model: str) -> tuple[int, str]:
        method = method_of(model)
        return (ours.index(method) if method in ours else len(ours)), model

    return sorted(set(models), key=place)


def method_of(model: str) -> str:
    """Return the method that a model is an ablation of; any other model is its own."""
    method, _, ablation = model.partition("-")
    return method if method in METHODS and ablation in ABLATIONS else model


def model_name(model: str) -> str:
    """Return a model's display name; a user's label stays as it is."""
    method = method_of(model)
    ablation = model.removeprefix(method).removeprefix("-").replace("_", " ")
    return MODELS.get(method, method) + (f" ({ablation})" if ablation else "")


def model_colour(model: str, position: int = 0) -> str:
    """Return a model's colour; models that are not ours get theirs by position."""
    return COLOURS.get(model, OTHER_COLOURS[position % len(OTHER_COLOURS)])


def ink_on(colour: str) -> str:
    """Return the colour of text on #rrggbb: black where it looks bright (ITU-R BT.601), else white."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else "white"


def setting_name(name: str) -> str:
    """Return a setting's display name."""
    return SETTING_NAMES.get(name, name.replace("_", " "))


def column_order(task: str, dataset: str, variant: str, metric: str) -> tuple[int, int, str, str, int]:
    """Return the sort key of a table's column."""
    place = list(DATASETS).index(dataset) if dataset in DATASETS else len(DATASETS)
    return TASKS.index(task), place, dataset, variant, (*METRICS, MINUTES).index(metric)


def column_name(task: str, dataset: str, variant: str) -> str:
    """Return the head of a column: the data set, the variant and, where the table has several, the task."""
    name = DATASETS.get(dataset, dataset) + (f" ({variant})" if variant else "")
    prefix = {"knn": "kNN ", "linear": "Linear "}.get(task, "")
    suffix = f" {task}" if task in ("detection", "segmentation") else ""
    return prefix + name + suffix


def benchmark_name(task: str, dataset: str, variant: str) -> str:
    """Return a benchmark's name for places where no title says that it is recognition transfer."""
    return column_name(task, dataset, variant) + (" transfer" if task == "recognition" else "")
