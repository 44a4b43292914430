"""What the commands of this room work on: their arguments, resolved once."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from common import cli
from common.errors import UserError
from common.names import UNTRAINED
from common.run import Subject

LIMIT = 10_000  # images: the paper's t-SNE shows CIFAR-10's test set
PERPLEXITY = 30.0
# Data set -> crop, and what the shorter side is resized to before it, in pixels (PROTOCOLS 3).
SIZES: dict[str, tuple[int, int | None]] = {
    "digits": (32, None),
    "cifar10": (32, None),
    "cifar100": (32, None),
    "imagenet": (224, 256),
}
OF_PROFILE = {"demo": "digits", "cifar10": "cifar10", "imagenet": "imagenet"}


@dataclass(frozen=True)
class Scope:
    """What a command works on. The folders are those of all profiles.

    `subjects` are the checkpoints asked for, which need not exist; `name` labels one that the user brought.
    The fields from `dataset` on choose test images and are for t-SNE and the geometry alone.
    """

    profile: str
    seed: int
    data: Path
    checkpoints: Path
    results: Path
    runs: Path
    reports: Path
    method: list[str]
    subjects: list[Subject]
    name: str | None = None
    dataset: str | None = None
    data_root: Path | None = None
    size: int | None = None
    limit: int = LIMIT
    perplexity: float = PERPLEXITY

    @property
    def folder(self) -> Path:
        """The profile's folder of products."""
        return self.reports / self.profile

    @property
    def runs_folder(self) -> Path:
        """The profile's folder of runs."""
        return self.runs / self.profile

    @property
    def images(self) -> str:
        """The name of the data set whose test images are read."""
        if self.data_root is not None:
            return self.data_root.resolve().name
        return self.dataset or OF_PROFILE[self.profile]

    def stem(self, what: str) -> Path:
        """Return a product's path without its ending; the name says what is not the profile's own."""
        parts = [what]
        if self.images != OF_PROFILE[self.profile] or self.data_root is not None:
            parts.append(self.images)
        if self.name is not None:
            parts.append(self.name)
        return self.folder / "-".join(parts)

    def existing(self, what: str) -> list[Subject]:
        """Return the subjects whose checkpoints exist. Raises UserError, for the product `what`, if none does."""
        existing = [subject for subject in self.subjects if subject.path.is_file()]
        if existing:
            return existing
        first = min(self.subjects, key=lambda subject: subject.name == UNTRAINED)
        if self.name is not None:
            raise UserError(f"checkpoint {first.path} is missing; correct CHECKPOINT")
        raise UserError(f"{what}: no checkpoint in {first.path.parent}; make one with `{first.make_it}`")


def resolve(
    module: str,
    description: str,
    argv: list[str] | None,
    examples: str,
    *,
    reads_checkpoint: bool = False,
    unused: str = "",
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Scope:
    """Parse the command line, print the first line and return the scope. METHOD is by default `untrained all`.

    `examples` and `unused`: see `cli.parser`. `more` adds the arguments for fields of the scope that not every command
    has.
    """
    parser = cli.parser(module, description, examples, reads_checkpoint=reads_checkpoint, unused=unused)
    parser.set_defaults(method=f"{UNTRAINED} all", checkpoint=None, name=None, key=None)
    parser.add_argument("--reports", default="reports", type=cli.path, help="where tables, figures and pages live")
    more(parser)
    args = parser.parse_args(argv)
    cli.announce(module, args, reports=args.reports)
    values = {"subjects": cli.subjects(args), **vars(args)}
    return Scope(**{field.name: values[field.name] for field in fields(Scope) if field.name in values})


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose test images."""
    parser.add_argument("--dataset", type=_dataset, help=f"one of {', '.join(SIZES)}; by default the profile's own")
    parser.add_argument(
        "--data-root", type=cli.path, help="an image folder with one folder per class, or with such a val/"
    )
    parser.add_argument(
        "--size", type=cli.whole("--size", 1), help="pixels to which images of --data-root are resized and cropped"
    )
    parser.add_argument(
        "--limit",
        default=LIMIT,
        type=cli.whole("--limit", 2),
        help="use at most so many images, drawn with a fixed seed",
    )


def _dataset(word: str) -> str | None:
    return cli.one_of("DATASET", SIZES)(word) if word else None
