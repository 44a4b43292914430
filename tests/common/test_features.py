"""Frozen features and their cache."""

import errno
import io
import multiprocessing
import os
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common import features
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, Checkpoint, load_checkpoint, save_checkpoint
from common.errors import UserError
from common.features import FEW, evaluation_transform, extract_features, pick_workers
from common.images import image_folder

TRANSFORM = evaluation_transform(32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoints") / "a.pth"
    meta = dict.fromkeys(META_KEYS, "") | {"arch": "resnet18"}
    save_checkpoint(path, build_backbone("resnet18").state_dict(), meta)
    return load_checkpoint(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def forwards(monkeypatch):
    """Return a list that grows by the batch size of every forward pass."""
    sizes, build = [], Checkpoint.backbone

    def counted(self):
        network = build(self)
        network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        return network

    monkeypatch.setattr(Checkpoint, "backbone", counted)
    return sizes


def read(folder, name="images"):
    return image_folder(folder, name=name, hint="")


def test_features_are_those_of_a_direct_forward(checkpoint, folder, tmp_path, forwards):
    images = read(folder)
    found = extract_features(checkpoint, images, TRANSFORM, tmp_path / "cache", batch_size=2)
    assert forwards == [2, 2, 1]
    with torch.no_grad():
        batch = torch.stack([TRANSFORM(images.image(k)) for k in range(5)])
        expected = checkpoint.backbone()(batch).numpy()
    np.testing.assert_allclose(found.x, expected, rtol=1e-4, atol=1e-5)
    assert found.x.dtype == np.float32
    assert found.x.shape == (5, 512)
    assert isinstance(found.x, np.memmap)
    assert found.y.tolist() == [0, 0, 0, 1, 1]
    assert found.fingerprint == images.fingerprint


def test_a_second_pass_reads_the_cache(checkpoint, folder, tmp_path, forwards):
    cache = tmp_path / "cache"
    first = extract_features(checkpoint, read(folder), TRANSFORM, cache)
    del forwards[:]
    again = extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=3)  # it is not part of the key
    assert forwards == []
    np.testing.assert_array_equal(first.x, again.x)
    assert len(arrays(cache)) == 1


def test_writing_to_features_does_not_reach_the_cache(checkpoint, folder, tmp_path):
    first = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    before = first.x.copy()
    first.x[:] = 0
    again = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    np.testing.assert_array_equal(again.x, before)


@pytest.mark.parametrize("change", ["checkpoint", "transform", "images", "labels", "set"])
def test_another_key_makes_another_pass(checkpoint, folder, tmp_path, forwards, change):
    cache, transform, name = tmp_path / "cache", TRANSFORM, "images"
    extract_features(checkpoint, read(folder), transform, cache)
    if change == "checkpoint":
        checkpoint = Checkpoint(checkpoint.path, "another hash", checkpoint.state_dict, checkpoint.meta)
    elif change == "transform":
        transform = evaluation_transform(32, resize=40)
    elif change == "images":
        Image.new("RGB", (32, 32)).save(folder / "a" / "0.png")
    elif change == "labels":
        (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    else:
        name = "others"
    extract_features(checkpoint, read(folder, name), transform, cache)
    assert forwards == [5, 5]
    assert len(arrays(cache)) == 2


def arrays(cache):
    """Return the finished arrays of a cache, by name."""
    return sorted(path.name for path in cache.glob("[!.]*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=repr)
@pytest.mark.parametrize("torn", [0, 100])
def test_an_interrupted_pass_is_continued_and_ends_the_same(checkpoint, folder, tmp_path, forwards, error, torn):
    class Transform:
        calls = 0

        def __call__(self, image):
            Transform.calls += 1
            if Transform.calls == 4:  # in the second batch
                raise error
            return TRANSFORM(image)

        def __repr__(self):
            return "the same"

    cache, extract = tmp_path / "cache", partial(extract_features, batch_size=2)
    with pytest.raises(type(error)):
        extract(checkpoint, read(folder), Transform(), cache)
    assert (arrays(cache), forwards) == ([], [2])
    (part,) = cache.glob(".*.part")
    with open(part, "ab") as stream:
        stream.write(bytes(torn))  # part of a row that was being written
    found = extract(checkpoint, read(folder), Transform(), cache)
    assert forwards == [2, 2, 1]  # the first batch was not forwarded again
    whole = extract(checkpoint, read(folder), TRANSFORM, tmp_path / "other")
    np.testing.assert_array_equal(found.x, whole.x)
    assert not list(cache.glob(".*.part"))


def interrupt(checkpoint, folder, cache, batches, batch_size=2):
    """Leave a partial array of so many batches, as a kill between two of them does."""
    forward = features.forward

    def some(*args, **options):
        for number, rows in enumerate(forward(*args, **options)):
            if number == batches:
                raise KeyboardInterrupt
            yield rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "forward", some)
        with pytest.raises(KeyboardInterrupt):
            extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=batch_size)


@pytest.mark.parametrize(("first", "second", "kept"), [(2, 2, 4), (2, 1, 4), (1, 2, 4), (1, 3, 3), (2, 3, 0)])
def test_a_pass_is_continued_with_another_batch_size_where_both_have_a_border(
    checkpoint, folder, tmp_path, forwards, first, second, kept
):
    interrupt(checkpoint, folder, tmp_path / "cache", 4 // first, first)
    del forwards[:]
    found = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache", batch_size=second)
    assert sum(forwards) == 5 - kept
    whole = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "whole")
    np.testing.assert_allclose(found.x, whole.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("row", "kept"), [(0, 0), (3, 2)])
def test_a_flipped_bit_in_a_part_is_named_and_made_again(checkpoint, folder, tmp_path, forwards, capfd, row, kept):
    cache = tmp_path / "cache"
    interrupt(checkpoint, folder, cache, 2)
    (part,) = cache.glob(".*.part")
    content = bytearray(part.read_bytes())
    content[len(content) - 4 * 512 * (4 - row) + 9] ^= 1
    part.write_bytes(content)
    del forwards[:]
    found = extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=2)
    assert sum(forwards) == 5 - kept
    assert f"note: {part} is damaged after image {kept}; the rest is made again" in capfd.readouterr().err
    whole = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "whole", batch_size=2)
    np.testing.assert_array_equal(found.x, whole.x)


