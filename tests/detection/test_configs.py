"""The paper's numbers (D.2) and detectron2's (PROTOCOLS 5), typed here, against what the configs build."""

from functools import cache
from pathlib import Path
from typing import Any

import mmengine.optim  # noqa: F401  (registers the schedulers)
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope

from common.config import load_config
from common.engine.batch import plan_batch
from detection.train import FROZEN, register

CONFIGS = Path("detection/configs")
VOC_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
COCO_SIDES = (640, 672, 704, 736, 768, 800)


def imagenet(dataset: str, **options: Any) -> Config:
    return load_config(CONFIGS / "imagenet" / f"{dataset}.py", options=options)


@cache
def built(dataset: str) -> Any:
    """The detector itself, with its new layers as training starts them."""
    register()
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(imagenet(dataset).model)
        model.init_weights()
    return model


def steps_of(dataset: Config, split: str) -> dict[str, dict[str, Any]]:
    data = dataset[f"{split}_dataloader"].dataset
    first = data.datasets[0] if "datasets" in data else data
    assert all(part.pipeline == first.pipeline for part in data.get("datasets", []))
    return {step.type: step for step in first.pipeline}


# Data and schedule


@pytest.mark.parametrize(
    ("dataset", "batch", "lr", "warm_up", "milestones", "iterations", "sides", "classes"),
    [
        ("voc", 2, 0.0025, 100, [96_000, 128_000], 144_000, VOC_SIDES, 20),
        ("coco", 16, 0.02, 1000, [210_000, 250_000], 270_000, COCO_SIDES, 80),
    ],
)
def test_the_papers_schedule_and_sizes(dataset, batch, lr, warm_up, milestones, iterations, sides, classes) -> None:
    config = imagenet(dataset)
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.optimizer == {"type": "SGD", "lr": lr, "momentum": 0.9, "weight_decay": 1e-4}
    assert "clip_grad" not in config.optim_wrapper
    assert "paramwise_cfg" not in config.optim_wrapper
    assert config.train_cfg.max_iters == iterations
    linear, drops = config.param_scheduler
    assert (linear.type, linear.start_factor, linear.begin, linear.end) == ("LinearLR", 0.001, 0, warm_up)
    assert (drops.type, drops.milestones, drops.gamma) == ("MultiStepLR", milestones, 0.1)
    assert not linear.by_epoch
    assert not drops.by_epoch
    assert config.auto_scale_lr == {"enable": True, "base_batch_size": batch}
    train, test = steps_of(config, "train"), steps_of(config, "test")
    resize = train["RandomChoiceResize"]  # a list to choose from, not a range
    assert resize.scales == [(1333, side) for side in sides]
    assert (resize.keep_ratio, resize.backend) == (True, "pillow")
    assert train["RandomFlip"] == {"type": "RandomFlip", "prob": 0.5}  # horizontal
    assert list(train) == ["LoadImage", "LoadAnnotations", "RandomChoiceResize", "RandomFlip", "PackDetInputs"]
    assert (test["Resize"].scale, test["Resize"].keep_ratio, test["Resize"].backend) == ((1333, 800), True, "pillow")
    assert list(test) == ["LoadImage", "Resize", "LoadAnnotations", "PackDetInputs"]
    assert config.train_dataloader.sampler == {"type": "InfiniteSampler", "shuffle": True}
    assert config.train_dataloader.batch_sampler == {"type": "EndlessBatches", "by_shape": True}
    assert config.model.roi_head.bbox_head.num_classes == classes


def test_voc_is_07_and_12_trainval_to_07_test() -> None:
    config = imagenet("voc")
    parts = config.train_dataloader.dataset.datasets
    assert [part.ann_file for part in parts] == [
        "VOC2007/ImageSets/Main/trainval.txt",
        "VOC2012/ImageSets/Main/trainval.txt",
    ]
    for part in (*parts, config.test_dataloader.dataset):
        assert part.type == "VOC"
        assert part.get("filter_cfg", {"filter_empty_gt": True}) == {"filter_empty_gt": True}
    assert config.test_dataloader.dataset.ann_file == "VOC2007/ImageSets/Main/test.txt"
    assert config.test_evaluator == {"type": "VOCAP"}


def test_coco_is_train2017_to_val2017() -> None:
    config = imagenet("coco")
    train, test = config.train_dataloader.dataset, config.test_dataloader.dataset
    assert (train.type, train.ann_file, train.data_prefix.img) == (
        "COCO",
        "annotations/instances_train2017.json",
        "train2017/",
    )
    assert (test.type, test.ann_file, test.data_prefix.img) == (
        "COCO",
        "annotations/instances_val2017.json",
        "val2017/",
    )
    assert train.filter_cfg == {"filter_empty_gt": True}
    assert config.test_evaluator == {"type": "COCOAP", "ann_file": "coco/annotations/instances_val2017.json"}


