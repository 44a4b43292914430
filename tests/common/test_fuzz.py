"""Damaged files in every reader: they are read or refused in one line, in bounded time and memory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.backbones import shapes_of
from common.checkpoint import META_KEYS, load_checkpoint
from common.images import read_class_map, read_image
from common.preflight import decoded_size, read_json, read_list
from common.records import read_record
from common.sources import SOURCES, read_splits
from tests.common.test_records import VALID
from tests.fuzzing import fuzz
from tests.layouts import WRITERS
from transfer.datasets import read_split

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "WEBP", "JPEG2000")
TEXTS = {
    "list": (read_list, "".join(f"{k:06d}\n" for k in range(5))),
    "annotation": (read_json, json.dumps({"images": [{"id": 1}], "categories": [], "annotations": []})),
    "record": (read_record, json.dumps(VALID)),
    "split": (read_split, json.dumps({"train": ["a/1.jpg", "b/2.jpg"], "test": ["a/3.jpg"]})),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", FORMATS)
def test_images(kind, tmp_path):
    path = tmp_path / "image"
    Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).save(path, kind)
    fuzz(path, lambda: read_image(path, upright=True), 60)
    fuzz(path, lambda: decoded_size(path, upright=True), 20)
    fuzz(path, lambda: read_class_map(path, (7, 9), 62), 20)


@pytest.mark.parametrize("kind", TEXTS)
def test_texts(kind, tmp_path):
    read, text = TEXTS[kind]
    path = tmp_path / "file"
    path.write_text(text)
    fuzz(path, lambda: read(path), 200)


@pytest.mark.parametrize("name", WRITERS)
def test_the_official_files_of_a_data_set(name, tiny, tmp_path):
    tiny(name)

    def read():
        for images in read_splits(name, tmp_path).values():
            assert images.labels.min() >= 0
            assert name == "voc2007" or images.labels.max() < len(images.classes)
            _ = images.fingerprint

    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.suffix != ".jpg"]
    for path in files[:6]:
        # A process of its own reads each .mat file.
        fuzz(path, read, 3 if path.suffix == ".mat" else 25, named=tmp_path / SOURCES[name].folder)


@pytest.mark.filterwarnings("ignore")  # of torch, on what it meets in a pickle
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_checkpoints(form, tmp_path):
    tensors = {key: torch.zeros([1] * len(shape)).expand(shape) for key, shape in shapes_of("resnet18").items()}
    content = {"state_dict": tensors, "meta": dict.fromkeys(META_KEYS, "") | {"arch": "resnet18"}}
    path = tmp_path / "file"
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    fuzz(path, lambda: load_checkpoint(path), 60)
