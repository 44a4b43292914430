"""Views made in batches: pixels against PIL's, draws against torchvision's, the loader's half, and the runs."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms import functional as F

from common.checkpoint import load_checkpoint
from common.engine.draws import Draw, seeded
from common.errors import UserError
from common.images import IMAGENET_MEAN, IMAGENET_STD
from pretrain import augmentation
from pretrain.augmentation import build_augmentation
from pretrain.device_views import (
    Affine,
    Blur,
    Crop,
    DeviceViews,
    Grey,
    Invert,
    Jitter,
    adjust_hue,
    device_steps,
    make_views,
)
from pretrain.views import MARGIN, EpochSampler, PixelBatches, collate_visits
from tests.pretrain.test_augmentation import PHOTOS, pil_blur, steps_of
from tests.pretrain.tiny import outcome, remove_export, run_train
from tests.waits import waits

# As small as CIFAR-10's: whole photographs at 32 pixels.
SMALL = [np.asarray(Image.fromarray(photo).resize((32, 32))) for photo in load_sample_images().images]
IMAGES = [*PHOTOS, *SMALL]


def batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def pixels(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


def blur(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return Blur(augmentation.GaussianBlur()).apply(x, {"radius": factor.view(-1)}, {})


def blend(number: int, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return the images jittered in brightness (0), contrast (1) or saturation (2) alone, last of the four."""
    factors = torch.ones(len(x), 4).index_copy(1, torch.tensor([number]), factor.view(-1, 1))
    order = torch.tensor([k for k in range(4) if k != number] + [number]).expand(len(x), -1)
    drawn = {"order": order, "factor": factors}
    return Jitter(augmentation.ColorJitter(0.4, 0.4, 0.4)).apply(x, drawn, drawn)


def distances(got: np.ndarray, want: np.ndarray) -> tuple[float, float, float]:
    """Return in levels the largest distance of a pixel, the mean one, and the largest channel's difference of means."""
    difference = got.astype(float) - want
    return np.abs(difference).max(), np.abs(difference).mean(), np.abs(difference.mean((0, 1))).max()


@pytest.mark.parametrize(
    ("ours", "theirs", "values", "largest", "mean", "bias"),
    [
        (partial(blend, 0), F.adjust_brightness, np.linspace(0.6, 1.4, 9), 0, 0, 0),
        (partial(blend, 1), F.adjust_contrast, np.linspace(0.6, 1.4, 9), 0, 0, 0),
        (partial(blend, 2), F.adjust_saturation, np.linspace(0.6, 1.4, 9), 0, 0, 0),
        # Not at a multiple of 1/255, where float32 and float64 cut off to different levels of hue.
        (adjust_hue, F.adjust_hue, np.linspace(-0.499, 0.498, 15), 6, 0.01, 0.01),
        (blur, pil_blur, np.linspace(0.11, 2.0, 18), 2, 0.6, 0.2),
    ],
)
def test_levels_are_pils(ours, theirs, values, largest, mean, bias):
    """Blur: PIL rounds after each of its three boxes, this after the three."""
    for image in IMAGES:
        got = pixels(ours(batch(*[image] * len(values)), torch.tensor(values).float().view(-1, 1, 1, 1)))
        for view, value in zip(got, values.tolist(), strict=True):
            found = distances(view, np.asarray(theirs(Image.fromarray(image), value)))
            assert found[0] <= largest, value
            assert found[1] <= mean, value
            assert found[2] <= bias, value


def test_grey_and_negative_are_pils():
    for image in IMAGES:
        want = np.asarray(F.rgb_to_grayscale(Image.fromarray(image), 3))
        assert np.array_equal(pixels(Grey(None).apply(batch(image), {}, {}))[0], want)
        assert np.array_equal(pixels(Invert(None).apply(batch(image), {}, {}))[0], 255 - image)


@pytest.mark.parametrize("size", [32, 224, (20, 50)])
def test_crops_are_resized_as_pil_does(size):
    settings = augmentation.RandomResizedCrop(size, scale=(0.08, 1.0))
    for image in IMAGES:
        drawn = Crop(settings).draw(20, image.shape[:2], torch.Generator().manual_seed(0))
        got = pixels(Crop(settings).apply(batch(*[image] * 20), drawn, {}))
        for k, view in enumerate(got):
            box = [int(drawn[name][k]) for name in ("top", "left", "height", "width")]
            want = F.resized_crop(Image.fromarray(image), *box, settings.size, F.InterpolationMode.BILINEAR)
            largest, mean, bias = distances(view, np.asarray(want))
            assert largest <= 1
            assert mean <= 0.3
            assert bias <= 0.1


