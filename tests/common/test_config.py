"""Config files: mistakes named in one line, overrides, the hash of the settings."""

import argparse
from pathlib import Path

import pytest
from mmengine.registry import MODELS

from common import config as config_module
from common.cli import Parser, add_config_arguments
from common.config import config_sha256, load_config, mistake_in
from common.errors import UserError

TEXT = """
arch = "resnet18"
model = dict(type="Tiny", width=4, root="{{$GSG_DATA:data}}/digits")
train_cfg = dict(by_epoch=True, max_epochs=3)
"""


@pytest.fixture
def write(tmp_path):
    def write(text=TEXT, name="tiny.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        load_config(path, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_missing_config_lists_the_known_ones(write, tmp_path):
    write(name="b.py")
    write(name="a.py")
    path = tmp_path / "c.py"
    assert refusal(path) == f"config {path} does not exist; {tmp_path} holds: a, b"
    path = tmp_path / "nowhere" / "c.py"
    assert refusal(path) == f"config {path} does not exist; {path.parent} holds: none"


@pytest.mark.parametrize(("key", "hint"), [("train_cgf", "did you mean 'train_cfg'?"), ("qqqq", "remove it")])
def test_a_misspelt_key_is_named(write, key, hint):
    assert refusal(write(f"{TEXT}{key} = 1\n")) == f"config tiny.py: nothing reads the key '{key}'; {hint}"
    assert refusal(write(), options={f"{key}.x": 1}) == f"config tiny.py: nothing reads the key '{key}'; {hint}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arch = dict(", "SyntaxError"),
        ("arch = 'a'\n  model = 1", "unexpected indent"),
        ("arch = unknown", "NameError: name 'unknown' is not defined"),
        ("arch = 1 / 0", "ZeroDivisionError"),
        ("_base_ = './gone.py'", "gone.py"),
    ],
)
def test_a_config_that_does_not_run_is_one_line_with_its_name(write, text, says):
    path = write(text)
    line = refusal(path)
    assert line.startswith(f"config {path}: ")
    assert says in line


def test_options_override_nested_entries(write):
    config = load_config(write(), options={"train_cfg.max_epochs": 7, "model.width": 8})
    assert config.train_cfg == {"by_epoch": True, "max_epochs": 7}
    assert config.model.width == 8


def test_the_data_root_is_filled_in_without_a_word(write, capfd):
    assert load_config(write(), data=Path("/some/where")).model.root == "/some/where/digits"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", ["/elsewhere", "a", ".", "r", "other/data"])
def test_the_hash_does_not_depend_on_the_data_root(write, data):
    path = write()
    hashes = {config_sha256(load_config(path), data=Path(d)) for d in ("data", data)}
    assert len(hashes) == 1


@pytest.mark.parametrize("options", [{"model.width": 5}, {"model.root": "data/scenes"}, {"train_cfg.new": None}])
def test_the_hash_depends_on_the_settings(write, options):
    path, data = write(), Path("data")
    before = config_sha256(load_config(path), data=data)
    assert config_sha256(load_config(path), data=data) == before
    assert config_sha256(load_config(path, options=options), data=data) != before


@pytest.mark.parametrize(
    ("config", "key", "value", "wanted"),
    [
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", 0, "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", float("nan"), "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", True, "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.k", 0, "a whole number from 1 on"),
        ("pretrain/configs/demo/knn.py", "evaluation.k", 2.5, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "custom_hooks.0.evaluation.temperature", -1, "a number above 0"),
        ("pretrain/configs/demo/simsiam.py", "train_cfg.max_epochs", 0, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_cfg.max_epochs", "abc", "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_dataloader.batch_size", None, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_dataloader.num_workers", -1, "a whole number from 0 on"),
        ("pretrain/configs/demo/simsiam.py", "optim_wrapper.optimizer.lr", -1, "a number from 0 on"),
        ("pretrain/configs/demo/simsiam.py", "optim_wrapper.optimizer.lr", float("inf"), "a number from 0 on"),
        ("pretrain/configs/demo/simsiam.py", "optim_wrapper.clip_grad.max_norm", 0, "a number above 0"),
        ("pretrain/configs/demo/byol.py", "model.momentum", 1.1, "a number from 0 to 1"),
        ("detection/configs/demo/voc.py", "train_cfg.max_iters", 0, "a whole number from 1 on"),
        ("segmentation/configs/demo/ade20k.py", "optim_wrapper.optimizer.weight_decay", -1e-4, "a number from 0 on"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(config, key, value, wanted):
    path = Path(config_module.__file__).parents[1] / config
    assert load_config(path)
    with pytest.raises(UserError) as caught:
        load_config(path, options={key: value})
    assert str(caught.value) == f"config {path.name}: {key} is {value!r}; choose {wanted}"


def arguments(*words):
    parser = Parser("test")
    add_config_arguments(parser)
    return parser.parse_args(words)


def test_the_arguments_of_trainers():
    assert arguments() == argparse.Namespace(cfg_options={}, resume=False, overwrite=False, launcher="none")
    given = arguments("--cfg-options", "a.b=1", "c=[x,2]", "d=text", "--resume", "--overwrite", "--launcher", "slurm")
    assert given == argparse.Namespace(
        cfg_options={"a.b": 1, "c": ["x", 2], "d": "text"}, resume=True, overwrite=True, launcher="slurm"
    )
    assert arguments().cfg_options == {}  # one command's options do not reach the next


@pytest.mark.parametrize("word", ["novalue", "a=[1,2"])
def test_an_option_without_a_value_is_one_line(word):
    with pytest.raises(UserError) as caught:
        arguments("--cfg-options", word)
    assert len(str(caught.value).splitlines()) == 1
    assert "KEY=VALUE" in str(caught.value)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (dict(type="Linearr"), "Linearr is not in the"),
        (dict(type="BaseDataPreprocessor", non_blocing=True), "no option 'non_blocing'; correct its name"),
    ],
)
def test_a_mistake_in_an_entry_is_named(entry, says):
    import mmengine.model  # noqa: F401  (registers what is built below)

    with pytest.raises((KeyError, TypeError)) as caught:
        MODELS.build(entry)
    line = mistake_in(caught.value)
    assert line.startswith("config: ")
    assert says in line
    assert len(line.splitlines()) == 1


def test_an_operation_without_a_deterministic_form_is_named():
    error = RuntimeError(
        "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
    )
    assert mistake_in(error) == (
        "--deterministic: torch's adaptive_avg_pool2d_backward_cuda has no deterministic form on this device; "
        "leave the option out"
    )


@pytest.mark.parametrize("error", [TypeError("unsupported operand"), KeyError("loss"), ValueError("x"), KeyError("")])
def test_errors_of_ours_are_not_taken_for_the_user_s(error):
    assert mistake_in(error) is None
