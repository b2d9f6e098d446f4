import pickle
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask import tasks
from polyscene.downstream.multitask.data.records import DenseImages
from polyscene.downstream.multitask.tasks import (
    BUILT_IN,
    TargetGeometry,
    TaskSpec,
    depth,
    load_task,
    normals,
    saliency,
    segmentation,
)
from polyscene.runtime.errors import UserError

H, W = 5, 7


def a_target(spec):
    torch.manual_seed(1)
    if spec.classes or spec.name == "segmentation":
        return torch.randint(0, spec.channels, (2, H, W))
    if spec.name == "normals":
        return torch.nn.functional.normalize(torch.randn(2, 3, H, W), dim=1)
    if spec.name == "depth":
        return torch.rand(2, 1, H, W) * 8 + 0.5
    return (torch.rand(2, 1, H, W) > 0.7).float()


@pytest.fixture(params=BUILT_IN)
def spec(request):
    return load_task(request.param)


def test_every_built_in_task_trains_and_predicts(spec):
    values, valid = a_target(spec), torch.rand(2, H, W) > 0.2
    output = torch.randn(2, spec.channels, H, W, requires_grad=True)
    loss = spec.loss(output, values, valid)
    loss.backward()
    assert loss.item() > 0
    assert output.grad.abs().sum() > 0
    prediction = spec.activate(output.detach())
    assert prediction.shape == ((2, 3, H, W) if spec.name == "normals" else (2, H, W))
    assert prediction.dtype == (torch.int64 if values.dtype == torch.int64 else torch.float32)


def test_every_built_in_task_draws_targets_and_predictions(spec):
    values = a_target(spec)[0]
    valid = torch.ones(H, W, dtype=torch.bool)
    valid[0] = False
    drawn = spec.picture(values, valid)
    assert drawn.shape == (H, W, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[0] == 128).all()
    assert len(np.unique(drawn[1:].reshape(-1, 3), axis=0)) > 1
    flat = values[0] if spec.name in ("depth", "edges", "saliency") else values
    assert np.array_equal(spec.picture(flat)[1:], drawn[1:])


def test_every_built_in_task_survives_pickling(spec):
    again = pickle.loads(pickle.dumps(spec))
    assert (again.name, again.metric, again.channels) == (spec.name, spec.metric, spec.channels)
    values = a_target(spec)
    output, valid = torch.randn(2, spec.channels, H, W), torch.ones(2, H, W, dtype=torch.bool)
    assert torch.equal(again.loss(output, values, valid), spec.loss(output, values, valid))


def test_the_metric_of_every_built_in_task_finds_a_perfect_prediction_perfect(spec):
    metric = spec.make_metric()
    targets = a_target(spec)
    if spec.name == "edges":  # an edge is a curve, not single pixels
        targets = torch.zeros(2, 1, 24, 32)
        targets[:, :, :, 15] = 1
    for values in targets:
        prediction = values[0] if spec.name in ("depth", "edges", "saliency") else values
        metric.update(prediction, values, torch.ones(values.shape[-2:], dtype=torch.bool))
    perfect = metric.compute()[spec.metric]
    assert perfect == pytest.approx(1 if spec.higher_is_better else 0, abs=0.05)  # thinning shortens the ends of a line


def test_activations_are_what_metrics_expect():
    output = torch.randn(2, 3, H, W) * 5
    assert torch.allclose(load_task("normals").activate(output).norm(dim=1), torch.ones(2, H, W))
    assert torch.equal(load_task("depth").activate(output[:, :1]), output[:, 0].clamp(min=0))
    probabilities = load_task("edges").activate(output[:, :1])
    assert torch.allclose(probabilities, torch.sigmoid(output[:, 0]))
    assert torch.equal(load_task("saliency").activate(output[:, :1]), probabilities)
    assert torch.equal(segmentation.task(3).activate(output), output.argmax(1))


# A picture turned counter-clockwise by 90 degrees shows as pointing up what pointed right.
@pytest.mark.parametrize(
    ("axes", "right", "up", "towards"),
    [("nyud", (1, 0, 0), (0, 0, 1), (0, -1, 0)), ("camera", (1, 0, 0), (0, -1, 0), (0, 0, -1))],
)
def test_normals_turn_with_the_picture(axes, right, up, towards):
    rule = normals.task(axes).geometry
    column = lambda vector: torch.tensor(vector, dtype=torch.float32).view(3, 1, 1)  # noqa: E731
    assert torch.allclose(rule.after_rotation(column(right), 90.0), column(up), atol=1e-6)
    assert torch.allclose(rule.after_rotation(column(up), 90.0), -column(right), atol=1e-6)
    assert torch.allclose(rule.after_rotation(column(towards), 33.0), column(towards), atol=1e-6)
    assert torch.equal(rule.after_flip(column(right)), -column(right))
    assert torch.equal(rule.after_flip(column(up)), column(up))
    vectors = a_target(normals.task(axes))[0]
    turned = rule.after_rotation(rule.after_rotation(vectors, 25.0), -25.0)
    assert torch.allclose(turned, vectors, atol=1e-6)
    # Mirroring a turned picture = turning the mirrored one the other way.
    mirrored = rule.after_flip(rule.after_rotation(vectors, 25.0))
    assert torch.allclose(mirrored, rule.after_rotation(rule.after_flip(vectors), -25.0), atol=1e-6)


