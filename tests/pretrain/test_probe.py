"""The linear classifier: frozen backbone, metric, last and best."""

from types import SimpleNamespace

import pytest
import torch
from timm.optim import Lars

from pretrain.probe import AccuracyHistory, KeepFrozen, LinearProbe, TopK, digest, history
from tests.processes import in_two_processes


def probe() -> LinearProbe:
    torch.manual_seed(0)
    return LinearProbe({"name": "resnet18"}, num_classes=6)


def test_training_changes_no_bit_of_the_backbone():
    model = probe()
    before, layer = digest(model.backbone), model.fc.weight.clone()
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        torch.manual_seed(seed)
        model(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["loss"].backward()
        optimizer.step()
    assert digest(model.backbone) == before
    assert not torch.equal(model.fc.weight, layer)


@pytest.mark.parametrize("changed", ["conv1.weight", "bn1.running_mean"])
def test_a_change_of_the_backbone_fails_the_run(changed):
    runner = SimpleNamespace(model=probe())
    hook = KeepFrozen()
    hook.before_train(runner)
    hook.after_train(runner)
    runner.model.backbone.state_dict()[changed].view(-1)[0] += 1e-7
    with pytest.raises(RuntimeError, match="frozen"):
        hook.after_train(runner)


def test_the_layer_starts_small_and_unbiased():
    fc = LinearProbe({"name": "resnet18"}, num_classes=500).fc
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not fc.bias.any()


def test_top_k_by_hand():
    metric = TopK()
    model = probe()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))  # guesses 0, 1, 2, 3, 4; never 5
    hits = model(torch.zeros(4, 3, 32, 32), torch.tensor([0, 0, 4, 5]), mode="predict")
    metric.process(None, hits)
    assert metric.compute_metrics(metric.results) == {"top1": 50.0, "top5": 75.0}


def test_top_k_of_two_processes_that_share_no_folder(tmp_path):
    def work(rank):
        metric = TopK()
        metric.process(None, [torch.arange(5) == rank, torch.zeros(5, dtype=torch.bool)])
        return metric.evaluate(3)  # of the four, the last repeats an image

    expected = {"top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}
    assert in_two_processes(tmp_path, work) == [expected, expected]


def test_last_and_best_epoch_are_both_kept():
    hook = AccuracyHistory()
    for top1, top5 in ((40.0, 80.0), (60.0, 90.0), (50.0, 95.0)):
        hook.after_val_epoch(None, {"top1": top1, "top5": top5})
    runner = SimpleNamespace(hooks=[hook])
    assert history(runner) == {"top1": 50.0, "top5": 95.0, "best_top1": 60.0, "best_top5": 90.0}
    saved: dict = {}
    hook.before_save_checkpoint(None, saved)
    other = AccuracyHistory()
    other.after_load_checkpoint(None, saved)
    assert other.epochs == hook.epochs


def test_lars_scales_the_step_without_weight_decay():
    # PROTOCOLS 3.2, worked by hand: |w| = 5, |g| = 2, so the step is lr * 0.001 * 5 / 2 * g.
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    w.grad = torch.tensor([0.0, 2.0])
    Lars([w], lr=0.5, weight_decay=0.0, trust_coeff=0.001, always_adapt=True).step()
    torch.testing.assert_close(w.data, torch.tensor([3.0, 4.0 - 0.5 * 0.0025 * 2.0]))


@pytest.mark.gpu
def test_a_step_on_a_gpu_is_the_cpus(device):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 6
    layers, losses = [], []
    for where in (torch.device("cpu"), device):
        model = probe().to(where).train()
        # Not LARS, whose step is its rate times the weight's norm over the gradient's.
        optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
        for _ in range(2):
            loss = model(images.to(where), labels.to(where))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        layers.append(model.fc.weight.detach().cpu())
        hits = model(images.to(where), labels.to(where), mode="predict")
        assert (len(hits), hits[0].device.type) == (16, "cpu")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(layers[1], layers[0], rtol=0, atol=1e-5)
