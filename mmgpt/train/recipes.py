"""Recipes: Python functions that build a task and its settings from `key=value` words. `RECIPES` lists them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmgpt.decoders.transformer import decoder_preset
from mmgpt.errors import TrainingError
from mmgpt.train.saves import how_to_begin
from mmgpt.train.settings import Settings, override
from mmgpt.train.task import Task

Words = dict[str, str]  # key=value, as they were typed


@dataclass(frozen=True)
class Job:
    """A recipe, made concrete: what is trained, how, and where it is written."""

    task: Task
    settings: Settings
    out: str
    resume: str = "false"  # or true, or auto


@dataclass(frozen=True)
class Recipe:
    """A function from (options, settings, words) to a job; and what options and settings are where no words say otherwise."""

    make: Callable[[Any, Settings, Words], Job]
    options: Any
    settings: Settings

    def __call__(self, words: Words) -> Job:
        return self.make(*split(self.options, self.settings, words), words)


@dataclass(frozen=True)
class CodecOptions:
    """pixels <-> codes, on all train-split pictures."""

    data: str = "emoji.parquet"
    out: str = "runs/emoji-codec"
    resume: str = "false"
    stride: tuple = (8, 4)
    levels: tuple = (8, 8, 8, 8)
    width: int = 64
    blocks: int = 2
    batch_size: int = 32


def emoji_codec(options: CodecOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.emoji import load_emoji, training_rows
    from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig
    from mmgpt.train.codec import CodecTask

    torch.manual_seed(settings.seed)
    codec = ImageCodec(ImageCodecConfig(options.stride, options.levels, options.width, options.blocks))
    pictures = pixels(training_rows(load_emoji(options.data)))
    task = CodecTask(codec.to(memory_format=torch.channels_last), pictures, options.batch_size, settings.seed)
    return Job(task, settings, options.out, options.resume)


@dataclass(frozen=True)
class EmojiOptions:
    """captions and drawings through one model. `leave_out` an artist to test captions on; `init` weights to start from."""

    data: str = "emoji.parquet"
    out: str = "runs/emoji"
    codec: str = "runs/emoji-codec/final"
    init: str = ""
    resume: str = "false"
    leave_out: str = ""
    depth: int = 6
    width: int = 256
    captions: int = 24
    draws: int = 24
    drop: float = 0.1
    text_weight: float = 1.0
    image_weight: float = 1.0
    strength: float = 1.0  # of the distortion of pictures that are read; above 1 outlines bend and colours go, as with another artist
    hide: float = 0.0  # up to this share of a drawing's codes is hidden from the codes behind them, in half of the drawings
    swap: float = 0.0  # this share of the drawings is shown codes of another one, and learns to come right
    z_loss: float = 0.0  # keeps scores from growing; 0.0001 is usual
    row_length: int = 0
    skin_weight: float = 0.35
    patch: int = 16
    conv_stem: int = 32  # 0: bare patches, one linear map
    tower: str = ""  # efficientnet-lite0: eyes that have seen ImageNet (tools/convert_judge.py), also for what `init` names
    tower_rate: float = 0.2  # they learn so much slower than the rest
    frozen: str = ""  # parts that stay as they are: decoder,table trains the eyes alone
    device: str = "cpu"
    backend: str = ""  # of attention: sdpa or flex; empty takes flex on a GPU


def emoji(options: EmojiOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.emoji import load_emoji, training_rows
    from mmgpt.encoders.efficientnet import LiteBlocks
    from mmgpt.encoders.text import TextCodec
    from mmgpt.hub import load
    from mmgpt.native import NativeConfig, build, build_from
    from mmgpt.train.codec import load_codec
    from mmgpt.train.gpt import GPTTask, Mix

    rows = load_emoji(options.data)
    chosen = training_rows(rows, options.leave_out or None)
    items = [emoji_item(row, options.skin_weight) for row in chosen]
    torch.manual_seed(settings.seed)
    if options.init:
        shaping = {"depth", "width", "patch", "conv_stem", "codec"} & set(words)
        if shaping:
            raise TrainingError(f"init={options.init} brings its own {', '.join(sorted(shaping))}: leave one of the two out")
        model = load(options.init)
        if options.leave_out and model.config.left_out != options.leave_out:
            raise TrainingError(
                f"init={options.init} was trained without {model.config.left_out or 'nobody'}, not without {options.leave_out}: "
                "it has seen that artist; leave one of the two out"
            )
        if options.tower:
            model = build_from(model, replace(model.config, tower=options.tower))
    else:
        codec = load_codec(options.codec)
        texts = [text for row in training_rows(rows) for text in (row.label, row.group, f"{row.label}, {row.style} style", "caption: group:")]
        text = TextCodec.train(texts, 2048)
        decoder = replace(
            decoder_preset(options.depth), width=options.width, num_heads=options.width // 64, num_kv_heads=max(1, options.width // 128)
        )
        decoder = replace(decoder, mlp_width=64 * round(options.width / 24))
        shape = {"patch": options.patch, "conv_stem": options.conv_stem, "tower": options.tower}
        model = build(NativeConfig(decoder, codec.config, text.num_codes, **shape), text, codec)
    if options.tower:
        model.encoders["image"].tower = LiteBlocks.load()
    if model.config.tower:
        model.rates = {"encoders.image.tower": options.tower_rate}
    freeze(model, options.frozen)
    how = {"strength": options.strength, "hide": options.hide, "swap": options.swap, "z_loss": options.z_loss}
    mix = Mix(options.captions, options.draws, options.drop, options.text_weight, options.image_weight, options.row_length, **how)
    card = f"# emoji, trained here\n\nTrained with {words or 'the recipe as it is'}. Not evaluated.\n"
    task = GPTTask(model.to(device_of(options.device)).train(), pixels(chosen), items, mix, settings.seed, card, options.backend, options.leave_out)
    return Job(task, settings, options.out, options.resume)


@dataclass(frozen=True)
class SpeechCodecOptions:
    """sound <-> codes, on speech (tools/build_speech.py)."""

    data: str = "speech"
    out: str = "runs/speech-codec"
    resume: str = "false"
    hop: int = 640  # samples of a frame: 25 frames a second
    quantizers: int = 2
    levels: tuple = (4, 4, 4, 4, 4, 4)
    width: int = 256
    blocks: int = 4
    fine: int = 2
    batch_size: int = 6
    seconds: float = 1.6  # of each stretch
    device: str = "cpu"


def speech_codec(options: SpeechCodecOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.speech import load_speech, of
    from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig
    from mmgpt.train.sound import SoundTask, long_sound

    torch.manual_seed(settings.seed)
    shape = {name: getattr(options, name) for name in ("hop", "quantizers", "levels", "width", "blocks", "fine")}
    codec = AudioCodec(AudioCodecConfig(**shape)).to(device_of(options.device))
    samples = long_sound(row.sound for row in of(load_speech(options.data), "train"))
    return Job(SoundTask(codec, samples, options.batch_size, options.seconds, settings.seed), settings, options.out, options.resume)


@dataclass(frozen=True)
class EarOptions:
    """sound -> what can be read as words: an encoder that the recipe `any` begins with (tools/build_speech.py makes the data)."""

    data: str = "speech"
    out: str = "runs/ears"
    resume: str = "false"
    width: int = 256  # of the decoder that will read
    blocks: int = 8
    seconds: float = 6.0
    batch_size: int = 32
    device: str = "cpu"


def ears(options: EarOptions, settings: Settings, words: Words) -> Job:
    from rich.progress import track

    from mmgpt.data.speech import load_speech, of
    from mmgpt.train.ears import Ears, EarTask

    torch.manual_seed(settings.seed)
    model = Ears(options.width, options.blocks, options.seconds).to(device_of(options.device))
    rows = of(load_speech(options.data), "train")
    sounds = [row.sound for row in track(rows, "opening speech", transient=True)]
    return Job(EarTask(model, rows, sounds, options.batch_size, settings.seed), settings, options.out, options.resume)


@dataclass(frozen=True)
class AnyOptions:
    """text, pictures, sound and video, in and out. `init` is a model of pictures; counts are documents a batch."""

    data: str = "emoji.parquet"
    speech: str = "speech"
    clips: str = "clips.parquet"
    codec: str = "runs/speech-codec/final"
    out: str = "runs/any"
    init: str = "emoji"
    resume: str = "false"
    voice: str = "heart"  # the one that speaks
    captions: int = 4
    draws: int = 6
    transcribes: int = 8
    speaks: int = 6
    describes: int = 2
    animates: int = 2
    row_length: int = 512
    max_length: int = 1024
    seconds: float = 6.0
    frames: int = 6
    side: int = 64  # pixels of the frames that are written
    encoder: str = "mel"  # or frames
    ears: str = ""  # a folder that the recipe `ears` made: its encoder instead of a new one
    moves: float = 0.3  # this share of clips is described by how they move alone
    ear_rate: float = 0.5  # an encoder with blocks, which has learned before, learns so much slower than the rest
    drop: float = 0.1
    hide: float = 0.0
    strength: float = 1.2
    skin_weight: float = 0.35
    frozen: str = ""
    device: str = "cpu"
    backend: str = ""


def any_to_any(options: AnyOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.emoji import load_emoji, training_rows
    from mmgpt.data.footage import load_clips
    from mmgpt.data.speech import load_speech, of
    from mmgpt.hub import load
    from mmgpt.native import SoundConfig, VideoConfig, build_from
    from mmgpt.train.any import clip_codes, clip_directions, clip_sights, picture_directions, speech_codes, speech_directions
    from mmgpt.train.ears import load_ears
    from mmgpt.train.gpt import GPTTask, Mix
    from mmgpt.train.mix import MixTask
    from mmgpt.train.sound import load_codec

    torch.manual_seed(settings.seed)
    model, heard = load(options.init), load_ears(options.ears) if options.ears else None
    if model.config.audio is None or "codec" in words:
        codec = load_codec(options.codec)
        audio = SoundConfig(codec.config, options.encoder, options.seconds, blocks=len(heard.encoder.blocks) if heard else 0)
        video = VideoConfig(options.frames, options.side, float(options.frames))
        model = build_from(model, replace(model.config, audio=audio, video=video, max_length=options.max_length), codec)
    if heard:
        model.encoders["audio"].load_state_dict(heard.encoder.state_dict())
    freeze(model, options.frozen)
    model.to(device_of(options.device)).train()
    model.rates = {"encoders.image.tower": 0.2} if model.config.tower else {}
    if heard or model.config.audio.blocks:
        model.rates["encoders.audio"] = options.ear_rate
    chosen = training_rows(load_emoji(options.data), model.config.left_out or None)
    mix = Mix(options.captions, options.draws, options.drop, strength=options.strength)
    pictures = GPTTask(model, pixels(chosen), [emoji_item(row, options.skin_weight) for row in chosen], mix, left_out=model.config.left_out)
    speech = of(load_speech(options.speech), "train")
    clips = [clip for clip in load_clips(options.clips) if clip.split == "train"]
    hearing, watching = (options.transcribes, options.speaks), (options.describes, options.animates)
    said = speech_codes(model, speech, options.voice if options.speaks else None)
    shown = clip_codes(model, clips if options.animates else [])
    still = not any(p.requires_grad for p in model.encoders["image"].parameters())
    sights = clip_sights(model, clips) if still and options.describes else []
    directions = [
        *picture_directions(pictures),
        *speech_directions(model, speech, said, hearing, options.voice, options.drop),
        *clip_directions(model, clips, shown, watching, options.drop, sights, options.moves),
    ]
    card = f"# any, trained here\n\nTrained with {words or 'the recipe as it is'}. Not evaluated.\n"
    task = MixTask(model, directions, options.row_length, settings.seed, {}, options.hide, card, options.backend)
    return Job(task, settings, options.out, options.resume)


def freeze(model, names: str) -> None:
    """Parts that stay as they are, with commas between their names."""
    for name in filter(None, names.split(",")):
        if name not in dict(model.named_modules()):
            raise TrainingError(f"frozen={names}: {name!r} is no part of this model: use {', '.join(dict(model.named_children()))}")
        model.get_submodule(name).requires_grad_(False)


@dataclass(frozen=True)
class PictureOptions:
    """data=FOLDER: your own pictures and captions, starting from a checkpoint (its codec and tokenizer are kept)."""

    data: str = "pictures"
    out: str = "runs/pictures"
    init: str = "emoji"
    text: str = ""
    question: str = "caption:"
    resume: str = "false"
    captions: int = 16
    draws: int = 16
    drop: float = 0.1
    device: str = "cpu"


def pictures(options: PictureOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.read import read_records
    from mmgpt.hub import load
    from mmgpt.train.gpt import GPTTask, Item, Mix

    records = read_records(options.data, options.text or None)
    model = load(options.init, device_of(options.device))
    side = getattr(model.config, "picture", None)
    if side is None:
        raise TrainingError(f"init={options.init} is no model of mmgpt's own, with 1 size of pictures: use emoji, or train one with the recipe emoji")
    items = [Item((record.text,), ((options.question, record.text),)) for record in records]
    card = f"# pictures\n\nTrained from {options.init} on {len(records)} pictures with {words}. Not evaluated.\n"
    task = GPTTask(
        model.train(),
        squared([record.picture for record in records], side),
        items,
        Mix(options.captions, options.draws, options.drop),
        settings.seed,
        card,
    )
    return Job(task, settings, options.out, options.resume)


@dataclass(frozen=True)
class DocumentOptions:
    """data=a.jsonl,b.parquet weights=2,1: pairs, pages, chats and texts from anywhere, packed and mixed."""

    data: str = "documents.jsonl"
    out: str = "runs/documents"
    init: str = "emoji"
    resume: str = "false"
    weights: tuple = ()  # one a source; without, their sizes
    temperature: float = 1.0  # above 1: small sources are seen more often
    rows: int = 8  # of the global batch, over all ranks
    row_length: int = 512
    long: str = "split"  # or refuse: documents longer than a row
    waiting: int = 48  # documents to fill a row from
    window: int = 4  # blocks of a source that are mixed
    max_bad: float = 0.05
    prefetch: int = 2  # batches that are made ahead by `workers` processes
    patience: float = 25.0
    text: str = ""
    question: str = "caption:"
    draws: float = 0.5  # share of pairs whose picture is drawn; the rest is captioned
    drop: float = 0.1
    text_weight: float = 1.0
    image_weight: float = 1.0
    device: str = "cpu"
    backend: str = ""


def documents(options: DocumentOptions, asked: Settings, words: Words) -> Job:
    from mmgpt.data.mixture import Mixture
    from mmgpt.data.samples import Form
    from mmgpt.data.sources import open_source
    from mmgpt.hub import load
    from mmgpt.train.stream import StreamTask, writer

    settings = replace(asked, workers=0)  # they are the stream's: its batches follow each other, the loop's own workers would each begin anew
    sources = tuple(open_source(word, options.text) for word in options.data.split(","))
    model = load(options.init, device_of(options.device))
    mixture = Mixture(
        sources,
        writer(model).write,
        model.spans,
        options.row_length,
        options.rows,
        begins=int(model.begin is not None),
        weights=tuple(float(weight) for weight in options.weights),
        form=Form(options.question, options.draws, options.drop, options.text),
        seed=settings.seed,
        **{name: getattr(options, name) for name in ("temperature", "waiting", "long", "window", "max_bad")},
    )
    card = f"# documents\n\nTrained from {options.init} on {', '.join(source.name for source in sources)} with {words}. Not evaluated.\n"
    feeding = {"workers": asked.workers, "prefetch": options.prefetch, "patience": options.patience}
    heads = {"text": options.text_weight, "image": options.image_weight}
    task = StreamTask(model.train(), mixture, heads, card, options.backend, Path(options.out) / "bad.jsonl", **feeding)
    return Job(task, settings, options.out, options.resume)


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"device={name}: use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device=cuda: this machine shows 0 CUDA devices to torch; leave device out")
    if device == torch.device("cuda") and "LOCAL_RANK" in os.environ:  # torchrun: each process its own
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def squared(sources, side: int) -> Tensor:
    """(N, 3, side, side) uint8: each picture squeezed to a square, just as the model will see it when it reads."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    from mmgpt.data.pictures import open_picture
    from mmgpt.encoders.image import fitted

    return torch.stack([pil_to_tensor(fitted(open_picture(source), 1, side**2, side)) for source in sources])


