"""The recognition data sets as transfer uses them: train, val and test (paper D.1; PROTOCOLS 4.1, 4.2)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.images import ImageFiles, LabelledImages
from common.sources import check_published, read_splits


@dataclass(frozen=True)
class Recognition:
    """A data set as the protocol uses it: `both` is train and val, `val` the indices of val in it."""

    both: LabelledImages
    val: np.ndarray
    test: LabelledImages

    @property
    def train(self) -> np.ndarray:
        """The indices of the training images in `both`, in the order of `both`."""
        return np.setdiff1d(np.arange(len(self.both.labels)), self.val)


def load(name: str, data: Path, split_file: Path | None = None, *, any_size: bool = False) -> Recognition:
    """Read a data set. Raises UserError naming what is missing, NotPublishedError for one that is not the published.

    `split_file` replaces Caltech-101's drawn split, with any number of images; see `read_split`. `any_size` takes a
    smaller copy in the official layout for what it is.
    """
    if split_file is None:
        splits = read_splits(name, data)
    else:
        from common.readers import caltech101

        lists = read_split(split_file)
        splits = {split: caltech101(data, split, lists=lists) for split in lists}
    if not any_size:
        check_published(name, data, splits, sizes=split_file is None)
    *trainval, test = splits.values()
    if len(trainval) == 1:
        return Recognition(trainval[0], fifth(len(trainval[0].labels)), test)
    both = _joined(*trainval)
    return Recognition(both, np.arange(len(trainval[0].labels), len(both.labels)), test)


def _joined(train: Any, val: Any) -> ImageFiles:
    paths, labels = [*train.paths, *val.paths], np.concatenate([train.labels, val.labels])
    return ImageFiles(f"{train.name}val", train.root, paths, labels, train.classes)


def fifth(n: int) -> np.ndarray:
    """Return the validation indices of the 20 % rule: the first fifth of 0 ... n - 1 after shuffling.

    The legacy generator with seed 0 gives what upstream's `np.random.seed(0)` does, without touching global state.
    """
    order = np.arange(n)
    np.random.RandomState(0).shuffle(order)
    return order[: int(0.2 * n)]


def read_split(path: Path) -> dict[str, list[str]]:
    """Read lists in the form of `splits/caltech101.json` beside the records: {"train": [paths], "test": [paths]}.

    Paths are relative to 101_ObjectCategories. Raises UserError naming the file when it is something else, or when an
    image is in both lists.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--split-file {path} cannot be read ({error.strerror}); correct the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--split-file {path} is not JSON ({error}); correct it") from None
    lists: list[Any] = [content.get(part) for part in ("train", "test")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) and part and all(isinstance(word, str) for word in part) for part in lists):
        raise UserError(f'--split-file {path} is not {{"train": [paths], "test": [paths]}}; correct it')
    train, test = lists
    shared = sorted(set(train) & set(test))
    if shared:
        raise UserError(f"--split-file {path} has {shared[0]} in train and in test; remove it from one")
    return {"train": train, "test": test}


def check_labels(classes: Sequence[str], **parts: np.ndarray) -> None:
    """Raise UserError naming the classes that a part lacks; `parts` are the labels of train, val, both and test.

    Single labels: every class must have images in train and test, otherwise the probe's classes are not the data
    set's, or a mean over classes is not over all of them; val may lack one. Multi-label: every class must occur in
    every part, and no label may be constant where a classifier is fitted.
    """
    for name, labels in parts.items():
        multilabel = labels.ndim == 2
        counts = labels.sum(0) if multilabel else np.bincount(labels, minlength=len(classes))
        missing = [word for word, count in zip(classes, counts, strict=True) if count == 0]
        if missing and (multilabel or name != "val"):
            raise UserError(f"the {name} set has no image of {', '.join(missing)}; restore the data set")
        always = [word for word, count in zip(classes, counts, strict=True) if count == len(labels)]
        if always and multilabel and name in ("train", "both"):
            raise UserError(f"every image of the {name} set is {', '.join(always)}: nothing to learn; check the labels")
