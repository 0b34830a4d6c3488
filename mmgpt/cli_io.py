"""`mmgpt caption`, `transcribe`, `describe`: files -> words; `mmgpt draw`, `speak`, `animate`: words -> files. A task is a row of a table."""

import argparse
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mmgpt
from mmgpt.errors import InputError


@dataclass(frozen=True)
class Reading:
    """Files, opened by `opener`, `chunk` at a time; the model answers `prompt`, and the answer is called `key` in JSON."""

    what: str
    opener: str
    files: str
    prompt: str
    key: str
    chunk: int
    checkpoint: str
    example: str


@dataclass(frozen=True)
class Writing:
    """Words, and the segment of modality `to` that the model makes of them, saved by `saver` in a file of one of the `suffixes`."""

    what: str
    to: str
    saver: str
    suffixes: tuple[str, ...]
    words: str
    checkpoint: str
    example: str


READINGS = {
    "caption": Reading(
        "Says what pictures show.", "open_picture", "a PNG, JPEG, WebP or GIF", "caption:", "caption", 32, "emoji",
        "mmgpt caption cat.png dog.jpg --json",
    ),
    "transcribe": Reading(
        "Writes down what is said.", "open_sound", "a WAV, FLAC, MP3 or OGG", "transcribe:", "text", 8, "any", "mmgpt transcribe hello.wav"
    ),
    "describe": Reading("Says what videos show.", "open_video", "a GIF, WebP or MP4", "describe:", "text", 8, "any", "mmgpt describe clip.gif"),
}  # fmt: skip
WRITINGS = {
    "draw": Writing(
        "Draws a picture from words.", "image", "save_picture", (".png", ".jpg", ".jpeg", ".webp", ".gif"),
        'what to draw: "a thing, NAME style"', "emoji", 'mmgpt draw "green heart, twemoji style" -o heart.png -n 4 --seed 7',
    ),
    "speak": Writing(
        "Says words aloud.", "audio", "save_sound", (".wav", ".flac", ".mp3", ".ogg"),
        "what to say", "any", 'mmgpt speak "the cat sat on the red box" -o cat.wav',
    ),
    "animate": Writing(
        "Draws moving pictures from words.", "video", "save_video", (".gif", ".webp", ".mp4"),
        'what moves, and how: "a red apple moving left"', "any", 'mmgpt animate "a red apple moving left" -o apple.gif',
    ),
}  # fmt: skip


def read(options: argparse.Namespace, load, bar) -> None:
    task: Reading = options.task
    for file in options.files:
        if not Path(file).exists():
            raise InputError(f"{file!r} does not exist; check the path")
    opener = getattr(mmgpt, task.opener)
    opener(options.files[0])  # the commonest mistakes are said before the model is loaded
    gpt, found = load(options), []
    with bar(f"{options.name}: reading", len(options.files)) as done:
        for start in range(0, len(options.files), task.chunk):
            values = [opener(file) for file in options.files[start : start + task.chunk]]
            requests = [mmgpt.Request([value, options.prompt], "text") for value in values]
            found += [result.value for result in mmgpt.Engine(gpt).run(requests)]
            done(len(found))
            if not options.json:  # what is known is said at once: a broken file later on costs its own few alone
                print("\n".join(f"{file}: {words}" for file, words in zip(options.files[start:], found[start:], strict=False)), flush=True)
    if options.json:
        lines = [{"file": file, task.key: words} for file, words in zip(options.files, found, strict=True)]
        print(json.dumps(lines, ensure_ascii=False, indent=1))


def write(options: argparse.Namespace, load, bar) -> None:
    task: Writing = options.task
    words = " ".join(options.words)
    if not words.strip():
        raise InputError(f"0 words to {options.name}: say {task.words.split(':')[0]}")
    paths = outputs(Path(options.out), options.count, task.suffixes)
    gpt, saver = load(options), getattr(mmgpt, task.saver)
    settings = {"guidance": options.guidance, "best_of": options.best_of}
    requests = [mmgpt.Request([words], task.to, seed=options.seed + n, **settings) for n in range(options.count)]
    with bar(f"{options.name}: {words[:40]!r}", options.count * options.best_of) as done:
        mmgpt.Engine(gpt).run(
            requests,
            lambda finished, of: done(finished),
            lambda n, result: print(saver(result.value, paths[n]), flush=True),  # at once: Ctrl-C leaves what is done
        )


def outputs(path: Path, count: int, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that will be written, checked before any work is done: "a.png" of three gives a-1.png, a-2.png, a-3.png."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"-o {path}: the suffix is {path.suffix!r}, use one of {', '.join(suffixes)}")
    if path.suffix.lower() == ".mp4" and find_spec("av") is None:
        raise InputError(f"-o {path}: MP4 is written by PyAV: pip install av, or take {suffixes[0]}")
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"-o {path}: {'this is a folder, give a file' if path.is_dir() else f'there is no folder {path.parent}, make it first'}")
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{n}") for n in range(1, count + 1)]
