"""mmdet and mmseg without mmcv's compiled extension, and without their import noise.

mmcv keeps its operators in a C++/CUDA module, `mmcv._ext`. The wheel that pip builds by default lacks it,
and compiling it took 28.5 minutes on two cores. The protocols here need two of its operators, NMS and
RoIAlign, and torchvision ships both for CPU and CUDA. Compared with the compiled ones, NMS kept the same boxes and
RoIAlign's output and gradient differed by 0.0, at no loss of speed (DESIGN 4). So if there is no compiled extension,
`mmcv._ext` is served from torchvision, deformable convolutions included. The focal loss is torch's: on a GPU mmdet
calls mmcv's, without which RetinaNet, FCOS and ATSS could train on a CPU only.

Call `register_detection()` or `register_segmentation()` before anything else that touches mmcv.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from io import StringIO
from types import ModuleType
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from typing_extensions import override

_AVERAGE = 1  # how mmcv's Python side encodes pool_mode='avg'; 0 is 'max'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the int64 indices of the boxes that greedy NMS keeps, by falling score.

    `boxes` (N, 4) holds x1, y1, x2, y2, `scores` is (N,); a side is `x2 - x1 + offset` long. Under autocast
    mmdet passes float32 boxes with float16 scores, which torchvision refuses, so both get the wider type.
    """
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    boxes = boxes.to(dtype)
    if offset:  # moving the far corner lengthens every side and every overlap
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
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
    # torchvision's public function can only differentiate its own forward pass, so call its kernel.
    kernel = torch.ops.torchvision._roi_align_backward
    sizes = (aligned_height, aligned_width, *grad_input.shape)
    # The kernel has no bfloat16, and in float16 it would sum the gradients of many RoIs in half precision.
    grad_output, rois = _wide(grad_output), _wide(rois)
    grad_input.copy_(kernel(grad_output, rois, spatial_scale, *sizes, sampling_ratio, aligned))


