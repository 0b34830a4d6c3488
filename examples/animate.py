"""Words in, moving pictures out, frame by frame; then the model says what it sees in them.

python examples/animate.py "a red apple moving left" -o apple.gif
"""

import argparse

import mmgpt
from mmgpt.generate.request import Done, Preview


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="WORDS")
    parser.add_argument("-o", "--out", default="clip.gif", metavar="FILE", help=".gif, .webp or .mp4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="any")
    options = parser.parse_args(words)
    gpt = mmgpt.load(options.checkpoint)
    for event in mmgpt.Engine(gpt).stream(mmgpt.Request([" ".join(options.words)], to="video", seed=options.seed)):
        if isinstance(event, Preview):
            print(f"{event.rows} of {event.of} frames")
        elif isinstance(event, Done):
            print(mmgpt.save_video(event.result.value, options.out))
            print("seen in it:", gpt.generate([event.result.value, "describe:"], to="text"))


if __name__ == "__main__":
    main()
