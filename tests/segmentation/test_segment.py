"""Pictures and class maps of a finished segmentation network."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segmentation import segment
from segmentation.train import main
from tests.dense import Place
from tests.segmentation.test_train import SMALL


@pytest.mark.parametrize(("opacity", "right"), [(1.0, [200, 0, 0]), (0.5, [100, 0, 0]), (0.0, [0, 0, 0])])
def test_classes_are_coloured_over_the_image_and_their_shares_listed(
    tmp_path: Path, opacity: float, right: list[int]
) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    indices = torch.tensor([[[0, 0, 0, 2], [0, 0, 0, 2]]])
    sample = SimpleNamespace(pred_sem_seg=SimpleNamespace(data=indices))
    palette = [[0, 0, 80], [9, 9, 9], [200, 0, 0]]
    pictures, found = segment.picture(tmp_path / "a.png", sample, ("sky", "car", "road"), palette, opacity)
    assert found == {"percent": {"sky": 75.0, "road": 25.0}}
    assert np.asarray(pictures[".png"])[0, 3].tolist() == right
    assert np.array_equal(pictures[".classes.png"], indices[0])


def test_a_finished_run_draws_a_folder_of_images(place: Place) -> None:
    place.run(main, options=(*SMALL, "train_cfg.max_iters=1"))
    (place.root / "photos").mkdir()
    Image.new("RGB", (70, 40), "gray").save(place.root / "photos" / "a.jpg")
    out = place.root / "out/demo/segmentation-ade20k"
    segment.main(
        [
            f"--runs={place.root / 'runs'}",
            f"--images={place.root / 'photos'}",
            f"--reports={place.root / 'out'}",
            "--name=tiny",
        ]
    )
    assert Image.open(out / "tiny-seed0/a.jpg.png").size == (70, 40)
    assert Image.open(out / "tiny-seed0/a.jpg.classes.png").size == (70, 40)
    content = json.loads((out / "tiny-seed0/predictions.json").read_text())
    assert sum(content["images"][0]["percent"].values()) == pytest.approx(100, abs=0.1)
    assert set(content["images"][0]["percent"]) <= set(content["classes"])
