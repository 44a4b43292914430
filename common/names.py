"""The words of the command line: profiles, methods, ablations, names of files and remedies."""

import shlex
from pathlib import Path

PROFILES = ("demo", "cifar10", "imagenet")

METHODS = ("simsiam", "simsiam_gsg", "byol", "byol_gsg")

# Variations of a method, as in METHOD=simsiam_gsg-batch64; each is a file of pretrain/configs/ablation/.
ABLATIONS = (
    *("farthest", "random", "shared_views", "no_predictor"),
    *("batch64", "batch128", "batch256", "batch512", "batch1024"),
)


def checkpoint_name(method: str, seed: int) -> str:
    """Return the stem of an export: the method, and the seed unless it is 0."""
    return method if seed == 0 else f"{method}-seed{seed}"


def make_data(name: str, data: Path, folder: Path | None = None) -> str:
    """Return the remedy, the end of an error line, for a data set that is missing, or incomplete in `folder`."""
    where = "" if data == Path("data") else f" DATA={shlex.quote(str(data))}"
    first = f"move {folder} away and " if folder is not None and folder.is_dir() else ""
    return f"{first}run `make data DATASET={name}{where}`"


OVERWRITE = "add OVERWRITE=1 (--overwrite)"
