"""Views made on the device, a batch at a time, from the same config list as `pretrain.augmentation`.

Between two steps a batch is (N, 3, H, W) float32 of levels: whole numbers from 0 to 255, rounded or cut off where
PIL does. Parameters are drawn on the CPU, for every image of its own, from one generator per batch. So they do not
depend on the device, and the host knows which images a step changes without waiting for the device.

The arithmetic is ours, not kornia's: kornia jitters a whole batch in one order, and its contrast, hue and blur are not
PIL's (docs/gpu.md has the figures).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torchvision.transforms import functional

from common.data import IMAGENET_MEAN, IMAGENET_STD
from common.engine import unwrapped
from pretrain import augmentation
from pretrain.augmentation import build_steps
from pretrain.views import PixelBatches

Drawn = dict[str, Tensor]  # parameters by name, on the CPU, one row per image
TRIES = 10  # as torchvision: boxes that do not fit are drawn again so often
CHUNK = 2**28  # values of the views that are made at once; a batch of 512 at 224 pixels is made in parts


def uniform(bounds: Sequence[float], shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return float64 numbers of `shape`, uniform between the two `bounds`."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` (on the CPU) on `device`, in float32 unless they are whole numbers, without waiting for it."""
    values = values.float() if values.is_floating_point() else values
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def change(x: Tensor, rows: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `x` with `step` applied to its images `rows`, int64 on the CPU."""
    if len(rows) == len(x):
        return step(x)
    if len(rows) == 0:
        return x
    place = send(rows, x.device)
    return x.index_copy(0, place, step(x.index_select(0, place)))


class DeviceStep:
    """One step of the list: `settings` is torchvision's transform of that name, applied with probability `p`."""

    def __init__(self, settings: Any, p: float = 1.0) -> None:
        self.settings, self.p = settings, p

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the parameters of `n` images of `size` (height, width)."""
        return {}

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the changed images."""
        raise NotImplementedError

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (height, width) of what images of `size` become."""
        return size


class Crop(DeviceStep):
    """RandomResizedCrop, bilinear with antialiasing: PIL's filter as a product with two matrices per image."""

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the boxes: top, left, height and width, int64 in pixels."""
        height, width = size
        low, high = self.settings.ratio
        area = height * width * uniform(self.settings.scale, (n, TRIES), generator)
        ratio = uniform((math.log(low), math.log(high)), (n, TRIES), generator).exp()
        w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.int().argmax(1, keepdim=True)
        w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
        free = torch.stack([height - h + 1, width - w + 1])
        top, left = (uniform((0, 1), (2, n), generator) * free).long()
        if not (any_fits := fits.any(1)).all():  # then the largest box in the middle whose ratio is allowed
            w0 = width if width / height <= high else round(height * high)
            h0 = height if width / height >= low else round(width / low)
            fallback = (height - h0) // 2, (width - w0) // 2, h0, w0
            top, left, h, w = (torch.where(any_fits, a, b) for a, b in zip((top, left, h, w), fallback, strict=True))
        return {"top": top, "left": left, "height": h, "width": w}

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the settings' size."""
        return tuple(self.settings.size)

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the boxes' contents, resized to the settings' size."""
        out_height, out_width = self.settings.size
        rows = resize_matrix(drawn["top"], drawn["height"], x.shape[2], out_height, x.device)
        columns = resize_matrix(drawn["left"], drawn["width"], x.shape[3], out_width, x.device)
        return filter_levels(x, rows, columns)


class Flip(DeviceStep):
    """RandomHorizontalFlip."""

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the mirror images."""
        return x.flip(3)


class Grey(DeviceStep):
    """RandomGrayscale."""

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the grey images, in three channels."""
        return grey(x).expand_as(x)


class Invert(DeviceStep):
    """RandomInvert."""

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the negatives."""
        return 255 - x


class Jitter(DeviceStep):
    """ColorJitter: every image's four changes in an order of its own."""

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return for each image the order (4,) of the changes and their factors (4,); NaN for one that is off."""
        s = self.settings
        order = torch.rand(n, 4, generator=generator).argsort(1)
        off = (math.nan, math.nan)
        bounds = [off if b is None else b for b in (s.brightness, s.contrast, s.saturation, s.hue)]
        return {"order": order, "factor": torch.stack([uniform(b, n, generator) for b in bounds], 1)}

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the jittered images: in each of four rounds, those whose turn it is for a change take it."""
        changes = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for turn in drawn["order"].T:
            for k, adjust in enumerate(changes):
                rows = ((turn == k) & ~drawn["factor"][:, k].isnan()).nonzero()[:, 0]
                factor = send(drawn["factor"][rows, k], x.device).view(-1, 1, 1, 1)
                x = change(x, rows, lambda part, adjust=adjust, factor=factor: adjust(part, factor))  # type: ignore[misc]
        return x


class Blur(DeviceStep):
    """GaussianBlur: PIL's three box filters, as the third power of one matrix per image."""

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the radii in pixels."""
        return {"radius": uniform(self.settings.radius, n, generator)}

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the blurred images."""
        height, width = x.shape[2:]
        columns = blur_matrix(drawn["radius"], width, x.device)
        rows = columns if height == width else blur_matrix(drawn["radius"], height, x.device)
        return filter_levels(x, rows, columns)


class Affine(DeviceStep):
    """RandomAffine with nearest pixels."""

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the inverse matrices (n, 6), from a pixel of the view to one of the image."""
        s, (height, width) = self.settings, size
        none = (0.0, 0.0)
        angle = uniform(s.degrees, n, generator)
        reach = [(-t * side, t * side) for t, side in zip(s.translate or none, (width, height), strict=True)]
        across, down = (uniform(bounds, n, generator).round() for bounds in reach)
        scale = uniform(s.scale or (1.0, 1.0), n, generator)
        shears = list(s.shear or ()) + [0.0] * 4
        shear_x, shear_y = uniform(shears[:2], n, generator), uniform(shears[2:4], n, generator)
        centre = [width * 0.5, height * 0.5]
        values = zip(*(v.tolist() for v in (angle, across, down, scale, shear_x, shear_y)), strict=True)
        inverse = functional._get_inverse_affine_matrix
        return {"matrix": torch.tensor([inverse(centre, a, [dx, dy], k, [u, v]) for a, dx, dy, k, u, v in values])}

    def apply(self, x: Tensor, drawn: Drawn) -> Tensor:
        """Return the turned, moved, scaled and sheared images; outside they are filled with `fill`."""
        height, width = x.shape[2:]
        a, b, c, d, e, f = (send(column, x.device).view(-1, 1, 1) for column in drawn["matrix"].T)
        down = torch.arange(height, device=x.device).view(1, -1, 1) + 0.5
        across = torch.arange(width, device=x.device).view(1, 1, -1) + 0.5
        from_x, from_y = (a * across + b * down + c).floor().long(), (d * across + e * down + f).floor().long()
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        place = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
        moved = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, 3, -1)).view_as(x)
        return torch.where(inside[:, None], moved, float(self.settings.fill))


def resize_matrix(start: Tensor, length: Tensor, size: int, out: int, device: torch.device) -> Tensor:
    """Return (N, out, size): row k weighs the pixels from `start` to `start` + `length` of a side of `size` pixels.

    The triangle filter of PIL's bilinear resize: as wide as a pixel of the output where that is the larger one.
    """
    start, length = (send(values.double(), device).view(-1, 1, 1) for values in (start, length))
    step = length / out
    wide = step.clamp(min=1)
    centre = (torch.arange(out, device=device).view(1, -1, 1) + 0.5) * step
    pixel = torch.arange(size, device=device).view(1, 1, -1) - start
    weight = (1 - ((pixel + 0.5 - centre) / wide).abs()).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < length))
    return weight / weight.sum(2, keepdim=True)


def blur_matrix(radius: Tensor, size: int, device: torch.device) -> Tensor:
    """Return (N, size, size): PIL's GaussianBlur of each radius along a side of `size` pixels.

    Three times a box of 2 * whole + 1 pixels with a fraction `end` of one more at each end
    (`pretrain.augmentation.gaussian_blur`); the border is repeated.
    """
    whole = (((4 * radius**2 + 1).sqrt() - 1) / 2).floor()
    end = (2 * whole + 1) * (radius**2 - whole * (whole + 1)) / (6 * (whole + 1) ** 2 - 2 * radius**2)
    reach = int(whole.max()) + 1
    offsets = torch.arange(-reach, reach + 1)
    far = offsets.abs() - whole.view(-1, 1)
    taps = torch.where(far <= 0, 1.0, torch.where(far == 1, end.view(-1, 1), 0.0))
    taps = send(taps / taps.sum(1, keepdim=True), device)
    pixel = torch.arange(size, device=device)
    box = torch.zeros(len(radius), size, size, device=device)
    for tap, offset in zip(taps.T, offsets.tolist(), strict=True):
        source = (pixel + offset).clamp(0, size - 1)
        box += tap.view(-1, 1, 1) * (source.view(-1, 1) == pixel)
    return box @ box @ box


def filter_levels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the images (N, 3, H, W) filtered along their rows by `columns`, then by `rows`, in 8 bits after each.

    `rows` (N, H', H) and `columns` (N, W', W) are matrices of weights; returns (N, 3, H', W').
    """
    across = torch.einsum("nvw,nchw->nchv", columns, x).add_(0.5).floor_().clamp_(0, 255)
    return torch.einsum("nuh,nchv->ncuv", rows, across).add_(0.5).floor_().clamp_(0, 255)


def grey(x: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of ITU-R 601 in PIL's whole numbers; float32 holds them exactly."""
    red, green, blue = x.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def _blend(level: Tensor | float, x: Tensor, factor: Tensor) -> Tensor:
    return (level + factor * (x - level)).clamp(0, 255).floor()


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the levels; `factor` (N, 1, 1, 1)."""
    return _blend(0.0, x, factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the levels' distance from the image's mean grey level; `factor` (N, 1, 1, 1)."""
    return _blend((grey(x).mean((1, 2, 3), keepdim=True) + 0.5).floor(), x, factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the levels' distance from the pixel's grey level; `factor` (N, 1, 1, 1)."""
    return _blend(grey(x), x, factor)


def adjust_hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` (N, 1, 1, 1) of the circle, in PIL's HSV of 8 bits."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    spread = value - least
    safe = spread.clamp(min=1)  # where there is none, the saturation is 0 and the hue does not matter
    r, g, b = ((value - channel) / safe for channel in (red, green, blue))
    sector = torch.where(red == value, b - g, torch.where(green == value, 2 + r - b, 4 + g - r))
    hue = (((sector.double() / 6 + 1) % 1).float() * 255).floor()
    saturation = (spread / value.clamp(min=1) * 255).floor()
    hue = (hue + (factor.squeeze(1) * 255).trunc()) % 256  # (N, 1, 1) against (N, H, W)
    turned = hue * 6 / 255
    whole = turned.floor()
    part, share = turned - whole, saturation / 255
    low = (value * (1 - share) + 0.5).floor()
    falling = (value * (1 - share * part) + 0.5).floor()
    rising = (value * (1 - share * (1 - part)) + 0.5).floor()
    six = torch.stack([value, falling, low, low, rising, value])  # red in the six sectors of the circle
    sector_of = (whole % 6).long()[None]
    return torch.stack([six.gather(0, (sector_of + turn) % 6)[0] for turn in (0, 4, 2)], 1)


STEPS: dict[type, type[DeviceStep]] = {
    augmentation.RandomResizedCrop: Crop,
    augmentation.RandomHorizontalFlip: Flip,
    augmentation.ColorJitter: Jitter,
    augmentation.RandomGrayscale: Grey,
    augmentation.RandomAffine: Affine,
    augmentation.RandomInvert: Invert,
    augmentation.GaussianBlur: Blur,
}


def device_steps(steps: Sequence[dict[str, Any]]) -> list[DeviceStep]:
    """Return the steps of a config's list (see `pretrain.augmentation.build_augmentation`) for batches on a device."""
    return [STEPS[type(settings)](settings, p) for settings, p in build_steps(steps)]


def make_views(steps: Sequence[DeviceStep], x: Tensor, generator: torch.Generator) -> Tensor:
    """Return one view of every image: `x` (N, 3, H, W) uint8 to (N, 3, H', W') float32, normalised as ImageNet.

    Everything random comes from `generator`, on the CPU, whatever the device. Nothing waits for the device.
    """
    plan, size = [], (x.shape[2], x.shape[3])
    for step in steps:
        taken = torch.rand(len(x), generator=generator) < step.p
        plan.append((step, taken, step.draw(len(x), size, generator)))
        size = step.output(size)
    side = max(x.shape[2] * x.shape[3], size[0] * size[1])
    count = max(1, CHUNK // (3 * side))
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # half precision cannot count to 255 in steps
        return torch.cat([_part(plan, x, slice(k, k + count)) for k in range(0, len(x), count)])


def _part(plan: Sequence[tuple[DeviceStep, Tensor, Drawn]], x: Tensor, part: slice) -> Tensor:
    levels = x[part].float()
    for step, taken, drawn in plan:
        rows = taken[part].nonzero()[:, 0]
        chosen = {name: values[part][rows] for name, values in drawn.items()}
        levels = change(levels, rows, lambda images, step=step, chosen=chosen: step.apply(images, chosen))  # type: ignore[misc]
    mean, deviation = (255 * torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (levels - send(mean, x.device)) / send(deviation, x.device)


@MODELS.register_module()
class DeviceViews(BaseDataPreprocessor):
    """The part of the loader's work that the device does: from pixels to `num_views` normalised views per image.

    A batch (`pretrain.views.PixelBatches`) holds "seed" (N,) int64, of which the first seeds all that is random, and
    "inputs": `num_views` crops (N, 3, H, W) uint8, or the places (N,) int64 of images in `held`, all images of a data
    set of one small size, (M, 3, H, W) uint8 on the device. `serve` says which data set it is.
    """

    def __init__(self, num_views: int = 2) -> None:
        super().__init__(non_blocking=True)
        self.num_views = num_views
        self.steps: list[DeviceStep] = []
        self.held: Tensor | None = None

    def serve(self, batches: PixelBatches) -> None:
        """Make views of the batches of this data set: do what it leaves to do, and hold its pixels if it gives them."""
        self.steps = device_steps(batches.augmentation)
        self.held = None if batches.pixels is None else batches.pixels.to(self.device)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return {"inputs": the views, each (N, 3, H', W') float32}."""
        generator = torch.Generator().manual_seed(int(data["seed"][0]))
        inputs = data["inputs"]
        if self.held is None:
            pixels = torch.cat([view.to(self.device, non_blocking=True) for view in inputs])
        else:
            places = inputs.to(self.device, non_blocking=True)
            pixels = self.held.index_select(0, places).repeat(self.num_views, 1, 1, 1)
        return {"inputs": list(make_views(self.steps, pixels, generator).chunk(self.num_views))}


def use_device_views(config: Config) -> None:
    """Make the config's loader hand over pixels, and its model make the views (`device_views = True`)."""
    loader = config.train_dataloader
    loader.dataset.type, loader.collate_fn = "PixelBatches", dict(type="collate_visits")
    config.model.data_preprocessor = dict(type="DeviceViews", num_views=loader.dataset.num_views)


def start_device_views(runner: Any) -> None:
    """Tell the model's `DeviceViews` which data set it serves; one that the device holds needs no loader processes."""
    loader = runner.train_dataloader
    unwrapped(runner.model).data_preprocessor.serve(loader.dataset)
    if loader.dataset.pixels is not None:
        loader.num_workers = 0