def test_affine_maps_are_torchvisions():
    options = dict(degrees=10, translate=(0.1, 0.05), scale=(0.8, 1.2), shear=(-5, 5, -3, 3))
    step = Affine(augmentation.RandomAffine(**options))
    torch.manual_seed(0)
    draws = [
        transforms.RandomAffine.get_params([-10, 10], (0.1, 0.05), (0.8, 1.2), [-5, 5, -3, 3], [32, 32])
        for _ in range(20)
    ]
    for image in SMALL:
        for angle, move, scale, shear in draws:
            inverse = F._get_inverse_affine_matrix([16.0, 16.0], angle, list(move), scale, list(shear))
            got = pixels(step.apply(batch(image), {"matrix": torch.tensor([inverse])}, {}))[0]
            want = np.asarray(F.affine(Image.fromarray(image), angle, list(move), scale, list(shear)))
            assert (got != want).any(-1).mean() < 0.01  # float32 and float64 part on the border of a pixel


@pytest.mark.parametrize("profile", ["imagenet", "cifar10", "demo"])
def test_the_whole_list_stays_within_two_levels_of_pils(profile):
    """Every image with the parameters that its batch drew, once here and once through PIL."""
    bias = []
    for image in IMAGES:
        steps = device_steps(steps_of(profile))
        views = make_views(steps, batch(*[image] * 30).byte(), torch.Generator().manual_seed(1))
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        want = replay(steps, image, 30, torch.Generator().manual_seed(1))
        for view, reference in zip(views, want, strict=True):
            levels = ((view * deviation + mean) * 255).permute(1, 2, 0).numpy()
            _, distance, _ = distances(levels, reference)
            assert distance <= 2
            bias.append((levels - reference).mean((0, 1)))
    assert np.abs(np.mean(bias, 0)).max() <= 0.3


def replay(steps, image, count, generator) -> list[np.ndarray]:
    """Return what PIL makes of the same draws."""
    plan, size = [], image.shape[:2]
    for step in steps:
        plan.append((step, torch.rand(count, generator=generator) < step.p, step.draw(count, size, generator)))
        size = step.output(size)
    views = []
    for k in range(count):
        view = Image.fromarray(image)
        for step, taken, drawn in plan:
            if taken[k]:
                view = pil_step(step, view, {name: values[k] for name, values in drawn.items()})
        views.append(np.asarray(view))
    return views


def pil_step(step, image: Image.Image, drawn: dict) -> Image.Image:
    match step:
        case Crop():
            box = [int(drawn[name]) for name in ("top", "left", "height", "width")]
            return F.resized_crop(image, *box, step.settings.size, F.InterpolationMode.BILINEAR)
        case Jitter():
            changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
            for k in drawn["order"].tolist():
                if (step.settings.brightness, step.settings.contrast, step.settings.saturation, step.settings.hue)[k]:
                    image = changes[k](image, float(drawn["factor"][k]))
            return image
        case Blur():
            return pil_blur(image, float(drawn["radius"]))
        case Grey():
            return F.rgb_to_grayscale(image, 3)
        case Affine():
            return image.transform(image.size, Image.Transform.AFFINE, drawn["matrix"].tolist())
    return F.hflip(image)


# Draws


def same_distribution(ours, theirs) -> bool:
    return stats.kstest(np.asarray(ours), np.asarray(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (375, 500), (100, 900)])
def test_boxes_are_drawn_as_torchvision_draws_them(size):
    settings = augmentation.RandomResizedCrop(32, scale=(0.2, 1.0))
    drawn = Crop(settings).draw(4000, size, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    frame = torch.empty(3, *size)
    theirs = np.array([settings.get_params(frame, settings.scale, settings.ratio) for _ in range(4000)])
    ours = np.stack([drawn[name].numpy() for name in ("top", "left", "height", "width")], 1)
    for k in range(4):
        assert same_distribution(ours[:, k], theirs[:, k])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])
    assert (ours[:, 0] + ours[:, 2]).max() <= size[0]
    assert (ours[:, 1] + ours[:, 3]).max() <= size[1]


