"""Alignment and uniformity of each checkpoint's features (Wang and Isola, 2020): `python -m analysis.geometry`.

Of the backbone's L2-normalised features f of test images: alignment is the mean of |f(x) - f(y)|^2 over pairs of views
of an image, uniformity the log of the mean of exp(-2 |f(x) - f(y)|^2) over pairs of images. Lower is better for both:
views of an image lie together, images spread over the sphere.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import features
from analysis.names import method_of, model_colour, model_name, model_order
from analysis.products import arguments, figure_files, folder, make_once
from common import cli
from common.files import sha256_of_file, sha256_of_text, write_json
from common.run import Subject

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from common.images import LabelledImages

MODULE = "analysis.geometry"
SEED = 0
BATCH = 64


def main(argv: list[str] | None = None) -> None:
    """Run the command line and print the numbers."""
    args = arguments(MODULE, (__doc__ or "").splitlines()[0], argv, reads_checkpoint=True, more=features.add_arguments)
    content = json.loads(build(args).with_suffix(".json").read_text())
    for name, found in content["checkpoints"].items():
        print(f"{name}: alignment {found['alignment']:.4f}  uniformity {found['uniformity']:.4f}")


def build(args: argparse.Namespace) -> Path:
    """Measure every checkpoint of the profile, all seeds, or CHECKPOINT, as far as not done; draw; return the PNG.

    The JSON file beside it holds the numbers. Raises UserError when no checkpoint exists.
    """
    found = _found(args)
    images, transform = features.open_images(args)
    stem = folder(args) / features.stem(args, "geometry")
    code = [sha256_of_file(Path(file)) for file in (__file__, features.__file__)]
    settings = sha256_of_text(*code, images.fingerprint, repr(transform))
    digests = {s.name: sha256_of_text(settings, sha256_of_file(s.path)) for s in found}
    files = [*figure_files(stem), stem.with_suffix(".svg"), stem.with_suffix(".json")]

    def make() -> None:
        known = _read(stem.with_suffix(".json"))
        measured: dict[str, Any] = {}
        for subject in found:
            if known.get(subject.name, {}).get("of") != digests[subject.name]:
                views = _views(features.label(args), args.size or 224)
                numbers = measure(subject, images, views, transform)
                known[subject.name] = {**numbers, "of": digests[subject.name]}
            measured[subject.name] = known[subject.name]
            # After each one: what is measured survives an interruption.
            write_json(stem.with_suffix(".json"), {"data": features.label(args), "checkpoints": {**known, **measured}})
        write_json(stem.with_suffix(".json"), {"data": features.label(args), "checkpoints": measured})
        _draw(measured, stem)

    make_once(folder(args), stem.name, list(digests.values()), files, make)
    return files[0]


def measure(
    subject: Subject,
    images: "LabelledImages",
    views: "Callable[[Image], Image]",
    transform: "Callable[[Image], torch.Tensor]",
) -> dict[str, float]:
    """Return the checkpoint's alignment and uniformity over two views of each image; the same views each time."""
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from common.checkpoint import load_checkpoint
    from common.features import pick_device, pick_workers

    device = pick_device()
    backbone = load_checkpoint(subject.path, make_it=subject.make_it).backbone().to(device)
    pairs: Any = TwoViews(images, views, transform)
    loader: DataLoader[torch.Tensor] = DataLoader(pairs, BATCH, num_workers=pick_workers(len(images.labels)))
    parts = []
    with torch.inference_mode(), tqdm(total=len(images.labels), desc=subject.name, unit="img", leave=False) as bar:
        for batch in loader:  # (B, 2, 3, H, W)
            z = F.normalize(backbone(batch.flatten(0, 1).to(device)).float(), dim=1).cpu()
            parts.append(z.unflatten(0, (-1, 2)))
            bar.update(len(batch))
    x, y = torch.cat(parts).unbind(1)
    return {"alignment": alignment(x, y), "uniformity": (uniformity(x) + uniformity(y)) / 2}


