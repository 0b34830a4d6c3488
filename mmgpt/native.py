"""Settings -> a whole model in our own format: text and pictures, sound and video if asked for, one decoder; and its checkpoint folder.

ids     text ids, END | BEGIN, picture begin, picture end | picture codes, those of sprites |
        sound begin, sound end | sound END, codes, words if any | video begin, video end
text    ids END
picture, read      begin  patches  end     (the patches read each other)
picture, written   begin  codes    end     (causal, in reading order)
sound, read        begin  frames   end     (causal)
sound, written     begin  codes    END     (causal, as many frames as it takes; `words` before the frames that say them)
video, read        begin  patches of all frames  end     (the patches read each other)
video, written     begin  codes of all frames    end     (causal: a frame reads those before it)
         or        begin  a picture, how it stands in each frame  end
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgpt.checkpoint import load_exactly, match, parsed, read_folder, write_folder
from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig, SoundCodec
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig, PictureCodec
from mmgpt.decoders.sprite_codec import FIRST, LATER, SpriteCodec
from mmgpt.decoders.sprite_layout import SpritesLayout
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.decoders.video_codec import VideoCodec
from mmgpt.encoders.audio import FrameEncoder, MelEncoder
from mmgpt.encoders.image import TOWERS, square_encoder
from mmgpt.encoders.spelling import LETTERS, Said, Spelling
from mmgpt.encoders.text import TextCodec
from mmgpt.encoders.video import VideoEncoder
from mmgpt.encoders.whisper import WhisperEncoder
from mmgpt.errors import CheckpointError, InputError, MmgptError
from mmgpt.generate.sampling import Sampling
from mmgpt.layout import CodesLayout, FramesLayout, TextLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.script import Span
from mmgpt.tensorfile import AGAIN, STEP, restored, rounded, without_steps
from mmgpt.types import Audio, Video

SOUND_ENCODERS = {"mel": MelEncoder, "frames": FrameEncoder, "whisper": WhisperEncoder}
LAYERED = ("mel", "whisper")  # those that have `blocks`
VIDEO_CODECS = ("frames", "sprites")
PRONUNCIATION = "pronunciation.txt"
MAX_SIDE = 4096  # pixels of a picture's side, as much as any picture may have that is opened


@dataclass(frozen=True)
class SoundConfig:
    """How sound is read, by a `mel`, a `whisper` (of so many `blocks` both) or a `frames` encoder, and written, by the codec; up to `seconds`.
    `words` among its frames: see `FramesLayout`. They are learned where codes come with them (`mmgpt.train.any.spelled`), not from sound alone.
    With `verbatim` they are those of the text before the sound, all of them and no others: what is asked for is what is said. With `letters` these
    are single letters (UTF-8), or `phones` where the model's lexicon has a word (`mmgpt.encoders.spelling`), so many `ahead` of what is heard: how a
    word is said need not be known by heart, even where the text has one id for all of it."""

    codec: AudioCodecConfig = field(default_factory=AudioCodecConfig)
    encoder: str = "mel"
    seconds: float = 6.0
    temperature: float = 0.7
    guidance: float = 1.0
    blocks: int = 0
    words: bool = False
    verbatim: bool = False
    letters: bool = False
    phones: tuple = ()
    ahead: int = 6

    def __post_init__(self):
        if self.phones and not self.letters or not 1 <= self.ahead <= 100:
            raise InputError(f"{len(self.phones)} phones, letters={self.letters}, ahead={self.ahead}: phones need letters=True, use 1 to 100 ahead")
        if self.letters and not self.verbatim:
            raise InputError("letters=True and verbatim=False: the letters among the frames are those of the text, use verbatim=True and words=True")
        if self.verbatim and not self.words:
            raise InputError("verbatim=True and words=False: it is the words among the frames that are those of the text, use words=True")
        if self.words and self.codec.quantizers > 1:
            raise InputError(f"words=True and a codec of {self.codec.quantizers} quantizers: words need frames of one code")
        if self.encoder not in SOUND_ENCODERS or not 0 < self.seconds <= 600:
            raise InputError(f"encoder={self.encoder!r}, seconds={self.seconds}: use one of {', '.join(SOUND_ENCODERS)}, and up to 600 seconds")
        if self.blocks < 0 or self.blocks and self.encoder not in LAYERED:
            raise InputError(f"blocks={self.blocks} of a {self.encoder!r} encoder: use 0 or more with {' and '.join(LAYERED)}, 0 with any other")

    @property
    def frames(self) -> int:
        """The most frames of codes that are written, the words among them too: what is written can be read."""
        return max(1, int(self.seconds * self.codec.rate / self.codec.hop))

    @property
    def slots(self) -> int:
        """The most codes that are written: frames with the words among them, or as many letters beside them."""
        return self.frames * (1 + self.letters)


@dataclass(frozen=True)
class VideoConfig:
    """`frames` of `side` pixels are written and shown `fps` a second, each as a picture (`codec` frames), or as `sprites`: a picture of the thing
    and how it stands in each. As many are read, each as a picture is, and what moved between them by a network of `changes` channels."""

    frames: int = 6
    side: int = 64
    fps: float = 6.0
    temperature: float = 0.3
    guidance: float = 1.0
    changes: int = 0
    codec: str = "frames"

    def __post_init__(self):
        if self.codec not in VIDEO_CODECS:
            raise InputError(f"video codec {self.codec!r}: use one of {', '.join(VIDEO_CODECS)}")
        if not (1 <= self.frames <= 1000 and 1 <= self.side <= MAX_SIDE and 0 < self.fps <= 1000):
            raise InputError(f"frames={self.frames}, side={self.side}, fps={self.fps}: use 1 to 1000 frames, 1 to {MAX_SIDE} pixels, up to 1000 fps")


@dataclass(frozen=True)
class NativeConfig:
    """All that shapes a model. `picture` is the side in pixels of what is drawn, and to which pictures are resized to be read."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    codec: ImageCodecConfig = field(default_factory=ImageCodecConfig)
    num_text: int = 2048
    picture: int = 64
    patch: int = 8
    patch_hidden: int = 0
    conv_stem: int = 0  # above 0: patches are read through a convolutional network of so many channels at half size
    max_length: int = 1024
    max_text: int = 64  # ids of an answer, where the caller names no limit
    guidance: float = 3.0  # of pictures, and how their codes are drawn
    temperature: float = 1.0
    min_p: float = 0.0
    left_out: str = ""  # the artist that the model was trained without, so that an evaluation can refuse another
    tower: str = ""  # "efficientnet-lite0": patches are seen by it, instead of by what patch_hidden and conv_stem say
    turns: int = 0  # of a conversation that the model has learned to look back on
    audio: SoundConfig | None = None
    video: VideoConfig | None = None

    def __post_init__(self):
        sides = (self.patch, *self.codec.stride)
        if not 1 <= self.picture <= MAX_SIDE or min(self.max_length, self.max_text) < 1:
            raise InputError(
                f"picture={self.picture}, max_length={self.max_length}, max_text={self.max_text}: use 1 to {MAX_SIDE} pixels, lengths of at least 1"
            )
        if self.video and self.video.codec == "frames" and any(side < 1 or self.video.side % side for side in self.codec.stride):
            raise InputError(f"video frames of {self.video.side} pixels in codes of {self.codec.stride}: use a side that they divide")
        if any(side < 1 or self.picture % side for side in sides):
            raise InputError(
                f"pictures of {self.picture} pixels in patches of {self.patch} and codes of {self.codec.stride}: use sides that divide them"
            )
        if self.tower and self.tower not in TOWERS:
            raise InputError(f"tower={self.tower!r}: known are {', '.join(TOWERS)}, and nothing")
        if self.decoder.position_axes != 3:
            raise InputError(f"position_axes={self.decoder.position_axes}: written pictures need 3, or their codes share one position")


