"""Pretraining by SimSiam or BYOL, with or without GSG, and its evaluation by kNN and a linear probe."""


def register() -> None:
    """Register with mmengine what this room's configs name."""
    from pretrain import hooks, loop, methods, optim, probe, views  # noqa: F401
