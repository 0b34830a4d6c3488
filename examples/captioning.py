"""Says what pictures show, all of them in one batch.

python examples/captioning.py                      # the pictures beside this file
python examples/captioning.py cat.png dog.jpg --checkpoint runs/emoji/final
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mmgpt

PICTURES = Path(__file__).parent / "pictures"


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=sorted(PICTURES.glob("*.png")))
    parser.add_argument("--checkpoint", default="emoji")
    options = parser.parse_args(argv)

    gpt = mmgpt.load(options.checkpoint)
    images = [mmgpt.open_picture(file) for file in options.files]  # upright RGB, whatever the file holds
    names = gpt.caption(images)
    groups = gpt.caption(images, prompt="group:")  # the same model, asked for something else
    for file, name, group in zip(options.files, names, groups, strict=True):
        print(f"{file.name:32} {name}  ({group})")
    return {file.name: found for file, found in zip(options.files, zip(names, groups, strict=True), strict=True)}


if __name__ == "__main__":
    main()
