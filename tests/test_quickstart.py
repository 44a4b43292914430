"""docs/quickstart.py, as a user calls it."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.backbones import build_backbone
from tests.pretrain.tiny import write_images

SCRIPT = Path(__file__).parents[1] / "docs" / "quickstart.py"


def test_from_a_checkpoint_to_a_picture(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    torch.save(build_backbone("resnet18").state_dict(), "theirs.pth")
    write_images(tmp_path)  # one class is brighter by 100 levels, which random features tell apart
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "theirs.pth", "train", "--size", "32"])
    for _ in range(2):  # the second time from the cached features
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert "features: 12 images, 512 numbers each" in said
        assert "the 11 nearest of the others name the class of 100.0 % of 12 images" in said
    assert Image.open("quickstart/neighbours.png").width > 500
    assert len(list(Path("quickstart").glob("train-*.npy"))) == 1
