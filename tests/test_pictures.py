"""Pictures of every kind go in, upright RGB or one InputError comes out; a saved picture is complete or not there."""

import inspect
import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmgpt.data.pictures import open_picture, save_picture
from mmgpt.errors import InputError

COLOURS = np.array([[[200, 30, 10], [20, 180, 40]], [[0, 0, 250], [250, 240, 0]], [[90, 90, 90], [255, 255, 255]]], np.uint8)  # 3 rows, 2 columns


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(source) -> np.ndarray:
    image = open_picture(source)
    assert image.mode == "RGB" and not image.info
    return np.asarray(image).astype(int)


def png_header(width: int, height: int, bits: int = 1, colour: int = 0) -> bytes:
    """A PNG that promises width x height and holds one empty row of data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def one_line(error) -> str:
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)
    return str(error.value)


# --- what is read -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(format, options):
    assert (pixels(encoded(Image.fromarray(COLOURS), format, **options)) == COLOURS).all()


def test_path_bytes_and_image_are_the_same_picture(tmp_path):
    image = Image.fromarray(COLOURS)
    path = tmp_path / "named_wrongly.gif"  # the content decides, not the name
    path.write_bytes(encoded(image, "PNG"))
    for source in (path, str(path), path.read_bytes(), image, Image.open(path)):
        assert (pixels(source) == COLOURS).all()


def test_the_result_is_a_copy():
    image = Image.fromarray(COLOURS)
    open_picture(image).putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(image) == COLOURS).all()


def test_grey_and_one_bit():
    grey = np.array([[0, 100, 255]], np.uint8)
    assert (pixels(encoded(Image.fromarray(grey), "PNG")) == grey[..., None]).all()
    assert (pixels(encoded(Image.fromarray(grey > 50), "PNG")) == [[[0] * 3, [255] * 3, [255] * 3]]).all()


def test_sixteen_bits_are_scaled_not_clipped():
    deep = np.array([[0, 257 * 100, 257 * 200, 65535]], np.uint16)
    expected = np.array([[0, 100, 200, 255]])[..., None]
    image = Image.fromarray(deep)
    assert image.mode == "I;16"
    assert (pixels(encoded(image, "PNG")) == expected).all() and (pixels(image) == expected).all()
    assert (pixels(Image.fromarray(deep.astype(np.int32))) == expected).all()  # mode I, as older Pillows read 16 bits


def test_transparency_lies_on_white():
    half = np.array([[[0, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    expected = np.array([[[255] * 3, [200, 0, 0], [127] * 3]])
    for format in ("PNG", "WEBP"):
        assert (pixels(encoded(Image.fromarray(half), format, lossless=True)) == expected).all()
    assert (pixels(encoded(Image.new("LA", (1, 1), (9, 0)), "PNG")) == 255).all()


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert (pixels(encoded(image, "PNG")) == [[[10, 20, 30], [40, 50, 60]]]).all()
    for format in ("PNG", "GIF"):
        assert (pixels(encoded(image, format, transparency=0)) == [[[255] * 3, [40, 50, 60]]]).all()
    assert (pixels(encoded(image, "PNG", transparency=b"\x00\xff")) == [[[255] * 3, [40, 50, 60]]]).all()


def test_cmyk_jpeg():
    red = pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(red - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("mode", ["PA", "RGBX", "RGBa", "La", "YCbCr", "HSV"])
def test_uncommon_modes_of_pil_images(mode):
    assert pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_exif_orientation_turns_the_pixels():
    upright = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2), 6: np.rot90(COLOURS, -1), 7: COLOURS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(COLOURS),
    }  # fmt: skip
    for value, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = value
        for format in ("PNG", "WEBP"):
            content = encoded(Image.fromarray(COLOURS), format, exif=exif, lossless=True)
            assert (pixels(content).shape == expected.shape) and (pixels(content) == expected).all(), (format, value)
        assert pixels(encoded(Image.fromarray(COLOURS), "JPEG", exif=exif)).shape == expected.shape


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"rubbish"])
def test_broken_exif_is_ignored(exif):
    assert (pixels(encoded(Image.fromarray(COLOURS), "PNG", exif=exif)) == COLOURS).all()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
    assert (pixels(content) == [255, 0, 0]).all()


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (1, 16_800_001), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(size):
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InputError) as error:
        warnings.simplefilter("always")
        open_picture(png_header(*size))
    assert f"{size[0] * size[1]} pixels" in one_line(error) and "16800000" in str(error.value) and not caught


def bomb(format: str) -> bytes:
    """A small valid file whose header is changed to promise 16000 x 16000 pixels."""
    content = bytearray(encoded(Image.new("RGB", (8, 8)), format, lossless=True))
    if format == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", 16_000, 16_000)
    elif format == "GIF":
        content[6:10] = struct.pack("<HH", 16_000, 16_000)
    else:
        content[21:25] = struct.pack("<I", 15_999 | 15_999 << 14)
    return bytes(content)


@pytest.mark.parametrize("format", ["JPEG", "GIF", "WEBP"])
def test_bombs_of_the_other_formats(format):
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InputError, match="16000x16000 = 256000000 pixels, at most 16800000"):
        warnings.simplefilter("always")
        open_picture(bomb(format))
    assert not caught


def test_gif_frame_beyond_its_screen_is_counted():
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "GIF"))
    at = content.index(b"\x2c", 13 + 3 * 2 ** ((content[10] & 7) + 1))
    content[at + 5 : at + 9] = struct.pack("<HH", 10_000, 10_000)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InputError, match="10000x10000"):
        warnings.simplefilter("always")
        open_picture(bytes(content))
    assert not caught


def test_limits_are_the_callers():
    content = encoded(Image.new("RGB", (10, 10)), "PNG")
    assert open_picture(content, max_pixels=100, max_bytes=len(content)).size == (10, 10)
    with pytest.raises(InputError, match="10x10 = 100 pixels, at most 99"):
        open_picture(content, max_pixels=99)
    with pytest.raises(InputError, match="10x10 = 100 pixels, at most 99"):
        open_picture(Image.new("RGB", (10, 10)), max_pixels=99)
    with pytest.raises(InputError, match=f"{len(content)} bytes or more, at most {len(content) - 1}"):
        open_picture(content, max_bytes=len(content) - 1)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with open(path, "wb") as file:
        file.truncate(2**40)  # a terabyte of nothing
    with pytest.raises(InputError, match="sparse.png.* at most 20971520"):
        open_picture(path)


def test_zero_sized():
    for content in (png_header(0, 5), png_header(5, 0)):
        with pytest.raises(InputError, match="at least 1x1"):
            open_picture(content)
    with pytest.raises(InputError, match="0x5 pixels, at least 1x1"):
        open_picture(Image.new("RGB", (0, 5)))


def other_formats() -> list[bytes]:
    formats = ("BMP", "TIFF", "PPM", "ICO", "TGA", "PDF", "JPEG2000", "EPS")
    return [encoded(Image.new("RGB", (16, 16)), format) for format in formats] + [b"", b"\0", b"<svg/>", b"RIFF....WAVEfmt ", b"plain text"]


@pytest.mark.parametrize("content", other_formats())
def test_other_formats(content):
    with pytest.raises(InputError) as error:
        open_picture(content)
    assert "PNG, JPEG, WebP and GIF" in one_line(error) and str(len(content)) in str(error.value)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_cut_at_any_place(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8))
    content = encoded(noise, format)
    whole, read = pixels(content), 0
    for end in range(len(content)):
        try:
            part = pixels(content[:end])
        except InputError as error:
            assert "\n" not in str(error)
        else:  # only an end mark was lost
            read += 1
            assert (part == whole).all()
    assert read <= 20  # PNG: checksums and the closing chunk


def test_missing_folder_device_and_impossible_names(tmp_path):
    device = ("/dev/zero", "regular")
    for path, reason in [(tmp_path / "no.png", "does not exist"), (tmp_path, "folder"), device, ("a\0b", "path"), ("x" * 5000, "long")]:
        with pytest.raises(InputError, match=reason) as error:
            open_picture(path)
        assert len(one_line(error)) < 500
    (tmp_path / "two\nlines.png").write_bytes(b"rubbish")
    with pytest.raises(InputError) as error:
        open_picture(tmp_path / "two\nlines.png")
    assert "lines.png" in one_line(error)


@pytest.mark.parametrize("value", [None, 3, [1, 2], np.zeros((2, 2))])
def test_other_types(value):
    with pytest.raises(InputError, match=type(value).__name__):
        inspect.unwrap(open_picture)(value)  # past the type checks of the tests, which users do not have


def test_floating_point_images():
    with pytest.raises(InputError, match="floating-point"):
        open_picture(Image.new("F", (2, 2)))


def test_broken_image_object():
    lazy = Image.open(io.BytesIO(encoded(Image.effect_noise((64, 64), 50), "PNG")[:1000]))
    with pytest.raises(InputError, match="broken or cut short"):
        open_picture(lazy)


def mutants(count: int):
    """Valid files of 4 formats with bytes changed, cut out, doubled or the end lost."""
    dice = random.Random(7)
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 255, (24, 32, 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [encoded(noise.convert("RGB"), format, exif=exif) for format in ("PNG", "JPEG", "WEBP")]
    seeds += [encoded(noise, "WEBP", lossless=True), encoded(noise, "PNG"), encoded(noise.convert("P"), "GIF", transparency=3)]
    for number in range(count):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(dice.choice((1, 1, 2, 8))):
            at = dice.randrange(len(content) if dice.random() < 0.5 else min(len(content), 100))
            kind = dice.random()
            if kind < 0.7:
                content[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            elif kind < 0.8:
                del content[at : at + dice.randrange(1, 9)]
            elif kind < 0.9:
                content[at:at] = content[at : at + 8]
            else:
                del content[max(at, 12) :]
        yield bytes(content)


def test_two_thousand_mutants_and_no_global_is_changed():
    filters = list(warnings.filters)
    read = refused = 0
    for number, content in enumerate(mutants(2000)):
        try:
            image = open_picture(content)
        except InputError as error:
            assert "\n" not in str(error) and " at 0x" not in str(error), number
            refused += 1
        else:
            assert image.mode == "RGB" and 0 < image.width * image.height <= 16_800_000, number
            read += 1
    assert read > 100 and refused > 500, (read, refused)
    assert filters == list(warnings.filters)
    assert Image.MAX_IMAGE_PIXELS == 2**30 // 4 // 3 and not ImageFile.LOAD_TRUNCATED_IMAGES  # as Pillow comes


# --- what is written ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_saved_is_opened(tmp_path, suffix):
    path = save_picture(Image.fromarray(COLOURS), tmp_path / f"a{suffix}")
    assert (pixels(path) == COLOURS).all() and [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".gif"])
def test_saved_without_alpha(tmp_path, suffix):
    path = save_picture(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), str(tmp_path / f"a{suffix}"))
    assert (pixels(path) == 255).all() and isinstance(path, Path)


def test_unknown_suffix_lists_the_known(tmp_path):
    for name in ("a.bmp", "a", "a.exe"):
        with pytest.raises(InputError, match=r"known are \.png, \.jpg, \.jpeg, \.webp, \.gif"):
            save_picture(Image.fromarray(COLOURS), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_picture(Image.fromarray(COLOURS), tmp_path / "a.png")
    old = path.read_bytes()

    def half(self, file, **options):
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(InputError, match="No space left"):
        save_picture(Image.fromarray(COLOURS), path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_saving_where_it_is_impossible(tmp_path):
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "no" / "a.png", tmp_path / "folder.png", tmp_path / "a\0b.png", tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(InputError, match="cannot be written"):
            save_picture(Image.fromarray(COLOURS), path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]
    with pytest.raises(InputError, match="at least 1x1"):
        save_picture(Image.new("RGB", (0, 3)), tmp_path / "a.png")