def alignment(x: "torch.Tensor", y: "torch.Tensor") -> float:
    """Return the mean squared distance of positive pairs x, y (N, D), both L2-normalised: in [0, 4].

    >>> import torch
    >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    1.0
    """
    return float((x - y).square().sum(1).mean())


def uniformity(x: "torch.Tensor") -> float:
    """Return log E exp(-2 d^2) over the distances d of all pairs of x (N, D), L2-normalised: in [-8, 0].

    >>> import torch
    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
    -8.0
    """
    import torch

    return float(torch.pdist(x).square().mul(-2).exp().mean().log())


class TwoViews:
    """Two random views (2, 3, H, W) of each image, the same whenever and by how many workers they are made."""

    def __init__(
        self,
        images: "LabelledImages",
        views: "Callable[[Image], Image]",
        transform: "Callable[[Image], torch.Tensor]",
    ) -> None:
        self.images, self.views, self.transform = images, views, transform

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> "torch.Tensor":
        import torch

        image = self.images.image(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED + index)
            return torch.stack([self.transform(self.views(image)) for _ in range(2)])


def _views(label: str, size: int) -> "Callable[[Image], Image]":
    """Return the pretraining's augmentation of PIL images: the paper's (B.1, B.2), and for digits the demo's."""
    from torchvision import transforms as t

    if label == "digits":
        return t.Compose(
            [
                t.RandomAffine(10, translate=(0.08, 0.08), scale=(0.9, 1.1)),
                t.RandomApply([t.ColorJitter(0.4, 0.4)], 0.8),
            ]
        )
    colour = [t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), t.RandomGrayscale(0.2)]
    if label in ("cifar10", "cifar100"):
        return t.Compose([t.RandomResizedCrop(32, (0.08, 1.0)), t.RandomHorizontalFlip(), *colour])
    blur = t.RandomApply([t.GaussianBlur(23, (0.1, 2.0))], 0.5)
    return t.Compose([t.RandomResizedCrop(size, (0.2, 1.0)), *colour, blur, t.RandomHorizontalFlip()])


def _found(args: argparse.Namespace) -> list[Subject]:
    """Return CHECKPOINT, or every checkpoint of the profile's METHODs, of whatever seed."""
    if args.checkpoint is not None:
        return features.found_subjects(args, "geometry")
    files = {path.stem: path for path in (args.checkpoints / args.profile).glob("*.pth")}
    mine = [name for name in model_order(files) if name.partition("-seed")[0] in args.method]
    if not mine:
        features.found_subjects(args, "geometry")  # which says what is missing
    make_it = f"make pretrain PROFILE={args.profile}"
    return [Subject(name, files[name], make_it) for name in sorted(mine, key=lambda n: _place(n, args.method))]


def _place(name: str, methods: list[str]) -> tuple[int, str]:
    return methods.index(name.partition("-seed")[0]), name


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or spoilt: then all are measured
        return {}


def _draw(measured: dict[str, Any], stem: Path) -> None:
    from analysis.style import plt, save, save_for_page

    def figure() -> Any:
        result, place = plt.subplots(figsize=(3, 2.4), layout="constrained")
        told = set()
        for k, (name, found) in enumerate(measured.items()):
            model = name.partition("-seed")[0]
            marker = "o" if model.partition("-")[0].endswith("gsg") else "s"
            label = None if model in told else model_name(model)
            told.add(model)
            colour = model_colour(method_of(model), k)
            place.scatter(found["uniformity"], found["alignment"], s=26, color=colour, marker=marker, label=label)
        place.margins(0.2)
        place.locator_params(nbins=4)
        place.set(xlabel="uniformity (lower: spread)", ylabel="alignment (lower: together)")
        place.legend(fontsize=7)
        return result

    save(figure(), stem)
    save_for_page(figure(), stem.with_suffix(".svg"))


if __name__ == "__main__":
    cli.run(main)
