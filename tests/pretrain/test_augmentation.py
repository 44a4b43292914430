"""Augmentations: each step against PIL's, the paper's two lists against what they must draw."""

import colorsys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import functional as F

from common.config import load_config
from common.errors import UserError
from common.images import IMAGENET_MEAN, IMAGENET_STD
from pretrain.augmentation import (
    NormalizedTensor,
    RandomGrayscale,
    RandomInvert,
    RandomResizedCrop,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    build_augmentation,
    gaussian_blur,
)
from pretrain.bench_views import measure
from pretrain.train import CONFIGS
from pretrain.views import seeded

PHOTOS = [photo[:224, 200:500].copy() for photo in load_sample_images().images]
NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
IMAGES = [*PHOTOS, NOISE]
NORMALIZE = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]


def steps_of(profile: str) -> list[dict]:
    config = load_config(CONFIGS / profile / "simsiam.py")
    return [dict(step) for step in config.train_dataloader.dataset.augmentation]


def small(profile: str, *types: str, **changes) -> list[dict]:
    """Return the profile's list, or only its steps of `types`, for views of 32 pixels, to be fast."""
    chosen = [step for step in steps_of(profile) if not types or step["type"] in types]
    return [step | changes | ({"size": 32} if "size" in step else {}) for step in chosen]