def test_jitter_is_drawn_as_torchvision_draws_it():
    settings = augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1)
    drawn = Jitter(settings).draw(4000, (32, 32), torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    bounds = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    theirs = [settings.get_params(*bounds) for _ in range(4000)]
    for k in range(4):
        assert same_distribution(drawn["factor"][:, k], [factors[1 + k] for factors in theirs])
        turns = [np.bincount(orders, minlength=4) for orders in (drawn["order"][:, k], [t[0][k] for t in theirs])]
        assert stats.chi2_contingency(turns).pvalue > 1e-3


def test_affine_maps_are_drawn_as_torchvision_draws_them():
    settings = augmentation.RandomAffine(10, (0.1, 0.2), (0.9, 1.1), (-5, 5))
    drawn = Affine(settings).draw(2000, (32, 32), torch.Generator().manual_seed(0))["matrix"]
    torch.manual_seed(1)
    params = [settings.get_params([-10, 10], (0.1, 0.2), (0.9, 1.1), [-5.0, 5.0], [32, 32]) for _ in range(2000)]
    theirs = [F._get_inverse_affine_matrix([16, 16], a, list(move), k, list(shear)) for a, move, k, shear in params]
    for ours, column in zip(drawn.T, np.array(theirs).T, strict=True):
        assert same_distribution(ours, column)


def test_p_is_the_rate_of_a_step_and_every_image_draws_for_itself():
    steps = device_steps([dict(type="RandomInvert", p=0.3)])
    x = torch.zeros(4000, 3, 2, 2, dtype=torch.uint8)
    inverted = make_views(steps, x, torch.Generator().manual_seed(0))[:, 0, 0, 0] > 0
    assert abs(inverted.float().mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    steps = device_steps(steps_of("imagenet"))
    views = make_views(steps, batch(*[PHOTOS[0]] * 6).byte(), torch.Generator().manual_seed(0))
    assert len({view.sum().item() for view in views}) == 6


def test_a_batch_in_parts_is_the_batch_whole(monkeypatch):
    steps, x = device_steps(steps_of("cifar10")), batch(*SMALL * 8).byte()
    whole = make_views(steps, x, torch.Generator().manual_seed(0))
    monkeypatch.setattr("pretrain.device_views.CHUNK", 3 * 32 * 32 * 5)
    torch.testing.assert_close(make_views(steps, x, torch.Generator().manual_seed(0)), whole)


@pytest.mark.parametrize("profile", ["imagenet", "cifar10", "demo"])
def test_changing_some_images_is_changing_all_and_choosing(monkeypatch, profile):
    steps, x = device_steps(steps_of(profile)), batch(*SMALL * 16).byte()
    monkeypatch.setattr("pretrain.device_views.SMALL", 3 * 224 * 224)
    chosen = make_views(steps, x, torch.Generator().manual_seed(0))
    monkeypatch.setattr("pretrain.device_views.SMALL", 0)
    assert torch.equal(make_views(steps, x, torch.Generator().manual_seed(0)), chosen)


def test_half_precision_outside_changes_nothing():
    steps, x = device_steps(steps_of("imagenet")), batch(*PHOTOS).byte()
    plain = make_views(steps, x, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(make_views(steps, x, torch.Generator().manual_seed(0)), plain)


# The loader's half


def folder(root: Path, sizes: list[tuple[int, int]], suffix: str = "png") -> dict:
    """Write one image of each (width, height) and return what opens them."""
    (root / "train" / "a").mkdir(parents=True)
    for k, size in enumerate(sizes):
        Image.fromarray(PHOTOS[k % 2]).resize(size).save(root / "train" / "a" / f"{k}.{suffix}", quality=95)
    return dict(name="folder", root=str(root), split="train")


def test_images_of_one_small_size_are_held_and_a_batch_names_their_places(tmp_path):
    batches = PixelBatches(folder(tmp_path, [(20, 30)] * 3), steps_of("cifar10"))
    assert batches.pixels.shape == (3, 3, 30, 20)
    assert np.array_equal(batches.pixels[1].permute(1, 2, 0), np.asarray(batches.images.image(1)))
    assert len(batches.augmentation) == 4
    got = collate_visits(batches.__getitems__([Draw(2, 7), Draw(0, 9)]))
    assert [got["inputs"].tolist(), got["seed"].tolist()] == [[2, 0], [7, 9]]


@pytest.mark.parametrize("sizes", [[(200, 300)] * 2, [(20, 30), (30, 20)]])
def test_other_images_are_cropped_by_the_loader_as_without_the_device(tmp_path, sizes):
    images = folder(tmp_path, sizes)
    batches = PixelBatches(images, steps_of("imagenet"), num_views=1)
    assert batches.pixels is None
    assert [step["type"] for step in batches.augmentation] == [step["type"] for step in steps_of("imagenet")[1:]]
    plain = build_augmentation([dict(steps_of("imagenet")[0])])
    (item,) = batches.__getitems__([Draw(1, 5)])
    with seeded(5):
        want = plain(batches.images.image(1))
    assert item["seed"] == 5
    assert item["inputs"][0].dtype == torch.uint8
    assert torch.equal(normalised(item["inputs"][0]), want)
    assert collate_visits([item, item])["inputs"][0].shape == (2, 3, 224, 224)


def normalised(crop: torch.Tensor) -> torch.Tensor:
    tensor = augmentation.NormalizedTensor(IMAGENET_MEAN, IMAGENET_STD)
    return tensor(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()))


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_where_all_crops_allow_it(tmp_path, monkeypatch):
    images = folder(tmp_path, [(1101, 901)], "jpg")
    steps = [dict(type="RandomResizedCrop", size=64, scale=(0.2, 1.0))]
    batches = PixelBatches(images, steps, num_views=2)
    stored = Image.open(tmp_path / "train" / "a" / "0.jpg").convert("RGB")
    decoded, read = [], batches.images.image

    def spy(place, reduction=None):
        image = read(place, reduction)
        decoded.append(stored.width / image.width)
        return image

    monkeypatch.setattr(type(batches.images), "image", lambda self, *given: spy(*given))
    for seed in range(12):
        got = batches._views(0, seed)
        with seeded(seed):
            boxes = [batches.crop.get_params(stored, batches.crop.scale, batches.crop.ratio) for _ in range(2)]
        allowed = min(side / 64 for box in boxes for side in box[2:]) / MARGIN
        assert round(decoded[-1]) == max(k for k in (1, 2, 4, 8) if k <= allowed)
        for crop, box in zip(got, boxes, strict=True):
            want = F.resized_crop(stored, *box, [64, 64], F.InterpolationMode.BILINEAR)
            _, mean, bias = distances(crop.permute(1, 2, 0).numpy(), np.asarray(want))
            assert mean <= 2
            assert bias <= 0.3
    assert max(decoded) > 3.9


def test_images_of_several_sizes_need_a_crop_first(tmp_path):
    with pytest.raises(UserError, match="need RandomResizedCrop as the first augmentation"):
        PixelBatches(folder(tmp_path, [(20, 30), (30, 20)]), steps_of("demo"))


def test_held_pixels_skip_what_cannot_be_read(tmp_path, capsys):
    images = folder(tmp_path, [(20, 30)] * 3)
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png is truncated or corrupt"):
        PixelBatches(images, steps_of("cifar10"))
    batches = PixelBatches(images, steps_of("cifar10"), skip_corrupt=True)
    assert torch.equal(batches.pixels[1], batches.pixels[2])
    assert "skipping" in capsys.readouterr().err


@pytest.mark.parametrize("sizes", [[(40, 40)] * 4, [(40, 40), (50, 40)] * 2])
def test_views_follow_from_the_seed_of_the_batch(tmp_path, sizes):
    batches = PixelBatches(folder(tmp_path, sizes), steps_of("cifar10"))
    views = DeviceViews(num_views=2)
    views.serve(batches)
    draws = list(EpochSampler(batches, seed=3))
    make = partial(lambda drawn: views(collate_visits(batches.__getitems__(drawn)))["inputs"])
    one, again, other = make(draws), make(draws), make(draws[1:])
    assert [tuple(view.shape) for view in one] == [(4, 3, 32, 32)] * 2
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0][1:], other[0])
    assert not torch.equal(one[0], one[1])


