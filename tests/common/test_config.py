"""Config files: mistakes named in one line, overrides, the hash of the settings."""

import argparse
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.utils.data import DataLoader

from common import config as config_module
from common.cli import Parser, add_config_arguments
from common.config import config_sha256, join_data, keeping, load_config, mistake_in
from common.errors import UserError
from common.keys import check_keys

TEXT = """
evaluation = "all"
model = dict(type="Tiny", width=4, root="digits")
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
        ("evaluation = dict(", "SyntaxError"),
        ("evaluation = 'a'\n  model = 1", "unexpected indent"),
        ("evaluation = unknown", "NameError: name 'unknown' is not defined"),
        ("evaluation = 1 / 0", "ZeroDivisionError"),
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


def test_the_data_root_is_joined_to_relative_paths_alone():
    config = Config(
        dict(
            evaluation=dict(images=dict(name="digits", root=".")),
            train_dataloader=dict(dataset=dict(datasets=[dict(data_root="voc", ann_file="a.txt")])),
            test_dataloader=dict(dataset=dict(data_root="/elsewhere", ann_file="b.txt")),
            test_evaluator=dict(ann_file="coco/b.json"),
        )
    )
    before = config.to_dict()
    joined = join_data(config, Path("sets"))
    assert config.to_dict() == before
    assert joined.evaluation.images == {"name": "digits", "root": "sets"}
    assert joined.train_dataloader.dataset.datasets == [{"data_root": "sets/voc", "ann_file": "a.txt"}]
    assert joined.test_dataloader.dataset == {"data_root": "/elsewhere", "ann_file": "b.txt"}
    assert joined.test_evaluator.ann_file == "sets/coco/b.json"


@pytest.mark.parametrize("options", [{"model.width": 5}, {"model.root": "scenes"}, {"train_cfg.max_epochs": 4}])
def test_the_hash_depends_on_the_settings(write, options):
    path = write()
    before = config_sha256(load_config(path))
    assert config_sha256(load_config(path)) == before
    assert config_sha256(load_config(path, options=options)) != before


def test_what_only_the_files_share_is_not_a_part_of_the_settings(write):
    plain, shared = write(), write(f"data_root = 'digits'\n{TEXT}".replace('"digits"', "data_root"), name="shared.py")
    assert config_sha256(load_config(plain)) == config_sha256(load_config(shared))
    assert "no effect" in refusal(shared, options={"data_root": "elsewhere"})


def test_registering_waits_for_an_option_that_needs_it(write):
    """Nothing is imported for a key that the file has, nor for one in an entry without a type."""
    asked = []

    def register():
        asked.append("Tiny")
        return {"Tiny": lambda width, root, depth=1: None}

    load_config(write(), options={"model.width": 5, "randomness.deterministic": True}, register=register)
    assert asked == []
    assert load_config(write(), options={"model.depth": 2}, register=register).model.depth == 2
    with pytest.raises(UserError, match=r"did you mean 'model\.depth'"):
        load_config(write(), options={"model.dept": 2}, register=register)
    assert asked == ["Tiny"] * 2


def test_a_mistake_in_a_file_is_found_by_the_whole_check(write):
    config = load_config(write(TEXT.replace("width=4", "widht=4")))
    with pytest.raises(UserError, match=r"the key 'model\.widht'; did you mean 'model\.width'"):
        check_keys(config, name="tiny.py", register=lambda: {"Tiny": lambda width, root: None})


@pytest.mark.parametrize(
    ("config", "key", "value", "wanted"),
    [
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", 0, "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", float("nan"), "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.temperature", True, "a number above 0"),
        ("pretrain/configs/demo/knn.py", "evaluation.k", 0, "a whole number from 1 on"),
        ("pretrain/configs/demo/knn.py", "evaluation.k", 2.5, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "evaluation.temperature", -1, "a number above 0"),
        ("pretrain/configs/demo/simsiam.py", "train_cfg.max_epochs", 0, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_cfg.max_epochs", "abc", "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_dataloader.batch_size", None, "a whole number from 1 on"),
        ("pretrain/configs/demo/simsiam.py", "train_dataloader.num_workers", -1, "a whole number from 0 on"),
        ("pretrain/configs/demo/simsiam.py", "optim_wrapper.optimizer.lr", -1, "a number from 0 to 1e38"),
        ("pretrain/configs/demo/simsiam.py", "optim_wrapper.optimizer.lr", 1e39, "a number from 0 to 1e38"),
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
    unset = {"resume": False, "overwrite": False, "launcher": "none", "logger": None}
    assert arguments() == argparse.Namespace(cfg_options={}, **unset)
    given = arguments("--cfg-options", "a.b=1", "c=[x,2]", "d=text", "--resume", "--overwrite", "--launcher", "slurm")
    assert given == argparse.Namespace(
        cfg_options={"a.b": 1, "c": ["x", 2], "d": "text"}, resume=True, overwrite=True, launcher="slurm", logger=None
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


def test_a_mistake_of_a_loader_is_named():
    with pytest.raises(ValueError, match="prefetch_factor") as caught:
        DataLoader([1], prefetch_factor=3)
    assert mistake_in(caught.value).startswith("config: prefetch_factor option could only be specified in")


def test_an_option_that_a_folder_of_the_user_s_overwrites_is_refused():
    config = Config(dict(a=dict(b=[1, dict(c=2)], d=3)))
    with keeping(["a.d", "a.b.0"], config):
        config.a.b = [1]
    config = Config(dict(a=dict(b=[1, dict(c=2)], d=3)))
    with (
        pytest.raises(UserError, match=r"^config: the option a.b.1.c has no effect: DATA_ROOT \(--data-root\) sets it"),
        keeping(["a.d", "a.b.1.c"], config),
    ):
        config.a.b = []
