"""Views made on the device, a batch at a time, from the same config list as `pretrain.augmentation`.

Between two steps a batch is a float32 tensor (N, 3, H, W) of levels: whole numbers from 0 to 255, rounded or truncated
where PIL does so. Every image's own parameters are drawn on the CPU, from one generator per batch. So they do not
depend on the device, and the host knows which images a step changes without waiting for the device.

The arithmetic is ours, not kornia's: kornia jitters a whole batch in one order, and its contrast, hue and blur are not
PIL's (docs/gpu.md has the figures).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torchvision.transforms import functional
from typing_extensions import override

from common.engine.processes import unwrapped
from common.images import IMAGENET_MEAN, IMAGENET_STD
from pretrain import augmentation
from pretrain.augmentation import build_steps
from pretrain.gsg import sent
from pretrain.views import PixelBatches

Drawn = dict[str, Tensor]  # parameters by name, one row per image
TRIES = 10  # torchvision's number of draws for a box that fits
CHUNK = 2**28  # values of the views made at once; four views of 512 images at 224 pixels take two parts
SMALL = 3 * 64 * 64  # values per image up to which it is quicker to change all images than to take out some


def uniform(bounds: Sequence[float], shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return float64 numbers of `shape`, uniform between the two `bounds`."""
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


class Selection(NamedTuple):
    """Which images of a batch a step changes: a mask (N,) of bools, on the CPU and on the device."""

    host: Tensor
    device: Tensor


def change(x: Tensor, selection: Selection, step: Callable[[Tensor, Any], Tensor], *parameters: Any) -> Tensor:
    """Return `x` with `step` applied to the selected images; `parameters` are tensors with one row per image.

    Small images are all changed, and the result is kept for the chosen ones: their kernels take less time than the
    launches, and every batch runs the same kernels. Of larger images, only the chosen ones are taken out and changed.
    """
    if x[0].numel() <= SMALL:
        return torch.where(selection.device.view(-1, 1, 1, 1), step(x, *parameters), x)
    if not selection.host.any():
        return x
    place = sent(selection.host.nonzero()[:, 0], x.device)
    chosen = step(x.index_select(0, place), *(values.index_select(0, place) for values in parameters))
    return x.index_copy(0, place, chosen)


class DeviceStep:
    """One step of a config's list: `settings` is torchvision's transform of that name, applied with probability `p`."""

    def __init__(self, settings: Any, p: float = 1.0) -> None:
        self.settings, self.p = settings, p

    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the parameters of `n` images of `size` (height, width)."""
        return {}

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (height, width) that images of `size` have after the step."""
        return size

    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        """Return the changed images; `drawn` holds their parameters on the device, `host` the same on the CPU."""
        raise NotImplementedError


class Crop(DeviceStep):
    """RandomResizedCrop, bilinear with antialiasing: PIL's filter as a product with two matrices per image."""

    @override
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
        if not (any_fits := fits.any(1)).all():  # then take the largest central box of an allowed ratio
            w0 = width if width / height <= high else round(height * high)
            h0 = height if width / height >= low else round(width / low)
            fallback = (height - h0) // 2, (width - w0) // 2, h0, w0
            top, left, h, w = (torch.where(any_fits, a, b) for a, b in zip((top, left, h, w), fallback, strict=True))
        return {"top": top, "left": left, "height": h, "width": w}

    @override
    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        return tuple(self.settings.size)

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        out_height, out_width = self.settings.size
        rows = resize_matrix(drawn["top"], drawn["height"], x.shape[2], out_height)
        columns = resize_matrix(drawn["left"], drawn["width"], x.shape[3], out_width)
        return filter_levels(x, rows, columns)


class Flip(DeviceStep):
    """RandomHorizontalFlip."""

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        return x.flip(3)


class Grey(DeviceStep):
    """RandomGrayscale."""

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        return grey(x).repeat(1, 3, 1, 1)


class Invert(DeviceStep):
    """RandomInvert."""

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        return 255 - x


