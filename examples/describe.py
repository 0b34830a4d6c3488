"""Moving pictures in, words out; with one frame alone, the proof that the motion was seen in the others.

python examples/describe.py clip.gif
"""

import argparse

import mmgpt


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a GIF, WebP or MP4")
    parser.add_argument("--checkpoint", default="any")
    options = parser.parse_args(words)
    gpt = mmgpt.load(options.checkpoint)
    for file in options.files:
        video = mmgpt.open_video(file)
        still = mmgpt.Video(video.frames[:1] * len(video.frames), video.fps)
        moving, alone = (gpt.generate([value, "describe:"], to="text") for value in (video, still))
        print(f"{file}: {moving} (its first frame alone: {alone})")


if __name__ == "__main__":
    main()