def test_means_of_opposed_normals_are_not_valid():
    values = torch.tensor([[0.3, 0.6], [0.0, 0.8], [0.0, 0.0]]).view(3, 1, 2)
    repaired, valid = normals.unit_length(values * 0.9, torch.ones(1, 2, dtype=torch.bool))
    assert valid.tolist() == [[False, True]]
    assert torch.allclose(repaired, torch.tensor([[0, 0.6], [0, 0.8], [0, 0]]).view(3, 1, 2))


def test_an_enlarged_picture_is_nearer():
    assert depth.task().geometry.after_scale(torch.tensor([[[3.0]]]), 1.5).item() == 2.0


def test_depth_colours_have_one_scale_for_all_pictures():
    near, far = torch.full((2, 2), 1.0), torch.full((2, 2), 5.0)
    both = torch.cat([near, far])
    drawn = load_task("depth").picture(both)
    assert np.array_equal(load_task("depth").picture(near), drawn[:2])
    assert drawn[0].sum() > drawn[2].sum()  # near is bright


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("segmentation", torch.full((2, 2), 21), "expected 0 to 20"),
        ("edges", torch.ones(1, 2, 2), "inverted"),
        ("saliency", torch.full((1, 2, 2), 255.0), "expected 0 to 1"),
        ("depth", torch.full((1, 2, 2), 2500.0), "millimetres"),
        ("normals", torch.full((3, 2, 2), 1.0), "expected 1"),
        ("normals", torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]).T.reshape(3, 1, 2).repeat(1, 2, 1), "optical"),
    ],
)
def test_tasks_tell_impossible_targets(name, values, words):
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert words in load_task(name).problem(values, valid)


def test_the_protocol_decides_the_main_metric_of_saliency():
    for protocol in ("rcm", "survey", "atrc"):
        spec = saliency.task(protocol)
        assert spec.metric in spec.make_metric().compute()
        assert spec.protocol == {"saliency": protocol}


def test_a_specification_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="interpolation='cubic'"):
        TargetGeometry("cubic")
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        segmentation.task(3, ("a", "b"))
    with pytest.raises(ValueError, match="axes='world'"):
        normals.task("world")
    with pytest.raises(ValueError, match="protocol='f'.*rcm, survey, atrc"):
        saliency.task("f")
    with pytest.raises(ValueError, match="protocol='silog'.*survey, rcm"):
        depth.task("silog")
    with pytest.raises(UserError, match="task 'semseg' does not exist; choose from segmentation, parts"):
        load_task("semseg")


# ---- a user's task in one file: the example of the package's own documentation


@pytest.fixture
def documented(tmp_path):
    """The example in `polyscene.downstream.multitask.tasks`, written to a file."""
    text = tasks.__doc__
    code = text[text.index("    import numpy") : text.index("Use it by its path")]
    path = tmp_path / "sky.py"
    path.write_text(textwrap.dedent(code))
    return path


def test_the_documented_example_is_a_whole_task(documented, tmp_path):
    (tmp_path / "sky").mkdir()
    (tmp_path / "images").mkdir()
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[:2] = 255
    Image.fromarray(mask).save(tmp_path / "sky" / "a.png")
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "images" / "a.png")
    spec = load_task(str(documented))
    images = DenseImages("mine", tmp_path, "train", ("a",), "images/{name}.png", {}, {}).with_task(spec)
    values, valid = images.read(0).targets["sky"]
    assert torch.equal(values[0], torch.from_numpy(mask > 0).float())

    output = torch.zeros(1, 1, 4, 6, requires_grad=True)
    spec.loss(output, values[None], valid[None]).backward()
    prediction = spec.activate(-output.grad * 100)[0]  # a step against the gradient finds the sky
    halves = [spec.make_metric(), spec.make_metric()]
    for metric in halves:
        metric.update(prediction, values, valid)
    halves[0].merge(halves[1])
    assert halves[0].compute() == {spec.metric: 1.0}
    assert spec.picture(values, valid)[0, 0].tolist() == [255, 255, 255]


def test_a_users_task_reaches_other_processes(documented):
    spec = load_task(str(documented))
    again = pickle.loads(pickle.dumps(spec))
    assert isinstance(again, TaskSpec)
    assert again.source == spec.source == str(documented)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("def job(): pass", "defines no function task"),
        ("def task(): return 3", "returned int, not a TaskSpec"),
        ("def task(): return 1 / 0", "failed: ZeroDivisionError"),
        (
            "from polyscene.downstream.multitask.tasks import load_task\ndef task(): return load_task('depth')",
            "'depth' belongs to a built-in task",
        ),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_task(str(path))
    assert "\n" not in str(caught.value)
    assert "mine.py" in str(caught.value)


def test_reading_errors_of_a_users_task_name_it(documented, tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "images" / "a.png")
    images = DenseImages("mine", tmp_path, "train", ("a",), "images/{name}.png", {}, {})
    images = images.with_task(load_task(str(documented)))
    with pytest.raises(UserError, match="task 'sky': reading 'a' failed: FileNotFoundError"):
        images.read(0)
    with pytest.raises(UserError, match="already has a task 'sky'"):
        images.with_task(load_task(str(documented)))
    with pytest.raises(UserError, match="'depth' has no read="):
        images.with_task(load_task("depth"))
