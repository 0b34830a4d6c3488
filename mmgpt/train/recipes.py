"""Recipes: Python functions that build a task and its settings from `key=value` words. `RECIPES` lists them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mmgpt.decoders.transformer import decoder_preset
from mmgpt.errors import TrainingError
from mmgpt.train.recipe import Job, Recipe, Words, device_of, emoji_item, freeze, pixels, squared
from mmgpt.train.recipes_any import AnyOptions, EarOptions, SpeechCodecOptions, any_to_any, ears, speech_codec
from mmgpt.train.settings import Settings


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
        had = model.config.tower
        if options.tower and options.tower != had:
            model = build_from(model, replace(model.config, tower=options.tower))
    else:
        had = ""
        codec = load_codec(options.codec)
        texts = [text for row in training_rows(rows) for text in (row.label, row.group, f"{row.label}, {row.style} style", "caption: group:")]
        text = TextCodec.train(texts, 2048)
        decoder = replace(
            decoder_preset(options.depth), width=options.width, num_heads=options.width // 64, num_kv_heads=max(1, options.width // 128)
        )
        decoder = replace(decoder, mlp_width=64 * round(options.width / 24))
        shape = {"patch": options.patch, "conv_stem": options.conv_stem, "tower": options.tower}
        model = build(NativeConfig(decoder, codec.config, text.num_codes, **shape), text, codec)
    if options.tower and options.tower != had:  # eyes that have learned already are kept
        model.encoders["image"].tower = LiteBlocks.load()
    if model.config.tower:
        model.rates = {"encoders.image.tower": options.tower_rate}
    freeze(model, options.frozen)
    how = {"strength": options.strength, "hide": options.hide, "swap": options.swap, "z_loss": options.z_loss}
    mix = Mix(options.captions, options.draws, options.drop, options.text_weight, options.image_weight, options.row_length, **how)
    card = f"# emoji, trained here\n\nTrained with {words or 'the recipe as it is'}. Not evaluated.\n"
    task = GPTTask(
        model.to(device_of(options.device)).train(),
        pixels(chosen, model.config.picture),
        items,
        mix,
        settings.seed,
        card,
        options.backend,
        options.leave_out,
    )
    return Job(task, settings, options.out, options.resume)


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
