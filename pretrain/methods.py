"""SimSiam and BYOL, each with or without Guided Stop-gradient."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from common.backbones import build_backbone, feature_dim
from common.errors import UserError
from pretrain.gsg import GUIDES, Views, choose_views, gsg_loss, negative_cosine, pick, sent
from pretrain.heads import predictor as build_predictor
from pretrain.heads import projector as build_projector

VIEWS = ("fresh", "shared")
# Batches come from pinned memory, so the host need not wait while one is copied to a GPU.
OVERLAPPING = dict(type="BaseDataPreprocessor", non_blocking=True)


@MODELS.register_module()
class SimSiam(BaseModel):
    """SimSiam (Chen and He, 2021); with a guide, SimSiam with GSG (appendix A).

    `backbone`: arguments of `common.backbones.build_backbone`; `projector`, `predictor`: arguments of
    `pretrain.heads`; `predictor=None` is the identity. `guide`: none | nearest | farthest | random.
    `views` says where the reference's views come from: `fresh` (the paper's way), two more views of every
    image, paired by a random permutation of this process's batch, which may pair an image with itself; or
    `shared` (ours), the batch's own two views, paired by a derangement, so that projections and predictions
    are reused.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        projector: dict[str, Any],
        predictor: dict[str, Any] | None,
        guide: str = "none",
        views: str = "fresh",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"data_preprocessor": OVERLAPPING, **kwargs})
        if guide not in GUIDES:
            raise UserError(f"config: unknown guide '{guide}'; known: {', '.join(GUIDES)}")
        if views not in VIEWS:
            raise UserError(f"config: unknown views '{views}'; known: {', '.join(VIEWS)}")
        self.guide, self.views = guide, views
        try:
            self.backbone = build_backbone(**backbone)
        except (TypeError, ValueError) as error:  # an unknown option, an unknown name
            raise UserError(f"config: {error}") from None
        self.projector = build_projector(feature_dim(self.backbone), **projector)
        self.predictor = nn.Identity() if predictor is None else build_predictor(self.projection_dim, **predictor)

    @property
    def projection_dim(self) -> int:
        """The width d of projections and predictions."""
        return int(self.projector[-1].num_features)  # type: ignore[arg-type]

    @property
    def num_views(self) -> int:
        """The number of views of an image in a step: four with fresh references, else two."""
        return 4 if self.guide != "none" and self.views == "fresh" else 2

    def init_weights(self) -> None:
        """Keep the weights as they were built.

        mmengine's default would call timm's `init_weights`, which starts every residual BN at 0 whatever the
        config says, and would make BYOL's target differ from the online network.
        """

    def project(self, x: Tensor) -> Tensor:
        """Return the projections (N, d) of a view (N, 3, H, W): f = projector after backbone."""
        return self.projector(self.backbone(x))

    def targets(self, inputs: Sequence[Tensor], z: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the targets, one (N, d) tensor per view: the online projections themselves."""
        return z

    def forward(self, inputs: Sequence[Tensor], mode: str = "loss") -> dict[str, Tensor] | Tensor:
        """Return the loss of a batch; `inputs` are `num_views` tensors (N, 3, H, W), one per view.

        Every view has its own forward pass, so BN takes its statistics per view (PROTOCOLS 1.2). With mode
        "tensor", return the backbone's features (N, D) of the first view.
        """
        if mode == "tensor":
            return self.backbone(inputs[0])
        if len(inputs) != self.num_views:
            raise UserError(
                f"config: guide '{self.guide}' with {self.views} views takes {self.num_views} views per image, "
                f"but the data set gives {len(inputs)}; set train_dataloader.dataset.num_views={self.num_views}"
            )
        return self.loss(inputs)

    def loss(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the mean loss of the batch, and `std`, the `spread` of the first view's projections.

        Under mixed precision the networks run in the lower precision, distances and cosines in float32.
        """
        z = [self.project(x) for x in inputs]
        p = [self.predictor(z_view).float() for z_view in z]
        t = [t_view.detach().float() for t_view in self.targets(inputs, z)]
        image = Views(t[0], t[1], p[0], p[1])
        return {"loss": gsg_loss(image, self._reference(image, t, p), self.guide), "std": spread(z[0])}

    def _reference(self, image: Views, t: Sequence[Tensor], p: Sequence[Tensor]) -> Views | None:
        if self.guide == "none":
            return None
        n, device = len(t[0]), t[0].device
        if self.views == "shared":
            return image.at(sent(derangement(n), device))
        return Views(t[2], t[3], p[2], p[3]).at(sent(torch.randperm(n), device))


@MODELS.register_module()
class BYOL(SimSiam):
    """BYOL (Grill et al., 2020) with the paper's heads; targets come from a moving average of the encoder.

    `momentum` is the share of the old target weights kept at each update (appendix C: 0.99, constant).

    `chosen_only` (ours; with a guide and fresh views): the targets of all four views are computed first and guide
    the choice, and the online network then sees only the two chosen views of each pair, in two forward and backward
    passes instead of four. Each pass takes its BN statistics over first and second views together, where the
    paper's way takes them view by view; with BN frozen the gradients are the same.
    """

    def __init__(self, *args: Any, momentum: float = 0.99, chosen_only: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if chosen_only and self.num_views != 4:
            raise UserError("config: chosen_only chooses among fresh views; set a guide, and views='fresh'")
        self.momentum, self.chosen_only = momentum, chosen_only
        self.target = nn.Sequential(copy.deepcopy(self.backbone), copy.deepcopy(self.projector))
        self.target.requires_grad_(False)

    @torch.no_grad()
    def start_step(self) -> None:
        """Move the target network a step towards the online one; the training loop calls it before each step.

        The online weights do not change until the step ends, so updating here equals updating after every
        optimiser step (PROTOCOLS 1.3). Parameters only: the target's BN keeps running statistics of its own.
        """
        kept: list[Tensor] = list(self.target.parameters())
        online: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(kept, online, 1 - self.momentum)  # all in one kernel on a GPU

    @torch.no_grad()
    def targets(self, inputs: Sequence[Tensor], z: Sequence[Tensor] = ()) -> Sequence[Tensor]:
        """Return the projections (N, d) of every view by the target network."""
        return [self.target(x) for x in inputs]

    def loss(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the loss as SimSiam does, or from the chosen views alone."""
        if not self.chosen_only:
            return super().loss(inputs)
        t = [t_view.float() for t_view in self.targets(inputs)]
        order = sent(torch.randperm(len(t[0])), t[0].device)
        images, references = (inputs[0], inputs[1]), (inputs[2][order], inputs[3][order])
        image_t, reference_t = (t[0], t[1]), (t[2][order], t[3][order])
        chosen = choose_views(image_t, reference_t, self.guide)
        loss, std = torch.zeros((), device=order.device), []
        for view, x, target in zip(chosen, (images, references), (image_t, reference_t), strict=True):
            z = self.project(pick(view, x))
            loss = loss + 0.5 * negative_cosine(self.predictor(z).float(), pick(1 - view, target)).mean()
            std.append(spread(z))
        return {"loss": loss, "std": std[0]}


@torch.no_grad()
def spread(z: Tensor) -> Tensor:
    """Return the mean over channels of the standard deviation of L2-normalised z (N, d): the collapse monitor.

    1/sqrt(d) for directions spread evenly, 0 when all images collapse to one (Chen and He, section 4.1).
    """
    return F.normalize(z.float(), dim=1).std(dim=0).mean()


def derangement(n: int) -> Tensor:
    """Return a uniformly random permutation of n without fixed points, (n,) int64. Raises UserError if n < 2."""
    if n < 2:
        raise UserError("config: shared views need a batch of at least 2 images per process; raise the batch size")
    identity = torch.arange(n)
    while True:  # a permutation has no fixed point with probability 1/e
        order = torch.randperm(n)
        if not (order == identity).any():
            return order
