"""The words of the command line: profiles, methods, ablations and names of files."""

PROFILES = ("demo", "cifar10", "imagenet")

METHODS = ("simsiam", "simsiam_gsg", "byol", "byol_gsg")
UNTRAINED = "untrained"  # as METHOD: the backbone before the first step, which all methods of a seed share

LOGGERS = ("wandb", "mlflow")  # beside TensorBoard; the names of their packages, too

# Variations of a method, as in METHOD=simsiam_gsg-batch64; each is a file of pretrain/configs/ablation/.
ABLATIONS = (
    *("farthest", "random", "shared_views", "no_predictor", "chosen_only"),
    *("batch64", "batch128", "batch256", "batch512", "batch1024"),
)


def checkpoint_name(method: str, seed: int) -> str:
    """Return the stem of an export: the method, and the seed unless it is 0."""
    return method if seed == 0 else f"{method}-seed{seed}"


OVERWRITE = "add OVERWRITE=1 (--overwrite)"
