"""SimSiam and BYOL as models: heads, views, references, target network."""

import copy

import pytest
import torch
from torch import nn

from common.errors import UserError
from pretrain.gsg import Views, gsg_loss
from pretrain.heads import predictor, projector
from pretrain.methods import BYOL, SimSiam, derangement, spread

SMALL = {"backbone": {"name": "resnet18"}, "projector": {"layers": 2, "dim": 16}, "predictor": {"hidden_dim": 8}}


def shapes(module: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in module]


def batch(views: int, n: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 32, 32, generator=generator) for _ in range(views)]


def test_imagenet_heads_are_those_of_appendix_c1():
    f, h = projector(2048, layers=3), predictor()
    assert shapes(f) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [(layer.in_features, layer.out_features) for layer in f if isinstance(layer, nn.Linear)] == [
        (2048, 2048)
    ] * 3
    assert [layer.bias is not None for layer in f if isinstance(layer, nn.Linear)] == [False, False, True]
    assert not f[6].bias.requires_grad
    assert [layer.affine for layer in f if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]
    assert shapes(h) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert (h[0].in_features, h[0].out_features, h[3].in_features, h[3].out_features) == (2048, 512, 512, 2048)
    assert h[0].bias is None
    assert h[3].bias.requires_grad


def test_cifar_heads_are_those_of_appendix_c2():
    f = projector(512, layers=2, last_affine=True, last_bias=False)
    assert shapes(f) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [(layer.in_features, layer.out_features) for layer in (f[0], f[3])] == [(512, 2048), (2048, 2048)]
    assert f[0].bias is None
    assert f[3].bias is None
    assert f[4].affine


@pytest.mark.parametrize("method", [SimSiam, BYOL])
@pytest.mark.parametrize(
    ("guide", "views", "expected"), [("none", "fresh", 2), ("nearest", "fresh", 4), ("random", "shared", 2)]
)
def test_a_step_takes_the_number_of_views_and_learns(method, guide, views, expected):
    torch.manual_seed(0)
    model = method(**SMALL, guide=guide, views=views)
    assert model.num_views == expected
    out = model(batch(expected))
    out["loss"].backward()
    assert -1 <= out["loss"].item() <= 1
    assert all(p.grad is not None for p in model.backbone.parameters())
    with pytest.raises(UserError, match=f"num_views={expected}"):
        model(batch(6 - expected))


@pytest.mark.parametrize(("views", "count", "draw"), [("fresh", 4, torch.randperm), ("shared", 2, derangement)])
@pytest.mark.parametrize("method", [SimSiam, BYOL])
def test_references_are_a_permutation_of_fresh_views_or_a_derangement_of_shared_ones(method, views, count, draw):
    """Fresh ones are in slots 3 and 4. SimSiam's targets are its projections, BYOL's those of the target network."""
    torch.manual_seed(0)
    model = method(**SMALL, guide="nearest", views=views).eval()  # eval: BN makes no difference between the passes
    if method is BYOL:
        with torch.no_grad():
            for parameter in model.target.parameters():
                parameter.mul_(-1)
    inputs = batch(count, n=6)
    torch.manual_seed(7)
    loss = model(inputs)["loss"]
    loss.backward()
    assert method is SimSiam or all(p.grad is None for p in model.target.parameters())
    torch.manual_seed(7)
    order = draw(6)
    p = [model.predictor(model.project(x)) for x in inputs]
    t = [(model.target if method is BYOL else model.project)(x) for x in inputs]
    want = gsg_loss(Views(t[0], t[1], p[0], p[1]), Views(t[-2], t[-1], p[-2], p[-1]).at(order))
    torch.testing.assert_close(loss, want)


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_a_derangement_has_no_fixed_point_and_is_a_permutation(n):
    torch.manual_seed(n)
    for _ in range(50):
        order = derangement(n)
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == torch.arange(n)).any()


def test_shared_views_of_one_image_are_refused():
    with pytest.raises(UserError, match="at least 2"):
        derangement(1)


def test_without_a_predictor_p_is_z():
    model = SimSiam(SMALL["backbone"], SMALL["projector"], None).eval()
    x1, x2 = batch(2)
    z1, z2 = model.project(x1), model.project(x2)
    torch.testing.assert_close(model([x1, x2])["loss"], gsg_loss(Views(z1, z2, z1, z2), guide="none"))


def test_byol_target_moves_by_one_percent_a_step_and_not_in_a_forward_pass():
    torch.manual_seed(0)
    model = BYOL(**SMALL)
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(1.0)
    before = [p.clone() for p in model.target.parameters()]
    buffers = copy.deepcopy(dict(model.backbone.named_buffers()))
    model.start_step()
    online = [*model.backbone.parameters(), *model.projector.parameters()]
    for old, new, source in zip(before, model.target.parameters(), online, strict=True):
        torch.testing.assert_close(new, 0.99 * old + 0.01 * source)
        assert torch.equal(new, old.lerp(source, 1 - 0.99))  # the kernel for all parameters is that for each
        assert not new.requires_grad
    for name, value in model.backbone.named_buffers():
        assert torch.equal(value, buffers[name])
    moved = [p.clone() for p in model.target.parameters()]
    model(batch(2))  # as often as a step has parts
    assert all(torch.equal(old, new) for old, new in zip(moved, model.target.parameters(), strict=True))


def test_spread_is_one_over_sqrt_d_for_even_directions_and_zero_in_collapse():
    torch.manual_seed(0)
    assert spread(torch.randn(4096, 64)).item() == pytest.approx(1 / 8, rel=0.02)
    assert spread(torch.ones(8, 64)).item() == 0
