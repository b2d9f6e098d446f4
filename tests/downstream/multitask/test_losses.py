import math

import pytest
import torch

from polyscene.downstream.multitask.losses import balanced_bce, cross_entropy, depth_l1, normals_l1

LOSSES = {
    "cross_entropy": (cross_entropy, 4, lambda n, h, w: torch.randint(0, 4, (n, h, w))),
    "edges": (lambda o, v, m: balanced_bce(o, v, m, 0.95), 1, lambda n, h, w: (torch.rand(n, 1, h, w) > 0.8).float()),
    "saliency": (balanced_bce, 1, lambda n, h, w: (torch.rand(n, 1, h, w) > 0.4).float()),
    "normals": (normals_l1, 3, lambda n, h, w: torch.nn.functional.normalize(torch.randn(n, 3, h, w), dim=1)),
    "depth": (depth_l1, 1, lambda n, h, w: torch.rand(n, 1, h, w) * 5 + 0.5),
}


@pytest.fixture(params=LOSSES)
def case(request):
    loss, channels, make = LOSSES[request.param]
    torch.manual_seed(0)
    return loss, torch.randn(2, channels, 6, 5), make(2, 6, 5), torch.rand(2, 6, 5) > 0.3


def log1pexp(x):
    return math.log1p(math.exp(x))


def test_cross_entropy_by_hand():
    # Two valid pixels of three: logits (0, 0) for class 0 -> log 2; (1, 3) for class 0 -> log(1 + e^2).
    output = torch.tensor([[[[0.0, 1.0, 9.0]], [[0.0, 3.0, -9.0]]]])
    values, valid = torch.tensor([[[0, 0, 1]]]), torch.tensor([[[True, True, False]]])
    expected = (math.log(2) + log1pexp(2)) / 2
    assert cross_entropy(output, values, valid).item() == pytest.approx(expected, rel=1e-6)


def test_edge_loss_by_hand():
    # One boundary pixel with logit 2, one background pixel with logit -1, one that does not count.
    output = torch.tensor([[[[2.0, -1.0, 7.0]]]])
    values, valid = torch.tensor([[[[1.0, 0.0, 0.0]]]]), torch.tensor([[[True, True, False]]])
    expected = (0.95 * log1pexp(-2) + 0.05 * log1pexp(-1)) / 2
    assert balanced_bce(output, values, valid, 0.95).item() == pytest.approx(expected, rel=1e-6)


def test_saliency_loss_weighs_positives_by_the_share_of_negatives():
    output = torch.tensor([[[[1.0, 0.5, -2.0, 0.0, 30.0]]]])
    values = torch.tensor([[[[1.0, 0.0, 0.0, 0.0, 1.0]]]])
    valid = torch.tensor([[[True, True, True, True, False]]])
    positive, negative = log1pexp(-1), log1pexp(0.5) + log1pexp(-2) + log1pexp(0)
    expected = (0.75 * positive + 0.25 * negative) / 4
    assert balanced_bce(output, values, valid).item() == pytest.approx(expected, rel=1e-6)


def test_normals_loss_by_hand():
    # (3, 4, 0) has the direction (.6, .8, 0); against (1, 0, 0) the components differ by .4, .8, 0.
    output = torch.tensor([3.0, 4.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    values = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    valid = torch.tensor([[[True, False]]])
    assert normals_l1(output, values, valid).item() == pytest.approx(1.2 / 3, rel=1e-6)


def test_depth_loss_by_hand():
    output, values = torch.tensor([[[[1.0, 5.0, 2.0]]]]), torch.tensor([[[[1.5, 3.0, 9.0]]]])
    valid = torch.tensor([[[True, True, False]]])
    assert depth_l1(output, values, valid).item() == pytest.approx((0.5 + 2.0) / 2)


def test_invalid_pixels_change_nothing_and_get_no_gradient(case):
    loss, output, values, valid = case
    output.requires_grad_()
    value = loss(output, values, valid)
    value.backward()
    mask = valid.unsqueeze(1).expand_as(output)
    assert torch.equal(output.grad[~mask], torch.zeros_like(output.grad[~mask]))
    assert output.grad[mask].abs().sum() > 0
    spoiled = values.clone()
    if values.is_floating_point():
        spoiled[~valid.unsqueeze(1).expand_as(values)] = float("nan")
    else:
        spoiled[~valid] = 255
    assert torch.equal(loss(output, spoiled, valid), value)


def test_nothing_valid_gives_zero_with_a_gradient_of_zeros(case):
    loss, output, values, valid = case
    output.requires_grad_()
    value = loss(output, values, torch.zeros_like(valid))
    value.backward()
    assert value.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))


def test_half_precision_outputs_are_computed_in_float32_under_autocast(case):
    loss, output, values, valid = case
    half = output.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, values, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.float(), values, valid))


def test_large_logits_stay_finite():
    output, values = torch.full((1, 1, 2, 2), -1e4), torch.ones(1, 1, 2, 2)
    assert balanced_bce(output, values, torch.ones(1, 2, 2, dtype=torch.bool), 0.95).item() == pytest.approx(9500)


def test_shapes_that_would_broadcast_are_refused(case):
    loss, output, values, valid = case
    with pytest.raises(ValueError, match="do not fit"):
        loss(output, values, valid[:1])
    with pytest.raises(ValueError, match="do not fit"):
        loss(output[:, :, :1], values, valid)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [15, 16, 40])
def test_cross_entropy_does_not_depend_on_the_memory_layout(classes, layout):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, classes, (2, 6, 5), generator=generator)
    valid = torch.rand(2, 6, 5, generator=generator) > 0.3
    output = torch.randn(2, classes, 6, 5, generator=generator).to(memory_format=layout).requires_grad_()
    probabilities = output.detach().double().softmax(1)
    chosen = probabilities.gather(1, values.unsqueeze(1)).squeeze(1)
    expected = -chosen.log()[valid].mean()
    slope = (probabilities - torch.nn.functional.one_hot(values, classes).movedim(-1, 1)) * valid.unsqueeze(1)
    loss = cross_entropy(output, values, valid)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(output.grad.double(), slope / valid.sum(), atol=1e-7)
    assert output.grad.is_contiguous(memory_format=layout)