def draws(steps: list[dict], image: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Return `count` views (count, H, W, 3) of an image, in levels."""
    view = build_augmentation(steps)
    with seeded(seed):
        views = torch.stack([view(image) for _ in range(count)])
    levels = (views * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]) * 255
    return levels.permute(0, 2, 3, 1).round().numpy()


def assert_rate(happened: np.ndarray, p: float) -> None:
    """Assert that events come at rate `p`, within four standard deviations of the binomial."""
    assert abs(happened.mean() - p) < 4 * (p * (1 - p) / len(happened)) ** 0.5


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


# Each step against PIL


def pil_blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


@pytest.mark.parametrize(
    ("ours", "theirs", "values", "largest", "mean", "bias"),
    [
        (adjust_brightness, F.adjust_brightness, np.linspace(0.6, 1.4, 9), 0, 0, 0),
        (adjust_contrast, F.adjust_contrast, np.linspace(0.6, 1.4, 9), 0, 0, 0),
        (adjust_saturation, F.adjust_saturation, np.linspace(0.6, 1.4, 17), 1, 0.02, 0.05),
        (adjust_hue, F.adjust_hue, np.linspace(-0.1, 0.1, 9), 6, 0.01, 0.02),
        (adjust_hue, F.adjust_hue, np.linspace(-0.5, 0.5, 9), 6, 0.01, 0.02),
        (gaussian_blur, pil_blur, np.linspace(0.1, 2.0, 37), 3, 1.0, 0.05),
    ],
)
def test_levels_are_pils(ours, theirs, values, largest, mean, bias):
    """Bounds in levels of 255: of any pixel, of the mean distance, of a channel's mean over the image."""
    for image in IMAGES:
        for value in values.tolist():
            difference = ours(image, value).astype(int) - np.asarray(theirs(Image.fromarray(image), value))
            assert np.abs(difference).max() <= largest
            assert np.abs(difference).mean() <= mean
            assert np.abs(difference.mean((0, 1))).max() <= bias


@pytest.mark.parametrize("factor", [-0.5, -0.1, 0.0, 0.07, 0.5])
def test_hue_is_pils_over_all_colours(factor):
    """Every fifth level of each channel, greys and pure colours among them: few colours differ, and in no direction."""
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(52, -1, 3)
    difference = adjust_hue(colours, factor).astype(int) - np.asarray(F.adjust_hue(Image.fromarray(colours), factor))
    assert np.abs(difference).max() <= 6
    assert (difference != 0).mean() < 0.005
    assert np.abs(difference.mean((0, 1))).max() < 0.005
    grey = np.abs(colours.astype(int) - colours[..., :1]).max(2) == 0
    assert not difference[grey].any()


def test_grey_and_negative_are_pils():
    for image in IMAGES:
        grey = np.asarray(F.rgb_to_grayscale(Image.fromarray(image), 3))
        assert np.abs(RandomGrayscale(p=1.0)(image).astype(int) - grey).max() <= 1
        assert np.array_equal(RandomInvert(p=1.0)(image), np.asarray(F.invert(Image.fromarray(image))))


@pytest.mark.parametrize("size", [32, 224, (20, 50)])
def test_crops_are_resized_as_pil_does(size):
    ours, theirs = RandomResizedCrop(size, scale=(0.08, 1.0)), transforms.RandomResizedCrop(size, scale=(0.08, 1.0))
    for image in IMAGES:
        for seed in range(20):
            with seeded(seed):
                got = ours(image)
            with seeded(seed):
                want = np.asarray(theirs(Image.fromarray(image)))
            assert np.abs(got.astype(int) - want).max() <= 1


def test_the_tensor_is_torchvisions():
    for image in IMAGES:
        got = NormalizedTensor(IMAGENET_MEAN, IMAGENET_STD)(image)
        assert got.is_contiguous()
        assert torch.equal(got, transforms.Compose(NORMALIZE)(Image.fromarray(image)))


# The lists against the plain recipe


def plain_recipe(steps: list[dict]) -> transforms.Compose:
    """Return torchvision's transforms on PIL images in the same order."""

    def blur(image: Image.Image, radius: tuple[float, float]) -> Image.Image:
        return pil_blur(image, torch.empty(()).uniform_(*radius).item())

    built = []
    for step in steps:
        match dict(step):
            case {"type": "ColorJitter", "p": p, **options}:
                built.append(transforms.RandomApply([transforms.ColorJitter(**options)], p))
            case {"type": "GaussianBlur", "p": p, "radius": radius}:
                built.append(transforms.RandomApply([partial(blur, radius=radius)], p))
            case {"type": name, **options}:
                built.append(getattr(transforms, name)(**options))
    return transforms.Compose(built + NORMALIZE)


@pytest.mark.parametrize("profile", ["imagenet", "cifar10", "demo"])
def test_a_seed_gives_the_view_of_the_plain_recipe(profile):
    """The same draws in the same order: nothing but the rounding of the levels differs."""
    ours, theirs = (build(steps_of(profile)) for build in (build_augmentation, plain_recipe))
    scale, quantiles = 255 * torch.tensor(IMAGENET_STD)[:, None], torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    bias = []
    for seed in range(100):
        image = PHOTOS[seed % 2]
        with seeded(seed):
            got = ours(image).flatten(1) * scale
        with seeded(seed):
            want = theirs(Image.fromarray(image)).flatten(1) * scale
        assert (got - want).abs().max() <= 20
        assert (got - want).abs().mean() <= 1.5
        assert (got.std(1) - want.std(1)).abs().max() <= 1.5
        assert (got.quantile(quantiles, 1) - want.quantile(quantiles, 1)).abs().max() <= 4
        bias.append((got - want).mean(1))
    assert torch.stack(bias).mean(0).abs().max() <= 0.3


# The lists against the paper's ranges and rates


@pytest.mark.parametrize(("profile", "least"), [("imagenet", 0.2), ("cifar10", 0.08)])
def test_crops_are_uniform_in_area_and_log_ratio_and_half_are_flipped(profile, least):
    side = 256
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    views = draws(small(profile, "RandomResizedCrop", "RandomHorizontalFlip"), np.stack([x, y, y], -1), 2000)
    # The levels are coordinates. The outermost pixels see the border of the crop, so they are left out.
    across, down = (views[:, 2, -3, 0] - views[:, 2, 2, 0]) / 27, (views[:, -3, 2, 1] - views[:, 2, 2, 1]) / 27
    flipped, width, height = across < 0, np.abs(across) * 32, down * 32
    centre_x, centre_y = (views[..., k].mean((1, 2)) + 0.5 for k in (0, 1))
    assert_rate(flipped, 0.5)
    scale, ratio = width * height / side**2, width / height
    assert least - 0.01 < scale.min() < least + 0.01
    assert 0.95 < scale.max() < 1.03
    assert ratio.min() > 3 / 4 - 0.03
    assert ratio.max() < 4 / 3 + 0.05
    certain = scale < 0.7  # larger crops need not fit, and are drawn again
    assert_uniform(scale[certain], least, 0.7)
    assert_uniform(np.log(ratio[certain]), np.log(3 / 4), np.log(4 / 3))
    for centre, length in ((centre_x[certain], width[certain]), (centre_y[certain], height[certain])):
        inner = length < 0.9 * side  # with room to lie somewhere
        assert_uniform(((centre - length / 2) / (side - length))[inner], 0, 1)


@pytest.mark.parametrize("profile", ["imagenet", "cifar10"])
def test_rates_of_jitter_grey_and_flip_in_the_whole_list(profile):
    colour = np.full((40, 40, 3), (200, 100, 50), dtype=np.uint8)
    seen = draws(small(profile), colour, 1500)[:, 16, 16]
    grey = (seen == seen[:, :1]).all(1)
    assert_rate(grey, 0.2)
    assert_rate((seen[~grey] != colour[0, 0]).any(1), 0.8)
    ramp = np.tile(np.linspace(60, 200, 40).astype(np.uint8)[None, :, None], (40, 1, 3))
    views = draws(small(profile), ramp, 1000)
    assert_rate(views[:, :, 0, 0].mean(1) > views[:, :, -1, 0].mean(1), 0.5)


JITTER = ("brightness", "contrast", "saturation", "hue")


def jittered(profile: str, name: str, image: list, count: int = 1000) -> np.ndarray:
    """Return views of a row of pixels under the list's jitter, always applied, with but one of its factors."""
    steps = small(profile, "ColorJitter", p=1.0, **{other: 0 for other in JITTER if other != name})
    return draws(steps, np.array([image], dtype=np.uint8), count)[:, 0]


@pytest.mark.parametrize("profile", ["imagenet", "cifar10"])
def test_jitter_factors_are_uniform(profile):
    grey, dark, bright = [128] * 3, [56] * 3, [200] * 3
    assert_uniform((jittered(profile, "brightness", [grey])[:, 0, 0] + 0.5) / 128, 0.6, 1.4)
    pair = jittered(profile, "contrast", [dark, bright])[:, :, 0]
    assert_uniform((pair[:, 1] - pair[:, 0]) / 144, 0.6, 1.4)
    red = jittered(profile, "saturation", [[200, 80, 80]])[:, 0]
    assert_uniform((red[:, 0] - red[:, 1]) / 120, 0.6, 1.4)
    hue = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in jittered(profile, "hue", [[250, 10, 10]])[:, 0]])
    assert_uniform((hue + 0.5) % 1 - 0.5, -0.1, 0.1)


