"""All heads at once against torch.optim.SGD one at a time; crops; the choice of the learning rate."""

import pytest
import torch
from torch.utils.data import Dataset

from polyscene.downstream.frozen.linear_crops import augmented_crop
from polyscene.downstream.frozen.linear_sgd import (
    INITIAL_STD,
    LEARNING_RATES,
    LinearHeads,
    sgd_probe,
)
from polyscene.runtime.errors import UserError

CPU = torch.device("cpu")
HUGE = float("inf")


class Colours(Dataset):
    """Images of one of three colours, with noise; class = colour."""

    def __init__(self, count=48):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 120, (3, 20 + index % 5, 24), generator=generator, dtype=torch.uint8)
        image[index % 3] += 100
        return image, index % 3


class Damaged(Colours):
    def __getitem__(self, index):
        if index == 7:
            raise UserError("cannot read image '7.jpg': truncated")
        return super().__getitem__(index)


def mean_colour(images):
    """(B, 3, H, W) -> (B, 3): what a backbone would do, much simplified."""
    return images.float().mean(dim=(2, 3)) / 255


def run(dataset=None, **change):
    x = torch.stack([mean_colour(Colours()[i][0][None])[0] for i in range(30)])
    y = torch.arange(30) % 3
    arguments = {
        "classes": 3,
        "channels": 3,
        "learning_rates": (0.1, 1.0),
        "epochs": 3,
        "milestones": (2,),
        "batch_size": 10,
        "crop": 8,
        "device": CPU,
        **change,
    }
    return sgd_probe(mean_colour, Colours() if dataset is None else dataset, x, y, **arguments)


def test_every_head_equals_its_own_sgd():
    generator = torch.Generator().manual_seed(0)
    rates = [0.01, 0.3, 10.0]
    heads = LinearHeads(rates, classes=4, channels=6, seed=3, device=CPU)
    keep = torch.ones(3, 16)
    keep[1, :5] = 0  # the second head never sees the first five images of a batch
    linears = []
    for r, rate in enumerate(rates):
        linear = torch.nn.Linear(6, 4)
        linear.weight.data.copy_(heads.weight[r])
        linear.bias.data.zero_()
        linears.append((linear, torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)))
    for step in range(30):
        x = torch.randn(16, 6, generator=generator)
        y = torch.randint(0, 4, (16,), generator=generator)
        factor = 0.1 if step >= 20 else 1.0
        heads.step(x, y, keep, factor)
        for r, (linear, optimiser) in enumerate(linears):
            seen = keep[r].bool()
            optimiser.param_groups[0]["lr"] = rates[r] * factor
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(linear(x[seen]), y[seen]).backward()
            optimiser.step()
    for r, (linear, _) in enumerate(linears):
        torch.testing.assert_close(heads.weight[r], linear.weight.data, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias[r], linear.bias.data, rtol=1e-4, atol=1e-5)


def test_the_probe_equals_torch_sgd_on_the_same_crops():
    """One epoch, one batch of all images: the order within a batch does not matter."""
    dataset = Colours(12)
    result = run(dataset, learning_rates=(0.5,), epochs=3, milestones=(1,), batch_size=12, holdout=0.0, seed=4)
    linear = torch.nn.Linear(3, 3)
    linear.weight.data.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(4)) * INITIAL_STD)
    linear.bias.data.zero_()
    optimiser = torch.optim.SGD(linear.parameters(), lr=0.5, momentum=0.9)
    for epoch in range(3):
        optimiser.param_groups[0]["lr"] = 0.5 if epoch < 1 else 0.05
        crops = torch.stack([augmented_crop(dataset[i][0], 8, 4, epoch, i) for i in range(12)])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linear(mean_colour(crops)), torch.arange(12) % 3).backward()
        optimiser.step()
    torch.testing.assert_close(result.best.weight, linear.weight.data, rtol=1e-5, atol=1e-6)


def test_a_diverging_head_spoils_no_other():
    alone = run(learning_rates=(0.1,))
    beside = run(learning_rates=(0.1, HUGE))
    assert beside.diverged == [HUGE]
    assert beside.accuracies[HUGE] == 0
    assert beside.best.learning_rate == 0.1
    torch.testing.assert_close(beside.best.weight, alone.best.weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="diverged"):
        run(learning_rates=(HUGE,))


def test_held_out_images_choose_but_the_reported_head_saw_all():
    chosen = run(holdout=0.25)
    assert chosen.chosen_on == "held-out"
    assert [rate for rate, _ in chosen.sweep] == [0.1, 1.0]
    assert all(0 <= score <= 1 for _, score in chosen.sweep)
    on_test = run(holdout=0.0)
    assert (on_test.chosen_on, on_test.sweep) == ("test", [])
    # Held-out images change the choice, never a head's training.
    assert chosen.accuracies == on_test.accuracies
    assert on_test.best.accuracy == max(on_test.accuracies.values())


def test_the_probe_learns():
    result = run(epochs=20, milestones=(15,), learning_rates=(1.0, 10.0))
    assert result.best.accuracy == 1.0
    assert result.best.predictions.tolist() == [i % 3 for i in range(30)]


def test_the_number_of_workers_changes_nothing():
    one, two = run(workers=0), run(workers=2)
    assert torch.equal(one.best.weight, two.best.weight)
    assert one.sweep == two.sweep


def test_crops_depend_on_seed_epoch_and_index_only():
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = augmented_crop(image, 16, 0, 2, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augmented_crop(image, 16, 0, 2, 5), first)
    others = [augmented_crop(image, 16, *key) for key in ((1, 2, 5), (0, 3, 5), (0, 2, 6), (-1, 2, 5))]
    assert not any(torch.equal(other, first) for other in others)
    assert first.shape == (3, 16, 16)


def test_crops_are_flipped_half_of_the_time_and_cover_the_published_areas():
    """A ramp from left to right: its mean step tells the crop's width, its sign the flip."""
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200).contiguous()
    views = torch.stack([augmented_crop(ramp, 20, 0, 0, i) for i in range(400)]).float()
    step = (views[:, 0, :, -3] - views[:, 0, :, 2]).mean(dim=1) / 15
    assert 0.4 < (step < 0).float().mean() < 0.6
    widths = step.abs() * 20  # pixels of the original
    assert widths.min() > 200 * (0.08 * 0.75) ** 0.5 * 0.9
    assert widths.max() <= 200 * 1.02
    # E[sqrt(area)] of a uniform area in [0.08, 1], aspect ratios near one.
    assert widths.mean() / 200 == pytest.approx((1 - 0.08**1.5) / 1.5 / 0.92, abs=0.04)


def test_progress_counts_epochs():
    calls = []
    run(progress=calls.append)
    assert calls == [1, 2, 3]


def test_default_rates():
    assert len(LEARNING_RATES) == 13
    assert 30.0 in LEARNING_RATES


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(workers):
    with pytest.raises(UserError, match=r"^cannot read image '7.jpg': truncated$"):
        run(Damaged(), workers=workers)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="holdout=1.5"):
        run(holdout=1.5)
    with pytest.raises(UserError, match="no training images"):
        run(Colours(0))
    with pytest.raises(ValueError, match="among 2 classes"):
        run(classes=2)