@pytest.mark.parametrize(
    ("dataset", "rates"),
    [
        # (iteration, lr): linear warm-up from a thousandth, then divided by ten twice.
        ("voc", {0: 0.0025e-3, 99: 0.0025, 95_999: 0.0025, 96_000: 0.00025, 127_999: 0.00025, 128_000: 0.000025}),
        ("coco", {0: 0.02e-3, 999: 0.02, 209_999: 0.02, 210_000: 0.002, 249_999: 0.002, 250_000: 0.0002}),
    ],
)
def test_learning_rate(dataset: str, rates: dict[int, float]) -> None:
    config = imagenet(dataset)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(settings, default_args={"optimizer": optimizer}) for settings in config.param_scheduler
    ]
    for iteration in range(max(rates) + 1):
        if iteration in rates:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[iteration]), iteration
        optimizer._global_step += 1  # what a step of the optimizer would count
        for scheduler in schedulers:
            scheduler.step()


def test_another_batch_scales_the_rate_and_the_schedule() -> None:
    config = imagenet("coco", **{"train_dataloader.batch_size": 8})
    plan = plan_batch(config, 1, 1)
    assert plan.said == "batch 8, learning rate 0.01 = 0.02 x 8 / 16, 540000 iterations = 270000 x 16 / 8"
    plan.apply(config)
    assert config.train_cfg.max_iters == 540_000
    assert config.param_scheduler[0].end == 2000
    assert config.param_scheduler[0].begin == 0
    assert config.param_scheduler[1].milestones == [420_000, 500_000]
    assert config.optim_wrapper.optimizer.lr == 0.01


def test_iterations_asked_for_stay() -> None:
    config = imagenet("voc", **{"train_dataloader.batch_size": 4, "train_cfg.max_iters": 20})
    plan = plan_batch(config, 1, 1, fixed=True)
    assert plan.said.endswith(", 20 iterations as asked for, schedule x 0.5")
    plan.apply(config)
    assert (config.train_cfg.max_iters, config.param_scheduler[0].end) == (20, 50)


def test_the_papers_batch_changes_nothing() -> None:
    config = imagenet("voc")
    before = config.to_dict()
    plan = plan_batch(config, 1, 1, workers_per_process=True)
    assert plan.said == "batch 2, learning rate 0.0025 = 0.0025 x 2 / 2, 144000 iterations"
    assert config.to_dict() == before  # planning changes nothing
    plan.apply(config)
    before["auto_scale_lr"]["enable"] = False  # mmengine is not to scale again
    assert config.to_dict() == before


# The detector


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_input(dataset: str) -> None:
    preprocessor = built(dataset).data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.280, 103.530])
    assert preprocessor.std.flatten().tolist() == pytest.approx([58.395, 57.120, 57.375])
    assert (preprocessor.pad_size_divisor, preprocessor.pad_value) == (32, 0)
    # Padding comes after normalising, and is 0.
    blue_green_red = torch.tensor([10, 100, 200], dtype=torch.uint8).view(3, 1, 1).expand(3, 40, 70)
    [image] = preprocessor({"inputs": [blue_green_red], "data_samples": None})["inputs"]
    assert image.shape == (3, 64, 96)
    expected = [(200 - 123.675) / 58.395, (100 - 116.280) / 57.120, (10 - 103.530) / 57.375]
    assert image[:, 0, 0].tolist() == pytest.approx(expected)
    assert image[:, 40:].abs().max() == 0


def test_resnet50_trains_from_the_stem_on_but_for_bn() -> None:
    model = built("voc")
    network = model.backbone
    assert [len(getattr(network, f"layer{k}")) for k in (1, 2, 3, 4)] == [3, 4, 6, 3]
    for name in ("layer2", "layer3", "layer4"):
        block = getattr(network, name)[0]
        assert (block.conv1.stride, block.conv2.stride, block.conv2.dilation) == ((1, 1), (2, 2), (1, 1))  # the 3x3's
    model.train()
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module.training, name
            assert not module.weight.requires_grad, name
            assert not module.bias.requires_grad, name
        elif isinstance(module, torch.nn.Conv2d):
            assert module.weight.requires_grad, name


def test_frozen_trains_the_last_stage_alone() -> None:
    register()
    from mmdet.registry import MODELS

    network = MODELS.build(imagenet("voc", **FROZEN).model.backbone)
    network.train()
    trained = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"layer4"}


def test_fpn_and_anchors() -> None:
    model = built("voc")
    outputs = model.neck([torch.zeros(1, c, 32 >> k, 32 >> k) for k, c in enumerate((256, 512, 1024, 2048))])
    assert [tuple(o.shape) for o in outputs] == [(1, 256, s, s) for s in (32, 16, 8, 4, 2)]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.neck.modules())
    assert not any(isinstance(m, torch.nn.ReLU) for m in model.neck.modules())
    generator = model.rpn_head.prior_generator
    assert [stride[0] for stride in generator.strides] == [4, 8, 16, 32, 64]
    for anchors, size in zip(generator.base_anchors, (32, 64, 128, 256, 512), strict=True):
        sides = anchors[:, 2:] - anchors[:, :2]
        assert sides.prod(1).tolist() == pytest.approx([size**2] * 3)
        assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 1.0, 2.0])  # height / width
        assert (anchors[:, :2] + anchors[:, 2:]).abs().max() == 0  # about the pixel's corner: offset 0


