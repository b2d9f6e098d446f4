import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyscene.ssl.views.resample import interpolation_matrix, resize_crop, resize_crops
from polyscene.ssl.views.staging import pack, unpack


def pil_crop(image, box, size, flip):
    top, left, height, width = (int(side) for side in box)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.BILINEAR)
    if flip:
        picture = picture.transpose(Image.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()


CASES = [
    ((300, 400), (0, 0, 300, 400), 64),
    ((300, 400), (31, 57, 200, 260), 160),
    ((300, 400), (299, 399, 1, 1), 5),
    ((300, 400), (10, 20, 40, 30), 96),
    ((1, 1), (0, 0, 1, 1), 32),
    ((3, 700), (0, 100, 3, 500), 32),
    ((700, 3), (5, 0, 600, 2), 33),
    ((64, 64), (0, 0, 64, 64), 64),
]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("shape", "box", "size"), CASES)
def test_both_backends_equal_pils_crop_and_resize(photo, shape, box, size, flip):
    image = photo(*shape, seed=1)
    theirs = pil_crop(image, box, size, flip)
    single = resize_crop(image, box, size, flip)[0]
    batched = resize_crops([image], np.array([[box]]), np.array([[flip]]), [(1, size)], torch.float32)[0][0]
    for ours in (single, batched):
        assert torch.equal(ours, ours.round())
        assert (ours - theirs).abs().max() <= 1
        assert (ours - theirs).abs().mean() <= 0.15


def test_a_batch_of_ragged_images_equals_one_crop_at_a_time(photo):
    images = [photo(40 + 13 * i, 90 - 9 * i, seed=i) for i in range(6)]
    generator = np.random.default_rng(0)
    boxes = np.zeros((6, 3, 4), dtype=np.int64)
    for i, j in np.ndindex(6, 3):
        sides = generator.integers(1, np.array(images[i].shape[1:]) + 1)
        boxes[i, j] = [*generator.integers(0, np.array(images[i].shape[1:]) - sides + 1), *sides]
    flips = generator.random((6, 3)) < 0.5
    expected = torch.cat([resize_crop(images[i], boxes[i, j], 24, flips[i, j]) for i, j in np.ndindex(6, 3)])
    for chunk_elements in (1, 3 * 2 * 100 * 100, 1 << 26):
        (ours,) = resize_crops(images, boxes, flips, [(3, 24)], torch.float32, chunk_elements)
        assert (ours - expected).abs().max() <= 1
        assert (ours - expected).abs().mean() <= 0.05
    (half,) = resize_crops(images, boxes, flips, [(3, 24)], torch.float16)
    assert (half - expected).abs().max() <= 1
    assert (half - expected).abs().mean() <= 0.1


def test_half_precision_is_off_by_little_and_stays_within_8_bits(photo):
    """As on a GPU: a histogram is indexed with these numbers."""
    images = [photo(*shape, seed=i) for i, shape in enumerate([(60, 80), (33, 47), (200, 150)])]
    images.append(torch.full_like(images[0], 255))
    boxes = np.array([[[0, 0, *image.shape[1:]], [3, 2, 17, 20]] for image in images])
    flips = np.array([[False, True]] * len(images))
    exact, half = (resize_crops(images, boxes, flips, [(2, 40)], t)[0] for t in (torch.float32, torch.float16))
    assert half.max() == 255
    assert half.min() >= 0
    assert torch.equal(half, half.floor())
    assert (half - exact).abs().max() <= 2
    assert (half != exact).float().mean() < 0.1


def test_pixels_outside_the_box_have_no_influence(photo):
    image = photo(50, 60, seed=3).contiguous()
    box = (10, 20, 21, 17)
    changed = 255 - image
    changed[:, 10:31, 20:37] = image[:, 10:31, 20:37]
    for size in (8, 40):
        assert torch.equal(resize_crop(image, box, size, False), resize_crop(changed, box, size, False))
        arguments = (np.array([[box]]), np.array([[False]]), [(1, size)], torch.float32)
        assert torch.equal(resize_crops([image], *arguments)[0], resize_crops([changed], *arguments)[0])


def test_memory_order_of_the_image_does_not_matter(photo):
    image = photo(50, 60, seed=4)
    box = (3, 5, 40, 44)
    assert torch.equal(resize_crop(image, box, 16, True), resize_crop(image.contiguous(), box, 16, True))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 20), st.integers(0, 20), st.integers(1, 50))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_interpolation_weights_are_averages_of_the_interval(start, length, before, after, size):
    total = start + length + after + before
    matrix = interpolation_matrix(torch.tensor([start]), torch.tensor([length]), None, total, size)[0]
    assert torch.allclose(matrix.sum(1), torch.ones(size), atol=1e-5)
    assert (matrix >= 0).all()
    assert (matrix[:, :start] == 0).all()
    assert (matrix[:, start + length :] == 0).all()
    interval = matrix[:, start : start + length]
    assert torch.allclose(interval, interval.flip(0, 1), atol=1e-4)
    reversed_matrix = interpolation_matrix(
        torch.tensor([start]), torch.tensor([length]), torch.tensor([True]), total, size
    )
    assert torch.equal(reversed_matrix[0], matrix.flip(0))


def test_packed_tensors_come_back():
    tensors = [
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.zeros(0, 4),
        torch.rand(2, 3),
        torch.arange(7, dtype=torch.uint8),
        torch.tensor(2.5, dtype=torch.float64),
    ]
    for ours, theirs in zip(unpack(pack(tensors, pin_memory=False), tensors), tensors, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