def permuted(content):
    rows = np.frombuffer(content[128:-32], np.uint8).reshape(5, -1)[::-1]
    return content[:128] + rows.tobytes() + content[-32:]


DAMAGES = {
    "permuted rows": permuted,
    "a flipped bit": lambda content: content[:3000] + bytes([content[3000] ^ 64]) + content[3001:],
    "a flipped bit of the header": lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
    "a flipped bit throughout": lambda content: (np.frombuffer(content, np.uint8) ^ 1).tobytes(),
    "truncated": lambda content: content[:-700],
    "without its checksum": lambda content: content[:-32],
    "longer": lambda content: content + b"x",
    "empty": lambda content: b"",
    "short": lambda content: content[:20],
    "garbage": lambda content: b"<html>" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_named_and_made_again(checkpoint, folder, tmp_path, capfd, forwards, damage):
    cache = tmp_path / "cache"
    whole = extract_features(checkpoint, read(folder), TRANSFORM, cache).x.copy()
    (path,) = cache.glob("[!.]*")
    content = path.read_bytes()
    assert len(content) == 128 + 5 * 512 * 4 + 32
    path.write_bytes(DAMAGES[damage](content))
    capfd.readouterr()
    found = extract_features(checkpoint, read(folder), TRANSFORM, cache)
    np.testing.assert_array_equal(found.x, whole)
    assert forwards == [5, 5]
    assert f"note: {path} does not fit its checksum: " in capfd.readouterr().err
    assert path.read_bytes() == content
    assert sorted(cache.iterdir()) == sorted([path, *cache.glob(".*.lock")])


def test_the_array_of_another_key_is_not_taken(checkpoint, folder, tmp_path, forwards):
    cache = tmp_path / "cache"
    first = extract_features(checkpoint, read(folder), TRANSFORM, cache).x.copy()
    (path,) = cache.glob("[!.]*")
    (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    second = extract_features(checkpoint, read(folder), TRANSFORM, cache).x.copy()
    (other,) = set(cache.glob("[!.]*")) - {path}
    other.write_bytes(path.read_bytes())
    np.testing.assert_array_equal(extract_features(checkpoint, read(folder), TRANSFORM, cache).x, second)
    assert (first != second).any()


@pytest.mark.parametrize(("amp", "cause"), [(None, "diverged;"), ("bf16", "or bf16 overflowed; leave --amp out, or")])
def test_features_that_are_not_finite_are_refused_and_leave_no_array(checkpoint, folder, tmp_path, amp, cause):
    huge = {k: v * 1e30 if k.endswith("conv1.weight") else v for k, v in checkpoint.state_dict.items()}
    huge |= {k: torch.zeros_like(v) for k, v in huge.items() if k.endswith("running_var")}
    diverged = Checkpoint(checkpoint.path, "huge", huge, checkpoint.meta)  # finite, but not what it computes
    with pytest.raises(
        UserError, match=rf"^the features of \S+a\.pth \(images\) are not finite: .*{cause} pretrain again$"
    ):
        extract_features(diverged, read(folder), TRANSFORM, tmp_path / "cache", amp=amp)
    assert arrays(tmp_path / "cache") == []


def test_features_too_large_to_be_squared_are_refused(checkpoint, folder, tmp_path):
    """Finite weights of a diverged training; kNN would take all such features for equal."""
    huge = {k: torch.full_like(v, 1e30) if k.endswith("bias") else v for k, v in checkpoint.state_dict.items()}
    diverged = Checkpoint(checkpoint.path, "huge", huge, checkpoint.meta)
    with pytest.raises(
        UserError, match=r"^the features of \S+a\.pth \(images\) are too large: its training diverged; "
    ):
        extract_features(diverged, read(folder), TRANSFORM, tmp_path / "cache")
    assert arrays(tmp_path / "cache") == []


@pytest.mark.parametrize("content", [b"", b"short", bytes(100_000)])
def test_a_part_of_something_else_is_not_continued(checkpoint, folder, tmp_path, monkeypatch, content):
    cache = tmp_path / "cache"
    whole = extract_features(checkpoint, read(folder), TRANSFORM, cache).x.copy()
    (path,) = cache.glob("[!.]*")
    path.unlink()
    path.with_name(f".{path.stem}.part").write_bytes(content)
    np.testing.assert_array_equal(extract_features(checkpoint, read(folder), TRANSFORM, cache).x, whole)


def test_a_full_disk_is_an_oserror_and_loses_no_whole_batch(checkpoint, folder, tmp_path, monkeypatch, forwards):
    class Full(io.FileIO):
        def write(self, content):
            if self.tell() > 6000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(features, "open", Full, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=2)
    assert caught.value.filename.startswith(f"{cache}/")
    assert arrays(cache) == []
    del forwards[:]
    extract_features(checkpoint, read(folder), TRANSFORM, cache, batch_size=2)
    assert forwards == [1]


def test_an_image_changed_in_place_misses_the_cache(checkpoint, folder, tmp_path, forwards):
    """The pixels change, but neither names nor sizes do."""
    path = folder / "a" / "0.bmp"
    Image.new("RGB", (32, 32)).save(path)
    first = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    fingerprint, before = read(folder).fingerprint, path.stat()
    Image.new("RGB", (32, 32), "white").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    assert read(folder).fingerprint == fingerprint
    assert len(forwards) == 2
    assert (first.x != again.x).any()


@pytest.mark.parametrize("devices", [2, 3, 7])
def test_several_devices_take_turns_and_give_the_same_rows(checkpoint, folder, tmp_path, monkeypatch, devices):
    one = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "one", batch_size=2)
    monkeypatch.setattr(features, "pick_devices", lambda: [torch.device("cpu")] * devices)
    used, network = [], features._network

    def counted(checkpoint, device):
        made = network(checkpoint, device)
        calls: list = []
        made.register_forward_hook(lambda *_: calls.append(1))
        used.append(calls)
        return made

    monkeypatch.setattr(features, "_network", counted)
    several = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "several", batch_size=2)
    np.testing.assert_array_equal(one.x, several.x)
    assert [len(calls) for calls in used] == {2: [2, 1], 3: [1, 1, 1], 7: [1, 1, 1, 0, 0, 0, 0]}[devices]


