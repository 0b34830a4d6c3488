"""Eight pictures and eight prompts -> their captions on the screen, drawings in a folder: what `make demo` shows; and speech and clips, where the
model writes them, with what it then hears and sees in them."""

import time
from collections.abc import Sequence
from pathlib import Path

from mmgpt.data.files import save_file, suffix_of
from mmgpt.data.pictures import open_picture, save_picture
from mmgpt.data.sheet import contact_sheet
from mmgpt.generate.engine import Engine, Request

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
MORE = {  # of what is written besides text and pictures; none was learned, of the clips only their parts
    "audio": ("they live well", "break a record", "i have two years left"),
    "video": ("cherries moving up quickly", "a Christmas tree spinning slowly", "a cat, then a key"),
}


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
    for to, more in MORE.items():
        if to in gpt.heads:
            tell(gpt, to, more, out)
    return sheet


def tell(gpt, to: str, prompts: Sequence[str], out: Path) -> None:
    """Writes each prompt as `to`, saves that, and reads it back."""
    print(f"What it writes as {to}, and the words that it then finds in that:")
    made = [result.value for result in Engine(gpt).run([Request([words], to, seed=n) for n, words in enumerate(prompts)])]
    found = gpt.caption(made, prompt=gpt.ports[to].asks)
    for words, value, read in zip(prompts, made, found, strict=True):
        print(f"  {save_file(value, out / f'{slug(words)}{suffix_of(value)}')}  {words}  ->  {read}")


def slug(words: str) -> str:
    """A prompt as part of a file name: "a cat, twemoji style" -> "a-cat-twemoji-style"."""
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())[:60]
