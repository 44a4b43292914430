"""mmdet and mmseg without mmcv's compiled extension, and without their import noise.

mmcv keeps its operators in a C++/CUDA module, `mmcv._ext`. The wheel that pip builds by default lacks it,
and compiling it took 28.5 minutes on two cores. The protocols here need two of its operators, NMS and
RoIAlign, and torchvision ships both for CPU and CUDA. Against the compiled ones NMS kept the same boxes and
RoIAlign's output and gradient differed by 0.0, at no loss of speed (DESIGN.md, section 4). So where no
compiled extension is found, `mmcv._ext` is served from torchvision.

Call `register_detection()` or `register_segmentation()` before anything else that touches mmcv.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import torch
import torchvision
from torch import Tensor

_AVERAGE = 1  # how mmcv's Python side encodes pool_mode='avg'; 0 is 'max'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the int64 indices of the boxes that greedy NMS keeps, by falling score.

    `boxes` (N, 4) holds x1, y1, x2, y2, `scores` is (N,); a side is `x2 - x1 + offset` long. Under autocast
    mmdet passes float32 boxes with float16 scores, which torchvision refuses: the wider type serves both.
    """
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    # Moving the far corner by the offset lengthens every side and every overlap by it.
    boxes = boxes.to(dtype) + boxes.new_tensor([0, 0, offset, offset], dtype=dtype)
    return torchvision.ops.nms(boxes, scores.to(dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool the RoIs (K, 5: image index, x1, y1, x2, y2) of `input` (N, C, H, W) into `output` (K, C, h, w).

    The argmax buffers belong to max pooling, which raises NotImplementedError, and stay as they are.
    """
    _require_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient for the image, `grad_input` (N, C, H, W), given the output's (K, C, h, w)."""
    _require_average(pool_mode)
    # torchvision's public function differentiates only what it has itself computed; this is its kernel.
    kernel = torch.ops.torchvision._roi_align_backward
    sizes = (aligned_height, aligned_width, *grad_input.shape)
    if grad_output.dtype == torch.bfloat16:  # the kernel has no such type; under autocast the forward pass is float32
        grad_output, rois = grad_output.float(), rois.float()
    grad_input.copy_(kernel(grad_output, rois, spatial_scale, *sizes, sampling_ratio, aligned))


def _require_average(pool_mode: int) -> None:
    if pool_mode != _AVERAGE:
        raise NotImplementedError("RoIAlign needs pool_mode='avg'; only mmcv's compiled ops have 'max'")


def _missing_op(name: str) -> Callable[..., NoReturn]:
    """Stand in for any other operator: mmcv.ops must import them all, so only a call raises."""
    if name.startswith("_"):  # what Python, pytest and others ask of a module; no operator is named so
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def op(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv's compiled extension (build onedl-mmcv with its ops, see README); "
            "torchvision has no such op"
        )

    return op


class TorchvisionOps(MetaPathFinder, Loader):
    """Finds and loads `mmcv._ext`. Last in `sys.meta_path`, so that a compiled extension is found first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for `mmcv._ext` and None for every other module."""
        return ModuleSpec(fullname, self, origin="torchvision.ops") if fullname == "mmcv._ext" else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module: three operators, the two facts that bug reports print, an error for the rest."""
        vars(module).update(
            nms=nms,
            roi_align_forward=roi_align_forward,
            roi_align_backward=roi_align_backward,
            get_compiler_version=lambda: f"none, ops from torchvision {torchvision.__version__}",
            get_compiling_cuda_version=lambda: torch.version.cuda or "not available",
            __getattr__=_missing_op,
        )


def prepare() -> None:
    """Serve `mmcv._ext` if nothing else does. Cheap, repeatable; must precede the import of mmcv."""
    if not any(isinstance(finder, TorchvisionOps) for finder in sys.meta_path):
        sys.meta_path.append(TorchvisionOps())
    # An optional, faster COCO evaluator of mmdet, which nothing here uses. The warnings about line NMS and
    # MultiScaleDeformableAttention need no filter: with `mmcv._ext` in place their cause is gone.
    warnings.filterwarnings("ignore", message="faster_coco_eval is not installed", category=UserWarning)
    # More workers than cores, on a small machine: they take turns, that is all.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)


def register_detection() -> None:
    """Import mmdet and register its modules under the scope `mmdet`; prints nothing."""
    prepare()
    with _no_onedl_notices():
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)


def register_segmentation() -> None:
    """Import mmseg and register its modules under the scope `mmseg`; prints nothing."""
    prepare()
    with _no_onedl_notices():
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)


@contextmanager
def _no_onedl_notices() -> Iterator[None]:
    """Drop "Could not import OneDL", which is about a commercial dataset reader.

    mmdet and mmseg pass it to mmengine's `print_log` without a logger, which ignores the level and prints.
    While they are imported, that one module sees another `print`; stdout itself is left alone.
    """
    from mmengine.logging import logger

    def print_the_rest(message: object) -> None:
        if not str(message).startswith("Could not import OneDL"):
            print(message)

    logger.print = print_the_rest
    try:
        yield
    finally:
        del logger.print
