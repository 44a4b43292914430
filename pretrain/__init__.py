"""Pretraining by SimSiam or BYOL, with or without GSG, and its evaluation by kNN and a linear probe."""


def register() -> None:
    """Make what the room's configs name known to mmengine's registries."""
    from pretrain import hooks, loop, methods, optim, probe, views  # noqa: F401
