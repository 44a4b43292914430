"""Files as other projects save them: the right network is taken, and computes the same features as its project's.

Each project's module is made here as its public code has it (PROTOCOLS 8): the names of its parts, what stands beside
the network, what is saved around it. The weights are random, the BN statistics too, and second networks differ.
"""

import argparse
import pickle
from collections import OrderedDict
from copy import deepcopy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from common.backbones import build_backbone
from common.checkpoint import load_checkpoint
from common.errors import UserError


def resnet(arch="resnet18", fc=None):
    """Return torchvision's network with random statistics; `fc` replaces its classifier."""
    network = torchvision.models.get_model(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.8, 1.2)
    if fc is not None:
        network.fc = fc
    return network.eval()


def mlp(width=512):
    return nn.Sequential(nn.Linear(width, 4, bias=False), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))


def cifar(network, padding=1):
    """Give a network of torchvision the stem for 32 pixels, as solo-learn and mmpretrain do."""
    network.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
    network.maxpool = nn.Identity()
    return network


def parts(**modules):
    """Return a module whose state has the parts' names."""
    return nn.ModuleDict(modules)


def module(network):
    """Return a module of which DDP's and DataParallel's state is `module.*`."""
    return parts(module=network)


def of_children(network):
    return nn.Sequential(*list(network.children())[:-1])


def settings(**more):
    """Return settings as argparse, NumPy and OmegaConf leave them beside the tensors."""
    return {"args": argparse.Namespace(lr=np.float64(0.1), path=argparse.Namespace()), "epoch": 7, **more}


def optimizer(network):
    made = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in network.parameters()).backward()
    made.step()
    return {"optimizer": made.state_dict()}


def pooled(network):
    """Return the features of a network of torchvision's: what its classifier sees."""
    network = deepcopy(network)
    network.fc = nn.Identity()
    return network


def moco(version=1):
    heads = [nn.Linear(512, 4) if version == 1 else nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 4))] * 2
    query, key = (resnet(fc=head) for head in heads)
    model = parts(encoder_q=query, encoder_k=key)
    model.register_buffer("queue", torch.randn(4, 16))
    model.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    return query, {"epoch": 200, "arch": "resnet18", "state_dict": module(model).state_dict(), **optimizer(query)}


def moco_v3():
    base, momentum = (resnet(fc=mlp()) for _ in range(2))
    state = module(parts(base_encoder=base, momentum_encoder=momentum, predictor=mlp(4))).state_dict()
    return base, {"epoch": 100, "arch": "resnet18", "state_dict": state, "scaler": {"scale": 65536.0}}


def encoders():
    target, online = (resnet() for _ in range(2))
    return online, {"state_dict": module(parts(encoder_momentum=target, encoder=online)).state_dict()}


def swav(form="training file"):
    network = resnet(fc=nn.Identity())
    network.projection_head = mlp()
    network.prototypes = nn.Linear(4, 3, bias=False)
    if form == "DeepCluster-v2":
        network.prototypes = parts(prototypes0=nn.Linear(4, 3, bias=False), prototypes1=nn.Linear(4, 3, bias=False))
    state = module(network).state_dict()
    if form == "bare with heads":
        state = network.state_dict()
    return network, {"epoch": 8, "state_dict": state, "amp": {}} if form == "training file" else state


def dino(form="full"):
    student, teacher = (module(parts(backbone=resnet(fc=nn.Identity()), head=mlp())) for _ in range(2))
    backbone = teacher["module"]["backbone"]
    if form == "backbone":
        return backbone, backbone.state_dict()
    saved = {"student": student.state_dict(), "teacher": teacher.state_dict(), **optimizer(student)}
    return backbone, settings(**saved, dino_loss={"center": torch.ones(1, 4)})