# Runs


def test_a_run_resumes_within_an_epoch_bit_for_bit(space, monkeypatch):
    options = ("train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True")
    run_train("--device-views", options=options)
    weights, lines = outcome(space, "simsiam")
    remove_export(space)
    from common.engine.runner import Runner

    class KilledError(Exception):
        pass

    save = Runner.save_checkpoint

    def save_and_die(self, out_dir, filename, *args, **kwargs):
        save(self, out_dir, filename, *args, **kwargs)
        if filename == "iter_2.pth":
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "save_checkpoint", save_and_die)
        with pytest.raises(KilledError):
            run_train("--device-views", "--overwrite", options=(*options, "default_hooks.checkpoint.interval=2"))
    with pytest.raises(UserError, match="interrupted run of other settings"):
        run_train("--resume", options=(*options, "default_hooks.checkpoint.interval=2"))
    run_train("--device-views", "--resume", options=(*options, "default_hooks.checkpoint.interval=2"))
    assert outcome(space, "simsiam") == (weights, lines)


def test_images_of_several_sizes_are_cropped_by_processes_and_finished_by_the_device(space):
    path = space / "data" / "train" / "a" / "0.png"
    Image.open(path).resize((150, 90)).save(path)
    exports = []
    for workers in (0, 2):
        options = (f"train_dataloader.num_workers={workers}", f"train_dataloader.persistent_workers={workers > 0}")
        run_train("--profile", "cifar10", "--data-root", "data", "--device-views", "--overwrite", options=options)
        exports.append(load_checkpoint(space / "checkpoints" / "cifar10" / "simsiam.pth").state_dict)
    assert all(torch.equal(exports[0][name], value) for name, value in exports[1].items())


