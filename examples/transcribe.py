"""Speech in, words out: the same words that any text of the model is made of, so that they can go on to become a picture.

python examples/transcribe.py hello.wav [--draw hello.png] [--checkpoint any]
"""

import argparse

import mmgpt


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--draw", metavar="FILE", help="draw what is said in the first file, too")
    parser.add_argument("--checkpoint", default="any")
    options = parser.parse_args(words)
    gpt = mmgpt.load(options.checkpoint)
    sounds = [mmgpt.open_sound(file) for file in options.files]
    requests = [mmgpt.Request([sound, "transcribe:"], to="text") for sound in sounds]
    for file, result in zip(options.files, mmgpt.Engine(gpt).run(requests), strict=True):
        print(f"{file}: {result.value}")
    if options.draw:  # the row goes on: what it has heard and written down stands before the picture
        said, picture = gpt.generate([sounds[0], "transcribe:"], to=("text", "image"))
        print(f"{mmgpt.save_picture(picture, options.draw)}: {said}")


if __name__ == "__main__":
    main()
