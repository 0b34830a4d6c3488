"""`mmgpt eval`: a checkpoint and data -> figures, by the functions of `mmgpt/evaluate`. `load` makes a model of what was typed."""

import argparse
from dataclasses import replace
from pathlib import Path

from mmgpt.errors import InputError


def evaluate_captions(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.emoji import load_emoji
    from mmgpt.evaluate.caption import evaluate_captions

    rows, gpt = load_emoji(options.data), load(options)
    left_out = getattr(gpt.config, "left_out", "") or None  # of a released model nobody can say what it has seen
    if options.leave_out and options.leave_out != left_out:
        raise InputError(f"--leave-out {options.leave_out}: this checkpoint was trained without {left_out or 'nobody'}; ask for that")
    return evaluate_captions(gpt, rows, left_out)


def evaluate_drawing(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.emoji import load_emoji
    from mmgpt.evaluate.draw import evaluate_drawing
    from mmgpt.evaluate.judge import Judge

    rows, judge, gpt = load_emoji(options.data), Judge.load(), load(options)
    codec = image_codec(gpt, options.checkpoint)  # says so where there is none
    sampling = None if options.temperature is None else replace(gpt.ports["image"].sampling, temperature=options.temperature)
    settings = {"sampling": sampling, "best_of": options.best_of}
    return evaluate_drawing(gpt, rows, judge, options.guidance, options.seed, options.num, codec=codec, **settings)


def evaluate_codec(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.emoji import load_emoji
    from mmgpt.evaluate.codec import evaluate_codec
    from mmgpt.evaluate.judge import Judge
    from mmgpt.train.codec import load_codec

    rows, judge = load_emoji(options.data), Judge.load()
    alone = (Path(options.checkpoint) / "codec.json").is_file()  # what the recipe emoji-codec makes
    codec = load_codec(options.checkpoint).to(options.device) if alone else image_codec(load(options), options.checkpoint)
    return evaluate_codec(codec, rows, judge)


def image_codec(gpt, place: str):
    """The image codec whose losses are measured: one of ours."""
    from mmgpt.decoders.image_codec import PictureCodec

    codec = gpt.ports["image"].codec if "image" in gpt.ports else None
    if not isinstance(codec, PictureCodec):
        found = "no codec of pictures" if codec is None else f"a {type(codec).__name__}"
        raise InputError(f"{place} has {found}: this measures mmgpt's own image codec; pass a checkpoint that draws with one")
    return codec.codec


def evaluate_speech(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.speech import load_speech
    from mmgpt.evaluate.hearing import Recogniser
    from mmgpt.evaluate.speech import evaluate_codec, evaluate_speech

    codec = (Path(options.checkpoint) / "codec.json").is_file()  # what the recipe speech-codec makes
    if codec and options.no_judge:
        raise InputError(f"--no-judge, and {options.checkpoint} is a codec: all that is measured of one is what the judge hears")
    rows, recogniser = load_speech(options.data), None if options.no_judge else Recogniser.load()
    if codec:
        from mmgpt.decoders.audio_codec import SoundCodec
        from mmgpt.train.sound import load_codec

        return evaluate_codec(SoundCodec(load_codec(options.checkpoint)), rows, recogniser, options.voice, options.num)
    return evaluate_speech(load(options), rows, recogniser, options.voice, options.num, best_of=options.best_of)


def evaluate_video(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.emoji import load_emoji
    from mmgpt.data.footage import load_clips
    from mmgpt.evaluate.clips import evaluate_clips
    from mmgpt.evaluate.judge import Judge

    clips, rows, judge = load_clips(options.clips), load_emoji(options.data), None if options.no_judge else Judge.load()
    return evaluate_clips(load(options), clips, rows, judge, options.num, best_of=options.best_of)


def evaluate_cross(options: argparse.Namespace, load) -> dict:
    from mmgpt.data.emoji import load_emoji
    from mmgpt.data.speech import load_speech
    from mmgpt.evaluate.cross import evaluate_cross
    from mmgpt.evaluate.hearing import Recogniser
    from mmgpt.evaluate.judge import Judge

    speech, rows, judge = load_speech(options.speech), load_emoji(options.data), Judge.load()
    recogniser = None if options.no_recogniser else Recogniser.load()
    return evaluate_cross(load(options), speech, rows, judge, recogniser, options.voice, options.num)


EVALUATIONS = {
    "caption": evaluate_captions,
    "draw": evaluate_drawing,
    "codec": evaluate_codec,
    "speech": evaluate_speech,
    "video": evaluate_video,
    "cross": evaluate_cross,
}