def emoji_item(row, skin_weight: float):
    from mmgpt.data.emoji import drawing_prompt
    from mmgpt.train.gpt import Item

    styled = drawing_prompt(row.label, row.style)
    draws = (*[styled] * 7, f"a {styled}", f"a {styled}", row.label)
    captions = (*[("caption:", row.label)] * 9, ("group:", row.group))
    return Item(draws, captions, skin_weight if row.skin else 0.5 if row.group == "flags" else 1.0)


def pixels(rows) -> Tensor:
    """(N, 3, 64, 64) uint8 of all rows' pictures."""
    from PIL import Image

    stacked = np.stack([np.array(Image.open(BytesIO(row.image)).convert("RGB")) for row in rows])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def split(options, settings: Settings, words: dict[str, str]):
    """`key=value` words to the recipe's own options and to the loop's settings; an unknown key lists both."""
    mine, loops = {f.name for f in fields(options)}, {f.name for f in fields(settings)}
    unknown = [key for key in words if key not in mine | loops]
    if unknown:
        raise TrainingError(f"unknown setting {unknown[0]!r}: known are {', '.join(sorted(mine | loops))}")
    how_to_begin(words.get("resume", False))
    if "steps" in words and "minutes" not in words:
        settings = replace(settings, minutes=0.0)  # a length in steps replaces the recipe's own in minutes
    return override(options, {k: v for k, v in words.items() if k in mine}), override(settings, {k: v for k, v in words.items() if k in loops})


