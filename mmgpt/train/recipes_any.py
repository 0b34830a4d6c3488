"""Recipes of sound and video: the sound codec, ears, and the model of all modalities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mmgpt.errors import TrainingError
from mmgpt.model import GPT
from mmgpt.train.mix import Direction
from mmgpt.train.recipe import Job, Words, device_of, emoji_item, freeze, pixels
from mmgpt.train.settings import Settings

if TYPE_CHECKING:
    from mmgpt.train.gpt import GPTTask


@dataclass(frozen=True)
class SpeechCodecOptions:
    """sound <-> codes, on speech (tools/build_speech.py)."""

    data: str = "speech"
    out: str = "runs/speech-codec"
    resume: str = "false"
    voice: str = ""  # learn this one alone; fewer codes are enough then
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
    samples = long_sound(row.sound for row in of(load_speech(options.data), "train", options.voice))
    return Job(SoundTask(codec, samples, options.batch_size, options.seconds, settings.seed), settings, options.out, options.resume)


@dataclass(frozen=True)
class EarOptions:
    """sound -> what can be read as words: an encoder that the recipe `any` begins with (tools/build_speech.py makes the data)."""

    data: str = "speech"
    out: str = "runs/ears"
    resume: str = "false"
    encoder: str = "mel"  # or whisper (tools/convert_ears.py fetches it), whose tower stays as it is: each clip is heard once, minutes are enough
    width: int = 256  # of the decoder that will read
    blocks: int = 8  # of mel; whisper has up to 4
    seconds: float = 6.0
    batch_size: int = 32
    device: str = "cpu"


def ears(options: EarOptions, settings: Settings, words: Words) -> Job:
    from rich.progress import track

    from mmgpt.data.speech import load_speech, of
    from mmgpt.train.any import speech_heard
    from mmgpt.train.ears import Ears, EarTask

    torch.manual_seed(settings.seed)
    rows = of(load_speech(options.data), "train")
    if options.encoder == "whisper":
        model = Ears(options.width, min(4, options.blocks), options.seconds, options.encoder)
        model.encoder.tower.fill()
        model.encoder.tower.requires_grad_(False)
        model.to(device_of(options.device))
        sounds, heard = [], speech_heard(model.encoder, rows)
    else:
        model, heard = Ears(options.width, options.blocks, options.seconds, options.encoder), []
        sounds = [row.sound for row in track(rows, "opening speech", transient=True)]
    model.to(device_of(options.device))
    return Job(EarTask(model, rows, sounds, options.batch_size, settings.seed, heard), settings, options.out, options.resume)


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
    sketches: int = 0  # names heard and written down, then drawn
    names: float = 1.0  # are said so many times as often as other clips
    repeats: int = 2  # heard and written down, then said: what is written follows words, whatever came before them
    describes: int = 2
    animates: int = 2
    row_length: int = 512
    max_length: int = 1024
    seconds: float = 6.0
    frames: int = 6
    side: int = 64  # pixels of the frames that are written
    video: str = "frames"  # each written as a picture; or sprites: what moves once, and how it stands in each frame
    changes: int = 0  # channels of a network that reads what moved between frames; 0: frames alone
    encoder: str = "mel"  # or frames, or whisper (tools/convert_ears.py fetches it)
    ears: str = ""  # a folder that the recipe `ears` made: its encoder instead of a new one
    words: bool = False  # speech is written with its words among its frames
    letters: bool = False  # these letter by letter, or phone by phone where speech comes with its phones
    ahead: int = 6  # so many letters or phones are known before they are said
    aligner: str = ""  # a folder of ears that hear where words begin, where no phones come with speech; without, the folder `ears`
    ear_blocks: int = 4  # the first so many of Whisper's
    moves: float = 0.3  # this share of clips is described by how they move alone
    ear_rate: float = 0.5  # what has learned to hear before (a tower, or an encoder with blocks) learns so much slower than the rest
    drop: float = 0.1
    hide: float = 0.0
    swap: float = 0.0  # this share of drawings, and of clips frame by frame, is shown codes of another one, and learns to come right
    strength: float = 1.2
    skin_weight: float = 0.35
    frozen: str = ""
    device: str = "cpu"
    backend: str = ""


def any_to_any(options: AnyOptions, settings: Settings, words: Words) -> Job:
    from mmgpt.data.emoji import load_emoji, training_rows
    from mmgpt.data.speech import load_speech, of
    from mmgpt.train.any import picture_directions, sketch_direction
    from mmgpt.train.ears import load_ears
    from mmgpt.train.mix import MixTask

    if options.sketches and not (options.draws and options.transcribes):
        raise TrainingError(f"sketches={options.sketches}, draws={options.draws}, transcribes={options.transcribes}: use 1 or more of each")
    if options.words and options.speaks and not (options.letters or options.aligner or options.ears):
        raise TrainingError("words among speech, and no ears to hear where they begin: name a folder of them (mmgpt train ears), aligner=")
    torch.manual_seed(settings.seed)
    ears = load_ears(options.ears) if options.ears else None
    speech = of(load_speech(options.speech), "train")
    model = shaped(options, words, ears, speech)
    aligner = load_ears(options.aligner) if options.aligner else ears
    freeze(model, options.frozen)
    model.to(device_of(options.device)).train()
    model.rates = rates_of(model, options, ears)
    chosen = training_rows(load_emoji(options.data), model.config.left_out or None)
    pictures = picture_part(model, options, chosen, settings.seed)
    spoken = speech_part(model, options, aligner, speech)
    named = [*(picture_directions(pictures) if pictures else []), *spoken]
    if options.sketches:
        named.append(sketch_direction(pictures, spoken[0], speech, options.sketches, options.drop))
    drawn = {(row.label, row.style): codes for row, codes in zip(chosen, pictures.codes, strict=True) if not row.skin} if options.draws else None
    directions = [*named, *clip_part(model, options, chosen, drawn)]
    card = f"# any, trained here\n\nTrained with {words or 'the recipe as it is'}. Not evaluated.\n"
    task = MixTask(model, directions, options.row_length, settings.seed, {}, options.hide, card, options.backend, options.swap)
    return Job(task, settings, options.out, options.resume)


def shaped(options: AnyOptions, words: Words, ears, speech: Sequence = ()) -> GPT:
    """The model to begin with, `options.init`, with sound and video put to it where it has none, or where a codec is named."""
    from mmgpt.data.clips import SECONDS
    from mmgpt.encoders.spelling import Spelling
    from mmgpt.hub import load
    from mmgpt.native import SoundConfig, VideoConfig, build_from, spelling_of
    from mmgpt.train.ears import blocks_of
    from mmgpt.train.sound import load_codec

    model = load(options.init)
    if options.encoder == "whisper" and not 0 <= options.ear_blocks <= 4:
        raise TrainingError(f"encoder=whisper, ear_blocks={options.ear_blocks}: it has 4 blocks, use the first 0 to 4")
    if ears and "encoder" in words and options.encoder != ears.kind:
        raise TrainingError(f"encoder={options.encoder}, and ears={options.ears} hear with {ears.kind}: leave one of the two out")
    had, film = model.config.audio, model.config.video
    own = {"encoder": had.encoder, "ear_blocks": had.blocks, "words": had.words, "letters": had.letters, "ahead": had.ahead} if had else {}
    own |= {"video": film.codec, "changes": film.changes, "frames": film.frames, "side": film.side} if film else {}
    other = [f"{name}={getattr(options, name)} for {kept}" for name, kept in own.items() if name in words and getattr(options, name) != kept]
    if had and "codec" not in words and other:
        raise TrainingError(f"{', '.join(other)} of {options.init}: name codec= too, and sound and video are built anew")
    if had is None or "codec" in words:
        codec = load_codec(options.codec)
        kind = ears.kind if ears else options.encoder
        blocks = len(blocks_of(ears.encoder)) if ears else options.ear_blocks if kind == "whisper" else 0
        spelling = Spelling.heard((row.text, row.phones) for row in speech if row.phones) if options.letters else None
        spoken = {"words": options.words, "verbatim": options.words, "letters": options.letters, "ahead": options.ahead}
        audio = SoundConfig(codec.config, kind, options.seconds, blocks=blocks, **spoken, phones=spelling.phones if spelling else ())
        video = VideoConfig(options.frames, options.side, options.frames / SECONDS, changes=options.changes, codec=options.video)
        model = build_from(model, replace(model.config, audio=audio, video=video, max_length=options.max_length), codec, spelling)
        if kind == "whisper" and not ears and (had is None or had.encoder != "whisper"):
            model.encoders["audio"].tower.fill()
    if ears:
        listens = {name: tuple(p.shape) for name, p in model.encoders["audio"].state_dict().items()}
        given = {name: tuple(p.shape) for name, p in ears.encoder.state_dict().items()}
        if listens != given:
            raise TrainingError(
                f"ears={options.ears} ({ears.kind}, width {ears.letters.in_features}) are no ears of {options.init} ({model.config.audio.encoder}, "
                f"width {model.config.decoder.width}): train ears of that width, or name codec= too, and sound and video are built anew"
            )
        model.encoders["audio"].load_state_dict(ears.encoder.state_dict())
    if model.config.audio.words and not (had and had.words and had.letters == model.config.audio.letters):
        speech, text, codec = model.ports["audio"].writes, model.ports["text"].writes.ids, model.ports["text"].codec
        said = [codec.letters(id) if spelling_of(model) else (id,) for id in range(codec.num_codes)]
        with torch.no_grad():  # a word among frames begins as what it is in a text
            for id, codes in enumerate(said):
                if len(codes) == 1:  # of phones nothing is known
                    model.table.weight[speech.hideable.stop + codes[0]] = model.table.weight[text.start + id]
    return model


def rates_of(model: GPT, options: AnyOptions, ears) -> dict[str, float]:
    """How fast parts learn that have learned before."""
    rates = {"encoders.image.tower": 0.2} if model.config.tower else {}
    if hasattr(model.encoders["audio"], "tower"):
        rates["encoders.audio.tower"] = options.ear_rate
    elif ears or model.config.audio.blocks:
        rates["encoders.audio"] = options.ear_rate
    return rates


def picture_part(model: GPT, options: AnyOptions, chosen: Sequence, seed: int) -> "GPTTask | None":
    """Pictures with their names and codes, where they are learned."""
    from mmgpt.train.gpt import GPTTask, Mix

    if not options.captions and not options.draws:
        return None
    mix = Mix(options.captions, options.draws, options.drop, strength=options.strength)
    items = [emoji_item(row, options.skin_weight) for row in chosen]
    return GPTTask(model, pixels(chosen, model.config.picture), items, mix, seed, left_out=model.config.left_out)


def speech_part(model: GPT, options: AnyOptions, aligner, speech: Sequence) -> list[Direction]:
    """The directions of speech, the first of them that in which it is written down."""
    from mmgpt.train.any import speech_codes, speech_directions, speech_heard, spelled

    codes = speech_codes(model, speech, options.voice if options.speaks else None)
    if model.config.audio.words and options.speaks:
        codes = spelled(model, aligner, speech, codes)
    tower = getattr(model.encoders["audio"], "tower", None)
    heard = speech_heard(model.encoders["audio"], speech) if options.transcribes and tower is not None and still(tower) else []
    repeats = options.repeats * bool(options.transcribes and options.speaks)
    return speech_directions(model, speech, codes, (options.transcribes, options.speaks), options.voice, options.drop, heard, repeats, options.names)


def clip_part(model: GPT, options: AnyOptions, chosen: Sequence, drawn: dict | None) -> list[Direction]:
    """What is never drawn in training does not move there either, nor does what the artist drew who is left out."""
    from mmgpt.data.emoji import ARTIST
    from mmgpt.data.footage import load_clips
    from mmgpt.train.any import clip_codes, clip_directions, clip_sights

    known, unseen = {row.label for row in chosen}, model.config.left_out
    clips = [clip for clip in load_clips(options.clips) if clip.split == "train" and known.issuperset(clip.things)]
    clips = [clip for clip in clips if ARTIST.get(clip.style, clip.style) != ARTIST.get(unseen, unseen)]
    codes = clip_codes(model, clips if options.animates else [], drawn)
    sights = clip_sights(model, clips) if options.describes and still(model.encoders["image"]) else []
    return clip_directions(model, clips, codes, (options.describes, options.animates), options.drop, sights, options.moves)


def still(part: torch.nn.Module) -> bool:
    """Whether nothing of it is trained."""
    return not any(p.requires_grad for p in part.parameters())
