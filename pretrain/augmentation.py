"""Augmentations from a config list: torchvision's random draws, OpenCV's arithmetic.

Between two steps an image is a uint8 RGB array (H, W, 3). Each step draws its parameters as torchvision does, from
torch's CPU generator alone, so a seed gives the parameters that torchvision's step of the same name would draw.
Pixels differ from PIL's by a few levels at most (tests/pretrain/test_augmentation.py has the bounds). The paper's
lists (appendix B.1, B.2) are in pretrain/configs/_base_.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional
from typing_extensions import override

from common.errors import UserError
from common.images import IMAGENET_MEAN, IMAGENET_STD

LEVELS = np.arange(256, dtype=np.uint8)
SHARES = LEVELS / np.float32(255)


class RandomResizedCrop(transforms.RandomResizedCrop):
    """torchvision's random crop, resized with antialiasing by torch's uint8 kernel, which computes the same as PIL."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return self.crop(pixels, self.get_params(torch.from_numpy(pixels).permute(2, 0, 1), self.scale, self.ratio))

    def crop(self, pixels: np.ndarray, box: Sequence[int]) -> np.ndarray:
        """Return the contents of `box` (top, left, height, width), resized to `size`."""
        top, left, height, width = box
        # Copied, because the kernel is slow on a window of a larger array.
        crop = torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)
        resized = functional.resize(crop, self.size, self.interpolation, antialias=self.antialias)
        return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


class RandomHorizontalFlip(transforms.RandomHorizontalFlip):
    """Mirror the image with probability `p`."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return cv2.flip(pixels, 1) if torch.rand(1) < self.p else pixels


class RandomGrayscale(transforms.RandomGrayscale):
    """Make the image grey, still in three channels, with probability `p`."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return _grey(pixels) if torch.rand(1) < self.p else pixels


class RandomInvert(transforms.RandomInvert):
    """Return the negative with probability `p`."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return 255 - pixels if torch.rand(1) < self.p else pixels


class RandomAffine(transforms.RandomAffine):
    """Turn, move, scale and shear the image, by PIL."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        return np.array(super().forward(Image.fromarray(pixels)))


class ColorJitter(transforms.ColorJitter):
    """Change brightness, contrast, saturation and hue in random order, going back to 8 bits after each."""

    @override
    def forward(self, pixels: np.ndarray) -> np.ndarray:
        order, *factors = self.get_params(self.brightness, self.contrast, self.saturation, self.hue)
        for k in order.tolist():
            if factors[k] is not None:
                pixels = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)[k](pixels, factors[k])
        return pixels


class GaussianBlur:
    """PIL's Gaussian blur with a radius drawn uniformly from `radius`, in pixels (B.1: [0.1, 2])."""

    def __init__(self, radius: tuple[float, float] = (0.1, 2.0)) -> None:
        self.radius = radius

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return the blurred image."""
        return gaussian_blur(pixels, torch.empty(()).uniform_(*self.radius).item())


class NormalizedTensor:
    """torchvision's ToTensor and Normalize by `mean` and `std`, as a table of the 256 levels."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        every_level = transforms.ToTensor()(np.tile(LEVELS[:, None, None], (1, 1, 3)))
        self.tables = transforms.Normalize(mean, std)(every_level).numpy()  # (3, 256, 1)

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Return the normalised image (3, H, W) float32."""
        planes = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for channel, table, plane in zip(cv2.split(pixels), self.tables, planes, strict=True):
            cv2.LUT(channel, table, dst=plane)
        return torch.from_numpy(planes)


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale the levels, as PIL's ImageEnhance.Brightness does."""
    return cv2.LUT(pixels, _blend_levels(0, factor))


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale the levels' distance from the mean grey level, as PIL's ImageEnhance.Contrast does."""
    mean: float = cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    return cv2.LUT(pixels, _blend_levels(int(mean + 0.5), factor))


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Scale the levels' distance from the pixel's grey level, as PIL's ImageEnhance.Color does."""
    # OpenCV rounds where PIL truncates, so subtract a half, but not quite: an exact level must stay.
    return cv2.addWeighted(pixels, factor, _grey(pixels), 1 - factor, -0.498)