RECIPES: dict[str, Recipe] = {
    "emoji-codec": Recipe(emoji_codec, CodecOptions(), Settings(minutes=20, learning_rate=2e-3, weight_decay=1e-4, betas=(0.9, 0.99), decay=0.9)),
    "emoji": Recipe(emoji, EmojiOptions(), Settings(minutes=90, learning_rate=1.5e-3, warmup=200, decay=0.4, ema=0.998)),
    "speech-codec": Recipe(
        speech_codec, SpeechCodecOptions(), Settings(minutes=40, learning_rate=1.5e-3, warmup=50, decay=0.6, weight_decay=0.01, ema=0.998)
    ),
    "ears": Recipe(ears, EarOptions(), Settings(minutes=30, learning_rate=1.5e-3, warmup=100, decay=0.5, weight_decay=0.01, ema=0.998)),
    "any": Recipe(any_to_any, AnyOptions(), Settings(minutes=120, learning_rate=1e-3, warmup=100, decay=0.5, ema=0.998, muon=True)),
    "pictures": Recipe(pictures, PictureOptions(), Settings(steps=1000, learning_rate=5e-4, decay=0.5)),
    "documents": Recipe(documents, DocumentOptions(), Settings(steps=1000, learning_rate=5e-4, decay=0.5)),
}
