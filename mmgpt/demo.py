"""Eight pictures and eight prompts -> their captions on the screen, drawings in a folder: what `make demo` shows."""

import time
from collections.abc import Sequence
from pathlib import Path

from mmgpt.data.pictures import open_picture, save_picture
from mmgpt.data.sheet import contact_sheet

PICTURES = Path(__file__).parents[1] / "examples" / "pictures"  # beside the package in a checkout, absent in a wheel
PROMPTS = (
    "a cat, twemoji style",
    "pizza, fluent-3d style",
    "a rocket, fluent-3d style",
    "sunflower, twemoji style",
    "a house, fluent-flat style",
    "green heart, fxemoji style",
    "a red apple, fluent-3d style",  # nobody's red apple was trained on, only other apples and other red things
    "blue book, fluent-3d style",  # the same
)


def demo(gpt, out: str | Path, pictures: Sequence[str | Path] = (), prompts: Sequence[str] = PROMPTS) -> Path:
    """Captions `pictures`, draws `prompts` into the folder `out`; returns the path of the contact sheet."""
    begin, out = time.perf_counter(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = [Path(path) for path in pictures] or sorted(PICTURES.glob("*.png"))
    if paths:
        print("What the model reads in pictures that it was never shown:")
        width = max(len(path.name) for path in paths)
        for path, words in zip(paths, gpt.caption([open_picture(path) for path in paths]), strict=True):
            print(f"  {path.name:<{width}}  {words}")
    print("What it draws from words:")
    images = gpt.draw(list(prompts))
    for n, (image, words) in enumerate(zip(images, prompts, strict=True), 1):
        print(f"  {save_picture(image, out / f'{n}-{slug(words)}.png')}  {words}")
    sheet = save_picture(contact_sheet(images, prompts), out / "drawings.png")
    print(f"All drawings: {sheet}  ({time.perf_counter() - begin:.0f} s)")
    return sheet


def slug(words: str) -> str:
    """A prompt as part of a file name: "a cat, twemoji style" -> "a-cat-twemoji-style"."""
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())[:60]
