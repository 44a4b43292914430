import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score

from analysis import drawing, embedding, features, geometry, tsne
from common.errors import UserError
from tests.analysis.conftest import resolved


@pytest.fixture
def flowers(tmp_path):
    """An image folder of two classes, with pictures of two sizes."""
    root = tmp_path / "flowers"
    rng = np.random.default_rng(0)
    for name, bright in (("rose", 200), ("tulip", 60)):
        (root / "val" / name).mkdir(parents=True)
        for k in range(8):
            pixels = rng.integers(bright - 50, bright + 50, (40, 30 + k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / name / f"{k}.png")
    return root


def test_the_profiles_methods_are_drawn_in_the_papers_order(scope, checkpoint, capsys):
    with pytest.raises(UserError, match=r"no checkpoint in .*make pretrain PROFILE=demo METHOD=simsiam"):
        tsne.build(scope)
    for model in ("byol", "simsiam_gsg"):
        checkpoint(model)
    scope = replace(scope, limit=60)
    png = tsne.build(scope)
    assert Image.open(png).size[0] > 300
    content = json.loads(png.with_suffix(".json").read_text())
    assert [panel["model"] for panel in content["panels"]] == ["simsiam_gsg", "byol"]
    assert content["data"] == "digits"
    assert len(content["labels"]) == 60
    for panel in content["panels"]:
        points = np.reshape(panel["points"], (-1, 2))
        assert points.shape == (60, 2)
        assert points.min() == 0
        assert points.max() == tsne.GRID
        assert set(panel["scores"]) == {"trustworthiness", "silhouette", "purity", "map_silhouette", "map_purity"}
    images, _ = features.open_images(scope)
    sheet = np.asarray(Image.open(png.with_suffix(".webp")).convert("RGB")).astype(int)
    assert sheet.shape == (256, 256, 3)  # 8 x 8 places for 60 images
    tenth = sheet[32:64, 64:96]
    assert np.abs(tenth - np.asarray(images.image(10))).mean() < 12  # WebP loses a little
    capsys.readouterr()
    tsne.build(scope)
    assert "up to date" in capsys.readouterr().out
    tsne.build(replace(scope, perplexity=5.0))
    assert "written" in capsys.readouterr().out


def test_any_checkpoint_and_any_labelled_images(tmp_path, checkpoint, flowers):
    theirs = ("--checkpoint", checkpoint("theirs"), "--name", "theirs")
    png = tsne.build(resolved(tmp_path, *theirs, "--data-root", flowers, "--size", 32))
    assert png.name == "tsne-flowers-theirs.png"
    content = json.loads(png.with_suffix(".json").read_text())
    assert content["classes"] == ["rose", "tulip"]
    assert [panel["model"] for panel in content["panels"]] == ["theirs"]
    assert content["panels"][0]["scores"]["purity"] > 0.9  # any network tells bright from dark


def test_mistakes_are_named(checkpoint, tmp_path):
    scope = resolved(tmp_path, "--checkpoint", tmp_path / "none.pth", "--name", "x")
    with pytest.raises(UserError, match=r"checkpoint .*none\.pth is missing; correct CHECKPOINT"):
        tsne.build(scope)
    theirs = ("--checkpoint", checkpoint("theirs"), "--name", "x")
    with pytest.raises(UserError, match=r"empty is missing; place one folder per class"):
        tsne.build(resolved(tmp_path, *theirs, "--data-root", tmp_path / "empty"))
    for bad in ("0", "many", "nan", "inf"):
        with pytest.raises(UserError, match=f"--perplexity is '{bad}'"):
            tsne.main(["--perplexity", bad])
    for option, least in (("--limit", 2), ("--size", 1)):
        with pytest.raises(UserError, match=f"{option} is '{least - 1}'; choose a whole number from {least} on"):
            tsne.main([option, str(least - 1)])
    with pytest.raises(UserError, match="unknown DATASET 'dtd'; known: digits, cifar10"):
        tsne.main(["--dataset", "dtd"])


def test_cifar10_is_the_default_of_its_profile(tmp_path, checkpoint):
    theirs = ("--checkpoint", checkpoint("theirs"), "--name", "theirs")
    with pytest.raises(UserError, match=r"cifar-10-batches-py is missing"):
        tsne.build(resolved(tmp_path, *theirs, "--profile", "cifar10"))


def test_embedding_is_fixed_and_takes_few_samples():
    x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    first = embedding.embed(x)
    assert first.shape == (12, 2)
    np.testing.assert_array_equal(first, embedding.embed(x))


def test_embedding_separates_what_is_separate():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = (rng.standard_normal((90, 16)) + 20 * np.eye(16)[labels]).astype(np.float32)
    points = embedding.embed(x, perplexity=10)
    found = embedding.scores(x, points, labels)
    assert found["purity"] == found["map_purity"] == 1
    assert found["map_silhouette"] == pytest.approx(silhouette_score(points, labels), abs=1e-4)
    assert found["trustworthiness"] == pytest.approx(trustworthiness(x, points, n_neighbors=10), abs=1e-4)
    shuffled = embedding.scores(x, rng.permutation(points), labels)
    assert shuffled["trustworthiness"] < found["trustworthiness"]
    assert shuffled["map_purity"] < 0.6


def test_scores_of_one_class_leave_the_silhouette_out():
    x = np.random.default_rng(0).standard_normal((6, 3))
    found = embedding.scores(x, x[:, :2], np.zeros(6, int))
    assert "silhouette" not in found
    assert "silhouette undefined" in tsne.caption(found)


@pytest.mark.parametrize("images", [tsne.LEAST, 7])
def test_features_of_a_collapsed_network_have_a_map_too(images):
    x = np.ones((images, 8), np.float32)
    points = embedding.embed(x)
    assert np.isfinite(points).all()
    assert np.isfinite(list(embedding.scores(x, points, np.arange(images) % 2).values())).all()


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_images_are_drawn_or_end_in_one_line(tmp_path, checkpoint, count, classes):
    root = tmp_path / "few"
    for k in range(count):
        (root / f"class{k % classes}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * k, 0, 0)).save(root / f"class{k % classes}" / f"{k}.png")
    scope = resolved(tmp_path, "--checkpoint", checkpoint("a"), "--name", "a", "--data-root", root, "--size", 32)
    for build, least in ((tsne.build, 4), (geometry.build, 2)):
        if count >= least:
            assert build(scope).is_file()
        else:
            with pytest.raises(UserError, match=f"at least {least} images are needed, and .*few has {count} and"):
                build(scope)


def test_a_part_is_a_data_set_of_its_own(scope):
    part, again, whole = (features.open_images(replace(scope, limit=limit))[0] for limit in (20, 20, 360))
    assert len(part.labels) == 20
    assert part.fingerprint == again.fingerprint != whole.fingerprint
    at = part.indices[7]
    assert part.labels[7] == whole.labels[at]
    assert part.image(7).tobytes() == whole.image(int(at)).tobytes()


@pytest.mark.slow
def test_ten_thousand_points_take_under_three_minutes():
    import time

    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((10, 512))[np.arange(10_000) % 10] + rng.standard_normal((10_000, 512)), 0)
    started = time.perf_counter()
    embedding.embed(x.astype(np.float32))
    assert time.perf_counter() - started < 180


def test_names_of_classes_that_lie_over_each_other_are_moved_apart(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(drawing, "save", lambda figure, stem: kept.append(figure))
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 10
    points = rng.standard_normal((300, 2)) * np.where(labels < 6, 0.1, 5.0)[:, None]  # six classes in one place
    drawing.tsne([("simsiam", points, "")], labels, tsne.DIGITS, tmp_path / "tsne")
    [figure] = kept
    figure.draw_without_rendering()
    axis = figure.axes[0]
    boxes = [text.get_bbox_patch().get_window_extent().extents for text in axis.texts]
    assert len(boxes) == 10
    covered = [
        (k, n) for k, a in enumerate(boxes) for n, b in enumerate(boxes[:k])
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.01 and min(a[3], b[3]) - max(a[1], b[1]) > 0.01
    ]  # fmt: skip
    assert covered == []
