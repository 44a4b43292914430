import json

import numpy as np
import pytest
from PIL import Image

from analysis import drawing, figures, segmentation
from common.errors import UserError
from tests.analysis.conftest import PALETTE, folders


def test_colours_of_classes_and_of_unlabelled_pixels():
    shown = segmentation.colour(np.array([[0, 2], [-1, 1]]), PALETTE)
    assert shown.dtype == np.uint8
    assert shown.tolist() == [[PALETTE[0], PALETTE[2]], [[0, 0, 0], PALETTE[1]]]


def test_segmentation_figure(scope, predictions, capsys):
    for model in ("byol", "simsiam_gsg", "other"):
        predictions(model)
    predictions("simsiam", seed=1)
    found, _ = segmentation.find(scope)
    assert [p.model for p in found] == ["simsiam_gsg", "byol", "other"]
    png = segmentation.build(scope)
    pixels = np.asarray(Image.open(png).convert("RGB"))
    for wanted in [*PALETTE, [0, 0, 0], [90, 90, 90]]:
        assert (np.abs(pixels.astype(int) - wanted).max(-1) <= 2).any(), wanted
    assert png.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert "written" in capsys.readouterr().out
    segmentation.build(scope)
    assert "up to date" in capsys.readouterr().out
    place = found[0].folder / "v1.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(place)
    segmentation.build(scope)
    assert "written" in capsys.readouterr().out


def test_segmentation_errors(scope, predictions):
    with pytest.raises(UserError, match=r"no segmentation predictions in .*make segmentation-ade20k PROFILE=demo"):
        segmentation.build(scope)
    place = predictions("byol")
    (place / "v2.png").unlink()
    with pytest.raises(UserError, match=r"v2\.png is missing; make it with `make segmentation-ade20k METHOD=byol`"):
        segmentation.build(scope)
    good = json.loads((place / "index.json").read_text())
    wrong = {
        "images": [1, 2],
        "annotations": [None, "a"],
        "classes": ["a\ud800", "b", "c"],
        "palette": [[0, 0, 256]] * 3,
    }
    for spoilt in (
        *("{", "[]", "{}", '{"images": [], "annotations": [], "palette": [], "classes": []}', "[" * 100_000),
        *(json.dumps(good | {key: value}) for key, value in wrong.items()),
    ):
        (place / "index.json").write_text(spoilt)
        with pytest.raises(UserError, match=r"index\.json is not an index of predictions"):
            segmentation.build(scope)


def test_segmentation_figure_has_one_row_per_image_and_names_the_classes_that_occur(scope, predictions, monkeypatch):
    for model in ("simsiam", "simsiam_gsg", "byol", "byol_gsg"):
        place = predictions(model)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(place / "v2.png")
    # The truth of v1 is one class and that of v2 is unlabelled, so the third class occurs in predictions alone.
    for name, label in (("v1", 2), ("v2", 0)):
        Image.fromarray(np.full((8, 8), label, np.uint8)).save(scope.data / "ade" / f"{name}.png")
    drawn = []
    monkeypatch.setattr(drawing, "save", lambda figure, stem: drawn.append(figure))

    def build():
        monkeypatch.setattr(segmentation, "make_once", lambda *arguments: arguments[-1]())
        segmentation.build(scope)
        return drawn.pop()

    figure = build()
    assert len(figure.axes) == 2 * 6
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["Image", "Ground truth", "SimSiam", "SimSiam w/ GSG", "BYOL", "BYOL w/ GSG"]
    [legend] = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["background", "cup", "door", "unlabelled"]
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert {part.shape for part in shown} == {(8, 8, 3)}  # the images' own size
    assert np.unique(shown[1].reshape(-1, 3), axis=0).tolist() == [PALETTE[1]]
    assert np.unique(shown[7].reshape(-1, 3), axis=0).tolist() == [[0, 0, 0]]
    for model in ("simsiam", "simsiam_gsg", "byol", "byol_gsg"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(
            scope.runs / "demo" / "segmentation-ade20k" / f"{model}-seed0" / "predictions" / "v1.png"
        )
    assert [text.get_text() for text in build().legends[0].get_texts()] == ["background", "cup", "unlabelled"]


def test_segmentation_pdf_embeds_its_fonts(scope, predictions):
    predictions("byol")
    content = segmentation.build(scope).with_suffix(".pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((8, 8), 7, np.uint8), r"v1\.png has label 7, beyond 2; delete it and run the segm"),
        (
            np.zeros((8, 9), np.uint8),
            r"v1\.png is \(8, 9\), but its image is \(8, 8\) pixels; delete it and run the segm",
        ),
        (None, r"v1\.png is truncated or corrupt \(.*\); delete it and run the segm"),
    ],
)
def test_prediction_that_cannot_be(scope, predictions, content, message):
    path = predictions("byol") / "v1.png"
    if content is None:
        path.write_bytes(path.read_bytes()[:-30])
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(UserError, match=message):
        segmentation.build(scope)


def test_a_broken_model_is_left_out_and_named(scope, predictions, capsys):
    for model in ("simsiam", "byol", "mine"):
        place = predictions(model)
    (place / "v2.png").write_bytes(b"")
    (place.parent.parent / "simsiam-seed0/predictions/index.json").write_text("{")
    found, problems = segmentation.find(scope)
    assert [one.model for one in found] == ["byol"]
    assert [problem.split(": ")[0].split(" is ")[0].rpartition("segmentation-ade20k/")[2] for problem in problems] == [
        "simsiam-seed0/predictions/index.json",
        "mine-seed0/predictions/v2.png",
    ]
    with pytest.raises(UserError, match="skipped 2 files"):
        figures.main(folders(scope.data.parent))
    assert (scope.folder / "segmentation.png").is_file()
    assert list(figures.compare_segmentation(scope).layers) == ["Image", "Ground truth", "BYOL"]
