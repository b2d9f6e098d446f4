"""Moments of image files: nothing but the images may decide them."""

import io
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from polyscene.downstream.multitask.rcm.image_moments import find_images, image_moments
from polyscene.downstream.multitask.rcm.moments import response_moments
from polyscene.runtime.distributed import World
from polyscene.runtime.errors import UserError
from polyscene.runtime.features import evaluation_crop, normalise
from polyscene.runtime.images import read_image


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five photos of different sizes, in two folders."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(5):
        generator = np.random.default_rng(i)
        small = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        path = root / f"room{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize((60 + 20 * i, 80), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture
def broken(photos, tmp_path):
    """The photos, with a text file and half a photo that are called .jpg."""
    whole = find_images(photos)
    text, half = tmp_path / "text.jpg", tmp_path / "half.jpg"
    text.write_text("no image")
    half.write_bytes(whole[0].read_bytes()[:500])
    return [text, *whole[:2], half, *whole[2:]]


def same(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert found[name].count == each.count
        for part in ("total", "products"):
            difference = (getattr(found[name], part) - getattr(each, part)).abs().max()
            assert difference <= tolerance * getattr(each, part).abs().max(), (name, part)


def test_they_are_those_of_the_crops_in_the_plain_network(weights, plain, photos):
    paths = find_images(photos)
    found = image_moments(weights("resnet10t"), paths, reparameterize="all", batch_size=2)
    crops = torch.stack([evaluation_crop(read_image(path), 256, 224) for path in paths])
    expected = response_moments(plain("resnet10t"), [normalise(crops)])
    same(found, expected)
    assert found["layer4.0.conv1"].count == 5 * 7 * 7  # stride 32: not dilated
    spatial = image_moments(weights("resnet10t"), paths)
    assert set(spatial) == {name for name in expected if ".downsample." not in name}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (2, 2)])
def test_batches_and_workers_do_not_matter(weights, photos, batch_size, workers):
    paths = find_images(photos)
    expected = image_moments(weights("resnet10t"), paths, batch_size=3)
    found = image_moments(weights("resnet10t"), paths, batch_size=batch_size, workers=workers)
    same(found, expected)


def test_ranks_share_the_images(weights, photos):
    paths = find_images(photos)
    expected = image_moments(weights("resnet10t"), paths)
    device = torch.device("cpu")

    class Rank(World):
        """One of three ranks, alone in its process; reductions leave its own sums as they are."""

        def mean(self, tensor):
            return tensor / self.size

        def gather_objects(self, item):
            return [item]

    parts = [image_moments(weights("resnet10t"), paths, world=Rank(rank, 3, device)) for rank in range(3)]
    assert [int(part["layer4.0.conv1"].count) // 49 for part in parts] == [2, 2, 1]
    merged = {name: parts[0][name].merge(parts[1][name]).merge(parts[2][name]) for name in parts[0]}
    same(merged, expected)


def test_what_cannot_be_read_is_left_out_and_reported(weights, photos, broken):
    warnings = []
    found = image_moments(weights("resnet10t"), broken, batch_size=2, warn=warnings.append)
    same(found, image_moments(weights("resnet10t"), find_images(photos), batch_size=2))
    assert len(warnings) == 1
    assert "2 of 7 images" in warnings[0]
    assert str(broken[0]) in warnings[0]
    assert str(broken[3]) in warnings[0]

    text = io.StringIO()
    image_moments(weights("resnet10t"), broken, console=Console(file=text, width=400))
    assert "warning: 2 of 7 images" in text.getvalue()


def test_refusals(weights, broken):
    with pytest.raises(UserError, match=r"none of the images can be read; first: .*text\.jpg"):
        image_moments(weights("resnet10t"), [broken[0], broken[3]])
    with pytest.raises(UserError, match="no images to measure"):
        image_moments(weights("resnet10t"), [])
    with pytest.raises(ValueError, match="reparameterize"):
        image_moments(weights("resnet10t"), broken, reparameterize="some")
    for number in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(UserError, match="must be at least"):
            image_moments(weights("resnet10t"), broken, **number)


def test_randomness_and_weights_are_left_alone(weights, photos):
    before = {key: value.clone() for key, value in weights("resnet10t").state.items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    image_moments(weights("resnet10t"), find_images(photos)[:1])
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in weights("resnet10t").state.items())


@pytest.mark.parametrize("length", [3, 30])
def test_no_batch_is_kept(plain, length):
    """At any time two batches are alive, the one at work and the next: memory is independent of their number."""
    body = plain("resnet10t")
    references, alive = [], []

    def stream():
        generator = torch.Generator().manual_seed(0)
        for _ in range(length):
            alive.append(sum(reference() is not None for reference in references))
            images = torch.randn(1, 3, 32, 32, generator=generator)
            references.append(weakref.ref(images))
            yield images

    responses = []

    def remember(layer, inputs, output):
        alive.append(sum(reference() is not None for reference in responses))
        responses.append(weakref.ref(output))

    handle = body.layer1[0].conv1.register_forward_hook(remember)
    response_moments(body, stream())
    handle.remove()
    assert len(responses) == length
    assert max(alive) <= 2


def test_python_memory_does_not_grow_with_the_number_of_images(weights, photos):
    """Ten times the images: no more memory at the peak, up to a few hundred bytes an image (their paths)."""

    def peak(paths):
        tracemalloc.start()
        image_moments(weights("resnet10t"), paths, batch_size=2)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    paths = find_images(photos)[:2]
    peak(paths)
    few, many = peak(paths), peak(paths * 10)
    assert many < few + 64 * 1024


def test_images_are_found(photos, tmp_path):
    paths = find_images(photos)
    assert [path.relative_to(photos).as_posix() for path in paths] == [
        "room0/0.jpg",
        "room0/2.jpg",
        "room0/4.jpg",
        "room1/1.jpg",
        "room1/3.jpg",
    ]
    assert find_images(str(photos), count=2) == [paths[0], paths[2]]
    assert find_images(photos, count=9) == paths
    assert find_images(paths[1]) == [paths[1]]

    listing = tmp_path / "list.txt"
    (tmp_path / "here.PNG").write_bytes(b"")
    listing.write_text(f"# photos\n{paths[3]}\n\nhere.PNG\n")
    assert find_images(listing) == [paths[3], tmp_path / "here.PNG"]


def test_places_without_images(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "._a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="no images in"):
        find_images(tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="at least 1"):
        find_images(photos, count=0)
    listing = tmp_path / "list.txt"
    listing.write_text("gone.jpg\n")
    with pytest.raises(UserError, match=r"lists '.*gone\.jpg', which does not exist \(1 of 1"):
        find_images(listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="neither an image nor a list"):
        find_images(listing)
    listing.write_text("# nothing\n")
    with pytest.raises(UserError, match="no images in"):
        find_images(listing)
