"""The settings of a native model <-> a `PreTrainedConfig` that transformers saves, loads and hands to its tools."""

from dataclasses import asdict, fields
from typing import ClassVar, no_type_check

from transformers import PreTrainedConfig

from mmgpt.decoders.image_codec import ImageCodecConfig
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.errors import CheckpointError
from mmgpt.native import NativeConfig

# ours -> theirs, where tools look for a name of their own; every other setting of the decoder keeps its name
NAMES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "mlp_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
CONTROLS = 3  # begin, picture begin, picture end: between the words and the codes
EXTRA = 2  # ids that only transformers needs: the placeholder of a vector, padding


@no_type_check  # as transformers makes it, it takes settings that no field names
class MMGPTTextConfig(PreTrainedConfig):
    """The shared decoder and its table of ids."""

    model_type = "mmgpt_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    auto_map: ClassVar = {}

    vocab_size: int = 6150
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 704
    rope_theta: float = 10_000.0
    position_axes: int = 3
    rms_norm_eps: float = 1e-6
    qk_norm: str = "rms"
    qkv_bias: bool = False
    dropout: float = 0.0
    out_bias: bool = False
    mlp_bias: bool = False
    norm_after: bool = False
    rope_frequencies: list[float] | tuple[float, ...] = ()
    rope_gain: float = 1.0
    max_position_embeddings: int = 1024
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 2049
    eos_token_id: int | list[int] | None = 2048
    pad_token_id: int | None = 6149

    def decoder_config(self) -> DecoderConfig:
        values = {f.name: getattr(self, NAMES.get(f.name, f.name)) for f in fields(DecoderConfig) if f.name not in ("window", "windowed")}
        return DecoderConfig(**values | {"rope_frequencies": tuple(values["rope_frequencies"])})


@no_type_check  # as transformers makes it, it takes settings that no field names
class MMGPTVisionConfig(PreTrainedConfig):
    """The encoder of pictures that are read: patches, a small network with `conv_stem` channels, or a `tower`."""

    model_type = "mmgpt_vision"
    base_config_key = "vision_config"

    hidden_size: int = 256  # the decoder's width: there is no projector
    image_size: int = 64
    patch_size: int = 16
    patch_hidden: int = 0
    conv_stem: int = 32
    tower: str = ""
    initializer_range: float = 0.02


@no_type_check  # as transformers makes it, it takes settings that no field names
class MMGPTConfig(PreTrainedConfig):
    """Everything a native model is made of: `native()` is its `NativeConfig`."""

    model_type = "mmgpt"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]
    auto_map: ClassVar = {}  # TRL reads it of every model that is not in transformers
    PARTS: ClassVar = {"text_config": MMGPTTextConfig, "vision_config": MMGPTVisionConfig}
    if hasattr(PreTrainedConfig, "sub_configs_defaults"):
        sub_configs_defaults = PARTS
    else:  # 5.17
        sub_configs = PARTS

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    codec: dict | None = None
    num_text: int = 2048
    max_text: int = 64
    image_guidance: float = 3.0  # how pictures are drawn; the plain names are those of transformers' settings of text
    image_temperature: float = 1.0
    image_min_p: float = 0.0
    left_out: str = ""
    turns: int = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, kind in self.PARTS.items():
            if not isinstance(getattr(self, name), PreTrainedConfig):
                setattr(self, name, kind(**(getattr(self, name) or {})))
        self.codec = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.codec_config()).items()}
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, config: NativeConfig) -> "MMGPTConfig":
        """The config of a native model."""
        decoder = asdict(config.decoder)
        if decoder.pop("window") or decoder.pop("windowed"):
            raise CheckpointError(f"window={config.decoder.window}: the adapter for transformers takes models that read all blocks, window=0")
        words, codes = config.num_text, config.codec.num_codes
        text = {NAMES.get(name, name): value for name, value in decoder.items() if name != "windowed"} | {
            "vocab_size": words + 1 + CONTROLS + codes + EXTRA,
            "eos_token_id": words,
            "bos_token_id": words + 1,
            "pad_token_id": words + 1 + CONTROLS + codes + 1,
            "max_position_embeddings": config.max_length,
        }
        vision = {"hidden_size": config.decoder.width, "image_size": config.picture, "patch_size": config.patch}
        kept = {name: getattr(config, name) for name in ("num_text", "max_text", "left_out", "turns")}
        kept |= {f"image_{name}": getattr(config, name) for name in ("guidance", "temperature", "min_p")}
        vision |= {"patch_hidden": config.patch_hidden, "conv_stem": config.conv_stem, "tower": config.tower}
        return cls(text_config=text, vision_config=vision, codec=asdict(config.codec), **kept)

    def native(self) -> NativeConfig:
        vision, text = self.vision_config, self.text_config
        return NativeConfig(
            text.decoder_config(), self.codec_config(), self.num_text, vision.image_size, vision.patch_size, vision.patch_hidden, vision.conv_stem,
            text.max_position_embeddings, self.max_text, self.image_guidance, self.image_temperature, self.image_min_p, self.left_out, vision.tower,
            self.turns,
        )  # fmt: skip

    def codec_config(self) -> ImageCodecConfig:
        values = self.codec or {}
        return ImageCodecConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def begin_image_id(self) -> int:
        return self.num_text + 2

    @property
    def end_image_id(self) -> int:
        return self.num_text + 3

    @property
    def first_code_id(self) -> int:
        return self.num_text + 1 + CONTROLS

    @property
    def num_codes(self) -> int:
        return self.codec_config().num_codes

    @property
    def image_token_id(self) -> int:
        """The placeholder: an encoder's vector stands where it is written."""
        return self.first_code_id + self.num_codes

    @property
    def read_grid(self) -> tuple[int, int]:
        """Rows and columns of vectors of a picture that is read."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def written_grid(self) -> tuple[int, int]:
        """Rows and columns of codes of a picture that is written."""
        rows, columns = self.codec_config().stride
        return self.vision_config.image_size // rows, self.vision_config.image_size // columns


def forwarded(name: str) -> property:
    """A setting of the decoder that tools read, and set, on the whole config."""
    return property(lambda config: getattr(config.text_config, name), lambda config, value: setattr(config.text_config, name, value))


for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "bos_token_id", "eos_token_id", "pad_token_id"):
    setattr(MMGPTConfig, name, forwarded(name))