def test_views_of_the_device_are_settings_of_a_run(space, capsys):
    run_train("--device-views", method="byol_gsg", options=("train_cfg.max_epochs=1",))
    assert "exported" in capsys.readouterr().out
    run_train("--device-views", method="byol_gsg", options=("train_cfg.max_epochs=1",))
    assert "already done" in capsys.readouterr().out
    run_train(method="byol_gsg", options=("train_cfg.max_epochs=1", "device_views=True"))  # the flag's config option
    assert "already done" in capsys.readouterr().out
    run_train("--overwrite", method="byol_gsg", options=("train_cfg.max_epochs=1",))
    assert "exported" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.parametrize("profile", ["imagenet", "cifar10", "demo"])
def test_the_device_makes_the_cpus_views(device, profile):
    steps = device_steps(steps_of(profile))
    x = batch(*(PHOTOS if profile == "imagenet" else SMALL) * 16).byte()
    want = make_views(steps, x, torch.Generator().manual_seed(0))
    got = make_views(steps, x.to(device), torch.Generator().manual_seed(0)).cpu()
    level = 1 / (255 * 0.224)
    assert ((got - want).abs() > 0.5 * level).float().mean() < 0.005  # where float32 rounds to another level
    assert (got - want).abs().mean() < 0.02 * level


@pytest.mark.gpu
@pytest.mark.parametrize("profile", ["imagenet", "cifar10", "demo"])
def test_views_of_held_images_are_those_of_their_batch_and_wait_for_nothing(device, tmp_path, profile):
    """On a GPU the small ones are replayed from a graph: twice, to see that a batch's own numbers reach it."""
    batches = PixelBatches(folder(tmp_path, [(40, 40)] * 6), steps_of(profile))
    views = DeviceViews(num_views=2).to(device)
    views.serve(batches)
    draws = list(EpochSampler(batches))
    level = 1 / (255 * 0.224)
    for number, drawn in enumerate((draws[:4], draws[2:], draws[1:5])):
        data = collate_visits(batches.__getitems__(drawn))
        pixels = batches.pixels[data["inputs"]].repeat(2, 1, 1, 1)
        want = make_views(views.steps, pixels, torch.Generator().manual_seed(int(data["seed"][0])))
        got: list[torch.Tensor] = []
        count = waits(device, lambda data=data, got=got: got.extend(views(dict(data))["inputs"]))
        assert count == 0 or number == 0
        assert got[0].device.type == device.type
        assert (torch.cat(got).cpu() - want).abs().mean() < 0.02 * level