class Jitter(DeviceStep):
    """ColorJitter: four changes, in each image's own order."""

    @override
    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the order (n, 4) of the changes and their factors (n, 4); 1 (for the hue, 0) changes nothing."""
        s = self.settings
        order = torch.rand(n, 4, generator=generator).argsort(1)
        bounds = [(1.0, 1.0) if b is None else b for b in (s.brightness, s.contrast, s.saturation)]
        factors = [uniform(b, n, generator) for b in [*bounds, s.hue or (0.0, 0.0)]]
        return {"order": order, "factor": torch.stack(factors, 1)}

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        """Return the jittered images; in each of four rounds every image takes the change that is next in its order."""
        hue = drawn["factor"][:, 3].view(-1, 1, 1, 1)
        for turn in range(4):
            change_of, change_host = drawn["order"][:, turn], host["order"][:, turn]
            factor = drawn["factor"].gather(1, change_of.long()[:, None])
            factor = torch.where(change_of[:, None] == 3, 1.0, factor).view(-1, 1, 1, 1)
            contrast, saturation = ((change_of == k).view(-1, 1, 1, 1) for k in (1, 2))
            luma = grey(x)
            level = torch.where(contrast, mean_level(luma), luma) * (contrast | saturation)
            # Brightness scales from 0, and a factor of 1 changes nothing.
            x = (level + factor * (x - level)).clamp(0, 255).floor()
            if self.settings.hue is not None:
                x = change(x, Selection(change_host == 3, change_of == 3), adjust_hue, hue)
        return x


class Blur(DeviceStep):
    """GaussianBlur: PIL's three box filters, as the third power of one matrix per image."""

    @override
    def draw(self, n: int, size: tuple[int, int], generator: torch.Generator) -> Drawn:
        """Return the radii in pixels."""
        return {"radius": uniform(self.settings.radius, n, generator)}

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        height, width = x.shape[2:]
        largest = self.settings.radius[1]
        columns = blur_matrix(drawn["radius"], width, largest)
        rows = columns if height == width else blur_matrix(drawn["radius"], height, largest)
        return filter_levels(x, rows, columns)


class Affine(DeviceStep):
    """RandomAffine, taking the nearest pixel."""

    @override
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

    @override
    def apply(self, x: Tensor, drawn: Drawn, host: Drawn) -> Tensor:
        height, width = x.shape[2:]
        a, b, c, d, e, f = (column.view(-1, 1, 1) for column in drawn["matrix"].T)
        down = torch.arange(height, device=x.device).view(1, -1, 1) + 0.5
        across = torch.arange(width, device=x.device).view(1, 1, -1) + 0.5
        from_x, from_y = (a * across + b * down + c).floor().long(), (d * across + e * down + f).floor().long()
        inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
        place = from_y.clamp(0, height - 1) * width + from_x.clamp(0, width - 1)
        moved = x.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, 3, -1)).view_as(x)
        return torch.where(inside[:, None], moved, float(self.settings.fill))


