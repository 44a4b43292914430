"""The loss against a literal loop of Algorithm 1, in values and in gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.gsg import GUIDES, Views, choose_views, gsg_loss


def draw(n: int, d: int, seed: int) -> tuple[Views, Views]:
    generator = torch.Generator().manual_seed(seed)
    image, reference = (
        Views(*(torch.randn(n, d, dtype=torch.double, generator=generator, requires_grad=True) for _ in range(4)))
        for _ in "ab"
    )
    return image, reference


def D(p, z):  # noqa: N802  (the paper's name)
    return -torch.dot(p / p.norm(), z / z.norm())


def algorithm_1(image: Views, reference: Views) -> torch.Tensor:
    """Appendix A, pair by pair, with its if-chain."""
    losses = []
    for (z11, z12, p11, p12), (z21, z22, p21, p22) in zip(
        zip(*image, strict=True), zip(*reference, strict=True), strict=True
    ):
        z11, z12, z21, z22 = (z.detach() for z in (z11, z12, z21, z22))
        d1121, d1122 = (z11 - z21).square().sum().sqrt(), (z11 - z22).square().sum().sqrt()
        d1221, d1222 = (z12 - z21).square().sum().sqrt(), (z12 - z22).square().sum().sqrt()
        m = min(d1121, d1122, d1221, d1222)
        if d1121 == m:
            loss = D(p11, z12) + D(p21, z22)
        elif d1122 == m:
            loss = D(p11, z12) + D(p22, z21)
        elif d1221 == m:
            loss = D(p12, z11) + D(p21, z22)
        else:
            loss = D(p12, z11) + D(p22, z21)
        losses.append(0.5 * loss)
    return sum(losses) / len(losses)


def gradients(views: tuple[Views, Views]) -> list[torch.Tensor | None]:
    return [field.grad for side in views for field in side]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(2, 40), seed=st.integers(0, 2**31))
def test_gsg_loss_is_algorithm_1_in_value_and_gradient(n, d, seed):
    fast, literal = draw(n, d, seed), draw(n, d, seed)
    value, want = gsg_loss(*fast), algorithm_1(*literal)
    torch.testing.assert_close(value, want)
    value.backward()
    want.backward()
    for got, expected in zip(gradients(fast), gradients(literal), strict=True):
        if expected is None:  # z never learns, nor a prediction that no pair chose
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, expected)


# Where the four projections lie on a line, and which pair is nearest.
BRANCHES = {
    "11-21": ((0.0, 5.0, 1.0, 9.0), (0, 0)),
    "11-22": ((0.0, 5.0, 9.0, 1.0), (0, 1)),
    "12-21": ((5.0, 0.0, 1.0, 9.0), (1, 0)),
    "12-22": ((5.0, 0.0, 9.0, 1.0), (1, 1)),
}


@pytest.mark.parametrize(("places", "chosen"), BRANCHES.values(), ids=BRANCHES)
def test_each_branch_by_hand(places, chosen):
    z11, z12, z21, z22 = (torch.tensor([[x, 1.0]]) for x in places)
    p = [torch.tensor([[1.0, 0.0]], requires_grad=True) for _ in range(4)]
    image, reference = Views(z11, z12, p[0], p[1]), Views(z21, z22, p[2], p[3])
    assert tuple(int(v) for v in choose_views(image[:2], reference[:2], "nearest")) == chosen
    loss = gsg_loss(image, reference)
    # p is the first axis, so D is minus the cosine of the target with it: -x / sqrt(x^2 + 1).
    targets = (places[1 - chosen[0]], places[2:][1 - chosen[1]])
    assert loss.item() == pytest.approx(0.5 * sum(-x / (x * x + 1) ** 0.5 for x in targets))
    loss.backward()
    assert [prediction.grad is not None and bool(prediction.grad.any()) for prediction in p] == [
        chosen[0] == 0,
        chosen[0] == 1,
        chosen[1] == 0,
        chosen[1] == 1,
    ]


@pytest.mark.parametrize(
    ("places", "chosen"),
    [((0, 0, 0, 0), (0, 0)), ((0, 2, 5, 1), (0, 1)), ((0, 4, 3, 5), (1, 0))],
    ids=["all equal", "11-22 before 12-22", "12-21 before 12-22"],
)
def test_ties_go_to_the_first_pair_of_algorithm_1(places, chosen):
    z = [torch.tensor([[float(x)]]) for x in places]
    views = Views(z[0], z[1], z[0], z[1]), Views(z[2], z[3], z[2], z[3])
    assert tuple(int(v) for v in choose_views(*(view[:2] for view in views), "nearest")) == chosen


def test_distances_are_of_unnormalised_projections():
    # By angle 11-22 is nearest (the same direction), by Euclidean distance 11-21.
    z11, z12 = torch.tensor([[1.0, 0.0]]), torch.tensor([[-50.0, -50.0]])
    z21, z22 = torch.tensor([[0.0, 1.0]]), torch.tensor([[10.0, 0.0]])
    image, reference = Views(z11, z12, z11, z12), Views(z21, z22, z21, z22)
    assert tuple(int(v) for v in choose_views(image[:2], reference[:2], "nearest")) == (0, 0)


def test_just_one_view_of_each_image_learns_and_no_projection():
    image, reference = draw(16, 8, 1)
    gsg_loss(image, reference).backward()
    assert all(z.grad is None for z in (*image[:2], *reference[:2]))
    for side in (image, reference):
        first, second = (p.grad.abs().sum(1) > 0 for p in side[2:])
        assert (first ^ second).all()
        assert first.any()
        assert second.any()


def test_farthest_is_the_other_end():
    image, reference = draw(32, 8, 2)
    near, far = (choose_views(image[:2], reference[:2], guide) for guide in ("nearest", "farthest"))

    def distance(chosen):
        v, w = chosen
        z = torch.stack(image[:2], 1)[torch.arange(32), v]
        return (z - torch.stack(reference[:2], 1)[torch.arange(32), w]).norm(dim=1)

    assert (distance(near) < distance(far)).all()


def test_random_guide_takes_all_four_pairs_equally():
    torch.manual_seed(0)
    image, reference = draw(4000, 2, 3)
    v, w = choose_views(image[:2], reference[:2], "random")
    counts = torch.bincount(2 * v + w, minlength=4)
    assert (counts - 1000).abs().max() < 120  # four standard deviations are 110


def test_none_is_the_symmetric_loss_and_needs_no_reference():
    image, _ = draw(5, 7, 4)
    z1, z2, p1, p2 = image
    want = -0.5 * (F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
    torch.testing.assert_close(gsg_loss(image, guide="none"), want)


def test_unknown_guide_and_missing_reference_are_refused():
    image, reference = draw(2, 2, 0)
    with pytest.raises(ValueError, match=r"nearst.*nearest"):
        gsg_loss(image, reference, guide="nearst")
    with pytest.raises(ValueError, match="reference"):
        gsg_loss(image, guide="nearest")
    assert set(GUIDES) == {"none", "nearest", "farthest", "random"}