def test_mixed_precision_is_another_array_of_about_the_same_numbers(checkpoint, folder, tmp_path):
    cache = tmp_path / "cache"
    plain = extract_features(checkpoint, read(folder), TRANSFORM, cache)
    mixed = extract_features(checkpoint, read(folder), TRANSFORM, cache, amp="bf16")
    assert mixed.x.dtype == np.float32
    assert (mixed.x != plain.x).any()
    assert np.abs(mixed.x - plain.x).max() < 0.05 * np.abs(plain.x).max()
    assert len(arrays(cache)) == 2


def race(path, folder, cache, number, forwarded):
    """Ask for the same features as other processes; the first forward pass waits until all have had time to ask."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(path)
    network = features._network

    def slow(checkpoint, device):
        time.sleep(1)
        forwarded.append(number)
        return network(checkpoint, device)

    features._network = slow
    extract_features(checkpoint, read(folder), TRANSFORM, cache)


@pytest.mark.parametrize("cores", [1, 3, 64])
@pytest.mark.parametrize("mac", [False, True])
def test_workers_are_the_cores_for_all_but_few_images(monkeypatch, cores, mac):
    if mac:
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert (pick_workers(FEW - 1), pick_workers(FEW)) == (0, min(cores, 16))


def test_processes_that_ask_for_the_same_features_wait_for_one(checkpoint, folder, tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager:
        forwarded = manager.list()
        several = [
            context.Process(target=race, args=(checkpoint.path, folder, tmp_path / "cache", number, forwarded))
            for number in range(3)
        ]
        for process in several:
            process.start()
        for process in several:
            process.join()
        assert [process.exitcode for process in several] == [0, 0, 0]
        assert len(forwarded) == 1
    assert len(arrays(tmp_path / "cache")) == 1


@pytest.mark.parametrize("kind", ["corrupt", "missing"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_leaves_no_array(checkpoint, folder, tmp_path, kind, workers):
    images, path = read(folder), folder / "b" / "3.png"
    if kind == "corrupt":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.unlink()
    with pytest.raises(UserError) as caught:
        extract_features(checkpoint, images, TRANSFORM, tmp_path / "cache", workers=workers)
    # A worker's message follows its traceback; `cli.run` shows the last line.
    assert str(path) in str(caught.value).strip().splitlines()[-1]
    assert arrays(tmp_path / "cache") == []


def test_a_cpu_forwards_few_pixels_at_a_time_and_gives_the_same_features(
    checkpoint, folder, tmp_path, monkeypatch, forwards
):
    whole = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "whole")
    monkeypatch.setattr(features, "PIECE", 2 * 32 * 32)
    pieces = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "pieces")
    monkeypatch.setattr(features, "PIECE", 1)
    single = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "single")
    assert forwards == [5, 2, 2, 1, 1, 1, 1, 1, 1]
    for found in (pieces, single):
        assert np.abs(found.x - whole.x).max() < 1e-5 * np.abs(whole.x).max()


def test_pixels_pass_as_bytes_and_reach_the_network_as_the_transform_says(checkpoint, folder, tmp_path, monkeypatch):
    seen, collate = [], []

    def network(checkpoint, device):
        made = checkpoint.backbone()
        made.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        return made

    def loader(data, *args, **options):
        made = DataLoader(data, *args, **options)
        collate.append(data[0][0])
        return made

    monkeypatch.setattr(features, "_network", network)
    monkeypatch.setattr(features, "DataLoader", loader)
    images = read(folder)
    want = torch.stack([TRANSFORM(images.image(k)) for k in range(5)])
    extract_features(checkpoint, images, TRANSFORM, tmp_path / "cache")
    assert (collate[0].dtype, collate[0].shape[2]) == (torch.uint8, 3)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen[0], want)  # every bit
    # The tensors of any other transform are used as they are.
    extract_features(checkpoint, images, lambda image: 2 * TRANSFORM(image), tmp_path / "other")
    assert torch.equal(seen[1], 2 * want)
    assert collate[1].dtype == torch.float32


def test_the_batch_is_the_devices_unless_it_is_given(checkpoint, folder, tmp_path, monkeypatch, forwards):
    monkeypatch.setattr(features, "BATCH", {"cpu": 3})
    extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "cache")
    extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "other", batch_size=4)
    assert forwards == [3, 2, 4, 1]


def test_an_autocast_of_the_callers_does_not_reach_the_features(checkpoint, folder, tmp_path):
    plain = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        other = extract_features(checkpoint, read(folder), TRANSFORM, tmp_path / "other")
    np.testing.assert_array_equal(plain.x, other.x)


class Noise:
    """Images of noise in memory."""

    name, classes, fingerprint = "noise", ("noise",), "noise"

    def __init__(self, count, size=32):
        rng = np.random.default_rng(0)
        self.labels = np.arange(count)
        self.pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)

    def image(self, index):
        return Image.fromarray(self.pixels[index])


def of_device(device, checkpoint, images, **options):
    """Return the features of all images by the forward pass on one device."""
    networks = [(features._network(checkpoint, device), device)]
    rows = range(len(images.labels))
    return np.concatenate(list(features.forward(networks, images, TRANSFORM, rows, **options)))


@pytest.mark.gpu
def test_features_of_a_gpu_are_the_cpus(device, checkpoint):
    images = Noise(70)
    want = of_device(torch.device("cpu"), checkpoint, images, batch_size=64)
    found = of_device(device, checkpoint, images, batch_size=16)
    assert (found.shape, found.dtype) == ((70, 512), np.float32)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    workers = of_device(device, checkpoint, images, batch_size=16, workers=2)
    np.testing.assert_allclose(workers, found, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    for amp in ("bf16", "fp16"):
        mixed = of_device(device, checkpoint, images, batch_size=16, amp=amp)
        assert mixed.dtype == np.float32
        assert 0 < np.abs(mixed - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.gpu
def test_pixels_on_a_gpu_are_the_transforms(device):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).repeat(2, 3, 1, 3)
    images = [Image.fromarray(image.numpy()) for image in pixels]
    transform = evaluation_transform(256)
    transform.transforms.pop(0)  # the crop
    _, normalise = features._as_bytes(transform)
    found = features._preparation(device, normalise)(pixels.to(device))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.cpu(), torch.stack([transform(image) for image in images]))


@pytest.mark.gpu
def test_the_forward_pass_stops_the_host_only_where_it_hands_a_batch_over(device, checkpoint):
    """The first batch may: the device's constants are copied before it."""
    network = (features._network(checkpoint, device), device)
    batches = features.forward([network], Noise(48), TRANSFORM, range(48), batch_size=8, amp="bf16")
    first = next(batches)
    on_gpu = device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("error")
        rest = list(batches)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    assert [len(rows) for rows in (first, *rest)] == [8] * 6
    assert all(np.isfinite(rows).all() for rows in rest)
