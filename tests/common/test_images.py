"""Labelled images: folders, colours, broken files, fingerprints, the evaluation transform."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from common.errors import UserError
from common.features import Transformed, evaluation_transform
from common.images import IMAGENET_MEAN, IMAGENET_STD, check_classes, image_folder, read_class_map, read_image
from common.preflight import decoded_size


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["dog/b.png", "cat/z.JPG", "cat/a.png", "dog/deep/c.bmp"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(8 + number, 8, seed=number).save(path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no class")
    return tmp_path


def read(folder):
    return image_folder(folder, name="pets", hint="place pets there")


def test_image_folder_sorts_classes_and_files(folder):
    images = read(folder)
    assert images.classes == ["cat", "dog"]
    assert images.paths == ["cat/a.png", "cat/z.JPG", "dog/b.png", "dog/deep/c.bmp"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.image(2).tobytes() == noise(8, 8, seed=0).tobytes()


@pytest.mark.parametrize("content", [None, [], ["cat"], ["cat", "cat/a.txt"], ["a.png"]], ids=str)
def test_a_folder_without_class_folders_of_images_is_named_with_the_hint(tmp_path, content):
    root = tmp_path / "pets"
    for name in [] if content is None else ["", *content]:
        (root / name).write_text("x") if "." in name else (root / name).mkdir()
    with pytest.raises(UserError) as caught:
        read(root)
    kind = "is missing" if content is None else "holds no class folders with images"
    assert str(caught.value) == f"data set folder {root} {kind}; place pets there"


def add(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(4, 4).save(path) if content is None else path.write_bytes(content)


def test_what_is_hidden_or_the_system_s_is_neither_a_class_nor_an_image(folder, capfd):
    before = read(folder)
    for name in (
        ".ipynb_checkpoints/0.png",
        "__MACOSX/cat/._a.png",
        "@eaDir/a.png",
        "cat/.ipynb_checkpoints/a.png",
        "cat/__MACOSX/a.png",
        "cat/._a.png",
        "cat/.DS_Store.png",
    ):
        add(folder / name)
    after = read(folder)
    assert (after.classes, after.paths) == (before.classes, before.paths)
    assert ".ipynb_checkpoints" not in capfd.readouterr().err


def test_empty_classes_and_file_types_that_are_not_read_are_named(folder, capfd):
    (folder / "ant").mkdir()
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/none", "egg/only.npy", "loose.png"):
        add(folder / name, b"x")
    images = read(folder)
    assert images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    said = capfd.readouterr().err
    assert f"note: data set folder {folder}: no images in ant, egg, which are not counted as classes\n" in said
    assert (
        "files that are not read: 2 .heic, 1 .npy, 1 .txt, 1 outside the class folders, 1 without an ending\n" in said
    )
    read(folder)
    assert capfd.readouterr().err == ""  # it was printed once


@pytest.mark.parametrize("name", ["x.gif", "x.pgm", "x.JFIF", "x.webp", "x.PNM"])
def test_endings_of_images_that_pillow_reads(tmp_path, name):
    path = tmp_path / "a" / name
    path.parent.mkdir()
    Image.new("L", (4, 3), 77).save(path, {"JFIF": "JPEG", "PNM": "PPM"}.get(name[2:]))
    images = image_folder(tmp_path, name="x", hint="")
    assert images.paths == [f"a/{name}"]
    assert images.image(0).getpixel((1, 1)) == (77, 77, 77)


def test_linked_folders_are_followed_and_loops_are_not(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    add(outside / "x.png")
    (folder / "cat" / "more").symlink_to(outside)
    (folder / "eel").symlink_to(outside)
    for number, above in enumerate(("dog", ".", "..")):
        (folder / "dog" / f"loop{number}").symlink_to(folder / above)
    images = read(folder)
    assert images.classes == ["cat", "dog", "eel"]
    assert images.paths == ["cat/a.png", "cat/more/x.png", "cat/z.JPG", "dog/b.png", "dog/deep/c.bmp", "eel/x.png"]


def test_a_class_that_is_a_link_to_nothing_is_refused(folder):
    (folder / "eel").symlink_to(folder / "unmounted")
    with pytest.raises(UserError, match=r"^data set folder \S+eel is a link to nothing; restore what it names, or"):
        read(folder)


@pytest.mark.parametrize("name", [b"\xe9t\xe9/a.png", b"cat/\xe9.png"])
def test_a_name_that_is_not_utf8_is_refused_in_printable_words(folder, name):
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    with pytest.raises(UserError, match=r"^the name of b'.*\\xe9.*' is not UTF-8; rename it$") as caught:
        read(folder)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("abc", "abc", None),
        ("abc", "bc", "only {}/train has a; "),
        ("abc", "ab", "only {}/train has c; "),
        ("ab", "abc", "only {}/val has c; "),
        ("abc", "Abc", "only {}/train has a; only {}/val has A; "),
        ("a", "a", "has images of one class alone, a: any guess is right; add the others"),
        ("abcdefgh", "h", "only {}/train has a, b, c, d, e and 2 more; "),
    ],
)
def test_train_and_val_must_have_the_same_classes(tmp_path, train, test, said):
    for split, names in (("train", train), ("val", test)):
        (tmp_path / split / "zz empty").mkdir(parents=True)
        for name in names:
            add(tmp_path / split / name / "0.png")
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    images = image_folder(tmp_path / "val", name="x", hint="")
    if said is None:
        check_classes(tmp_path / "train", images)
        return
    with pytest.raises(UserError) as caught:
        check_classes(tmp_path / "train", images)
    if len(train) == 1:
        assert str(caught.value) == f"{tmp_path}/train {said}"
        return
    assert said.replace("{}", str(tmp_path)) in str(caught.value)
    assert str(caught.value).endswith("give both the same class folders, with images in each")


def broken(path, kind):
    if kind == "truncated JPEG":
        noise(64, 64).save(path, "JPEG")
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "truncated PNG":
        noise(64, 64).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)


@pytest.mark.parametrize("kind", ["truncated JPEG", "truncated PNG", "text", "empty", "folder", "pipe", "missing"])
def test_a_broken_image_is_one_line_with_its_name_once(tmp_path, kind):
    path = tmp_path / "broken.jpg"
    broken(path, kind)
    with pytest.raises(UserError) as caught:
        read_image(path)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.count(str(path)) == 1
    assert ("is missing" if kind == "missing" else "truncated or corrupt") in line


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_anywhere_is_a_user_s_error_or_the_whole_image(tmp_path_factory, kind):
    path = tmp_path_factory.mktemp("cut") / "image"
    noise(9, 7).save(path, kind)
    content, whole = path.read_bytes(), read_image(path).tobytes()
    refused = 0
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        try:
            # A few last bytes may be padding or an end mark that holds no pixel.
            assert read_image(path).tobytes() == whole
        except UserError:
            refused += 1
    assert refused > len(content) / 6


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (34712, "is a TIFF of compression 34712, which Pillow does not read; convert it, or "),
        (5, "is truncated or corrupt, or of a kind that Pillow does not read (TIFF compression tiff_lzw: "),
    ],
)
def test_a_tiff_that_does_not_decode_says_its_compression(tmp_path, number, says):
    path = tmp_path / "x.tif"
    noise(9, 7).save(path)
    entry = struct.pack("<HHI", 259, 3, 1)
    path.write_bytes(path.read_bytes().replace(entry + b"\1\0", entry + struct.pack("<H", number)))
    for reader in READERS.values():
        with pytest.raises(UserError, match=re.escape(f"{path} {says}")):
            reader(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
def test_an_image_is_turned_upright_where_that_is_asked_for(tmp_path, kind, orientation):
    path, exif = tmp_path / "x", Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.arange(240, dtype=np.uint8).reshape(12, 20)
    Image.fromarray(stored).save(path, kind, exif=exif, quality=100)
    turned = read_image(path, upright=True)
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    expected = np.rot90(stored[:, ::-1] if orientation in (2, 4, 5, 7) else stored, quarters)
    assert np.abs(np.asarray(turned)[..., 0].astype(int) - expected).max() <= 2 * (kind == "JPEG")
    assert decoded_size(path, upright=True) == turned.size == ((12, 20) if 5 <= orientation <= 8 else (20, 12))
    if kind != "TIFF":  # whose rotation is Pillow's own
        assert read_image(path).size == decoded_size(path) == (20, 12)


def test_a_damaged_exif_block_asks_for_no_rotation(tmp_path):
    path = tmp_path / "x.jpg"
    noise(9, 7).save(path, exif=b"Exif\0\0" + b"?" * 20)
    assert read_image(path, upright=True).size == decoded_size(path, upright=True) == (9, 7)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=1, max_size=6),
    st.floats(0, 1),
    st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "PPM", "BMP", "JPEG2000"]),
    st.sampled_from(["RGB", "I;16"]),
)
def test_a_file_with_wrong_bytes_is_a_user_s_error_or_an_image(tmp_path_factory, patch, where, kind, mode):
    path = tmp_path_factory.mktemp("wrong") / "image"
    deep = mode == "I;16" and kind in ("PNG", "TIFF", "PPM", "JPEG2000")
    image = Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000) if deep else noise(9, 7)
    image.save(path, kind)
    content = bytearray(path.read_bytes())
    start = int(where * (len(content) - 1))
    content[start : start + len(patch)] = patch
    path.write_bytes(content)
    for reader in READERS.values():
        try:
            reader(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  (either outcome is right)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (77, 9), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour, expected):
    path = tmp_path / "image.tif"
    Image.new(mode, (4, 3), colour).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (4, 3)
    assert image.getpixel((1, 1)) == expected


def test_a_palette_becomes_rgb(tmp_path):
    Image.new("RGB", (4, 3), (10, 20, 30)).quantize(4).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").getpixel((1, 1)) == (10, 20, 30)


def tiff(bits, content, width, *, sample_format=1, photometric=1, end="<"):
    """Return an uncompressed grey TIFF of one row."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(content)), (339, sample_format)]
    entries = b"".join(struct.pack(f"{end}HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = (b"II" if end == "<" else b"MM") + struct.pack(f"{end}HI", 42, 8 + len(content))
    return head + content + struct.pack(f"{end}H", len(tags)) + entries + bytes(4)


LEVELS = np.array([0, 255, 32768, 65535], np.uint16)  # 0, 1, 128 and 255 in 8 bits
DEEP = {
    "16.tif": tiff(16, LEVELS.tobytes(), 4),
    "16 big-endian.tif": tiff(16, LEVELS.astype(">u2").tobytes(), 4, end=">"),
    "12.tif": tiff(12, bytes([0x00, 0x00, 0x10, 0x80, 0x0F, 0xFF]), 4),  # 0, 16, 2048, 4095
    "16.pgm": b"P5 4 1 65535\n" + LEVELS.astype(">u2").tobytes(),
    "12.pgm": b"P5 4 1 4095\n" + np.array([0, 16, 2048, 4095], ">u2").tobytes(),
    "16 plain.pgm": b"P2 4 1 65535\n0 255 32768 65535\n",
}


@pytest.mark.parametrize("name", [*DEEP, "16.png", "16.jp2"])
def test_levels_of_more_than_8_bits_are_scaled(tmp_path, name):
    path = tmp_path / name
    if name in DEEP:
        path.write_bytes(DEEP[name])
    else:
        Image.fromarray(LEVELS[None]).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_16_bits_are_scaled_back_to_the_8_bits_that_they_were(tmp_path):
    grey = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(grey).save(tmp_path / "8.png")
    assert read_image(tmp_path / "16.png").tobytes() == read_image(tmp_path / "8.png").tobytes()


def test_where_white_is_0_levels_are_turned_round_in_16_bits_as_in_8(tmp_path):
    (tmp_path / "8.tif").write_bytes(tiff(8, bytes([0, 1, 128, 255]), 4, photometric=0))
    (tmp_path / "16.tif").write_bytes(tiff(16, LEVELS.tobytes(), 4, photometric=0))
    for name in ("8.tif", "16.tif"):
        assert np.asarray(read_image(tmp_path / name))[0, :, 0].tolist() == [255, 254, 127, 0]


@pytest.mark.parametrize(
    "content",
    [
        tiff(32, np.arange(4, dtype=np.uint32).tobytes(), 4),
        tiff(32, np.linspace(0, 1, 4, dtype=np.float32).tobytes(), 4, sample_format=3),
        tiff(16, np.array([-5, 0, 5, 9], np.int16).tobytes(), 4, sample_format=2),
    ],
    ids=["integers", "floats", "signed"],
)
def test_numbers_without_a_range_of_levels_are_refused(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    for reader in (read_image, decoded_size):  # also where a data set is checked before training
        with pytest.raises(UserError, match=r"a\.tif holds numbers of 32 bits or with signs .* to 8 or 16 bits$"):
            reader(tmp_path / "a.tif")


READERS = {
    "image": read_image,
    "map": lambda path: read_class_map(path, (3, 4), 9),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_image_beyond_pillow_s_limit_is_one_line(tmp_path, monkeypatch, reader):
    path = tmp_path / "a.png"
    noise(4, 3).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    line = str(caught.value)
    assert "a.png is too large (Image size (12 pixels) exceeds limit of 10 pixels" in line
    assert "; make it smaller, or restore" in line
    assert line.count(str(path)) == len(line.splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "error", [KeyError("x"), struct.error("short"), MemoryError(), EOFError(), zlib.error("bad")], ids=repr
)
def test_whatever_pillow_raises_is_one_line(tmp_path, monkeypatch, reader, error):
    path = tmp_path / "a.png"
    noise(4, 3).save(path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"^(image|class map) \S+a\.png is truncated or corrupt \(.+\); restore"):
        READERS[reader](path)


@pytest.mark.parametrize("change", ["image", "label", "name", "new", "gone", "set"])
def test_the_fingerprint_changes_with(folder, change):
    before = read(folder).fingerprint
    assert read(folder).fingerprint == before
    if change == "image":
        noise(30, 30).save(folder / "cat" / "a.png")
    elif change == "label":
        (folder / "cat" / "a.png").rename(folder / "dog" / "a.png")
    elif change == "name":
        (folder / "cat" / "a.png").rename(folder / "cat" / "b.png")
    elif change == "new":
        noise(5, 5).save(folder / "cat" / "new.png")
    elif change == "gone":
        (folder / "cat" / "a.png").unlink()
    after = image_folder(folder, name="pets", hint="") if change != "set" else image_folder(folder, name="x", hint="")
    assert after.fingerprint != before


def test_the_fingerprint_changes_with_a_label_alone(folder):
    images = read(folder)
    other = type(images)(images.name, images.root, images.paths, 1 - images.labels, images.classes)
    assert other.fingerprint != images.fingerprint


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(folder, tmp_path_factory):
    before = read(folder).fingerprint
    moved = tmp_path_factory.mktemp("other") / "pets"
    folder.rename(moved)
    assert read(moved).fingerprint == before


def test_the_fingerprint_names_a_file_that_went_away(folder):
    images = read(folder)
    os.unlink(folder / "cat" / "a.png")
    with pytest.raises(UserError, match=f"^image {folder / 'cat' / 'a.png'} is missing"):
        _ = images.fingerprint


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (33, 57), (32, 32)])
def test_the_evaluation_transform_against_pillow(width, height):
    size, resize = 24, 28
    image = noise(width, height)
    scale = resize / min(width, height)
    new = (int(scale * width), int(scale * height))
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    small = image.resize(new, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    expected = (np.asarray(small, np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    result = evaluation_transform(size, resize=resize)(image)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.from_numpy(expected.transpose(2, 0, 1)))


def test_without_resize_the_image_keeps_its_scale():
    image = noise(40, 30)
    expected = (np.asarray(image.crop((8, 3, 32, 27)), np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    result = evaluation_transform(24)(image)
    np.testing.assert_allclose(result.numpy(), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


def test_transformed_gives_each_image_with_its_index(folder):
    data = Transformed(read(folder), lambda image: image.size)
    assert [data[k] for k in range(len(data))] == [((10, 8), 0), ((9, 8), 1), ((8, 8), 2), ((11, 8), 3)]


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_rotation_that_exif_asks_for_is_ignored(tmp_path, orientation):
    """As torchvision's loader does: the pixels are those in the file."""
    image, tags = noise(7, 5), Image.Exif()
    tags[0x0112] = orientation
    image.save(tmp_path / "image.png", exif=tags)
    assert Image.open(tmp_path / "image.png").getexif()[0x0112] == orientation
    assert read_image(tmp_path / "image.png").tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_class_map_is_read_as_it_is_stored(tmp_path, mode):
    labels = np.random.default_rng(0).integers(0, 151, (5, 7), dtype=np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([k % 256 for k in range(768)])
    picture.save(tmp_path / "map.png")
    np.testing.assert_array_equal(read_class_map(tmp_path / "map.png", (5, 7), 150), labels)


def test_a_class_map_that_is_a_jpeg_by_its_contents_is_refused(tmp_path):
    Image.fromarray(np.full((2, 3), 5, np.uint8)).save(tmp_path / "map.png", "JPEG")
    with pytest.raises(UserError, match=r"map\.png is a JPEG, whose compression changes labels; restore the data set$"):
        read_class_map(tmp_path / "map.png", (2, 3), 9)


def test_a_class_map_that_is_missing_or_of_another_range(tmp_path):
    path = tmp_path / "map.png"
    with pytest.raises(UserError, match=r"^class map .*map\.png is missing; restore the data set$"):
        read_class_map(path, (2, 3), 9)
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(path)
    assert read_class_map(path, (2, 3), 9).max() == 9
    with pytest.raises(UserError, match=r"map\.png has label 9, beyond 8; predict again$"):
        read_class_map(path, (2, 3), 8, remedy="predict again")
    with pytest.raises(UserError, match=r"map\.png is \(2, 3\), but its image is \(3, 2\) pixels"):
        read_class_map(path, (3, 2), 9)
