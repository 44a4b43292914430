from pathlib import Path

import pytest
from mmengine.config import Config

from common.config import load_config
from common.engine.batch import plan_batch
from common.errors import UserError
from common.mmlab.finetune import fit_to_arch
from common.mmlab.jobs import named


@pytest.mark.parametrize("part", ["neck", "decode_head"])
@pytest.mark.parametrize(
    ("arch", "depth", "channels"),
    [("resnet18", 18, [64, 128, 256, 512]), ("resnet50", 50, [256, 512, 1024, 2048])],
)
def test_depth_and_channels_follow_the_checkpoint(part: str, arch: str, depth: int, channels: list[int]) -> None:
    config = Config({"model": {"backbone": {"depth": 101}, part: {"in_channels": [1, 2, 3, 4], "keep": 1}}})
    fit_to_arch(config, arch)
    assert config.model.backbone.depth == depth
    assert config.model[part] == {"in_channels": channels, "keep": 1}


@pytest.mark.parametrize(
    ("path", "each"), [("detection/configs/imagenet/coco.py", 2), ("segmentation/configs/imagenet/ade20k.py", 1)]
)
def test_each_process_has_four_workers(path: str, each: int) -> None:
    config = load_config(Path(path), options={"train_dataloader.batch_size": 8 * each})
    plan_batch(config, 8, 8, workers_per_process=True).apply(config)
    loaders = config.train_dataloader, config.test_dataloader
    assert [loader.num_workers for loader in loaders] == [4, 4]
    assert all(loader.pin_memory for loader in loaders)
    assert config.train_dataloader.batch_size == each
    assert config.train_dataloader.persistent_workers


@pytest.mark.parametrize("path", ["detection/configs/demo/voc.py", "segmentation/configs/demo/ade20k.py"])
def test_the_demo_needs_no_workers(path: str) -> None:
    config = load_config(Path(path))
    plan_batch(config, 1, 1, workers_per_process=True).apply(config)
    assert config.train_dataloader.num_workers == 0
    assert not config.train_dataloader.persistent_workers  # torch refuses them


@pytest.mark.parametrize("arch", ["resnet18_cifar", "vgg16"])
def test_other_architectures_are_refused(arch: str) -> None:
    with pytest.raises(UserError, match=f"{arch} cannot serve a dense task"):
        fit_to_arch(Config({"model": {}}), arch)


@pytest.mark.parametrize(
    ("path", "data", "name"),
    [
        ("data/voc/1.jpg", "data", "voc/1.jpg"),
        ("/sets/voc/1.jpg", "/sets", "voc/1.jpg"),
        ("/sets/voc/1.jpg", "/set", "/sets/voc/1.jpg"),
        ("../voc/1.jpg", "data", f"{Path.cwd()}/../voc/1.jpg"),
    ],
)
def test_files_are_named_from_the_data_root_or_by_their_whole_path(path, data, name):
    assert named(path, Path(data)) == name
