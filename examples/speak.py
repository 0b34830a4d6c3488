"""Words, or the name of what a picture shows, said aloud; the sound comes chunk by chunk, as it is made.

python examples/speak.py "a red apple" -o apple.wav
python examples/speak.py --picture cat.png -o cat.wav
"""

import argparse

import mmgpt
from mmgpt.generate.request import Chunk, Done


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORDS")
    parser.add_argument("--picture", metavar="FILE", help="say what it shows")
    parser.add_argument("-o", "--out", default="speech.wav", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="any")
    options = parser.parse_args(words)
    gpt = mmgpt.load(options.checkpoint)
    if options.picture:  # named first, then said: two segments of one row
        name, sound = gpt.generate([mmgpt.open_picture(options.picture), "caption:"], to=("text", "audio"), seed=options.seed)
        print(f"{mmgpt.save_sound(sound, options.out)}: {name}")
        return
    request = mmgpt.Request([" ".join(options.words)], to="audio", seed=options.seed)
    for event in mmgpt.Engine(gpt).stream(request):
        if isinstance(event, Chunk):  # could be played at once
            print(f"{event.value.samples.shape[-1] / event.value.rate:.2f} seconds more")
        elif isinstance(event, Done):
            print(mmgpt.save_sound(event.result.value, options.out))


if __name__ == "__main__":
    main()
