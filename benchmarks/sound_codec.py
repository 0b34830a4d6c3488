"""What survives a sound codec: word error by an independent recogniser and DNSMOS, of originals and of what their codes decode to.

python benchmarks/sound_codec.py SPEECH CODEC...     SPEECH: parquet of tools/build_speech.py; CODEC: a folder that `mmgpt train speech-codec` wrote
                                [count=60] [scored=20] [voice=heart] [threads=1]     clips of the test split; DNSMOS hears the first
"""

import sys
import time

import torch

from mmgpt.data.speech import load_speech, of
from mmgpt.decoders.audio_codec import SoundCodec
from mmgpt.evaluate.hearing import Recogniser, dnsmos, word_error
from mmgpt.train.sound import load_codec
from mmgpt.types import Audio


def line(name: str, sounds: list[Audio], texts: list[str], recogniser: Recogniser, asked: dict[str, str]) -> str:
    scores = dnsmos(sounds[: int(asked["scored"])], int(asked["threads"]))
    return f"word error {100 * word_error(texts, recogniser.transcribe(sounds)):5.1f}%   DNSMOS {sum(scores) / len(scores):.2f}   {name}"


def main(speech: str, *words: str) -> None:
    asked = {"count": "60", "scored": "20", "voice": "heart", "threads": "1"} | dict(word.split("=") for word in words if "=" in word)
    threads = int(asked["threads"])
    torch.set_num_threads(threads)
    rows = [row for row in of(load_speech(speech), "test", asked["voice"]) if row.source != "name"][: int(asked["count"])]
    sounds, texts, recogniser = [row.sound for row in rows], [row.text for row in rows], Recogniser.load(threads)
    seconds = sum(sound.samples.shape[-1] / sound.rate for sound in sounds)
    print(f"{len(rows)} clips of {asked['voice']}, {seconds:.0f} seconds")
    print(line("originals", sounds, texts, recogniser, asked), flush=True)
    for folder in (word for word in words if "=" not in word):
        codec = SoundCodec(load_codec(folder))
        size = sum(p.numel() for p in codec.parameters()) / 1e6
        begin = time.perf_counter()
        codes = [codec.encode(sound) for sound in sounds]
        middle = time.perf_counter()
        ours = [codec.decode(one) for one in codes]
        speed = f"{seconds / (middle - begin):.0f} and {seconds / (time.perf_counter() - middle):.0f} times as fast as speech"
        each = f"{codec.rate / codec.codec.hop:g} x {codec.quantizers} codes of {codec.num_codes} a second, {size:.2f} M parameters, {speed}"
        print(line(f"{folder}: {each}", ours, texts, recogniser, asked), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
