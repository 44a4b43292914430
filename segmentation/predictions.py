"""The predictions for the segmentation figure (paper, F), of the first ten validation images.

`<work_dir>/predictions/<image>.png` holds class indices (8-bit grey, the image's own size);
`index.json` beside them names palette, classes, images and annotations, the last two relative to
the data root, or by their whole path if they lie elsewhere.
"""

from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from PIL import Image

from common.files import atomic_path, write_json
from common.mmlab.jobs import named
from segmentation import INDEX

COUNT = 10


def save(runner: Runner, data: Path) -> None:
    """Predict the first images of the test set with the runner's current model, and save the predictions."""
    folder = Path(runner.work_dir) / "predictions"
    dataset = runner.test_loop.dataloader.dataset
    shown = range(min(COUNT, len(dataset)))
    runner.model.eval()
    for index in shown:
        with torch.no_grad():
            [sample] = runner.model.test_step(pseudo_collate([dataset[index]]))
        classes = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.uint8)  # (H, W)
        path = folder / f"{Path(dataset.get_data_info(index)['img_path']).stem}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(classes).save(temporary, format="PNG")
    infos = [dataset.get_data_info(index) for index in shown]
    content = {
        "images": [named(info["img_path"], data) for info in infos],
        "annotations": [named(info["seg_map_path"], data) for info in infos],
        "palette": [list(map(int, colour)) for colour in dataset.metainfo["palette"]],
        "classes": list(dataset.metainfo["classes"]),
    }
    write_json(folder / INDEX, content)
