"""Layouts and mask files: what is read, and the one line about what is wrong."""

import numpy as np
import pytest
from PIL import Image

from polyscene.downstream.video.masks import davis_palette, read_mask, write_mask
from polyscene.downstream.video.sequences import check_video, davis_videos, folder_video
from polyscene.runtime.errors import UserError


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    (image.convert(mode) if mode else image).save(path)


def frame(path, size=(12, 16)):
    save(path, np.zeros((*size, 3), dtype=np.uint8))


def box(value=255, size=(12, 16)):
    mask = np.zeros(size, dtype=np.uint8)
    mask[2:5, 3:9] = value
    return mask


@pytest.fixture
def video(tmp_path):
    """Four frames and four binary masks: ``video(frames folder, masks folder)``."""
    for i in range(4):
        frame(tmp_path / "frames" / f"{i:05d}.jpg")
        save(tmp_path / "masks" / f"{i:05d}.png", box())
    return tmp_path


@pytest.fixture
def davis(tmp_path):
    root = tmp_path / "DAVIS"
    for name in ("bear", "bus"):
        for i in range(3):
            frame(root / "JPEGImages" / "480p" / name / f"{i:05d}.jpg")
            (root / "Annotations" / "480p" / name).mkdir(parents=True, exist_ok=True)
            write_mask(root / "Annotations" / "480p" / name / f"{i:05d}.png", box(1) + box(2).T.reshape(12, 16))
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\nbus\n\n")
    return root


def opened(video):
    made = folder_video(video / "frames", video / "masks")
    check_video(made)
    return made


def test_masks_of_all_frames_or_of_the_first(video):
    assert opened(video).scored
    for i in (1, 2, 3):
        (video / "masks" / f"{i:05d}.png").unlink()
    first_only = opened(video)
    assert not first_only.scored
    assert first_only.masks == (video / "masks" / "00000.png",)
    assert folder_video(video / "frames", first_only.masks[0]).masks == first_only.masks


def test_frames_come_in_natural_order(tmp_path):
    for i in (10, 9, 1, 2):
        frame(tmp_path / "v" / f"frame{i}.jpg")
    save(tmp_path / "mask.png", box())
    made = folder_video(tmp_path / "v", tmp_path / "mask.png")
    assert [path.stem for path in made.frames] == ["frame1", "frame2", "frame9", "frame10"]
    assert made.name == "v"


def test_davis_layout(davis):
    bear, bus = davis_videos(davis)
    check_video(bear)
    assert (bear.name, bus.name) == ("bear", "bus")
    assert len(bear.frames) == len(bear.masks) == 3
    assert [v.name for v in davis_videos(davis, names=["bus"])] == ["bus"]
    with pytest.raises(UserError, match="'buss' is not in .*did you mean 'bus'"):
        davis_videos(davis, names=["buss"])
    with pytest.raises(UserError, match=r"train\.txt' does not exist; data.root must be"):
        davis_videos(davis, "train")


def test_later_objects_are_background_in_davis_and_refused_elsewhere(davis, video):
    later = box(1) + 2 * box(3).T.reshape(12, 16)
    for folder in (davis / "Annotations" / "480p" / "bear", video / "masks"):
        write_mask(folder / "00000.png", box(1))
        write_mask(folder / "00001.png", later)
    first, second = (read_mask(path) for path in davis_videos(davis)[0].masks[:2])
    assert np.array_equal(second.label_map(first, closed=False), np.where(later == 1, 1, 0))
    with pytest.raises(UserError, match=r"00001\.png' holds the label values .*, which the first mask"):
        read_mask(video / "masks" / "00001.png").label_map(first, closed=True)


@pytest.mark.parametrize(
    ("values", "mode", "labels"),
    [
        (box(255), None, (1,)),
        (box(1), None, (1,)),
        (box(255), "1", (1,)),
        (box(255), "RGB", (1,)),
        (box(255), "LA", (1,)),
        (box(7), "P", (7,)),
        (np.uint16(box(7)), None, (7,)),
    ],
)
def test_kinds_of_mask_files(tmp_path, values, mode, labels):
    if mode == "P":
        write_mask(tmp_path / "m.png", values)
    else:
        save(tmp_path / "m.png", values, mode)
    mask = read_mask(tmp_path / "m.png")
    assert mask.object_labels() == labels
    assert np.array_equal(mask.label_map(mask, closed=True), np.where(values > 0, labels[0], 0))


def test_void_beside_objects_is_background(tmp_path):
    values = box(2)
    values[8:] = 255
    save(tmp_path / "m.png", values)
    mask = read_mask(tmp_path / "m.png")
    assert mask.object_labels() == (2,)
    assert np.array_equal(mask.label_map(mask, closed=True), box(2))


def test_written_masks_are_davis_pngs(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_mask(tmp_path / "m.png", values)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), values)
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()
    assert colours == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128],
        [0, 128, 128], [128, 128, 128], [64, 0, 0], [191, 0, 0], [64, 128, 0], [191, 128, 0],
    ]  # fmt: skip
    assert davis_palette()[3 * 22 : 3 * 24] == [22, 22, 22, 23, 23, 23]


def no_masks(root):
    (root / "masks" / "00002.png").unlink()


def no_first(root):
    (root / "masks" / "00000.png").unlink()


def no_frames(root):
    for path in (root / "frames").iterdir():
        path.unlink()


def no_folder(root):
    (root / "frames").rename(root / "elsewhere")


def other_size(root):
    save(root / "masks" / "00002.png", box(255, (24, 32)))


def other_frame(root):
    frame(root / "frames" / "00003.jpg", (12, 18))


def no_object(root):
    save(root / "masks" / "00000.png", box(0))


def smooth(root):
    save(root / "masks" / "00000.png", np.arange(192, dtype=np.uint8).reshape(12, 16))


def colourful(root):
    save(root / "masks" / "00000.png", np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8))


def large_labels(root):
    save(root / "masks" / "00000.png", np.uint16(box(9)) * 100)


def damaged(root):
    (root / "masks" / "00000.png").write_bytes(b"no picture")


def cut_short(root):
    path = root / "masks" / "00000.png"
    save(path, np.random.default_rng(0).integers(0, 9, (12, 16), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-40])


def masks_among_frames(root):
    save(root / "frames" / "00000.png", box())


def one_frame(root):
    for i in (1, 2, 3):
        (root / "frames" / f"{i:05d}.jpg").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_masks, r"no mask of 1 of 4 frames \(first: '00002.jpg'\)"),
        (no_first, "no mask of the first frame '00000.jpg'; add '00000.png'"),
        (no_frames, "holds no frames"),
        (no_folder, "folder of frames .* does not exist"),
        (other_size, r"00002.png' has 32 x 24 pixels, its frame 16 x 12"),
        (other_frame, r"00003.jpg' has 18 x 12 pixels, the first frame 16 x 12"),
        (no_object, r"00000.png' holds no object"),
        (smooth, r"00000.png' holds 191 label values"),
        (colourful, r"00000.png' is a colour picture"),
        (large_labels, r"00000.png' holds values up to 900"),
        (damaged, r"cannot read '.*00000.png'"),
        (cut_short, r"cannot read mask '.*00000.png'"),
        (masks_among_frames, "holds '00000' with two endings"),
        (one_frame, "holds 1 frames"),
    ],
)
def test_bad_input(video, spoil, message):
    spoil(video)
    with pytest.raises(UserError, match=message) as error:
        opened(video)
    assert "\n" not in str(error.value)