def adjust_hue(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Turn the hue by `factor` of the circle, as torchvision does in PIL's 8-bit HSV."""
    # OpenCV's 8-bit HSV rounds where PIL truncates, which made colours too strong. So its float32 HSV is truncated
    # here, and 1e-6 keeps a hue on its level that rounding errors put just below.
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV))
    hue_level = (hue * (255 / 360 * (1 + 1e-6))).astype(np.uint8)
    saturation_level = (saturation * 255).astype(np.uint8)
    turned = (np.arange(256) + int(factor * 255)) % 256 * (360 / 255)
    hue, saturation = cv2.LUT(hue_level, turned.astype(np.float32)), cv2.LUT(saturation_level, SHARES)
    return cv2.convertScaleAbs(cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2RGB))


def gaussian_blur(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Blur as PIL's GaussianBlur(radius) does: by three box filters whose variances add up to radius².

    A box has 2 * whole + 1 pixels and one more at each end, whose weight makes up the rest of the variance
    (Gwosdek et al. 2011, extended box filtering). Each pass rounds to 8 bits and repeats the border.
    """
    whole = int((math.sqrt(4 * radius**2 + 1) - 1) / 2)
    end = (2 * whole + 1) * (radius**2 - whole * (whole + 1)) / (6 * (whole + 1) ** 2 - 2 * radius**2)
    box = np.array([end, *[1.0] * (2 * whole + 1), end])
    box /= box.sum()
    for _ in range(3):
        pixels = cv2.sepFilter2D(pixels, -1, box, box, borderType=cv2.BORDER_REPLICATE)
    return pixels


def _blend_levels(level: int, factor: float) -> np.ndarray:
    """Return level + factor * (x - level) for each level x, truncated to 8 bits as by PIL's Image.blend."""
    blended = level + np.float32(factor) * (LEVELS - np.float32(level))
    return blended.clip(0, 255).astype(np.uint8)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


AUGMENTATIONS: dict[str, Callable[..., Any]] = {
    "RandomResizedCrop": RandomResizedCrop,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "ColorJitter": ColorJitter,
    "RandomGrayscale": RandomGrayscale,
    "RandomAffine": RandomAffine,
    "RandomInvert": RandomInvert,
    "GaussianBlur": GaussianBlur,
}
_OWN_PROBABILITY = (RandomHorizontalFlip, RandomGrayscale, RandomInvert)  # these apply `p` themselves


def build_steps(steps: Sequence[dict[str, Any]]) -> list[tuple[Any, float]]:
    """Return (transform, probability) for each `dict(type=..., p=..., ...)` of a config's list, in the given order.

    A step is applied with its probability `p`. Raises UserError for an unknown step or option.
    """
    built: list[tuple[Any, float]] = []
    for step in steps:
        options = dict(step)
        name = options.pop("type", None)
        if name not in AUGMENTATIONS:
            raise UserError(f"config: unknown augmentation '{name}'; known: {', '.join(AUGMENTATIONS)}")
        p = None if AUGMENTATIONS[name] in _OWN_PROBABILITY else options.pop("p", 1.0)
        try:
            for key, value in options.items():  # torchvision only warns, or fails once it draws
                if key in ("scale", "ratio", "radius") and not 0 < value[0] <= value[1]:
                    raise ValueError(f"{key} is {value}; choose two numbers above 0, the lower one first")
            transform = AUGMENTATIONS[name](**options)
        except (TypeError, ValueError) as error:
            raise UserError(f"config: augmentation {name}: {error}") from None
        built.append((transform, transform.p if p is None else p))
    return built


def build_augmentation(steps: Sequence[dict[str, Any]]) -> Callable[[Image.Image | np.ndarray], Tensor]:
    """Return the transform of a config's list of steps (see `build_steps`), followed by ImageNet's normalisation.

    It takes an RGB image or its uint8 array (H, W, 3) and returns a float32 tensor (3, H, W) (B.1, B.2). Raises
    UserError for an unknown step or option.
    """
    built = [
        transform if p == 1 or isinstance(transform, _OWN_PROBABILITY) else transforms.RandomApply([transform], p)
        for transform, p in build_steps(steps)
    ]
    return transforms.Compose([np.array, *built, NormalizedTensor(IMAGENET_MEAN, IMAGENET_STD)])
