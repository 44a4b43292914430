"""The demo's data: the same bytes for the same seed, official layouts, no test digit in training."""

import hashlib
import os
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from common import embedded
from common.embedded import CLASSES, SCENE_SIZE, digit_split, digits, ensure_embedded, generate, make_scene
from common.errors import UserError

COUNTS = {"train": 6, "val": 3, "test": 5}
VOC = "VOCdevkit/VOC2007"


def tree(root):
    """Return path -> hash of every file."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def scenes(seed=0):
    rng = np.random.default_rng(seed)
    return {split: [make_scene(rng, split) for _ in range(count)] for split, count in COUNTS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return the demo's data of a few scenes, which no test may change."""
    folder = tmp_path_factory.mktemp("embedded")
    generate(folder, 0, COUNTS)
    return folder


@pytest.fixture
def few(monkeypatch):
    """Let ensure_embedded write a few scenes and no digits, and return the seeds it was called with."""
    seeds = []

    def fake(folder, seed=0, scenes=None):
        seeds.append(seed)
        embedded._write_ade20k(folder / "ade", {"train": [make_scene(np.random.default_rng(seed), "train")]})

    monkeypatch.setattr(embedded, "generate", fake)
    return seeds


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    generate(tmp_path, 0, COUNTS)
    assert tree(tmp_path) == tree(root)


def test_another_seed_gives_other_scenes(root, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_write_digits", lambda folder: None)  # they do not depend on the seed
    generate(tmp_path, 1, COUNTS)
    one, other = tree(root), tree(tmp_path)
    one = {name: digest for name, digest in one.items() if not name.startswith("digits")}
    assert set(one) == set(other)
    pictures = [name for name in one if name.endswith(".jpg")]
    assert pictures
    assert not [name for name in pictures if one[name] == other[name]]


def test_the_digits_are_split_without_overlap(root):
    train, test = digit_split()
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train, *test]) == list(range(1797))
    for split, indices in (("train", train), ("test", test)):
        files = list((root / "digits" / split).glob("*/*.png"))
        assert sorted(int(f.stem) for f in files) == list(indices)