def resize_matrix(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Return (N, out, size): row k weighs the pixels from `start` to `start` + `length` of a side of `size` pixels.

    This is the triangle filter of PIL's bilinear resize, as wide as a pixel of the output if that is the larger one.
    """
    start, length = start.double().view(-1, 1, 1), length.double().view(-1, 1, 1)
    step = length / out
    wide = step.clamp(min=1)
    centre = (torch.arange(out, device=start.device).view(1, -1, 1) + 0.5) * step
    pixel = torch.arange(size, device=start.device).view(1, 1, -1) - start
    weight = (1 - ((pixel + 0.5 - centre) / wide).abs()).clamp(min=0)
    weight = weight * ((pixel >= 0) & (pixel < length))
    return (weight / weight.sum(2, keepdim=True)).float()


def blur_matrix(radius: Tensor, size: int, largest: float) -> Tensor:
    """Return (N, size, size): PIL's GaussianBlur of each `radius` (up to `largest`) along a side of `size` pixels.

    The third power of a box of 2 * whole + 1 pixels with a fraction `end` of one more at each end
    (`pretrain.augmentation.gaussian_blur`); the border is repeated.
    """
    radius = radius.double().view(-1, 1)
    whole = (((4 * radius**2 + 1).sqrt() - 1) / 2).floor()
    end = (2 * whole + 1) * (radius**2 - whole * (whole + 1)) / (6 * (whole + 1) ** 2 - 2 * radius**2)
    reach = int((math.sqrt(4 * largest**2 + 1) - 1) / 2) + 1
    far = torch.arange(-reach, reach + 1, device=radius.device).abs() - whole
    taps = (far <= 0) + (far == 1) * end
    taps = (taps / taps.sum(1, keepdim=True)).float()
    pixel = torch.arange(size, device=radius.device)
    box = torch.zeros(len(radius), size, size, device=radius.device)
    for tap, offset in zip(taps.T, range(-reach, reach + 1), strict=True):
        source = (pixel + offset).clamp(0, size - 1)
        box += tap.view(-1, 1, 1) * (source.view(-1, 1) == pixel)
    return box @ box @ box


def filter_levels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the images (N, 3, H, W) filtered by `columns` along their rows, then by `rows`, in 8 bits after each.

    `rows` (N, H', H) and `columns` (N, W', W) are matrices of weights; returns (N, 3, H', W').
    """
    across = torch.einsum("nvw,nchw->nchv", columns, x).add_(0.5).floor_().clamp_(0, 255)
    return torch.einsum("nuh,nchv->ncuv", rows, across).add_(0.5).floor_().clamp_(0, 255)


def grey(x: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of ITU-R 601 in PIL's whole numbers; float32 holds them exactly."""
    red, green, blue = x.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor()


def mean_level(luma: Tensor) -> Tensor:
    """Return the mean grey level (N, 1, 1, 1) of each image, as PIL rounds it."""
    return (luma.mean((1, 2, 3), keepdim=True) + 0.5).floor()


def adjust_hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue by `factor` (N, 1, 1, 1) of the circle, in PIL's 8-bit HSV."""
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = value - least
    # Where there is no spread, the saturation is 0 and the hue does not matter.
    r, g, b = ((value - x) / spread.clamp(min=1)).split(1, dim=1)  # 0 in the largest channel
    sector = torch.where(r == 0, b - g, torch.where(g == 0, 2 + r - b, 4 + g - r))
    hue = (((sector.double() / 6 + 1) % 1).float() * 255).floor()
    saturation = (spread / value.clamp(min=1) * 255).floor() / 255
    hue = (hue + (factor * 255).trunc()) % 256
    # PIL's six cases in one: around the circle each channel falls below the value by a trapezoid, at its own place.
    place = (hue * 6 / 255 + torch.arange(5, 0, -2, device=x.device).view(1, 3, 1, 1)) % 6
    fall = torch.minimum(place, 4 - place).clamp(0, 1)
    return (value * (1 - saturation * fall) + 0.5).floor()


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


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in float32 and without gradients inside: autocast would filter in half precision and miss levels."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Plan:
    """The parameters of every step for every image of a batch, drawn on the CPU."""

    def __init__(self, steps: Sequence[DeviceStep], n: int, size: tuple[int, int], generator: torch.Generator) -> None:
        self.steps = steps
        self.drawn: list[Drawn] = []
        for step in steps:
            taken = torch.rand(n, generator=generator) < step.p
            self.drawn.append({"taken": taken, **step.draw(n, size, generator)})
            size = step.output(size)
        self.size = size

    @property
    def numbers(self) -> Tensor:
        """All parameters as one float32 tensor (n, K); pixels and places are exact in it."""
        return torch.cat([v.float().view(len(v), -1) for drawn in self.drawn for v in drawn.values()], 1)

    def views(self, x: Tensor) -> Tensor:
        """Return the views (n, 3, H', W') float32, normalised, of the images (n, 3, H, W) uint8."""
        numbers = sent(self.numbers, x.device)
        count = max(1, CHUNK // (3 * max(x.shape[2] * x.shape[3], self.size[0] * self.size[1])))
        parts = [slice(k, k + count) for k in range(0, len(x), count)]
        with exactly(x.device):
            return torch.cat([self.apply(x[part], numbers[part], part) for part in parts])

    def apply(self, x: Tensor, numbers: Tensor, part: slice = slice(None)) -> Tensor:
        """Return views (n, 3, H', W') float32, normalised, of `part` of the images (n, 3, H, W) uint8.

        `numbers` (n, K) are `self.numbers` of the part, on the images' device.
        """
        levels, column = x.float(), 0
        for step, drawn in zip(self.steps, self.drawn, strict=True):
            host = {name: values[part] for name, values in drawn.items()}
            there = {}
            for name, values in host.items():
                width = values[0].numel()
                there[name] = numbers[:, column] if values.ndim == 1 else numbers[:, column : column + width]
                column += width
            if step.p == 1:
                levels = step.apply(levels, there, host)
                continue
            selection = Selection(host.pop("taken"), there.pop("taken") > 0)
            names = list(there)
            rows = host if levels[0].numel() <= SMALL else {name: host[name][selection.host] for name in names}

            def apply(
                images: Tensor, *values: Tensor, step: DeviceStep = step, names: list = names, rows: Drawn = rows
            ) -> Tensor:
                return step.apply(images, dict(zip(names, values, strict=True)), rows)

            levels = change(levels, selection, apply, *there.values())
        for k, (mean, deviation) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
            levels[:, k].sub_(255 * mean).div_(255 * deviation)
        return levels


def make_views(steps: Sequence[DeviceStep], x: Tensor, generator: torch.Generator) -> Tensor:
    """Return one view of every image: `x` (N, 3, H, W) uint8 to (N, 3, H', W') float32, normalised as ImageNet.

    Everything random comes from `generator`, on the CPU, whatever the device. Nothing waits for the device.
    """
    return Plan(steps, len(x), (x.shape[2], x.shape[3]), generator).views(x)


class Replay:
    """Makes the views of held images, for one batch size, by a CUDA graph: one launch instead of hundreds.

    At 32 pixels the launches take the host longer than the views take the GPU.
    """

    def __init__(self, plan: Plan, held: Tensor, places: Tensor, num_views: int) -> None:
        self.places, self.numbers = places.clone(), sent(plan.numbers, held.device)

        def views() -> Tensor:
            return plan.apply(held.index_select(0, self.places).repeat(num_views, 1, 1, 1), self.numbers)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # once before the capture, which must not see the first call's allocations
            views()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.views = views()

    def __call__(self, plan: Plan, places: Tensor) -> Tensor:
        """Return the views of `plan`; the next call overwrites them."""
        self.places.copy_(places, non_blocking=True)
        self.numbers.copy_(plan.numbers.pin_memory(), non_blocking=True)
        self.graph.replay()
        return self.views


@MODELS.register_module()
class DeviceViews(BaseDataPreprocessor):
    """Makes `num_views` normalised views per image on the device, from the pixels that the loader gives.

    A batch (`pretrain.views.PixelBatches`) holds "seed" (N,) int64, whose first entry seeds everything random, and
    "inputs": either `num_views` crops (N, 3, H, W) uint8, or places (N,) int64 in `held`, which has all images of a
    data set of one small size on the device, (M, 3, H, W) uint8. `serve` sets the data set.
    """

    def __init__(self, num_views: int = 2) -> None:
        super().__init__(non_blocking=True)
        self.num_views = num_views
        self.steps: list[DeviceStep] = []
        self.held: Tensor | None = None
        self.replays: dict[int, Replay] = {}  # by batch size

    def serve(self, batches: PixelBatches) -> None:
        """Set the data set: take the steps that it leaves to the device, and hold its pixels if it has them all."""
        self.steps = device_steps(batches.augmentation)
        self.held, self.replays = None if batches.pixels is None else batches.pixels.to(self.device), {}

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return {"inputs": the views, each (N, 3, H', W') float32}."""
        generator = torch.Generator().manual_seed(int(data["seed"][0]))
        if self.held is None:
            pixels = torch.cat([view.to(self.device, non_blocking=True) for view in data["inputs"]])
            views = make_views(self.steps, pixels, generator)
        else:
            views = self._of_held(data["inputs"], generator)
        return {"inputs": list(views.chunk(self.num_views))}

    def _of_held(self, places: Tensor, generator: torch.Generator) -> Tensor:
        held: Tensor = self.held  # type: ignore[assignment]
        plan = Plan(self.steps, len(places) * self.num_views, (held.shape[2], held.shape[3]), generator)
        largest = max(held.shape[2] * held.shape[3], plan.size[0] * plan.size[1])
        if held.device.type != "cuda" or 3 * largest > SMALL:
            pixels = held.index_select(0, places.to(held.device, non_blocking=True))
            return plan.views(pixels.repeat(self.num_views, 1, 1, 1))
        with exactly(held.device):
            if len(places) not in self.replays:
                self.replays[len(places)] = Replay(plan, held, places.to(held.device), self.num_views)
            return self.replays[len(places)](plan, places).clone()


def use_device_views(config: Config) -> None:
    """Make the config's loader hand over pixels, and its model make the views (`device_views = True`)."""
    loader = config.train_dataloader
    loader.dataset.type, loader.collate_fn = "PixelBatches", dict(type="collate_visits")
    config.model.data_preprocessor = dict(type="DeviceViews", num_views=loader.dataset.num_views)


def start_device_views(runner: Any) -> None:
    """Give the model's `DeviceViews` its data set; one that the device holds needs no loader processes."""
    loader = runner.train_dataloader
    unwrapped(runner.model).data_preprocessor.serve(loader.dataset)
    if loader.dataset.pixels is not None:
        loader.num_workers = 0
