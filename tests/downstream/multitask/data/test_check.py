import numpy as np
from PIL import Image

from polyscene.downstream.multitask.data.check import check_images, check_splits
from polyscene.downstream.multitask.data.nyud import PUBLISHED_COUNTS, open_nyud, tasks


def test_a_sound_archive_has_no_findings(nyud_archive):
    root, _ = nyud_archive("atrc")
    seen = []
    assert check_images(open_nyud(root, "train"), progress=seen.append) == []
    assert sum(seen) == 2
    assert check_splits(open_nyud(root, "train"), open_nyud(root, "val"), {"train": 2, "val": 1}) == []


def test_every_kind_of_fault_is_found_once(nyud_archive):
    root, truths = nyud_archive("mti")
    images = open_nyud(root, "train")
    (root / "depth" / "0001.npy").unlink()
    (root / "depth" / "0004.npy").unlink()
    (root / "images" / "0001.jpg").unlink()
    found = {(f.level, f.subject): f for f in check_images(images)}
    assert set(found) == {("error", "train depth"), ("error", "train images")}
    assert found["error", "train depth"].count == 2
    assert "0001.npy' does not exist" in found["error", "train depth"].message

    # Files that are there but wrong: unreadable, of another size, and with values that cannot be.
    for name in images.names:
        np.save(root / "depth" / f"{name}.npy", truths[name].depth * 1000)
        Image.fromarray(np.zeros((12, 40), np.uint8)).save(root / "segmentation" / f"{name}.png")
        np.save(root / "edge" / f"{name}.npy", 1 - truths[name].edge.astype(np.float32))
    (root / "images" / "0001.jpg").write_bytes((root / "images" / "0004.jpg").read_bytes())
    (root / "normals" / "0004.npy").write_bytes(b"no array")
    found = {f.subject: f for f in check_images(images)}
    assert {subject: (f.level, f.count) for subject, f in found.items()} == {
        "train depth": ("warning", 2),
        "train segmentation": ("error", 2),
        "train edges": ("warning", 2),
        "train normals": ("error", 1),
    }
    assert "millimetres" in found["train depth"].message
    assert "12x40, the image 24x40" in found["train segmentation"].message
    assert "inverted" in found["train edges"].message
    assert "0004.npy" in found["train normals"].message
    assert all("\n" not in f.message for f in found.values())


def test_an_unreadable_image_is_found(nyud_archive):
    root, _ = nyud_archive("astmt")
    (root / "images" / "0004.jpg").write_bytes(b"\xff\xd8\xff")
    (finding,) = check_images(open_nyud(root, "train"))
    assert (finding.level, finding.subject, finding.count) == ("error", "train images", 1)
    assert "0004.jpg" in finding.message


def test_a_sample_reads_fewer_images_but_looks_for_all_files(nyud_archive):
    root, _ = nyud_archive("astmt")
    images = open_nyud(root, "train")
    (root / "depth" / "0004.mat").unlink()
    seen = []
    (finding,) = check_images(images, sample=1, progress=seen.append)
    assert "0004.mat" in finding.message
    assert seen == [1]


def test_normals_in_other_axes_than_said_are_found(scenes):
    right = check_images(open_nyud(scenes, "train", only=["normals"]))
    wrong = check_images(open_nyud(scenes, "train", only=["normals"], specs=tasks(axes="camera")))
    assert right == []
    assert [f.level for f in wrong] == ["warning"]
    assert "not the optical axis" in wrong[0].message


def test_splits_that_share_images_or_differ_from_the_published_ones(nyud_archive):
    root, _ = nyud_archive("astmt")
    (root / "gt_sets" / "val.txt").write_text("0004\n")
    findings = check_splits(open_nyud(root, "train"), open_nyud(root, "val"), PUBLISHED_COUNTS)
    assert [f.level for f in findings] == ["error", "warning", "warning"]
    assert "share images, first '0004'" in findings[0].message
    assert "2 images, the published one 795" in findings[1].message