def test_a_digit_s_file_holds_that_digit(root):
    pixels, labels = embedded._digits()
    for path in sorted((root / "digits").glob("*/*/*.png"))[::97]:
        index = int(path.stem)
        assert path.parent.name == CLASSES[labels[index]]
        image = Image.open(path)
        assert (image.mode, image.size) == ("RGB", (32, 32))
        small = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float) / 255
        assert np.corrcoef(small.ravel(), pixels[index].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_scenes_hold_digits_of_their_own_split_only(monkeypatch, split):
    used, alpha = [], embedded._alpha
    monkeypatch.setattr(embedded, "_alpha", lambda pixels, side: used.append(pixels) or alpha(pixels, side))
    rng = np.random.default_rng(0)
    for _ in range(30):
        make_scene(rng, split)
    pixels, _ = embedded._digits()
    allowed = {pixels[k].tobytes() for k in digit_split()[split == "test"]}
    forbidden = {pixels[k].tobytes() for k in digit_split()[split != "test"]}
    assert len(used) > 40
    assert {p.tobytes() for p in used} <= allowed
    assert not {p.tobytes() for p in used} & forbidden


def test_a_scene_s_boxes_are_tight_around_its_class_map():
    for scene in (s for members in scenes(3).values() for s in members):
        assert scene.image.shape == (SCENE_SIZE, SCENE_SIZE, 3)
        assert scene.image.dtype == scene.classes.dtype == np.uint8
        assert 1 <= len(scene.digits) <= 4
        rest = scene.classes.copy()
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            inside = scene.classes[y0:y1, x0:x1] == 1 + digit.label
            assert inside.any(0)[[0, -1]].all()
            assert inside.any(1)[[0, -1]].all()
            rest[y0:y1, x0:x1] = 0
        assert not rest.any()


def test_voc_boxes_count_from_one_and_include_both_ends(root):
    made = [s for members in scenes().values() for s in members]
    files = sorted((root / VOC / "Annotations").glob("*.xml"))
    assert [f.stem for f in files] == [f"{k:06d}" for k in range(1, len(made) + 1)]
    for scene, path in zip(made, files, strict=True):
        objects = ElementTree.parse(path).getroot().findall("object")
        assert [o.findtext("name") for o in objects] == [CLASSES[d.label] for d in scene.digits]
        assert [o.findtext("difficult") for o in objects] == [str(int(d.difficult)) for d in scene.digits]
        for element in objects:
            xmin, ymin, xmax, ymax = (int(element.findtext(f"bndbox/{t}")) for t in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= xmin < xmax <= SCENE_SIZE
            assert 1 <= ymin < ymax <= SCENE_SIZE
            # In the class map, which counts from 0, the digit touches all four sides and nothing lies just outside.
            label = 1 + CLASSES.index(element.findtext("name"))
            rows, columns = np.nonzero(scene.classes[ymin - 1 : ymax, xmin - 1 : xmax] == label)
            assert (rows.min(), rows.max()) == (0, ymax - ymin)
            assert (columns.min(), columns.max()) == (0, xmax - xmin)
        picture = np.asarray(Image.open(root / VOC / "JPEGImages" / f"{path.stem}.jpg"), float)
        assert np.abs(picture - scene.image).mean() < 12


def test_voc_splits(root):
    main = root / VOC / "ImageSets" / "Main"
    names = {split: (main / f"{split}.txt").read_text().split() for split in ("train", "val", "trainval", "test")}
    assert {split: len(members) for split, members in names.items()} == COUNTS | {"trainval": 9}
    assert names["trainval"] == names["train"] + names["val"]
    assert not set(names["trainval"]) & set(names["test"])


def test_voc_class_files_say_present_absent_or_only_difficult(root):
    main = root / VOC / "ImageSets" / "Main"
    for split in ("train", "val", "trainval", "test"):
        for word in CLASSES:
            for line in (main / f"{word}_{split}.txt").read_text().splitlines():
                name, value = line.split()
                objects = ElementTree.parse(root / VOC / "Annotations" / f"{name}.xml").getroot().findall("object")
                hard = [o.findtext("difficult") == "1" for o in objects if o.findtext("name") == word]
                assert int(value) == (-1 if not hard else 0 if all(hard) else 1)
            assert (main / f"{word}_{split}.txt").read_text().split()[::2] == (
                main / f"{split}.txt"
            ).read_text().split()


@pytest.mark.parametrize(
    ("difficult", "value"), [([], -1), ([True], 0), ([True, True], 0), ([True, False], 1), ([False], 1)], ids=str
)
def test_presence(difficult, value):
    empty = np.zeros((2, 2), np.uint8)
    others = [embedded.Digit(3, (0, 0, 1, 1), False)]
    scene = embedded.Scene(empty, empty, others + [embedded.Digit(7, (0, 0, 1, 1), hard) for hard in difficult])
    assert embedded._presence(scene, 7) == value


def test_small_digits_are_difficult():
    made = [d for members in scenes(5).values() for s in members for d in s.digits]
    longest = [(max(d.box[2] - d.box[0], d.box[3] - d.box[1]), d.difficult) for d in made]
    assert all(not difficult for side, difficult in longest if side >= embedded.DIFFICULT_BELOW)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("split", "members"), [("train", ["train", "val"]), ("val", ["test"])])
def test_coco_through_its_own_reader(root, capsys, split, members):
    coco = COCO(str(root / "coco" / "annotations" / f"instances_{split}2017.json"))
    made = [s for name in members for s in scenes()[name]]
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    images = coco.loadImgs(sorted(coco.getImgIds()))
    assert len(images) == len(made)
    for image, scene in zip(images, made, strict=True):
        with Image.open(root / "coco" / f"{split}2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (SCENE_SIZE, SCENE_SIZE)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(scene.digits)
        for annotation, digit in zip(annotations, scene.digits, strict=True):
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == digit.box
            assert coco.loadCats(annotation["category_id"])[0]["name"] == CLASSES[digit.label]
            box = coco.annToMask(annotation).astype(bool)
            assert box.sum() == width * height
            assert annotation["area"] == (scene.classes[box] == 1 + digit.label).sum() > 0


def test_ade20k_labels(root):
    folder = root / "ADEChallengeData2016"
    for split, members in (("training", ["train", "val"]), ("validation", ["test"])):
        made = [s for name in members for s in scenes()[name]]
        labels = sorted((folder / "annotations" / split).iterdir())
        pictures = sorted((folder / "images" / split).iterdir())
        assert [p.stem for p in labels] == [p.stem for p in pictures]
        assert len(labels) == len(made)
        for path, scene in zip(labels, made, strict=True):
            image = Image.open(path)
            assert image.mode == "L"
            class_map = np.asarray(image)
            assert class_map.min() == 1  # 0 would be unlabelled; 1 is the background
            assert class_map.max() <= 11
            assert set(np.unique(class_map)) == {1, *(2 + d.label for d in scene.digits)}
            np.testing.assert_array_equal(class_map, scene.classes + 1)


def test_data_that_is_there_is_left_alone(tmp_path, few):
    root = ensure_embedded(tmp_path / "data")
    assert root == tmp_path / "data" / "demo"
    before = {p: p.stat().st_mtime_ns for p in [root, *root.rglob("*")]}
    assert ensure_embedded(tmp_path / "data") == root
    assert {p: p.stat().st_mtime_ns for p in [root, *root.rglob("*")]} == before
    assert few == [0]


def test_another_seed_or_version_is_written_anew(tmp_path, few, monkeypatch):
    root = ensure_embedded(tmp_path)
    (root / "stale").touch()
    ensure_embedded(tmp_path, seed=1)
    assert not (root / "stale").exists()
    monkeypatch.setattr(embedded, "VERSION", embedded.VERSION + 1)
    ensure_embedded(tmp_path, seed=1)
    assert few == [0, 1, 1]
    assert os.listdir(tmp_path) == ["demo"]


@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_generation_leaves_what_was_there(tmp_path, few, monkeypatch, there):
    if there:
        ensure_embedded(tmp_path, seed=1)
    before = tree(tmp_path)

    def stopped(folder, seed=0, scenes=None):
        folder.mkdir(parents=True)
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        ensure_embedded(tmp_path)
    assert tree(tmp_path) == before
    assert os.listdir(tmp_path) == (["demo"] if there else [])


@pytest.mark.parametrize("when", ["while we write", "just before we move"])
def test_two_processes_at_the_same_time_agree(tmp_path, few, monkeypatch, when):
    """The folder of the faster one stays, as its files may already be open."""

    def theirs():
        ensure_embedded(tmp_path)
        return (tmp_path / "demo").stat().st_ino

    inodes, ours = [], embedded.generate
    if when == "while we write":

        def slow(folder, seed=0, scenes=None):
            ours(folder, seed)
            monkeypatch.setattr(embedded, "generate", ours)
            inodes.append(theirs())

        monkeypatch.setattr(embedded, "generate", slow)
    else:
        rename = embedded.Path.rename

        def late(path, target):
            if path.parent.name.startswith(".demo."):
                monkeypatch.setattr(embedded.Path, "rename", rename)
                inodes.append(theirs())
            return rename(path, target)

        monkeypatch.setattr(embedded.Path, "rename", late)
    root = ensure_embedded(tmp_path)
    assert inodes == [root.stat().st_ino]
    assert os.listdir(tmp_path) == ["demo"]


def test_the_readers_of_digits(root, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "ensure_embedded", lambda data: root)
    for split, count in (("train", 1437), ("test", 360)):
        images = digits(tmp_path, split)
        assert images.name == f"digits-{split}"
        assert len(images.labels) == count
        assert set(images.classes) == set(CLASSES)
        assert images.image(0).size == (32, 32)
    with pytest.raises(UserError, match=f"delete {tmp_path}/demo and run the command again"):
        digits(tmp_path, "validation")
