import pytest
from mmengine.config import Config

from common.cli import UserError
from common.dense import fit_to_arch


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


@pytest.mark.parametrize("arch", ["resnet18_cifar", "vgg16"])
def test_other_architectures_are_refused(arch: str) -> None:
    with pytest.raises(UserError, match=f"{arch} cannot serve a dense task"):
        fit_to_arch(Config({"model": {}}), arch)
