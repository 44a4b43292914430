import json
import math

import pytest
import torch
from torch.nn.functional import normalize

from analysis import geometry
from common.backbones import build_backbone, feature_dim
from common.checkpoint import META_KEYS, save_checkpoint
from common.errors import UserError


@pytest.fixture
def checkpoint(args):
    def write(name, seed=0):
        torch.manual_seed(seed)
        network = build_backbone("resnet18")
        meta = dict.fromkeys(META_KEYS, 0) | {"arch": "resnet18", "feature_dim": feature_dim(network)}
        save_checkpoint(args.checkpoints / "demo" / f"{name}.pth", network.state_dict(), meta)

    return write


def test_alignment_and_uniformity_are_wang_and_isolas():
    torch.manual_seed(0)
    x, y = (normalize(torch.randn(7, 5, dtype=torch.double), dim=1) for _ in "xy")
    pairs = [(i, j) for i in range(7) for j in range(i)]
    want = math.log(sum(math.exp(-2 * sum((x[i] - x[j]) ** 2)) for i, j in pairs) / len(pairs))
    assert geometry.uniformity(x) == pytest.approx(want)
    assert geometry.alignment(x, y) == pytest.approx(
        sum(float(sum((a - b) ** 2)) for a, b in zip(x, y, strict=True)) / 7
    )
    assert geometry.alignment(x, x) == 0
    assert geometry.uniformity(x[:1].repeat(4, 1)) == 0  # collapsed
    assert geometry.alignment(x, -x) == pytest.approx(4)


def test_every_checkpoint_is_measured_once(args, checkpoint, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"geometry: no checkpoint in .*make pretrain"):
        geometry.build(args)
    checkpoint("byol_gsg")
    checkpoint("simsiam")
    args.limit = 40
    png = geometry.build(args)
    first = json.loads(png.with_suffix(".json").read_text())["checkpoints"]
    assert list(first) == ["simsiam", "byol_gsg"]
    for found in first.values():
        assert 0 < found["alignment"] < 4
        assert -8 < found["uniformity"] < 0
    # The same weights, the same views: the same numbers.
    assert first["simsiam"]["alignment"] == first["byol_gsg"]["alignment"]
    checkpoint("simsiam-seed1", seed=1)
    checkpoint("mine")  # no METHOD: by CHECKPOINT alone
    measured = []
    measure = geometry.measure
    monkeypatch.setattr(geometry, "measure", lambda s, *rest: measured.append(s.name) or measure(s, *rest))
    geometry.build(args)
    assert measured == ["simsiam-seed1"]
    again = json.loads(png.with_suffix(".json").read_text())["checkpoints"]
    assert list(again) == ["simsiam", "simsiam-seed1", "byol_gsg"]
    assert again["simsiam"] == first["simsiam"]
    capsys.readouterr()
    geometry.build(args)
    assert "up to date" in capsys.readouterr().out


def test_an_interrupted_measurement_keeps_what_it_has(args, checkpoint, monkeypatch):
    for name in ("simsiam", "byol"):
        checkpoint(name)
    args.limit = 10
    measure = geometry.measure

    def fail(subject, *rest):
        if subject.name == "byol":
            raise KeyboardInterrupt
        return measure(subject, *rest)

    monkeypatch.setattr(geometry, "measure", fail)
    with pytest.raises(KeyboardInterrupt):
        geometry.build(args)
    content = json.loads((args.reports / "demo" / "geometry.json").read_text())
    assert list(content["checkpoints"]) == ["simsiam"]
    (args.reports / "demo" / "geometry.json").write_text("{")  # spoilt: all are measured again
    monkeypatch.setattr(geometry, "measure", measure)
    assert len(json.loads(geometry.build(args).with_suffix(".json").read_text())["checkpoints"]) == 2


@pytest.mark.parametrize(("label", "size"), [("digits", 32), ("cifar10", 32), ("imagenet", 48)])
def test_views_differ_but_are_the_same_each_time(args, label, size):
    from analysis import features
    from common.features import evaluation_transform

    images, _ = features.open_images(args)
    views = geometry.TwoViews(images, geometry._views(label, size), evaluation_transform(size))
    state = torch.random.get_rng_state()
    one, again = views[3], views[3]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.shape == (2, 3, size, size)
    assert torch.equal(one, again)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, views[4])