def lightly(form):
    """numbered: torchvision's children; cifar: those of lightly's own ResNet; names: the ImageNet benchmark."""
    if form == "cifar":
        network = LightlyCifar().eval()
        online, target = of_children(network), of_children(LightlyCifar())
        features = nn.Sequential(online, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        features, other = (resnet(fc=nn.Identity()) for _ in range(2))
        online, target = (of_children(features), of_children(other)) if form == "numbered" else (features, other)
    second = "teacher_backbone" if form == "names" else "backbone_momentum"
    heads = {"projection_head": parts(layers=mlp()), "prediction_head": parts(layers=mlp(4))}
    model = parts(backbone=online, **heads, **{second: target})
    return features, {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.0", "hyper_parameters": {}}


def lightly_dino():
    teacher, student = (resnet(fc=nn.Identity()) for _ in range(2))
    model = parts(backbone=teacher, projection_head=mlp(), student_backbone=student, student_projection_head=mlp())
    return teacher, {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.0"}


def solo(name="backbone", stem=lambda network: network):
    network, momentum = (stem(resnet(fc=nn.Identity())) for _ in range(2))
    heads = {"classifier": nn.Linear(512, 10), "projector": mlp(), "predictor": mlp(4)}
    model = parts(**{name: network, f"momentum_{name}": momentum}, **heads)
    return network, settings(state_dict=model.state_dict(), global_step=3)


def vissl(form="training file"):
    network, other = (resnet(fc=nn.Identity()) for _ in range(2))
    trunk, key = (parts(_feature_blocks=net).state_dict() for net in (network, other))
    loss = {f"moco_encoder.trunk.{name}": tensor for name, tensor in key.items()} | {"queue": torch.ones(4, 4)}
    base = {"base_model": {"model": {"trunk": trunk, "heads": mlp().state_dict()}}, "loss": loss}
    if form == "converted":
        return network, {"model_state_dict": network.state_dict()}
    return network, {"classy_state_dict": base, "config": argparse.Namespace(a=1), "loss": np.float32(1)}


def openmmlab(form):
    """In mmselfsup 0.x and OpenSelfSup, the backbone is also the first of the online network's Sequential."""
    network, target = (resnet(fc=nn.Identity()) for _ in range(2))
    model = parts(backbone=network, neck=mlp(), head=parts(predictor=mlp(4)))
    if form == "BYOL":
        model["target_net"] = parts(module=nn.Sequential(target, mlp()))
        model["target_net"].register_buffer("steps", torch.tensor(3))
    elif form == "MoCo":
        model.update({"encoder_q": nn.Sequential(network, mlp()), "encoder_k": nn.Sequential(target, mlp())})
    elif form == "mmpretrain":
        model = parts(backbone=cifar(network), head=parts(fc=nn.Linear(512, 10)))
    state = network.state_dict() if form == "extracted" else model.state_dict()
    return network, {"meta": {"env": np.array([1.5])}, "state_dict": state, "message_hub": settings()}


def siamese(form):
    """Barlow Twins and VICReg, which save their backbone alone at the end."""
    network = resnet(fc=nn.Identity())
    model = module(parts(backbone=network, projector=mlp(), bn=nn.BatchNorm1d(4, affine=False)))
    return network, {"epoch": 3, "model": model.state_dict()} if form == "full" else network.state_dict()


def pycontrast(jigsaw=False):
    network, other = (resnet(fc=nn.Identity()) for _ in range(2))
    heads = {"head": mlp(), **({"head_jig": mlp()} if jigsaw else {})}
    model, average = module(parts(encoder=network, **heads)), parts(encoder=other, **deepcopy(heads))
    saved = {"model": model.state_dict(), "contrast": {"memory": torch.ones(8, 4)}, "epoch": 1}
    return network, saved if jigsaw else {**saved, "model_ema": average.state_dict()}


def supcontrast():
    network = KuangliuStyle().eval()
    model = parts(encoder=module(network), head=mlp())
    opt = argparse.Namespace(lr_decay_epochs=[700, 800], cosine=True)
    return network, {"opt": opt, "model": model.state_dict(), "epoch": 5, **optimizer(model)}


def hugging_face(arch, prefix):
    network = resnet(arch)
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    state = OrderedDict()
    for key, tensor in network.state_dict().items():
        *place, layer, name = key.removeprefix("layer").replace("downsample.", "downsample").split(".")
        if key.startswith("fc"):
            state[f"classifier.1.{name}"] = tensor
        elif not place:
            state[f"{prefix}{names[layer]}.{name}"] = tensor
        else:
            start = f"{prefix}encoder.stages.{int(place[0]) - 1}.layers.{place[1]}."
            what = "convolution" if layer in ("conv1", "conv2", "conv3", "downsample0") else "normalization"
            inner = "shortcut" if layer.startswith("downsample") else f"layer.{int(layer[-1]) - 1}"
            state[f"{start}{inner}.{what}.{name}"] = tensor
    return network, state


def detectron2(path):
    network = resnet()
    converted = {}
    for key, tensor in network.state_dict().items():
        name = key if key.startswith("layer") else f"stem.{key}"
        for stage in (4, 3, 2, 1):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for number in (1, 2, 3):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        converted[name] = tensor.numpy()
    path.write_bytes(pickle.dumps({"model": converted, "__author__": "torchvision", "matching_heuristics": True}, 2))
    return network


def averaged(form):
    network, other = resnet(), resnet()
    if form == "torchvision":
        model_ema = module(network).state_dict() | {"n_averaged": torch.tensor(9)}
        return network, settings(model=other.state_dict(), model_ema=model_ema)
    return network, settings(state_dict=other.state_dict(), state_dict_ema=network.state_dict(), arch="resnet18")


def wrapped(form):
    network = resnet()
    states = {
        "DDP": module(network).state_dict(),
        "compiled": parts(_orig_mod=network).state_dict(),
        "compiled in DDP": {"net": module(parts(_orig_mod=network)).state_dict()},
        "model": {"model": network.state_dict()},
    }
    return network, states[form]


def two(first, second, form, beside=()):
    """Return a file of two networks under these names."""
    networks = [resnet(fc=nn.Identity()) for _ in range(2)]
    features = [cifar(network) if "cifar" in form else network for network in networks]
    inner = [of_children(network) if "numbered" in form else network for network in features]
    if form == "numbered cifar":  # the demo of MoCo leaves the pooling out
        inner = [nn.Sequential(*(layer for layer in net if not isinstance(layer, nn.Identity))) for net in inner]
    pairs = zip((first, second), inner, strict=True)
    state = {f"{name}.{key}": tensor for name, network in pairs for key, tensor in network.state_dict().items()}
    return features[0], {"state_dict": state | dict.fromkeys(beside, torch.ones(2, 2)), "opt": argparse.Namespace()}


# Name -> the prefix of the network that is evaluated, and of the other, how they are built, and keys beside them.
PAIRS = {
    "MoCo on CIFAR": ("encoder_q.net", "encoder_k.net", "numbered cifar", ["queue"]),
    "ReSSL": ("module.encoder_q.net", "module.encoder_k.net", "plain", ["module.queue"]),
    "MSF": ("encoder_q.module", "encoder_t.module", "plain", ["predict_q.module.0.weight"]),
    "PixPro": ("module.encoder", "module.encoder_k", "plain", ["module.projector.linear1.weight"]),
    "Bolts' BYOL": ("online_network.encoder", "target_network.encoder", "plain"),
    "BYOL-PyTorch": ("module.online_network.encoder", "module.target_network.encoder", "numbered"),
    "lightly, old": ("resnet_moco.backbone", "resnet_moco.momentum_backbone", "numbered"),
    "compiled MoCo": ("module.encoder_q._orig_mod", "module.encoder_k._orig_mod", "plain"),
    "DINO under Lightning": ("teacher.backbone", "student.backbone", "plain"),
}


def densecl():
    """As OpenSelfSup's MoCo, but neither neck nor head have tensors of their own."""
    network, other = (resnet(fc=nn.Identity()) for _ in range(2))
    model = parts(encoder_q=nn.Sequential(network, mlp()), encoder_k=nn.Sequential(other, mlp()), backbone=network)
    return network, {"state_dict": model.state_dict(), "meta": {}}


def obow():
    """The stem's layers have names, and the stages are numbered from 1."""
    network, teacher = (resnet(fc=nn.Identity()) for _ in range(2))
    model = {}
    for name, net in (("feature_extractor", network), ("feature_extractor_teacher", teacher)):
        stem = nn.Sequential(OrderedDict(Conv=net.conv1, bn=net.bn1, relu=net.relu, maxpool=net.maxpool))
        blocks = nn.ModuleList([stem, net.layer1, net.layer2, net.layer3, net.layer4])
        model |= {f"{name}._feature_blocks.{key}": tensor for key, tensor in blocks.state_dict().items()}
    return network, {"epoch": 1, "network": model, "meters": {}}


def mmengine_average():
    """Its EMAHook saves the average as `state_dict`, and the network that is trained as `ema_state_dict`."""
    network, trained = (resnet(fc=nn.Identity()) for _ in range(2))
    average = module(parts(backbone=trained)).state_dict() | {"steps": torch.tensor(3)}
    return network, {"state_dict": parts(backbone=network).state_dict(), "ema_state_dict": average}


def wider(times):
    """Return SwAV's resnet18 of so many times the planes."""
    network = resnet(fc=nn.Identity())
    network.inplanes = 64 * times
    network.conv1, network.bn1 = nn.Conv2d(3, 64 * times, 7, 2, 3, bias=False), nn.BatchNorm2d(64 * times)
    for k, stride in enumerate((1, 2, 2, 2)):
        layer = network._make_layer(torchvision.models.resnet.BasicBlock, times * 64 * 2**k, 2, stride)
        setattr(network, f"layer{k + 1}", layer)
    return network, {"module.prototypes.weight": torch.ones(2, 2)} | module(network.eval()).state_dict()


def counted(form):
    """Return a file with counters that nobody reads: thop's of operations, and those of batches, in half precision."""
    network = resnet(fc=nn.Identity())
    state = of_children(network).state_dict()
    if form == "thop":
        state |= {f"4.0.conv1.{word}": torch.zeros(1) for word in ("total_ops", "total_params")}
        return network, state
    state = network.state_dict()
    overflown = torch.tensor(1e6).half()
    return network, {k: overflown if k.endswith("num_batches_tracked") else tensor for k, tensor in state.items()}


def head_behind(network):
    """Return the layers of a network with a head of two layers behind them."""
    return network, nn.Sequential(*of_children(network), nn.Flatten(), mlp()).state_dict()


def compiled_parts():
    network = resnet()
    network.layer1, network.layer2[0] = parts(_orig_mod=network.layer1), parts(_orig_mod=network.layer2[0])
    state = network.state_dict()
    network.layer1, network.layer2[0] = network.layer1["_orig_mod"], network.layer2[0]["_orig_mod"]
    return network, state


def byol_pytorch():
    network, target = resnet(), resnet()
    model = parts(net=network, online_encoder=parts(net=network, projector=mlp()))
    model["target_encoder"] = parts(net=target, projector=mlp())
    return network, model.state_dict()


class Shortcut(nn.Module):
    """A basic block with `shortcut`, whose ReLUs are calls in `forward`."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class KuangliuStyle(nn.Module):
    """A ResNet-34 for 32 pixels as SupContrast has it."""

    blocks = (3, 4, 6, 3)

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for k, count in enumerate(self.blocks):
            first = Shortcut(widths[k], widths[k + 1], 1 if k == 0 else 2)
            rest = [Shortcut(widths[k + 1], widths[k + 1], 1) for _ in range(count - 1)]
            self.add_module(f"layer{k + 1}", nn.Sequential(first, *rest))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


class LightlyCifar(KuangliuStyle):
    """lightly's ResNet-18, of which the benchmark keeps `children()[:-1]`."""

    blocks = (2, 2, 2, 2)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(512, 10)


# Name -> how to make (the project's network, what it saves), and what must be said of layout and prefix.
FILES = {
    "MoCo v1": (moco, "MoCo", "state_dict.module.encoder_q."),
    "MoCo v2, PCL": (lambda: moco(2), "MoCo", "state_dict.module.encoder_q."),
    "MoCo v3": (moco_v3, "MoCo v3", "state_dict.module.base_encoder."),
    "GSG's BYOL without heads": (encoders, "GSG", "state_dict.module.encoder."),
    "SwAV": (swav, "SwAV", "state_dict.module."),
    "SwAV release": (lambda: swav("release"), "SwAV", "module."),
    "SwAV bare with heads": (lambda: swav("bare with heads"), "SwAV", ""),
    "DeepCluster-v2": (lambda: swav("DeepCluster-v2"), "DeepCluster-v2", "module."),
    "DINO": (dino, "DINO", "teacher.module.backbone."),
    "DINO backbone": (lambda: dino("backbone"), "torchvision's names", ""),
    "lightly, numbered": (lambda: lightly("numbered"), "lightly", "state_dict.backbone."),
    "lightly, CIFAR": (lambda: lightly("cifar"), "lightly", "state_dict.backbone."),
    "lightly, ImageNet": (lambda: lightly("names"), "lightly", "state_dict.backbone."),
    "lightly, DINO": (lightly_dino, "lightly's DINO", "state_dict.backbone."),
    "solo-learn": (solo, "solo-learn", "state_dict.backbone."),
    "solo-learn, old": (lambda: solo("encoder"), "solo-learn, old", "state_dict.encoder."),
    "solo-learn, CIFAR": (lambda: solo(stem=lambda n: cifar(n, padding=2)), "solo-learn", "state_dict.backbone."),
    "VISSL": (vissl, "VISSL", "classy_state_dict.base_model.model.trunk._feature_blocks."),
    "VISSL, converted": (lambda: vissl("converted"), "VISSL", "model_state_dict."),
    "mmselfsup SimSiam": (lambda: openmmlab("SimSiam"), "OpenMMLab", "state_dict.backbone."),
    "mmselfsup BYOL": (lambda: openmmlab("BYOL"), "OpenMMLab", "state_dict.backbone."),
    "OpenSelfSup MoCo": (lambda: openmmlab("MoCo"), "OpenMMLab", "state_dict.backbone."),
    "OpenSelfSup, extracted": (lambda: openmmlab("extracted"), "torchvision's names", "state_dict."),
    "mmpretrain, CIFAR": (lambda: openmmlab("mmpretrain"), "OpenMMLab", "state_dict.backbone."),
    "Barlow Twins, VICReg": (lambda: siamese("resnet50.pth"), "torchvision's names", ""),
    "Barlow Twins, full": (lambda: siamese("full"), "Barlow Twins", "model.module.backbone."),
    "InfoMin": (pycontrast, "InfoMin", "model.module.encoder."),
    "PIRL": (lambda: pycontrast(jigsaw=True), "PIRL", "model.module.encoder."),
    "SupContrast": (supcontrast, "SupContrast", "model.encoder.module."),
    "Hugging Face": (lambda: hugging_face("resnet50", "resnet."), "Hugging Face", "resnet."),
    "Hugging Face, bare": (lambda: hugging_face("resnet18", ""), "Hugging Face", ""),
    "timm": (lambda: averaged("timm"), "averaged", "state_dict_ema."),
    "torchvision's average": (lambda: averaged("torchvision"), "averaged", "model_ema.module."),
    "byol-pytorch": (byol_pytorch, "byol-pytorch", "online_encoder.net."),
    **{name: ((lambda pair=pair: two(*pair)), "", f"state_dict.{pair[0]}.") for name, pair in PAIRS.items()},
    "DenseCL": (densecl, "OpenSelfSup", "state_dict.backbone."),
    "OBoW": (obow, "OBoW", "network.feature_extractor._feature_blocks."),
    "mmengine's average": (mmengine_average, "OpenMMLab, averaged", "state_dict.backbone."),
    "SwAV, twice as wide": (lambda: wider(2), "SwAV", "module."),
    "thop's counters": (lambda: counted("thop"), "numbered layers", ""),
    "overflown counters": (lambda: counted("batches"), "torchvision's names", ""),
    "a head behind": (lambda: head_behind(resnet(fc=nn.Identity())), "numbered layers", ""),
    "compiled parts": (compiled_parts, "torchvision's names", ""),
    **{form: ((lambda form=form: wrapped(form)), "torchvision's names", None) for form in ("DDP", "compiled", "model")},
    "compiled in DDP": (lambda: wrapped("compiled in DDP"), "torchvision's names", "net.module._orig_mod."),
    **{
        arch: ((lambda arch=arch: (lambda n: (n, n.state_dict()))(resnet(arch))), "torchvision's names", "")
        for arch in ("resnet34", "resnet50")
    },
}
SLOW = ("resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
FILES |= {arch: (lambda arch=arch: (lambda n: (n, n.state_dict()))(resnet(arch)), "torchvision", "") for arch in SLOW}


def same_features(theirs, path):
    """Compare the features of a checkpoint with its project's, and return the checkpoint."""
    theirs = pooled(theirs) if hasattr(theirs, "fc") else theirs
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    found = load_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(found.backbone()(images), theirs.eval()(images).flatten(1))
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FILES])
def test_a_project_s_file_gives_its_features(tmp_path, name):
    make, layout, prefix = FILES[name]
    torch.manual_seed(0)
    network, content = make()
    torch.save(content, tmp_path / "a.pth")
    found = same_features(network, tmp_path / "a.pth")
    assert layout in found.layout
    assert prefix in (None, found.prefix)


@pytest.mark.parametrize("arch", ["resnet18_cifar", "resnet18_cifar_stemrelu"])
def test_a_run_of_ours_names_its_network(tmp_path, arch):
    """Its state is the Runner's. Its tensors do not show the ReLU after the stem, but its config does."""
    networks = [build_backbone(arch) for _ in range(2)]
    model = parts(backbone=networks[0], projector=mlp(), target=nn.Sequential(networks[1], mlp()), predictor=mlp(4))
    config = f"model=dict(\n    backbone=dict(\n        name='{arch}'),\n    type='BYOL')"
    content = {"meta": {"cfg": config}, "state_dict": model.state_dict(), "message_hub": settings()}
    torch.save(content, tmp_path / "a.pth")
    assert same_features(networks[0], tmp_path / "a.pth").prefix == "state_dict.backbone."


def test_metadata_of_others_is_not_taken_for_ours(tmp_path):
    network = resnet()
    torch.save({"meta": {"arch": "vit"}, "state_dict": module(network).state_dict()}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").prefix == "state_dict.module."


def test_timm_s_architecture_decides_between_equal_shapes(tmp_path):
    network = timm.create_model("resnetblur18", num_classes=0)
    for arch in ("resnetblur18", "resnet19", "seresnet18"):
        torch.save({"arch": arch, "state_dict": network.state_dict()}, tmp_path / "a.pth")
        assert load_checkpoint(tmp_path / "a.pth").arch == (arch if arch == "resnetblur18" else "resnet18")


def test_detectron2_s_arrays_give_their_features(tmp_path):
    network = detectron2(tmp_path / "a.pkl")
    assert same_features(network, tmp_path / "a.pkl").layout == "detectron2's names"


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_give_their_features(tmp_path, kind):
    network = timm.create_model("resnet18", num_classes=3).to(kind)
    save_file(network.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    network.reset_classifier(0)
    same_features(network.float(), tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (moco, "encoder_k"),
        (moco_v3, "state_dict.module.momentum_encoder"),
        (dino, "student"),
        (lambda: solo("encoder"), "momentum_encoder."),
        (vissl, "moco_encoder"),
        (pycontrast, "model_ema"),
    ],
)
def test_key_takes_the_other_network(tmp_path, make, key):
    _, content = make()
    torch.save(content, tmp_path / "a.pth")
    one, other = load_checkpoint(tmp_path / "a.pth"), load_checkpoint(tmp_path / "a.pth", key=key)
    assert key.strip(".") in other.prefix
    assert one.sha256 != other.sha256  # what is cached or recorded of one is not taken for the other's
    assert not torch.equal(one.state_dict["conv1.weight"], other.state_dict["conv1.weight"])
    assert f"KEY={other.prefix[:-1]} takes it" in one.loaded


def refusal(tmp_path, content, **options):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path / "a.pth", **options)
    return str(caught.value)


# Name -> what a torchvision state dict s (and another, t) is made into, and what is said of it.
REFUSED = {
    "two that nobody knows": (lambda s, t: {"left": s, "right": t}, "KEY= from: left (resnet18); right (resnet18)"),
    "the key encoder alone": (lambda s, t: {"encoder_k": s}, "choose by KEY= from: encoder_k (resnet18)"),
    "incomplete": (
        lambda s, t: without(s, "bn1.bias"),
        "no complete ResNet: bare names (resnet18, 1 of 120",
    ),
    "another block": (
        lambda s, t: s | {"layer1.0.se.fc1.bias": s["fc.bias"]},
        "layer1.0.se.fc1.bias is not part of it",
    ),
    "a deep stem": (lambda s, t: s | {"conv1.3.weight": s["fc.weight"]}, "conv1.3.weight is not part of it"),
    "CLIP's stem": (lambda s, t: s | {"conv2.weight": s["fc.weight"]}, "conv2.weight is not part of it"),
    "teacher of another kind": (
        lambda s, t: {"student": s, "teacher": torchvision.models.resnet34().state_dict()},
        "KEY= from: teacher (resnet34); student (resnet18)",
    ),
    "an average": (lambda s, t: {"state_dict": s, "ema_state_dict": t}, "KEY= from: state_dict (resnet18)"),
    "of eight bits": (
        lambda s, t: {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in s.items()},
        "100 of 120 tensors are missing or not plain numbers",
    ),
    "other widths": (lambda s, t: s | {"bn1.bias": torch.ones(7)}, "bn1.bias has shape (7,), not (64,)"),
    "more blocks": (lambda s, t: s | {"layer1.2.bn1.bias": torch.ones(64)}, "a number of blocks that none has"),
    "no max-pool": (lambda s, t: numbered(s, first=3), "its blocks begin at 3, behind a stem that no ResNet has"),
    "a transformer": (
        lambda s, t: {"blocks.0.attn": s["fc.bias"]},
        "no ResNet in its 1 tensors (first: blocks.0",
    ),
}


def without(state, key):
    return {name: tensor for name, tensor in state.items() if name != key}


def numbered(state, first):
    names = {"conv1": "0", "bn1": "1"} | {f"layer{k}": str(k + first - 1) for k in range(1, 5)}
    split = {tuple(key.split(".", 1)): tensor for key, tensor in state.items()}
    return {f"{names[head]}.{rest}": tensor for (head, rest), tensor in split.items() if head in names}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_complete_network_is_refused_with_the_candidates(tmp_path, name):
    change, says = REFUSED[name]
    assert says in refusal(tmp_path, change(resnet().state_dict(), resnet().state_dict()))


def test_a_key_that_names_none_or_several_is_refused(tmp_path):
    content = moco()[1]
    for key, what in (("encoder_x", "no complete ResNet"), ("module", "2 networks")):
        line = refusal(tmp_path, content, key=key)
        assert f"holds {what} under KEY={key}; it holds: state_dict.module.encoder_q (resnet18); state_dict" in line
