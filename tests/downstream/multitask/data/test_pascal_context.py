import numpy as np
import pytest
import torch
from PIL import Image

from polyscene.downstream.multitask.data import check
from polyscene.downstream.multitask.data.context_classes import NORMALS_CLASSES
from polyscene.downstream.multitask.data.pascal_context import (
    PART_CLASS,
    label_boundaries,
    open_pascal_context,
    person_images,
    tasks,
)
from polyscene.downstream.scenes.classes import CLASSES
from polyscene.runtime.errors import UserError

H, W = 24, 40


@pytest.fixture(params=["astmt", "rcm"])
def opened(request, pascal_archive):
    root = pascal_archive(request.param)
    return request.param, {split: open_pascal_context(root, split) for split in ("train", "val")}


def test_both_naming_schemes_give_the_same_samples(opened):
    scheme, images = opened
    assert images["train"].title == f"PASCAL-Context ({scheme})"
    assert (images["train"].names, images["val"].names) == (("one", "two"), ("three",))
    targets = images["train"].read(0).targets

    values, valid = targets["segmentation"]
    assert not valid[0, 0]
    assert valid.sum() == H * W - 1
    assert (values[4:12, 10:20] == 15).all()
    assert (values == 15).sum() == 80

    values, valid = targets["parts"]
    assert valid.all()
    assert (values[4:8, 10:20] == 1).all()  # hair -> head
    assert (values[8:12, 10:20] == 4).all()  # hand -> lower arms
    assert (values > 0).sum() == 80

    values, valid = targets["saliency"]
    assert values[0, 0, :5].tolist() == [0, 0, 1, 1, 0]  # 126, 127 | 128, 255
    assert valid.all()

    values, valid = targets["normals"]
    assert not valid[:, : W // 2].any()  # sky
    assert valid[:, W // 2 :].all()  # wall
    assert torch.allclose(values[:, valid].norm(dim=0), torch.ones(int(valid.sum())), atol=1e-5)

    values, _ = targets["edges"]
    columns = values[0].nonzero()[:, 1].unique().tolist()
    assert set(columns) <= {W // 2 - 1, W // 2}
    assert (values[0, 2:-2].sum(dim=1) == 1).all()  # one pixel wide; thinning may shorten the ends


def test_images_without_annotated_parts_of_people_say_nothing_about_parts(opened):
    _, images = opened
    for split, index in (("train", 1), ("val", 0)):  # a dog; a person without parts
        values, valid = images[split].read(index).targets["parts"]
        assert not valid.any()
        assert (values == 0).all()


@pytest.mark.parametrize("lists", [True, False])
def test_images_with_people(pascal_archive, lists):
    images = open_pascal_context(pascal_archive("astmt", lists=lists), "train")
    read = []
    assert person_images(images, read.append) == [0]
    assert sum(read) == (0 if lists else 2)  # without the list, every part file is opened
    assert images.subset(person_images(images)).names == ("one",)
    with pytest.raises(UserError, match="without the task 'parts'"):
        person_images(images.only(["edges"]))


def test_segmentation_falls_back_to_the_context_masks(pascal_archive):
    root = pascal_archive("astmt")
    other = root / "semseg" / "pascal-context"
    other.mkdir()
    Image.fromarray(np.full((H, W), 7, np.uint8)).save(other / "one.png")
    images = open_pascal_context(root, "train", only=["segmentation"])
    assert (images.read(0).targets["segmentation"].values == 7).sum() == 0  # VOC12 comes first
    (root / "semseg" / "VOC12" / "one.png").unlink()
    assert (images.read(0).targets["segmentation"].values == 7).all()


def test_the_24_part_names():
    assert len(PART_CLASS) == 24
    assert sorted(set(PART_CLASS.values())) == [1, 2, 3, 4, 5, 6]
    assert (PART_CLASS["rebrow"], PART_CLASS["neck"], PART_CLASS["lfoot"]) == (1, 2, 6)


def test_normals_are_trusted_where_nyud_has_the_class():
    assert len(NORMALS_CLASSES) == len(set(NORMALS_CLASSES)) == 170
    ids = {entry.name: entry.context for entry in CLASSES}
    trusted = {name for name, number in ids.items() if number in NORMALS_CLASSES}
    assert {"wall", "floor", "ceiling", "person", "television", "car", "cat", "sofa"} <= trusted
    # "refrigerator" is spelt otherwise in the two lists, "potted plant" is only a plant in NYUD.
    assert trusted.isdisjoint({"sky", "road", "grass", "building", "tree", "bus", "refrigerator", "potted plant"})


def test_boundaries_of_a_label_map():
    labels = np.zeros((12, 12), dtype=np.uint16)
    labels[3:9, 3:9] = 459
    edge = label_boundaries(labels)
    assert edge.dtype == bool
    assert 0 < edge.sum() <= 24  # thin: at most the perimeter of the square
    assert not edge[:2].any()
    assert not edge[5:7, 5:7].any()
    assert not label_boundaries(np.full((5, 5), 3, np.uint16)).any()


def test_tasks_of_the_data_set():
    specs = tasks(saliency_protocol="atrc")
    assert {name: spec.channels for name, spec in specs.items()} == {
        "segmentation": 21,
        "parts": 7,
        "saliency": 1,
        "edges": 1,
        "normals": 3,
    }
    assert specs["edges"].protocol == {"max_distance": 0.0075}
    assert specs["saliency"].protocol == {"saliency": "atrc"}


def test_folders_of_no_known_scheme_are_refused(pascal_archive):
    root = pascal_archive("rcm")
    (root / "Context").rename(root / "context")
    with pytest.raises(UserError, match="no folder Context/trainval, which task 'edges' needs"):
        open_pascal_context(root, "train")
    for folder in ("PascalParts", "SemanticSegmentation", "NormalsDistill", "SaliencyDistill"):
        (root / folder).rename(root / folder[::-1])
    with pytest.raises(UserError, match="has no annotation folder; expected pascal-context"):
        open_pascal_context(root, "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("human_parts/one.mat", b"MATLAB 5.0 but not really", "cannot read the MATLAB file"),
        ("pascal-context/trainval/one.mat", b"", "cannot read the MATLAB file"),
        ("normals_distill/one.png", b"\x89PNG", "cannot read image"),
        ("sal_distill/one.png", b"nothing", "cannot read the PNG"),
    ],
)
def test_damaged_files_are_named_in_one_line(pascal_archive, file, content, message):
    root = pascal_archive("astmt")
    (root / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_pascal_context(root, "train").read(0)
    assert "\n" not in str(caught.value)
    assert file in str(caught.value)


def test_a_damaged_list_of_people_is_named(pascal_archive):
    root = pascal_archive("astmt")
    (root / "ImageSets" / "Parts" / "train.txt").write_text("{one: [15]}")
    with pytest.raises(UserError, match=r"Parts/train.txt.*delete it"):
        person_images(open_pascal_context(root, "train"))


def test_the_built_in_scenes_are_a_pascal_context(scenes):
    for split in ("train", "val"):
        images = open_pascal_context(scenes, split)
        assert images.title == "PASCAL-Context (astmt)"
        # The saliency and boundary maps of 48x64 pictures may be unusual, but nothing may be missing or misshapen.
        assert [f for f in check.check_images(images) if f.level == "error"] == []
        listed = person_images(images)
        shown = [i for i in range(len(images)) if images.read(i).targets["parts"].valid.any()]
        assert set(shown) <= set(listed)
