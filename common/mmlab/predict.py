"""Pictures of any images by the network that a finished run of detection or segmentation left."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.features import pick_device
from common.files import atomic_path, is_whole_zip, write_json
from common.images import EXTENSIONS
from common.mmlab.jobs import CONFIG, WEIGHTS

ENTRIES = "predictions.json"
# Steps of the test's pipeline that read the truth, which other images have not.
OF_TRUTH = ("LoadAnnotations", "LoadClassMap")


class Network:
    """The trained network of a work_dir, and the names and colours of its classes.

    The room must have registered its modules. Raises UserError for a damaged file.
    """

    def __init__(self, work_dir: Path) -> None:
        config: Any = Config.fromfile(work_dir / CONFIG, format_python_code=False)
        if not is_whole_zip(work_dir / WEIGHTS):
            raise UserError(f"{work_dir / WEIGHTS} is damaged; run the training's command again")
        content = torch.load(work_dir / WEIGHTS, map_location="cpu", weights_only=True)
        about = content["meta"]["dataset_meta"]
        self.classes: list[str] = about["classes"]
        self.palette: list[list[int]] | None = about.get("palette")
        steps = config.test_dataloader.dataset.pipeline
        with DefaultScope.overwrite_default_scope(config.default_scope):
            self._model = MODELS.build(config.model)
            self._pipeline = Compose([step for step in steps if step.type not in OF_TRUTH])
        self._model.load_state_dict(content["state_dict"])
        self._model.to(pick_device()).eval()

    @torch.no_grad()
    def __call__(self, path: Path) -> Any:
        """Return mmdet's or mmseg's sample with the prediction for an image, at its own size, on the CPU."""
        data = self._pipeline({"img_path": str(path), "img_id": 0, "seg_fields": []})
        [sample] = self._model.test_step(pseudo_collate([data]))
        return sample.cpu()


# What an image shows: pictures by the end of their names, and plain JSON.
Shown = tuple[dict[str, Image.Image], dict[str, Any]]
Show = Callable[[Network, Path, Any], Shown]


def runs(folder: Path, task: str, names: Sequence[str], seed: int, dataset: str) -> Iterator[Path]:
    """Yield the work_dir of the finished run with each of the names, in the profile's folder of runs.

    Raises UserError when there is none, or several and `dataset`, a data set with its variant, chooses none of them.
    """
    for name in names:
        found = sorted(
            path.parent for path in folder.glob(f"{task}-*/*/{WEIGHTS}") if path.parent.name == f"{name}-seed{seed}"
        )
        known = {path.parent.name.removeprefix(f"{task}-"): path for path in found}
        if dataset in known or (len(known) == 1 and not dataset):
            yield known[dataset or next(iter(known))]
        elif known:
            raise UserError(f"{name} has finished {task} on {', '.join(known)}; choose one by DATASET (--dataset)")
        else:
            raise UserError(
                f"{folder} has no finished {task} of {name} with seed {seed}; train it first, see `make help`"
            )


def draw(work_dirs: Iterable[Path], folder: Path, out: Path, show: Show) -> None:
    """Write pictures of every image below `folder`, and ENTRIES on what was found, to `out`, for each of the runs.

    `show` takes the network, an image's path and its sample, and returns pictures by the end of their names, and plain
    JSON. Raises UserError when there is no image, and at the end when some could not be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")
    if not paths:
        raise UserError(f"IMAGES {folder} holds no images; correct it")
    unread: set[Path] = set()
    for work_dir in work_dirs:
        network, place = Network(work_dir), out / work_dir.parent.name / work_dir.name
        entries: list[dict[str, Any]] = []
        for path in tqdm(paths, work_dir.name, unit="img"):
            name = path.relative_to(folder)
            try:
                pictures, found = show(network, path, network(path))
            except UserError as error:
                unread.add(path)
                tqdm.write(f"left out: {error}")
                continue
            for ending, picture in pictures.items():
                with atomic_path(place / f"{name}{ending}") as temporary:
                    picture.save(temporary, format="PNG")
            entries.append({"path": str(name), **found})
        write_json(place / ENTRIES, {"classes": network.classes, "images": entries})
        print(f"written: {len(entries)} images and {ENTRIES} in {place}", flush=True)
    if unread:
        raise UserError(f"{len(unread)} of {len(paths)} images could not be read, see above")
