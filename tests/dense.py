"""What the tests of detection and segmentation share: a few scenes, random checkpoints, command lines."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from common import embedded
from common.backbones import build_backbone
from common.checkpoint import META_KEYS, save_checkpoint

SCENES = {"train": 4, "val": 2, "test": 4}


@dataclass(frozen=True)
class Place:
    """Folders of one test's runs."""

    data: Path
    root: Path

    def checkpoint(self, arch: str) -> Path:
        """Write a random checkpoint and return its path."""
        path = self.root / "checkpoints" / f"{arch}.pth"
        network = build_backbone(arch)
        meta = dict.fromkeys(META_KEYS, "") | {"arch": arch, "name": arch}
        save_checkpoint(path, network.state_dict(), meta)
        return path

    def run(
        self, main: Callable, *arguments: str, arch: str | None = "resnet18", options: tuple[str, ...] = ()
    ) -> Path:
        """Run a command line on the checkpoint of `arch` under the name "tiny"; return the results folder."""
        argv = [f"--{kind}={self.root / kind}" for kind in ("checkpoints", "results", "runs")]
        argv += [f"--data={self.data}", *arguments]
        if arch is not None:
            argv += [f"--checkpoint={self.checkpoint(arch)}", "--name=tiny"]
        main([*argv, *(["--cfg-options", *options] if options else [])])
        return self.root / "results"


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data, with a few scenes only. Read, but do not write."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SCENES", SCENES)
        embedded.ensure_embedded(root)
    return root


@pytest.fixture
def place(tiny_data: Path, tmp_path: Path) -> Place:
    return Place(tiny_data, tmp_path)


@pytest.fixture
def broken(tiny_data: Path, tmp_path: Path) -> Place:
    """A place with a copy of the data that a test may damage."""
    shutil.copytree(tiny_data, tmp_path / "data")
    return Place(tmp_path / "data", tmp_path)
