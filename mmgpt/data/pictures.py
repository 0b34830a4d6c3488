"""A file, bytes or a PIL picture of any kind -> an RGB picture that is upright and not too big; an RGB picture -> a file.

Read are PNG, JPEG, WebP and GIF, told apart by their first bytes, never by their names. The size stands in the header and
is checked before a pixel is decoded; no limit of Pillow's is relied on or changed. Colour profiles are not applied.
"""

import io
import os
import secrets
import stat
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mmgpt.errors import InputError

MAX_PIXELS = 16_800_000
MAX_BYTES = 20 * 2**20
SAVE_OPTIONS = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
    ".webp": {"format": "WEBP", "lossless": True},
    ".gif": {"format": "GIF"},
}
UPRIGHT = {  # EXIF orientation -> how to turn the picture as stored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(source: str | Path | bytes | Image.Image, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """The picture as RGB: turned upright, transparency on white, 16 bits scaled to 8, the first frame of an animation.

    `source` is a path, the bytes of a file, or a PIL picture (of which the current frame is taken).
    Anything that cannot be read, or is bigger than the limits, raises `InputError`.
    """
    if isinstance(source, Image.Image):
        return decode(source, "the picture", max_pixels)
    if isinstance(source, bytes):
        name, data = "the picture", source
    elif isinstance(source, (str, Path)):
        name = repr(str(source))[:300]
        data = read_bytes(source, name, max_bytes)
    else:
        raise InputError(f"a picture cannot be a {type(source).__name__}; give a path, bytes or a PIL image")
    if len(data) > max_bytes:
        raise InputError(f"{name} has {len(data)} bytes or more, at most {max_bytes} are read; save it smaller or raise max_bytes")

    reader, header_size = kind_of(data, name)
    try:
        width, height = header_size(data)
    except (struct.error, IndexError, ValueError) as error:
        raise broken(name, len(data)) from error
    check_size(name, width, height, max_pixels)
    try:
        image = reader(io.BytesIO(data))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more
        raise broken(name, len(data)) from error
    with image:
        return decode(image, name, max_pixels, len(data))


def save_picture(image: Image.Image, path: str | Path) -> Path:
    """Write `image` as RGB in the format of the suffix, complete or not at all; returns the path. JPEG loses a little."""
    path = Path(path)
    options = SAVE_OPTIONS.get(path.suffix.lower())
    if options is None:
        raise InputError(f"{str(path)!r} has the unknown suffix {path.suffix!r}; known are {', '.join(SAVE_OPTIONS)}")
    image = decode(image, "the picture to save", image.width * image.height)
    content = io.BytesIO()
    try:
        image.save(content, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be written: Pillow refused it ({error}); save it as .png") from error
    return write_whole(content.getvalue(), path)


def write_whole(content: bytes, path: Path) -> Path:
    """The file with this content, complete or not at all."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise InputError(f"{str(path)!r} cannot be written: {reason}; choose an existing folder that you may write to") from error
    finally:
        try:
            part.unlink(missing_ok=True)
        except (OSError, ValueError):
            pass  # the folder itself is unusable and said so above
    return path


def read_bytes(path: str | Path, name: str, max_bytes: int) -> bytes:
    """What the file holds, at most one byte more than allowed."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):  # opening a pipe or a device could wait for ever
            with open(path, "rb") as file:
                return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # no permission, name too long, a NUL in the name
        raise InputError(f"{name} cannot be opened ({getattr(error, 'strerror', None) or 'not a path'}); check the path") from error
    raise InputError(f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}; give the path of one file")


def kind_of(data: bytes, name: str):
    """(Pillow's reader, our header reader) by the first bytes."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile, png_size
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile, jpeg_size
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile, webp_size
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile, gif_size
    raise InputError(f"{name} ({len(data)} bytes) is in none of the 4 formats PNG, JPEG, WebP and GIF; convert it to PNG")


def png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack_from(">II", data, 16)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """The biggest start-of-frame before the scan: segments are marker, length, content."""
    at, columns, rows = 2, [], []
    while True:
        while data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1  # fill bytes and rubbish between segments, skipped as Pillow does
        marker = data[at + 1]
        at += 2
        if marker == 0xDA or marker == 0xD9:
            return max(columns), max(rows)
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            continue  # markers without content
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
            rows.append(height)
            columns.append(width)
        at += struct.unpack_from(">H", data, at)[0]


def webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":  # extended: 24 bits each, less one
        width, height = struct.unpack("<II", data[24:27] + b"\0" + data[27:30] + b"\0")
        return width + 1, height + 1
    if chunk == b"VP8L":  # lossless: 14 bits each, less one
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def gif_size(data: bytes) -> tuple[int, int]:
    """The screen, widened by the first frame where that reaches beyond it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while data[at] == 0x21:  # extensions: two bytes, then blocks led by their length, the last one empty
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at] != 0x2C:
        return width, height
    left, top, columns, rows = struct.unpack_from("<HHHH", data, at + 1)
    return max(width, left + columns), max(height, top + rows)


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width == 0 or height == 0:
        raise InputError(f"{name} is {width}x{height} pixels, at least 1x1 is needed; check how it was made")
    if width * height > max_pixels:
        asked = f"{name} is {width}x{height} = {width * height} pixels"
        raise InputError(f"{asked}, at most {max_pixels} are read; make it smaller or raise max_pixels")


def broken(name: str, num_bytes: int) -> InputError:
    size = f" ({num_bytes} bytes)" if num_bytes else ""
    return InputError(f"{name}{size} is broken or cut short; save or download it again")


def decode(image: Image.Image, name: str, max_pixels: int, num_bytes: int = 0) -> Image.Image:
    """A picture that Pillow has opened, but maybe not decoded yet -> upright RGB."""
    check_size(name, *image.size, max_pixels)
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point values of unknown range; scale them to 0..255 and convert to mode L")
    try:
        image.load()
        rgb = as_rgb(image)
        turn = UPRIGHT.get(orientation(image.info.get("exif") or b""))
        return rgb.transpose(turn) if turn is not None else rgb
    except Exception as error:  # whatever a mutant makes Pillow raise
        raise broken(name, num_bytes) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB on white, always a new picture without metadata."""
    if image.mode.startswith("I"):  # 16 bits of grey: 65535 is white
        values = np.asarray(image).astype(np.float32)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            values[values == clear] = 65535
        return Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    rgb = image.copy() if image.mode == "RGB" else image.convert("RGB")
    rgb.info = {}
    return rgb


def orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory, 1 (upright) where there is none; Pillow's own reader warns at broken EXIF."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value
    except struct.error:
        pass
    return 1
