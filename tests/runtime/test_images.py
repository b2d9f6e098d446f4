"""Every kind of file that real image trees contain, written here and decoded."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from polyscene.runtime import images
from polyscene.runtime.errors import UserError
from polyscene.runtime.images import MAX_PIXELS, UnreadableImage, decode_image, read_image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


@pytest.fixture(params=["torchvision", "pillow only"])
def decoder(request, monkeypatch):
    if request.param == "pillow only":
        monkeypatch.setattr(images, "decode_jpeg", None)


@pytest.fixture
def picture() -> Image.Image:
    """Smooth in both directions, different in every channel and corner: 40 rows, 56 columns."""
    y, x = np.mgrid[0:40, 0:56]
    return Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 2 - y], axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype == torch.uint8
    assert tensor.shape[0] == 3
    assert tensor.permute(1, 2, 0).is_contiguous(), "not stored channels last"
    return tensor.permute(1, 2, 0).numpy().astype(int)


def assert_close(tensor: torch.Tensor, expected: Image.Image, mean: float) -> None:
    expected = np.asarray(expected.convert("RGB")).astype(int)
    assert pixels(tensor).shape == expected.shape
    assert np.abs(pixels(tensor) - expected).mean() <= mean


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_colour_is_exact(picture, kind):
    assert_close(decode_image(encode(picture, kind), "x"), picture, 0)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg(picture, options):
    assert_close(decode_image(encode(picture, "JPEG", quality=95, **options), "x"), picture, 2)


def test_webp_and_gif(picture):
    assert_close(decode_image(encode(picture, "WEBP", lossless=True), "x"), picture, 0)
    assert_close(decode_image(encode(picture, "GIF"), "x"), picture, 12)  # 256 colours


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_has_three_equal_channels(picture, kind):
    grey = picture.convert("L")
    decoded = decode_image(encode(grey, kind, quality=95), "x")
    assert_close(decoded, grey, 1)
    assert (decoded == decoded[:1]).all()


def test_one_bit_and_palette(picture):
    assert_close(decode_image(encode(picture.convert("1"), "PNG"), "x"), picture.convert("1"), 0)
    palette = picture.quantize(64)
    assert_close(decode_image(encode(palette, "PNG"), "x"), palette, 0)


@pytest.mark.usefixtures("decoder")
def test_adobe_cmyk_is_not_a_negative(picture):
    data = encode(picture.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_close(decode_image(data, "x"), picture, 4)


def test_cmyk_tiff(picture):
    assert_close(decode_image(encode(picture.convert("CMYK"), "TIFF"), "x"), picture, 2)


@pytest.mark.usefixtures("decoder")
def test_rgb_jpeg_that_says_adobe_rgb(picture):
    data = encode(picture, "JPEG", quality=95, keep_rgb=True, subsampling=0)
    assert_close(decode_image(data, "x"), picture, 2)


def png(bits: int, colour: int, rows: np.ndarray) -> bytes:
    """A PNG file of big-endian samples (H, W * channels), written from the specification."""
    height, channels = rows.shape[0], {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    raw = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", rows.shape[1] // channels, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 24 * 6).astype(int).reshape(6, 24)
    grey = pixels(decode_image(png(16, 0, ramp), "x"))
    assert np.abs(grey - (ramp / 257)[..., None]).max() <= 1
    assert grey.min() == 0
    assert grey.max() == 255
    colour = pixels(decode_image(png(16, 2, np.repeat(ramp, 3, axis=1)), "x"))
    np.testing.assert_array_equal(colour, grey)  # grey and colour files agree


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_sixteen_bit_grey_of_pillow(kind):
    ramp = np.linspace(0, 65535, 24 * 6).astype(np.uint16).reshape(6, 24)
    grey = pixels(decode_image(encode(Image.fromarray(ramp), kind), "x"))
    assert np.abs(grey - (ramp.astype(float) / 257)[..., None]).max() <= 1


def test_alpha_is_put_on_white(picture):
    transparent = picture.copy()
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 28, 40))
    alpha.paste(128, (28, 0, 40, 40))
    transparent.putalpha(alpha)
    colours = np.asarray(picture).astype(float)
    share = (np.asarray(alpha) / 255)[..., None]
    expected = share * colours + (1 - share) * 255
    for kind in ("PNG", "TIFF"):
        assert np.abs(pixels(decode_image(encode(transparent, kind), "x")) - expected).max() <= 1


def test_transparent_palette_and_grey_colour(picture):
    palette = picture.quantize(16)
    hidden = np.asarray(palette) == 3
    assert hidden.any()
    decoded = pixels(decode_image(encode(palette, "PNG", transparency=3), "x"))
    assert (decoded[hidden] == 255).all()
    np.testing.assert_array_equal(decoded[~hidden], np.asarray(palette.convert("RGB"))[~hidden])
    two_channels = Image.merge("LA", [picture.convert("L"), Image.new("L", picture.size, 0)])
    assert (pixels(decode_image(encode(two_channels, "PNG"), "x")) == 255).all()


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(picture, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encode(picture, kind, exif=exif, **options)
    expected = picture.copy()
    expected.getexif()[0x0112] = orientation
    assert_close(decode_image(data, "x"), ImageOps.exif_transpose(expected), 2 if kind == "JPEG" else 0)


@pytest.mark.usefixtures("decoder")
def test_broken_exif_does_not_lose_the_picture(picture):
    data = encode(picture, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\xff garbage")
    assert_close(decode_image(data, "x"), picture, 2)


def test_png_named_jpeg(tmp_path, picture):
    path = tmp_path / "n02105855_2933.JPEG"
    path.write_bytes(encode(picture, "PNG"))
    assert_close(read_image(path), picture, 0)
    assert_close(read_image(str(path)), picture, 0)


def test_first_picture_of_an_animation(picture):
    data = encode(picture, "WEBP", save_all=True, append_images=[ImageOps.invert(picture)], lossless=True)
    assert_close(decode_image(data, "x"), picture, 0)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "CMYK", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.7, 0.95])
def test_truncated_files_are_errors(kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)  # pixels all over the file
    image = Image.fromarray(noise)
    if kind == "CMYK":
        data = encode(image.convert("CMYK"), "JPEG")
    elif kind == "progressive":
        data = encode(image, "JPEG", progressive=True)
    else:
        data = encode(image, kind)
    with pytest.raises(UnreadableImage, match=r"^cannot read image 'a/b\.jpg': \S.*$"):
        decode_image(data[: int(len(data) * share)], "a/b.jpg")


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_padded_with_zeros_is_an_error(picture, mode):
    data = encode(picture.convert(mode), "JPEG", quality=95)
    half = len(data) * 3 // 4
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[:half] + bytes(len(data) - half), "x")


@pytest.mark.usefixtures("decoder")
def test_jpeg_without_its_last_byte_is_an_error(picture):
    with pytest.raises(UnreadableImage):
        decode_image(encode(picture, "JPEG")[:-1], "x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404 not found</html>", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image of a known format"),
        (b"\xff\xd8\xff", "cannot read"),
        (b"\xff\xd8\xff\xe0\0\0\0\0\0\0\0\0\0\0", "cannot read"),
    ],
)
def test_not_images(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_image(data, "some/name.png")
    assert isinstance(caught.value, UserError)
    assert "some/name.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_without_a_range():
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode_image(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x")


@pytest.mark.usefixtures("decoder")
def test_decompression_bombs_are_refused_before_decoding(picture):
    data = bytearray(encode(picture, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(UnreadableImage, match="65000 x 65000 pixels"):
        decode_image(bytes(data), "x")
    huge = bytearray(encode(picture, "PNG"))
    huge[16:24] = struct.pack(">II", 14000, 14000)
    huge[29:33] = struct.pack(">I", zlib.crc32(bytes(huge[12:29])))
    assert MAX_PIXELS < 14000 * 14000
    with pytest.raises(UnreadableImage, match="pixels"):
        decode_image(bytes(huge), "x")


def test_read_image_names_the_file_and_the_reason(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file") as caught:
        read_image(tmp_path / "missing.jpg")
    assert str(tmp_path / "missing.jpg") in str(caught.value)
    with pytest.raises(UnreadableImage, match="directory"):
        read_image(tmp_path)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "broken")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "broken", "cannot read image 'a.jpg': broken")


def test_random_damage_gives_a_picture_or_one_line(picture):
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"):
        data = np.frombuffer(encode(picture, kind), np.uint8)
        for _ in range(10):
            broken = data.copy()
            where = rng.integers(4, len(data), 8)
            broken[where] = rng.integers(0, 256, 8)
            message = ""
            try:
                pixels(decode_image(broken.tobytes(), "x"))
            except UnreadableImage as error:
                message = str(error)
            assert "\n" not in message
