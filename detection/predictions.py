"""The data of the detection figure: objects and detections of the first ten test images, in `predictions.json`.

A box is its borders x0, y0, x1, y1 in the image's own pixels, counted from 0. Images are named relative to the data
root, or by their whole path if they lie elsewhere.
"""

from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from common.files import write_json
from common.mmlab.jobs import named
from detection import PREDICTIONS

COUNT = 10
SCORE = 0.05  # the evaluation's threshold (ROI_HEADS.SCORE_THRESH_TEST)


def save(runner: Runner, data: Path) -> None:
    """Predict the first images of the test set with the runner's current model, and write the file."""
    dataset = runner.test_loop.dataloader.dataset
    runner.model.eval()
    images = []
    for place in range(min(COUNT, len(dataset))):
        with torch.no_grad():
            [sample] = runner.model.test_step(pseudo_collate([dataset[place]]))
        images.append(_image(dataset.get_data_info(place), sample.pred_instances, data))
    content = {"classes": list(dataset.metainfo["classes"]), "score": SCORE, "images": images}
    write_json(Path(runner.work_dir) / PREDICTIONS, content)


def _image(info: dict[str, Any], predicted: Any, data: Path) -> dict[str, Any]:
    shown = predicted[predicted.scores >= SCORE].cpu()
    return {
        "path": named(info["img_path"], data),
        "width": info["width"],
        "height": info["height"],
        "truth": [
            {
                "box": [round(float(x), 2) for x in thing["bbox"]],
                "label": int(thing["bbox_label"]),
                # VOC's difficult objects and COCO's crowds: they count neither as right nor as wrong.
                "ignored": bool(thing["ignore_flag"]),
            }
            for thing in info["instances"]
        ],
        "detections": [
            {"box": [round(x, 2) for x in box], "label": label, "score": round(score, 4)}
            for box, label, score in zip(
                shown.bboxes.tolist(), shown.labels.tolist(), shown.scores.tolist(), strict=True
            )
        ],
    }