class Ids:
    """Hands out neighbouring ids."""

    def __init__(self):
        self.used = 0

    def take(self, count: int = 1) -> Span:
        self.used += count
        return Span(self.used - count, self.used)


def build(config: NativeConfig, text: TextCodec, codec: ImageCodec, sound: AudioCodec | None = None, spelling: Spelling | None = None) -> GPT:
    if text.num_codes > config.num_text or codec.config != config.codec:
        raise InputError(
            f"{text.num_codes} text ids for num_text={config.num_text}, {codec.config} for {config.codec}: use the codecs of this config"
        )
    if (config.audio and sound and sound.config) != (config.audio and config.audio.codec):
        raise InputError(f"a sound codec of {sound and sound.config} for {config.audio and config.audio.codec}: use the codec of this config")
    if config.audio and config.audio.letters:
        spelling = spelling or Spelling(config.audio.phones)
        if spelling.phones != config.audio.phones:
            raise InputError(f"a pronunciation with {len(spelling.phones)} phones for {len(config.audio.phones)}: use that of this config")
    ids = Ids()
    words = ids.take(config.num_text + 1)  # END is the last of them: a head that writes text also ends it
    begin, open_picture, close_picture = (ids.take().start for _ in range(3))
    codes = ids.take(config.codec.num_codes)
    rows, columns = (config.picture // stride for stride in config.codec.stride)
    ports = {
        "text": Port(str, codec=text, writes=TextLayout(words, words.stop - 1), grid=(1, 1, config.max_text)),
        "image": Port(
            kind_of_pictures(),
            square_encoder(config.decoder.width, config.patch, config.picture, config.patch_hidden, config.conv_stem, config.tower),
            VectorsLayout(open_picture, close_picture),
            PictureCodec(codec, config.picture),
            CodesLayout(open_picture, codes, close_picture),
            (1, rows, columns),
            sampling=Sampling(config.temperature, min_p=config.min_p),
            guidance=config.guidance,
        ),
    }
    if config.video and config.video.codec == "sprites":
        shown = Span(codes.start, ids.take(sum(FIRST) + sum(LATER) + 1).stop)  # poses, and one to cut
    else:
        shown = codes
    if config.audio:
        ports["audio"] = sound_port(config.audio, sound, config.decoder.width, ids, Said(Span(words.start, words.stop - 1), text, spelling))
    if config.video:
        ports["video"] = video_port(config.video, codec, ports["image"], shown, ids)
    model = GPT(config.decoder, ports, ids.used, begin, config.max_length)
    model.config = config
    return model


def sound_port(config: SoundConfig, codec: AudioCodec, width: int, ids: Ids, said: Said) -> Port:
    opened, closed = (ids.take().start for _ in range(2))
    quantizers, num_words = config.codec.quantizers, (LETTERS + len(config.phones) if config.letters else len(said.text)) if config.words else 0
    says = (said if config.letters else replace(said, spelling=None)) if config.verbatim else None
    letters = {"ahead": config.ahead, "most": config.frames} if config.letters else {}
    return Port(
        Audio,
        SOUND_ENCODERS[config.encoder](width, max_seconds=config.seconds, **({"blocks": config.blocks} if config.encoder in LAYERED else {})),
        VectorsLayout(opened, closed, whole=False, flat=True),
        SoundCodec(codec, num_words=num_words),
        FramesLayout(opened, ids.take(1 + config.codec.num_codes * quantizers + num_words), quantizers, num_words, says, **letters),
        (config.slots, 1, quantizers),
        sampling=Sampling(config.temperature),
        guidance=config.guidance,
        asks="transcribe:",
    )


def video_port(config: VideoConfig, codec: ImageCodec, image: Port, codes: Span, ids: Ids) -> Port:
    """Frames are seen as pictures are, and written in their codes: each frame, or the thing once and behind it how it stands in each."""
    opened, closed = (ids.take().start for _ in range(2))
    if config.codec == "sprites":
        written: VideoCodec | SpriteCodec = SpriteCodec(codec, image.codec.side, config.side, config.frames, config.fps)
        _, rows, columns = image.grid
        layout: CodesLayout | SpritesLayout = SpritesLayout(opened, image.writes.begin, image.writes.end, codes, closed, rows, columns, FIRST, LATER)
    else:
        written, layout = VideoCodec(codec, config.side, config.frames, config.fps), CodesLayout(opened, codes, closed)
        rows, columns = (config.side // stride for stride in codec.config.stride)
    return Port(
        Video,
        VideoEncoder(image.encoder, config.frames, shared=True, changes=config.changes),
        VectorsLayout(opened, closed),
        written,
        layout,
        (config.frames, rows, columns),
        sampling=Sampling(config.temperature),
        guidance=config.guidance,
        asks="describe:",
    )


def build_from(model: GPT, config: NativeConfig, sound: AudioCodec | None = None, spelling: Spelling | None = None) -> GPT:
    """A model of another config with all weights that both have: what the config adds is new. Ids keep their vectors wherever they stand now."""
    spelling = spelling or spelling_of(model)
    if sound is None and "audio" in model.ports:
        sound = model.ports["audio"].codec.codec
    made = build(config, model.ports["text"].codec, model.codecs["image"].codec, sound, spelling)
    known, found = made.state_dict(), model.state_dict()
    kept = {name: t for name, t in found.items() if name in known and known[name].shape == t.shape}
    old, new = spans_of(model), spans_of(made)
    kept["table.weight"] = known["table.weight"].clone()
    for name in old.keys() & new.keys():
        count = min(len(old[name]), len(new[name]))
        kept["table.weight"][new[name].start :][:count] = found["table.weight"][old[name].start :][:count]
    made.load_state_dict(kept, strict=False)
    return made


def spelling_of(model: GPT) -> Spelling | None:
    """How a model's words are said, where letters or phones stand among its frames."""
    says = model.ports["audio"].writes.says if "audio" in model.ports else None
    return says.spelling if isinstance(says, Said) else None


def spans_of(model: GPT) -> dict[str, Span]:
    """All ids of a model, by what they are for."""
    found = {"begin": Span(model.begin, model.begin + 1)}
    for name, port in model.ports.items():
        found[name], words = port.writes.hideable, Span(port.writes.hideable.stop, port.writes.ids.stop)
        found |= {f"{name}, {len(words)} words": words} if len(words) else {}  # letters are others than pieces
        for kind, layout in (("reads", port.reads), ("writes", port.writes)):
            single = {part: getattr(layout, part, None) for part in ("begin", "end", "open", "close")}
            found |= {f"{name}, {kind}: {part}": Span(id, id + 1) for part, id in single.items() if id is not None}
    return found


def kind_of_pictures() -> type:
    from PIL.Image import Image

    return Image


def save(
    model: GPT,
    folder: str | Path,
    weights: dict[str, Tensor] | None = None,
    card: str = "",
    dtype: torch.dtype | None = None,
    eight: Sequence[str] = (),
) -> Path:
    """The model as a checkpoint folder: weights (in `dtype` where given, the matrices of the parts `eight` in 8 bits), codec, tokenizer,
    settings, model card."""
    kept = rounded({**model.state_dict(), **(weights or {})}, eight)
    kept = {name: t.to(dtype) if dtype and t.is_floating_point() and not name.endswith(STEP) else t for name, t in kept.items()}
    tensors = {"model.safetensors": kept}
    texts = {"config.json": json.dumps({"kind": "native", **asdict(model.config)}, indent=1), "tokenizer.json": model.ports["text"].codec.text()}
    if spelling := spelling_of(model):
        texts[PRONUNCIATION] = spelling.text()
    return write_folder(folder, tensors, texts | ({"README.md": card} if card else {}))


def load(folder: str | Path, device: torch.device | str = "cpu") -> GPT:
    """A model from its folder. Nothing is used, nor memory taken, before its hash, its names and its shapes were found right."""
    tensors, texts = read_folder(folder)
    for name in ("config.json", "tokenizer.json"):
        if name not in texts:
            raise CheckpointError(f"{folder} has no {name}: it is no model; pass the folder of a finished model")
    config = config_from(parsed(texts["config.json"], f"{folder}: config.json"), folder)
    text, found = TextCodec.from_text(texts["tokenizer.json"]), tensors.get("model.safetensors", {})
    spelling = Spelling.from_text(config.audio.phones, texts.get(PRONUNCIATION, "")) if config.audio and config.audio.letters else None
    fit(config, text, without_steps(found), folder)
    model = build(config, text, *codecs_of(config), spelling)
    load_exactly(model, restored(found, str(folder)), folder)
    return model.to(device).eval()


def codecs_of(config: NativeConfig) -> tuple[ImageCodec, AudioCodec | None]:
    """The codecs of a config, as they are before their weights are loaded."""
    return ImageCodec(config.codec), AudioCodec(config.audio.codec) if config.audio else None


def fit(config: NativeConfig, text: TextCodec, found: Mapping[str, Tensor], folder: str | Path) -> None:
    """Compares the file with a model without memory: whatever sizes a config names, none are taken that the file does not hold."""
    try:
        rows = found["table.weight"].shape[0] if "table.weight" in found else 0
        if (
            max(config.decoder.depth, config.codec.blocks, config.audio.blocks if config.audio else 0) > len(found) or config.codec.num_codes > rows
        ):  # each has weights of its own
            raise CheckpointError(
                f"{folder}: {len(found)} tensors and {rows} ids for a depth of {config.decoder.depth}, {config.codec.blocks} blocks of a codec "
                f"and {config.codec.num_codes} codes: {AGAIN}"
            )
        with torch.device("meta"):
            match(build(config, text, *codecs_of(config)).state_dict(), found, folder)
    except MmgptError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder}: config.json describes no model ({reason}): {AGAIN}") from None


def config_from(values: dict, folder: str | Path) -> NativeConfig:
    values = dict(values)
    kind = values.pop("kind", None)
    if kind != "native":
        raise CheckpointError(f"{folder} is a checkpoint of kind {kind!r}: known is 'native'")
    unknown = sorted(set(values) - {f.name for f in fields(NativeConfig)})
    if unknown or not {"decoder", "codec"} <= set(values):
        raise CheckpointError(f"{folder}: config.json has unknown fields {unknown} or lacks decoder or codec: it is of a newer version of mmgpt")
    try:
        decoder, codec = (settings(values.pop(part)) for part in ("decoder", "codec"))
        if isinstance(decoder.get("qk_norm"), bool):  # as it was written before there were several
            decoder["qk_norm"] = "rms" if decoder["qk_norm"] else ""
        audio, video = (settings(values.pop(part, None) or {}) for part in ("audio", "video"))
        parts = {"decoder": of_kind(DecoderConfig, decoder), "codec": of_kind(ImageCodecConfig, codec)}
        if audio:
            parts["audio"] = of_kind(SoundConfig, audio | {"codec": of_kind(AudioCodecConfig, settings(audio["codec"]))})
        if video:
            parts["video"] = of_kind(VideoConfig, video)
        return of_kind(NativeConfig, values | parts)
    except (TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder}: config.json does not fit ({error}): it is of another version of mmgpt") from None


def settings(values: Any) -> dict:
    """JSON's lists as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def of_kind(kind: type, values: dict) -> Any:
    """A config of JSON's values, each of the type that its field has where nothing is said; TypeError where one is not."""
    for f in fields(kind):
        value, default = values.get(f.name), f.default
        if f.name not in values or default is MISSING or default is None:
            continue
        numbers = isinstance(default, tuple) and isinstance(value, tuple) and all(type(v) in (int, float) for v in value)
        if not numbers and type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise TypeError(f"{f.name} is {value!r}, not of type {type(default).__name__}")
    return kind(**values)
