"""Draws pictures from words and shows what guidance does: a row a scale, the same seeds in every row, as one contact sheet.

python examples/image_generation.py -o drawings.png
python examples/image_generation.py "a red car, twemoji style" "pizza, fluent-3d style" --scales 1 3 --seed 7
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mmgpt
from mmgpt.data.sheet import contact_sheet

PROMPTS = ["a rocket, fluent-3d style", "a cat, twemoji style", "green heart, fxemoji style", "sunflower, emojione style"]


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    parser.add_argument("-o", "--out", type=Path, default=Path("drawings.png"))
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="emoji")
    options = parser.parse_args(argv)

    gpt = mmgpt.load(options.checkpoint)
    images, words = [], []
    for scale in options.scales:  # scale 1 ignores nothing and exaggerates nothing: the model as it is
        images += gpt.draw(options.prompts, guidance=scale, seed=options.seed)
        words += [f"{prompt} (guidance {scale:g})" for prompt in options.prompts]
    sheet = contact_sheet(images, words, columns=len(options.prompts), lines=3)
    print(mmgpt.save_picture(sheet, options.out))
    return options.out


if __name__ == "__main__":
    main()
