import numpy as np
import pytest
from PIL import Image

from analysis import figures
from common.cli import UserError
from tests.analysis.conftest import PALETTE


def test_colours_of_classes_and_of_unlabelled_pixels():
    shown = figures.colour(np.array([[0, 2], [-1, 1]]), PALETTE)
    assert shown.dtype == np.uint8
    assert shown.tolist() == [[PALETTE[0], PALETTE[2]], [[0, 0, 0], PALETTE[1]]]


def test_segmentation_figure(args, predictions, capsys):
    for model in ("byol", "simsiam_gsg", "other"):
        predictions(model)
    predictions("simsiam", seed=1)
    found = figures.find_predictions(args.runs / "demo" / "segmentation-ade20k", seed=0)
    assert [p.model for p in found] == ["simsiam_gsg", "byol", "other"]
    png = figures.build(args)
    pixels = np.asarray(Image.open(png).convert("RGB"))
    for wanted in [*PALETTE, [0, 0, 0], [90, 90, 90]]:
        assert (np.abs(pixels.astype(int) - wanted).max(-1) <= 2).any(), wanted
    assert png.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert "written" in capsys.readouterr().out
    figures.build(args)
    assert "up to date" in capsys.readouterr().out
    place = found[0].folder / "v1.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place)
    figures.build(args)
    assert "written" in capsys.readouterr().out


def test_segmentation_errors(args, predictions):
    with pytest.raises(UserError, match=r"no segmentation predictions in .*make segmentation-ade20k PROFILE=demo"):
        figures.build(args)
    place = predictions("byol")
    (place / "v2.png").unlink()
    with pytest.raises(UserError, match=r"v2\.png is missing; make it with `make segmentation-ade20k METHOD=byol`"):
        figures.build(args)
    for spoilt in ("{", "[]", "{}", '{"images": [], "annotations": [], "palette": [], "classes": []}'):
        (place / "index.json").write_text(spoilt)
        with pytest.raises(UserError, match=r"index\.json is no index of predictions"):
            figures.build(args)


def test_prediction_of_an_unknown_class(args, predictions):
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(predictions("byol") / "v1.png")
    with pytest.raises(UserError, match="hold class 7 of 3"):
        figures.build(args)
