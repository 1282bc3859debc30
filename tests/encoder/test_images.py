"""Pictures as the world makes them: each is read right or refused by a sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.images import ImageError, load_image, to_pil, to_pixel_values


def png_header(width, height):
    """A PNG that says it is width x height and holds nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def two_halves(mode="RGB"):
    """40 x 20, red on the left and blue on the right."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    return image.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, kind)
    path = tmp_path / "picture"
    for share in (0.9, 0.5, 0.01):
        path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
        with pytest.raises(ImageError, match="picture cannot be read as a picture"):
            load_image(path)


@pytest.mark.parametrize("content", [b"", b"a text, not a picture"])
def test_text_renamed_jpg(tmp_path, content):
    (tmp_path / "text.jpg").write_bytes(content)
    with pytest.raises(ImageError, match="text.jpg cannot be read as a picture"):
        load_image(tmp_path / "text.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [40_000, 10_000, 8_000])
def test_a_header_that_promises_too_many_pixels(tmp_path, side):
    (tmp_path / "huge.png").write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match="huge.png .*(too large|at most)"):
        load_image(tmp_path / "huge.png")


@pytest.mark.parametrize("outside", ["../secret.png", "/etc/passwd", "inner/../../secret.png", "link.png"])
def test_a_path_outside_its_folder(tmp_path, outside):
    root = tmp_path / "root"
    root.mkdir()
    two_halves().save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    two_halves().save(root / "inside.png")
    assert load_image("inside.png", root=root).size == (40, 20)
    with pytest.raises(ImageError, match="outside its folder"):
        load_image(outside, root=root)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="There is no picture at"):
            load_image(path)


@pytest.mark.parametrize("mode, kind", [("CMYK", "JPEG"), ("P", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("1", "PNG")])
def test_every_mode_comes_as_rgb(tmp_path, mode, kind):
    path = tmp_path / "picture"
    image = two_halves(mode)
    image.save(path, kind)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (40, 20)
    expected = np.asarray(image.convert("RGB"), dtype=int)
    assert np.abs(np.asarray(loaded, dtype=int)[:, [5, 35]] - expected[:, [5, 35]]).max() <= 8


def test_transparency_is_laid_on_white(tmp_path):
    palette = two_halves().quantize(2)
    clear = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=clear)
    half = two_halves("RGBA")
    half.putalpha(Image.new("L", half.size, 0))
    half.save(tmp_path / "clear.png")
    assert load_image(tmp_path / "palette.png").getpixel((5, 5)) == (255, 255, 255)
    assert load_image(tmp_path / "palette.png").getpixel((35, 5)) == (0, 0, 255)
    assert load_image(tmp_path / "clear.png").getextrema() == ((255, 255),) * 3


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise, so that left becomes top
    two_halves().save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "turned.jpg")
    assert image.size == (20, 40)
    assert image.getpixel((10, 5))[0] > 200 and image.getpixel((10, 35))[2] > 200


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / "one.png")
    pixel_values = to_pixel_values([load_image(tmp_path / "one.png")], 16)
    assert pixel_values.shape == (1, 3, 16, 16)
    assert (pixel_values[:, 0] == 1).all() and (pixel_values[:, 1:] == -1).all()


def test_bytes_in_memory_are_called_by_their_name():
    file = io.BytesIO()
    two_halves().save(file, "PNG")
    assert load_image(file).size == (40, 20)
    with pytest.raises(ImageError, match="sample 7 cannot be read"):
        load_image(io.BytesIO(b"nothing"), name="sample 7")


def test_pixel_values_and_back_is_exact():
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixel_values = to_pixel_values([Image.fromarray(array)], 16)
    assert pixel_values.min() >= -1 and pixel_values.max() <= 1
    assert np.array_equal(np.asarray(to_pil(pixel_values)[0]), array)
    assert to_pil(torch.full((1, 3, 2, 2), 3.0))[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a" * 5000 + ".png", "null\0byte.png"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(ImageError, match="not a path"):
        load_image(name, root=tmp_path)


def test_sixteen_bit_grey_keeps_its_tones(tmp_path):
    Image.fromarray(np.array([[0, 128 << 8, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(load_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 128, 255]
