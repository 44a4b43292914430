import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from analysis import features, geometry, spread
from common.errors import UserError
from common.features import evaluation_transform


def test_alignment_and_uniformity_are_wang_and_isolas():
    torch.manual_seed(0)
    x, y = (normalize(torch.randn(7, 5, dtype=torch.double), dim=1) for _ in "xy")
    pairs = [(i, j) for i in range(7) for j in range(i)]
    want = math.log(sum(math.exp(-2 * sum((x[i] - x[j]) ** 2)) for i, j in pairs) / len(pairs))
    assert spread.uniformity(x) == pytest.approx(want)
    assert spread.alignment(x, y) == pytest.approx(sum(float(sum((a - b) ** 2)) for a, b in zip(x, y, strict=True)) / 7)
    assert spread.alignment(x, x) == 0
    assert spread.uniformity(x[:1].repeat(4, 1)) == 0  # collapsed
    assert spread.alignment(x, -x) == pytest.approx(4)


def test_every_checkpoint_is_measured_once(scope, checkpoint, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"geometry: no checkpoint in .*make pretrain"):
        geometry.build(scope)
    checkpoint("byol_gsg")
    checkpoint("simsiam")
    scope = replace(scope, limit=40)
    png = geometry.build(scope)
    first = json.loads(png.with_suffix(".json").read_text())["checkpoints"]
    assert list(first) == ["simsiam", "byol_gsg"]
    for found in first.values():
        assert 0 < found["alignment"] < 4
        assert -8 < found["uniformity"] < 0
    # The same weights, the same views: the same numbers.
    assert first["simsiam"]["alignment"] == first["byol_gsg"]["alignment"]
    checkpoint("simsiam-seed1", seed=1)
    checkpoint("mine")  # not a METHOD: only CHECKPOINT measures it
    measured = []
    measure = spread.measure
    monkeypatch.setattr(spread, "measure", lambda s, *rest: measured.append(s.name) or measure(s, *rest))
    geometry.build(scope)
    assert measured == ["simsiam-seed1"]
    again = json.loads(png.with_suffix(".json").read_text())["checkpoints"]
    assert list(again) == ["simsiam", "simsiam-seed1", "byol_gsg"]
    assert again["simsiam"] == first["simsiam"]
    capsys.readouterr()
    geometry.build(scope)
    assert "up to date" in capsys.readouterr().out


def test_features_of_diverged_weights_are_not_measured(scope, checkpoint):
    checkpoint("simsiam")
    path = scope.checkpoints / scope.profile / "simsiam.pth"
    content = torch.load(path, weights_only=True)
    torch.save(
        {**content, "state_dict": {k: v + 1e30 * k.endswith("bias") for k, v in content["state_dict"].items()}}, path
    )
    with pytest.raises(UserError, match=r"^the features of \S+simsiam\.pth .* are too large: its training diverged; "):
        geometry.build(replace(scope, limit=10))


def test_an_interrupted_measurement_keeps_what_it_has(scope, checkpoint, monkeypatch):
    for name in ("simsiam", "byol"):
        checkpoint(name)
    scope = replace(scope, limit=10)
    measure = spread.measure

    def fail(subject, *rest):
        if subject.name == "byol":
            raise KeyboardInterrupt
        return measure(subject, *rest)

    monkeypatch.setattr(spread, "measure", fail)
    with pytest.raises(KeyboardInterrupt):
        geometry.build(scope)
    content = json.loads((scope.reports / "demo" / "geometry.json").read_text())
    assert list(content["checkpoints"]) == ["simsiam"]
    (scope.reports / "demo" / "geometry.json").write_text("{")  # spoilt: all are measured again
    monkeypatch.setattr(spread, "measure", measure)
    path = geometry.build(scope).with_suffix(".json")
    content = json.loads(path.read_text())
    assert len(content["checkpoints"]) == 2
    for spoilt in (0.5, float("nan"), None, [1]):  # edited numbers are not taken for measured ones
        edited = {**content["checkpoints"], "byol": {**content["checkpoints"]["byol"], "alignment": spoilt}}
        path.write_text(json.dumps({**content, "checkpoints": edited}))
        geometry.build(scope)
        assert json.loads(path.read_text()) == content


@pytest.mark.parametrize(("label", "size"), [("digits", 32), ("cifar10", 32), ("imagenet", 48)])
def test_views_differ_but_are_the_same_each_time(scope, label, size):
    images, _ = features.open_images(scope)
    views = spread.TwoViews(images, spread.pretraining_views(label, size), evaluation_transform(size))
    state = torch.random.get_rng_state()
    one, again = views[3], views[3]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.shape == (2, 3, size, size)
    assert torch.equal(one, again)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, views[4])
