"""Alignment and uniformity of each checkpoint's features (Wang and Isola, 2020).

f is the backbone's L2-normalised feature of a test image. Alignment is the mean of |f(x) - f(y)|^2 over pairs of views
of an image; uniformity is the log of the mean of exp(-2 |f(x) - f(y)|^2) over pairs of images. Lower is better for
both: views of an image lie together, and images spread over the sphere.
"""

import json
from pathlib import Path
from typing import Any

from analysis.names import model_order
from analysis.products import digest_of_code, figure_files, make_once
from analysis.scope import Scope, add_images, resolve
from common import cli
from common.files import sha256_of_text, write_json
from common.run import Subject

EXAMPLES = """
make geometry
make geometry CHECKPOINT=resnet50.pth NAME=mine PROFILE=imagenet DATA_ROOT=/birds
"""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and print the numbers."""
    description = (__doc__ or "").splitlines()[0]
    scope = resolve(
        "analysis.geometry", description, argv, EXAMPLES, reads_checkpoint=True, unused="results", more=add_images
    )
    content = json.loads(build(scope).with_suffix(".json").read_text())
    for name, numbers in content["checkpoints"].items():
        print(f"{name}: alignment {numbers['alignment']:.4f}  uniformity {numbers['uniformity']:.4f}")


def build(scope: Scope) -> Path:
    """Measure CHECKPOINT, or every checkpoint of the profile and of any seed, draw the figure and return its PNG.

    Checkpoints that were measured before are not measured again. The JSON file beside the figure holds the numbers.
    Raises UserError when no checkpoint exists.
    """
    subjects = _subjects(scope)
    from analysis import features, spread

    images, transform = features.open_images(scope, least=2)  # uniformity is of pairs
    views = spread.pretraining_views(scope.images, scope.size or 224)
    stem = scope.stem("geometry")
    numbers_file = stem.with_suffix(".json")
    settings = sha256_of_text(digest_of_code("spread", "features"), images.fingerprint, repr(transform))
    digests = {s.name: sha256_of_text(settings, s.sha256) for s in subjects}
    files = [*figure_files(stem), stem.with_suffix(".svg"), numbers_file]

    def make() -> None:
        from analysis import drawing

        known = _read(numbers_file)
        measured: dict[str, Any] = {}
        for subject in subjects:
            numbers = known.get(subject.name)
            if numbers is None or numbers != _of(digests[subject.name], numbers):  # other weights, or edited
                numbers = _of(digests[subject.name], spread.measure(subject, images, views, transform))
            measured[subject.name] = numbers
            # Write after each checkpoint, so that an interruption loses one measurement at most.
            write_json(numbers_file, {"data": scope.images, "checkpoints": {**known, **measured}})
        write_json(numbers_file, {"data": scope.images, "checkpoints": measured})
        drawing.geometry(measured, stem)

    make_once(scope.folder, stem.name, [digest_of_code("geometry"), *digests.values()], files, make)
    return files[0]


def _subjects(scope: Scope) -> list[Subject]:
    """Return CHECKPOINT, or every checkpoint of the profile's METHODs with any seed."""
    files = {path.stem: path for path in (scope.checkpoints / scope.profile).glob("*.pth")}
    mine = [name for name in model_order(files) if name.partition("-seed")[0] in scope.method]
    if scope.name is not None or not mine:
        return scope.existing("geometry")
    mine.sort(key=lambda name: (scope.method.index(name.partition("-seed")[0]), name))
    return [Subject(name, files[name], f"make pretrain PROFILE={scope.profile}") for name in mine]


def _of(digest: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's numbers with a hash of them and of what they were measured from."""
    found = {name: numbers.get(name) for name in ("alignment", "uniformity")}
    return {**found, "of": sha256_of_text(digest, repr(found))}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=int)["checkpoints"]  # int refuses NaN
        return {name: numbers for name, numbers in content.items() if isinstance(numbers, dict)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):  # damaged: measure all
        return {}


if __name__ == "__main__":
    cli.run(main)