def test_blur_comes_at_half_the_views_with_radii_uniform_as_pils():
    line = np.zeros((15, 15, 3), dtype=np.uint8)
    line[:, 7] = 255
    always = draws(small("imagenet", "GaussianBlur", p=1.0), line, 2000)[:, 7, 7, 0]
    radii = np.linspace(0.05, 2.1, 400)
    peaks = [np.asarray(pil_blur(Image.fromarray(line), radius))[7, 7, 0] for radius in radii.tolist()]
    radius = np.interp(-always, -np.array(peaks, dtype=float), radii)
    assert_uniform(radius[radius > 0.3], 0.3, 2.0)
    assert_rate(radius > 0.3, 1.7 / 1.9)
    sometimes = draws(small("imagenet", "GaussianBlur"), line, 2000)[:, 7, 7, 0]
    assert_rate(sometimes < np.interp(0.3, radii, peaks), 0.5 * 1.7 / 1.9)


def test_p_is_the_rate_of_a_step():
    applied = draws([dict(type="GaussianBlur", radius=(5.0, 5.0), p=0.3)], NOISE[:8, :8], 2000)
    assert_rate((applied != NOISE[:8, :8]).any((1, 2, 3)), 0.3)


@pytest.mark.parametrize("kind", [Image.fromarray, np.asarray])
def test_an_image_and_its_array_give_the_same_view_and_stay_as_they_are(kind):
    view = build_augmentation([*steps_of("imagenet"), dict(type="RandomInvert"), dict(type="RandomAffine", degrees=9)])
    image, seen = kind(NOISE), []
    for _ in range(2):
        with seeded(1):
            seen.append(view(image))
    assert torch.equal(*seen)
    with seeded(1):
        assert torch.equal(seen[0], view(NOISE))
    assert seen[0].shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (dict(type="Sharpen"), "unknown augmentation 'Sharpen'"),
        (dict(p=1), "unknown augmentation 'None'"),
        (dict(type="GaussianBlur", sigma=1), "GaussianBlur: .*sigma"),
        (dict(type="ColorJitter", brightness=-1), "ColorJitter: .*non negative"),
        (
            dict(type="RandomResizedCrop", size=32, scale=(1.0, 0.2)),
            r"RandomResizedCrop: scale is \(1.0, 0.2\); choose",
        ),
        (dict(type="RandomAffine", degrees=10, scale=(2, 1)), r"RandomAffine: scale is \(2, 1\); choose"),
    ],
)
def test_a_wrong_step_is_named(step, named):
    with pytest.raises(UserError, match=named):
        build_augmentation([step])


def test_bench_names_both_recipes_and_their_ratio():
    found = measure(images=2, repeats=1)
    assert found["ratio"] == found["ours"] / found["reference"] > 0
