"""Pictures and words -> one picture of all of them, the words below each."""

from collections.abc import Sequence
from textwrap import shorten, wrap

from PIL import Image, ImageDraw, ImageFont

from mmgpt.errors import InputError

LINE = 14  # pixels of a line of words
LETTER = 6  # pixels of a letter, about


def contact_sheet(images: Sequence[Image.Image], words: Sequence[str], columns: int = 4, side: int = 128, lines: int = 2) -> Image.Image:
    """Every picture fitted into a square of `side` pixels, `columns` in a row, with at most `lines` lines of words below."""
    if not images or len(images) != len(words) or columns < 1:
        raise InputError(f"{len(images)} pictures, {len(words)} texts, {columns} columns: pass one text for each of at least one picture")
    columns = min(columns, len(images))
    cell = (side + 8, side + 12 + lines * LINE)
    sheet = Image.new("RGB", (columns * cell[0], -(-len(images) // columns) * cell[1]), "white")
    for n, (image, text) in enumerate(zip(images, words, strict=True)):
        left, top = n % columns * cell[0] + 4, n // columns * cell[1] + 4
        scale = side / max(image.size)
        size = tuple(max(1, round(edge * scale)) for edge in image.size)
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), (left + (side - size[0]) // 2, top + (side - size[1]) // 2))
        below = broken(text, side // LETTER, lines)
        ImageDraw.Draw(sheet).multiline_text((left, top + side + 2), below, "black", ImageFont.load_default(), spacing=1)
    return sheet


def broken(text: str, width: int, lines: int) -> str:
    """Words in lines of `width` letters; letters that Pillow's own font may lack become question marks."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return "\n".join(wrap(shorten(plain, width * lines - 4, placeholder=" ..."), width)[:lines])
