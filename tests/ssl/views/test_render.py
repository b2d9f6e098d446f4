import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from polyscene.ssl.views import colour
from polyscene.ssl.views.autoaugment import IMAGENET_POLICY
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.photometric import programs, schedule
from polyscene.ssl.views.pictures import views_picture
from polyscene.ssl.views.render import denormalise, render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

SPEC = ViewSpec(CropGroup(2, 40, (0.2, 1.0)), CropGroup(4, 24, (0.05, 0.14)))
SHAPES = [(60, 80), (80, 60), (33, 47), (1, 1), (3, 120), (120, 2), (70, 70), (50, 64)]


@pytest.fixture(scope="module")
def images(photo):
    return [photo(*shape, seed=i) for i, shape in enumerate(SHAPES)]


def draw(spec=SPEC, epoch=0, indices=tuple(range(8))):
    return sample_views(0, epoch, list(indices), np.array([SHAPES[i] for i in indices]).reshape(-1, 2), spec)


def by_hand(image, params, i, v, size):
    """The view as the published pipeline would make it from these parameters, with PIL and torchvision."""
    top, left, height, width = params.boxes[i, v].tolist()
    view = Image.fromarray(image.permute(1, 2, 0).numpy())
    view = view.crop((left, top, left + width, top + height)).resize((size, size), Image.BILINEAR)
    amount = params.factors[i, v].tolist()
    if params.jitter[i, v]:
        for j in params.order[i, v].tolist():
            view = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[j](view, amount[j])
    if params.grey[i, v]:
        view = tv.rgb_to_grayscale(view, 3)
    pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1)
    if params.sigma[i, v] > 0:
        sigma = params.sigma[i, v].item()
        width = colour.blur_radius(sigma)
        pixels = torch.nn.functional.pad(pixels[None].float(), (width,) * 4, mode="replicate")
        pixels = tv.gaussian_blur(pixels, [2 * width + 1] * 2, [sigma] * 2)[0, :, width:-width, width:-width].round()
    if params.flip[i, v]:
        pixels = pixels.flip(-1)
    return tv.normalize(pixels.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_standard_views_equal_the_published_pipeline(images):
    spec = ViewSpec(SPEC.large, SPEC.small, augmentation="standard")
    params = draw(spec)
    groups = render_views(images, params, spec, "cpu")
    views = [view for group in groups for view in group.unbind(1)]
    for i in (0, 1, 2, 6, 7):
        for v, view in enumerate(views):
            difference = (view[i] - by_hand(images[i], params, i, v, view.shape[-1])).abs().mean() * 255 * 0.226
            assert difference <= 1.5, (i, v)


def test_autoaugment_views_flip_first_and_then_follow_the_sub_policy(images):
    spec = ViewSpec(SPEC.large, None, augmentation="autoaugment")
    seen = set()
    for epoch in range(12):
        params = draw(spec, epoch)
        views = denormalise(render_views(images, params, spec, "cpu")[0])
        plain = ViewSpec(SPEC.large, None, augmentation="autoaugment")
        untouched = draw(plain, epoch)
        untouched.applied.fill_(False)
        resized = denormalise(render_views(images, untouched, plain, "cpu")[0])
        for i in range(len(images)):
            expected = resized[i, 0][None].float()
            for k, (name, _, _) in enumerate(IMAGENET_POLICY[params.policy[i, 0]]):
                if params.applied[i, 0, k]:
                    amount = params.magnitudes[i, 0, k]
                    expected = colour.apply(name, expected, amount[None], amount.item())
                    seen.add(name)
            assert torch.equal(views[i, 0].float(), expected[0])
    assert seen >= {"posterize", "rotate", "solarize", "equalize", "saturation"}


def test_a_view_does_not_depend_on_its_batch(images):
    whole = render_views(images, draw(), SPEC, "cpu")
    order = [5, 2, 7, 0]
    part = render_views([images[i] for i in order], draw(indices=order), SPEC, "cpu")
    for group, expected in zip(part, whole, strict=True):
        assert torch.equal(group, expected[order])
    for i in range(len(images)):
        for group, expected in zip(render_views(images[i : i + 1], draw()[i : i + 1], SPEC, "cpu"), whole):
            assert torch.equal(group[0], expected[i])


def close(ours, theirs, typical=0.05):
    """Views of two backends: equal up to rounding, which a threshold may magnify in some of them."""
    difference = (denormalise(ours).float() - denormalise(theirs).float()).abs()
    assert difference.mean() <= 0.25
    assert difference.mean(dim=(2, 3, 4)).median() <= typical


def test_the_two_backends_agree(images):
    for epoch in range(3):
        params = draw(epoch=epoch)
        one_by_one = render_views(images, params, SPEC, "cpu", backend="view")
        batched = render_views(images, params, SPEC, "cpu", backend="batch")
        for a, b in zip(one_by_one, batched, strict=True):
            close(b, a)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu_renders_the_same_without_a_synchronisation(images):
    params = draw()
    on_device = [image.cuda() for image in images]
    render_views(on_device, params, SPEC, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        views = render_views(on_device, params, SPEC, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(views, render_views(images, params, SPEC, "cpu"), strict=True):
        close(a.cpu(), b, typical=0.15)  # half precision, see test_resample


@pytest.mark.parametrize("backend", ["view", "batch"])
def test_nothing_asks_a_tensor_for_a_value(images, backend, monkeypatch):
    params = draw()

    def refuse(*_):
        raise AssertionError("a value was read from a tensor")

    for name in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    render_views(images, params, SPEC, "cpu", backend=backend)


class Launches(TorchDispatchMode):
    """Collects the operations that do something on a device."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returns = operation._schema.returns
        if not any(value.alias_info and not value.alias_info.is_write for value in returns):  # a view does nothing
            self.names.append(operation._schema.name.removeprefix("aten::"))
        return operation(*args, **(kwargs or {}))


# What tells the host a value or a shape that only the device knows.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
}


def test_the_batch_backend_runs_nothing_that_waits_for_a_device(images):
    for epoch in range(4):
        with Launches() as launches:
            render_views(images, draw(epoch=epoch), SPEC, "cpu", backend="batch")
        assert not WAITING & set(launches.names)
    with Launches() as launches:  # which would be seen
        images[0][images[0] > 3].sum().item()
    assert WAITING & set(launches.names)


def test_the_number_of_launches_does_not_grow_with_the_batch(images):
    def launches_for(indices):
        with Launches() as launches:
            render_views([images[i] for i in indices], draw(indices=indices), SPEC, "cpu", backend="batch")
        return len(launches.names)

    assert launches_for(list(range(8)) * 12) == launches_for(list(range(8)) * 2)


@pytest.mark.parametrize(("large", "small", "count"), [(2, 0, 0), (2, 16, 1), (3, 31, 6), (5, 8, 3)])
@pytest.mark.parametrize("backend", ["view", "batch"])
def test_any_number_and_size_of_views(images, large, small, count, backend):
    spec = ViewSpec(CropGroup(large, 17, (0.2, 1.0)), CropGroup(count, small, (0.05, 0.14)) if small else None)
    views = render_views(images, draw(spec), spec, "cpu", backend=backend)
    expected = [(8, large, 3, 17, 17)] + ([(8, count, 3, small, small)] if small else [])
    assert [tuple(group.shape) for group in views] == expected
    for group in views:
        assert torch.isfinite(group).all()
        assert group.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_views_are_normalised_and_of_the_type_asked_for(images):
    params = draw()
    single = render_views(images, params, SPEC, "cpu")
    for backend in ("view", "batch"):
        single_of_it = render_views(images, params, SPEC, "cpu", backend=backend)
        half = render_views(images, params, SPEC, "cpu", dtype=torch.bfloat16, backend=backend)
        assert half[0].dtype == torch.bfloat16
        assert torch.allclose(half[0].float(), single_of_it[0], atol=0.02)
    low = torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    high = torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])
    for group in single:
        assert (group.amin(dim=(0, 1, 3, 4)) >= low - 1e-5).all()
        assert (group.amax(dim=(0, 1, 3, 4)) <= high + 1e-5).all()


def test_the_number_of_threads_is_given_back(images):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        render_views(images, draw(), SPEC, "cpu")
        with pytest.raises(RuntimeError):
            render_views([torch.zeros((3, 0, 0), dtype=torch.uint8)], draw(indices=[0]), SPEC, "cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_images_are_left_alone(images):
    before = [image.clone() for image in images]
    for backend in ("view", "batch"):
        render_views(images, draw(), SPEC, "cpu", backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(before, images, strict=True))


def test_an_empty_batch_is_fine():
    assert [group.shape[0] for group in render_views([], draw(indices=[]), SPEC, "cpu")] == [0, 0]


def test_programs_keep_their_order_in_the_schedule():
    params = sample_views(0, 0, range(300), [(20, 20)] * 300, SPEC)
    operations, amounts = (array.reshape(-1, 6) for array in programs(params))
    done = [[] for _ in operations]
    for step in schedule(operations, amounts):
        for view, amount in zip(step.views, step.amounts):
            done[view].append((colour.OPERATIONS.index(step.operation), amount))
    for program, values, actual in zip(operations, amounts, done):
        assert actual == [(code, amount) for code, amount in zip(program, values) if code >= 0]
    branch = params.branch.ravel().numpy()
    assert (operations[branch == 1, 2:] == -1).all()
    assert (operations[branch == 0, :4] < 4).all()


def test_mismatches_are_named(images):
    params = draw()
    with pytest.raises(ValueError, match="7 images but parameters of 8"):
        render_views(images[1:], params, SPEC, "cpu")
    with pytest.raises(ValueError, match="parameters of 6 views, but the specification has 2"):
        render_views(images, params, ViewSpec(SPEC.large, None), "cpu")
    with pytest.raises(ValueError, match=r"image 0: expected uint8 \(3, H, W\) on cpu, got torch.float32"):
        render_views([images[0].float(), *images[1:]], params, SPEC, "cpu")


@pytest.mark.parametrize("small", [None, SPEC.small])
def test_the_picture_shows_the_images_and_their_views(images, tmp_path, small):
    spec = ViewSpec(SPEC.large, small, "inside")
    path = tmp_path / "views.png"
    views_picture(images, draw(spec), spec, path)
    picture = np.array(Image.open(path).convert("RGB"))
    assert picture.shape[0] > 800
    # Query and anchor colours of the legend and the frames are on it.
    for value in ((230, 159, 0), (0, 114, 178)):
        assert (np.abs(picture.astype(int) - value).sum(-1) < 12).sum() > 500