def test_rpn_matching_sampling_and_losses() -> None:
    rpn = built("voc").rpn_head
    assert (rpn.assigner.pos_iou_thr, rpn.assigner.neg_iou_thr) == (0.7, 0.3)
    assert rpn.assigner.match_low_quality
    assert 0 < rpn.assigner.min_pos_iou < 0.01
    assert (rpn.sampler.num, rpn.sampler.pos_fraction, rpn.sampler.add_gt_as_proposals) == (256, 0.5, False)
    assert rpn.train_cfg.allowed_border == -1
    assert (type(rpn.loss_cls).__name__, rpn.loss_cls.use_sigmoid, rpn.loss_cls.loss_weight) == (
        "CrossEntropyLoss",
        True,
        1.0,
    )
    assert (type(rpn.loss_bbox).__name__, rpn.loss_bbox.loss_weight) == ("L1Loss", 1.0)
    assert rpn.bbox_coder.stds == [1.0, 1.0, 1.0, 1.0]


def test_proposals() -> None:
    config = imagenet("voc").model
    nms = {"type": "nms", "iou_threshold": 0.7}
    assert config.train_cfg.rpn_proposal == {"nms_pre": 2000, "max_per_img": 1000, "nms": nms, "min_bbox_size": 0}
    assert config.test_cfg.rpn == {"nms_pre": 1000, "max_per_img": 1000, "nms": nms, "min_bbox_size": 0}
    assert built("voc").rpn_head.test_cfg == config.test_cfg.rpn


@pytest.mark.parametrize(("dataset", "classes"), [("voc", 20), ("coco", 80)])
def test_roi_head(dataset: str, classes: int) -> None:
    head = built(dataset).roi_head
    assert (head.bbox_assigner.pos_iou_thr, head.bbox_assigner.neg_iou_thr) == (0.5, 0.5)
    assert not head.bbox_assigner.match_low_quality
    sampler = head.bbox_sampler
    assert (sampler.num, sampler.pos_fraction, sampler.add_gt_as_proposals) == (512, 0.25, True)
    assert len(head.bbox_roi_extractor.roi_layers) == 4
    for layer, scale in zip(head.bbox_roi_extractor.roi_layers, (4, 8, 16, 32), strict=True):
        assert (layer.output_size, layer.sampling_ratio, layer.aligned) == ((7, 7), 0, True)
        assert layer.spatial_scale == 1 / scale
    # A RoI of side 224 reads P4, the third level; half and twice the side, its neighbours.
    sides = torch.tensor([40.0, 112.0, 224.0, 448.0, 900.0])
    rois = torch.stack([torch.zeros(5), torch.zeros(5), torch.zeros(5), sides, sides], dim=1)
    assert head.bbox_roi_extractor.map_roi_levels(rois, 4).tolist() == [0, 1, 2, 3, 3]
    box = head.bbox_head
    assert [(fc.in_features, fc.out_features) for fc in box.shared_fcs] == [(256 * 49, 1024), (1024, 1024)]
    assert (box.fc_cls.out_features, box.fc_reg.out_features) == (classes + 1, 4 * classes)
    assert [1 / std for std in box.bbox_coder.stds] == pytest.approx([10, 10, 5, 5])
    assert (type(box.loss_cls).__name__, box.loss_cls.use_sigmoid) == ("CrossEntropyLoss", False)
    assert (type(box.loss_bbox).__name__, box.loss_bbox.loss_weight) == ("L1Loss", 1.0)
    nms = {"type": "nms", "iou_threshold": 0.5}
    assert head.test_cfg == {"score_thr": 0.05, "nms": nms, "max_per_img": 100}


def test_initial_values_of_the_new_layers() -> None:
    """c2_xavier_fill is uniform within sqrt(3 / fan-in); the output layers are normal."""
    model = built("voc")
    convolutions = [m for m in model.neck.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 8
    for layer in (*convolutions, *model.roi_head.bbox_head.shared_fcs):
        bound = (3 / layer.weight[0].numel()) ** 0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert layer.bias.abs().max() == 0
    rpn, box = model.rpn_head, model.roi_head.bbox_head
    for layer, std in (
        *((layer, 0.01) for layer in (rpn.rpn_conv, rpn.rpn_cls, rpn.rpn_reg)),
        (box.fc_cls, 0.01),
        (box.fc_reg, 0.001),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
        assert layer.bias.abs().max() == 0