def _require_average(pool_mode: int) -> None:
    if pool_mode != _AVERAGE:
        raise NotImplementedError("RoIAlign needs pool_mode='avg'; only mmcv's compiled ops have 'max'")


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the focal loss of each logit of `input` (N, C) into `output` (N, C).

    `target` (N,) int64 holds class indices; C is the background. `weight` is empty, or (C,): a row's loss is
    multiplied by its class's weight, the background's by 1 (where mmcv's kernel reads beyond the weights).
    """
    sign, share = _focal_signs(input, target, weight, alpha)
    margin = sign * _wide(input)  # large where the logit is right
    output.copy_(-share * torch.sigmoid(-margin) ** gamma * F.logsigmoid(margin))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the gradient of the summed loss for the logits into `grad_input` (N, C).

    In closed form, because autograd through torchvision's function gives NaN for sure predictions if gamma is below 1.
    """
    sign, share = _focal_signs(input, target, weight, alpha)
    margin = sign * _wide(input)
    wrong = torch.sigmoid(-margin)
    grad_input.copy_(sign * share * wrong**gamma * (gamma * (1 - wrong) * F.logsigmoid(margin) - wrong))


def _focal_signs(input: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return two (N, C) tensors: 1 for a row's own class and -1 for the others; each logit's factor in the loss."""
    own = target[:, None] == torch.arange(input.shape[1], device=input.device)
    sign = _wide(own) * 2 - 1
    share = (1 + sign * (2 * alpha - 1)) / 2  # alpha, or 1 - alpha
    if weight.numel():
        share = share * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    return sign, share


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **options: int
) -> None:
    """Convolve `input` (N, C, H, W) with `weight`, sampled at `offset` (N, 2 * groups * kh * kw, h, w), into `output`.

    `columns` and `ones`, here and below, are buffers of mmcv's kernels and stay as they are.
    """
    output.copy_(_deform_conv(input, weight, offset, None, None, _geometry(options)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    """Write the gradients for `input` and `offset`, given the output's."""
    gradients = _deform_conv_gradients(grad_output, input, weight, offset, None, None, _geometry(options))
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options: int,
) -> None:
    """Write the gradient for the weight, given the output's, times `scale`."""
    weight = torch.zeros_like(grad_weight)  # mmcv does not pass the weight, on which its gradient does not depend
    gradients = _deform_conv_gradients(grad_output, input, weight, offset, None, None, _geometry(options))
    grad_weight.copy_(gradients[1] * options["scale"])


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Do as `deform_conv_forward`, but multiply each sample by its `mask` (N, groups * kh * kw, h, w); add `bias`."""
    output.copy_(_deform_conv(input, weight, offset, mask, bias if with_bias else None, _geometry(options)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **options: int,
) -> None:
    """Write the gradients for input, weight, offset and mask, and for the bias if there is one."""
    bias_used = bias if with_bias else None
    gradients = _deform_conv_gradients(grad_output, input, weight, offset, mask, bias_used, _geometry(options))
    for target, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), gradients, strict=False):
        target.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


def _geometry(options: Mapping[str, int]) -> tuple[int, ...]:
    """Return torchvision's arguments: stride, padding, dilation (height first), groups of weight and offset."""
    plain = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    modulated = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    names = plain if "dH" in options else modulated
    return *(options[name] for name in names), options["group"], options["deformable_group"]


def _deform_conv(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: tuple[int, ...]
) -> Tensor:
    tensors = _deform_conv_inputs(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _deform_conv_gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Return the gradients for input, weight, offset, mask and bias."""
    # torchvision's public function can only differentiate its own forward pass, so call its kernel.
    kernel = torch.ops.torchvision._deform_conv2d_backward
    tensors = _deform_conv_inputs(input, weight, offset, mask, bias)
    return kernel(_wide(grad_output), *tensors, *geometry, mask is not None)


def _deform_conv_inputs(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> list[Tensor]:
    mask = input.new_zeros(len(input), 1) if mask is None else mask
    bias = input.new_zeros(len(weight)) if bias is None else bias
    return [_wide(tensor) for tensor in (input, weight, offset, mask, bias)]


def _wide(values: Tensor) -> Tensor:
    """Return the values in float32, or as they are if float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _missing_op(name: str) -> Callable[..., NoReturn]:
    """Stand in for any other operator: mmcv.ops must import them all, so only a call raises."""
    if name.startswith("_"):  # Python and pytest look for such names; no operator has one
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def op(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv's compiled extension, which is not installed and which the protocols do not "
            "need; choose a model without this op, or install an mmcv that was compiled for this torch"
        )

    return op


OPS: tuple[Callable[..., Tensor | None], ...] = (
    nms,
    roi_align_forward,
    roi_align_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
)


class TorchvisionOps(MetaPathFinder, Loader):
    """Finds and loads `mmcv._ext`. Last in `sys.meta_path`, so that a compiled extension is found first."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin="torchvision.ops") if fullname == "mmcv._ext" else None

    @override
    def exec_module(self, module: ModuleType) -> None:
        """Fill the module: the operators above, the two versions that bug reports print, an error for the rest."""
        vars(module).update(
            {op.__name__: op for op in OPS},
            get_compiler_version=lambda: f"none, ops from torchvision {torchvision.__version__}",
            get_compiling_cuda_version=lambda: torch.version.cuda or "not available",
            __getattr__=_missing_op,
        )


def prepare() -> None:
    """Serve `mmcv._ext` if nothing else does. Must precede the import of mmcv; may be repeated."""
    if not any(isinstance(finder, TorchvisionOps) for finder in sys.meta_path):
        sys.meta_path.append(TorchvisionOps())
    # An optional, faster COCO evaluator of mmdet, which nothing here uses.
    warnings.filterwarnings("ignore", message="faster_coco_eval is not installed", category=UserWarning)
    # On a machine with fewer cores than workers, the workers just take turns.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)


def register_detection() -> None:
    """Import mmdet and register its modules under the scope `mmdet`; prints nothing."""
    prepare()
    _serve_batched_nms()
    with redirect_stdout(StringIO()):  # mmdet and mmseg print that they lack a commercial reader of data sets
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)


def register_segmentation() -> None:
    """Import mmseg and register its modules under the scope `mmseg`; prints nothing."""
    prepare()
    with redirect_stdout(StringIO()):
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)


def _serve_batched_nms() -> None:
    """Let mmdet import `batched_nms` below as mmcv's, unless mmcv's compiled NMS is there, which takes no float64."""
    import mmcv.ops

    extension = sys.modules["mmcv._ext"].__spec__
    if extension is not None and isinstance(extension.loader, TorchvisionOps):
        mmcv.ops.batched_nms = batched_nms


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: dict[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Do as mmcv's `batched_nms`: NMS among the boxes (N, 4) of each class of `idxs` (N,) int64.

    Like mmcv's it moves every class to its own place, but in float64: class 1,000 of an image of 1,333 pixels lies
    at 1.3 million, where float32's numbers are an eighth of a pixel apart. And it copies no number to the device.
    Returns the kept boxes with their scores (K, 5) by falling score, and their indices (K,).
    """
    from mmcv.ops.nms import batched_nms as mmcvs

    if nms_cfg is None or nms_cfg.get("class_agnostic", class_agnostic) or boxes.shape[-1] != 4:
        return mmcvs(boxes, scores, idxs, nms_cfg, class_agnostic)
    apart = boxes.double()
    apart = apart + (idxs * (apart.max() - apart.min() + 1))[:, None]
    kept, indices = mmcvs(apart, scores, idxs, {**nms_cfg, "class_agnostic": True})
    return torch.cat([boxes[indices], kept[:, 4:].to(boxes.dtype)], 1), indices
