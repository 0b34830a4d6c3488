"""(B, T, D) vectors, their positions and who may read whom -> (B, T, D) vectors. It knows no modality."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmgpt.decoders.attention import Attends
from mmgpt.decoders.cache import Cache, NoCache, Remembers
from mmgpt.decoders.fused import RMSNorm, gated
from mmgpt.decoders.rope import rotate, rotation
from mmgpt.errors import InputError


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of the shared decoder: Llama, Qwen2, Qwen3, Mistral, Chameleon, Emu3 and Janus are settings of it.

    `position_axes`      3: interleaved (time, row, column) positions; 1: the plain ones of a text model
    `rope_frequencies`   of each pair of a head's channels, where they are not theta ** (-pair / pairs) (Llama 3, YaRN);
                         `rope_gain` multiplies cosines and sines
    `qk_norm`            "" none; "rms" one RMSNorm for all heads (Qwen3); "layer" a LayerNorm with a weight a head (Chameleon)
    `norm_after`         what attention and MLP add is normalised, not what they read (Chameleon 34B, after Swin)
    `window`             blocks that a position reads back, itself included, in the layers `windowed` (without: in all); 0: all
    """

    width: int = 256
    depth: int = 8
    num_heads: int = 4
    num_kv_heads: int = 2
    head_width: int = 64
    mlp_width: int = 704
    rope_theta: float = 10_000.0
    position_axes: int = 3
    norm_eps: float = 1e-6
    qk_norm: str = "rms"
    qkv_bias: bool = False
    dropout: float = 0.0
    out_bias: bool = False
    mlp_bias: bool = False
    norm_after: bool = False
    rope_frequencies: tuple[float, ...] = ()
    rope_gain: float = 1.0
    window: int = 0
    windowed: tuple[int, ...] = ()

    def __post_init__(self):
        sizes = (self.width, self.depth, self.num_heads, self.num_kv_heads, self.head_width, self.mlp_width)
        if min(sizes) < 1:
            raise InputError(f"a decoder of sizes {sizes} (width, depth, heads, key/value heads, head_width, mlp_width): use at least 1 of each")
        if self.qk_norm not in QK_NORMS:
            raise InputError(f"qk_norm={self.qk_norm!r}: use one of {', '.join(map(repr, QK_NORMS))}")
        if self.rope_frequencies and len(self.rope_frequencies) != self.head_width // 2:
            raise InputError(f"{len(self.rope_frequencies)} rope_frequencies for heads of {self.head_width} channels: pass {self.head_width // 2}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"{self.num_heads} heads over {self.num_kv_heads} key/value heads: the first must be a multiple of the second")


def decoder_preset(depth: int) -> DecoderConfig:
    """One dial: `depth` blocks of width 32 * depth, heads of 64 channels, half as many key/value heads where that divides."""
    width = 64 * max(1, round(depth / 2))
    heads = width // 64
    return DecoderConfig(width, depth, heads, heads // 2 if heads % 2 == 0 else heads, 64, 64 * round(width * 8 / 3 / 64))


class HeadLayerNorm(nn.Module):
    """LayerNorm over a head's channels with a weight and a bias of each head's own."""

    def __init__(self, heads: int, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(heads, width)), nn.Parameter(torch.zeros(heads, width)), eps

    def forward(self, x_BHTE: Float[Tensor, "B H T E"]) -> Float[Tensor, "B H T E"]:
        return F.layer_norm(x_BHTE, x_BHTE.shape[-1:], eps=self.eps) * self.weight[:, None] + self.bias[:, None]


QK_NORMS = {
    "": lambda heads, width, eps: nn.Identity(),
    "rms": lambda heads, width, eps: RMSNorm(width, eps),
    "layer": lambda heads, width, eps: HeadLayerNorm(heads, width),
}


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.heads, self.kv_heads, self.layer = config.num_heads, config.num_kv_heads, layer
        width = config.head_width
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * width, config.width, bias=config.out_bias)
        self.q_norm = QK_NORMS[config.qk_norm](self.heads, width, config.norm_eps)
        self.k_norm = QK_NORMS[config.qk_norm](self.kv_heads, width, config.norm_eps)

    def forward(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Attends, cache: Remembers) -> Float[Tensor, "B T D"]:
        x_BHTE = rearrange(self.qkv(x_BTD), "b t (h e) -> b h t e", h=self.heads + 2 * self.kv_heads)
        q, k, v = x_BHTE.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        k, v = cache.extend(self.layer, k, v)
        return self.out(rearrange(reading.attend(self.layer, q, k, v), "b h t e -> b t (h e)"))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down(gated(self.gate_up(x_BTD)))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)
        self.norm_after = config.norm_after
        self.recompute = False  # in training: keep what comes in alone, and compute the rest again for the backward pass

    def forward(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Attends, cache: Remembers) -> Float[Tensor, "B T D"]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, x_BTD, cos, sin, reading, cache, use_reentrant=False)
        return self.compute(x_BTD, cos, sin, reading, cache)

    def compute(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Attends, cache: Remembers) -> Float[Tensor, "B T D"]:
        if self.norm_after:
            x_BTD = x_BTD + self.dropout(self.attention_norm(self.attention(x_BTD, cos, sin, reading, cache)))
            return x_BTD + self.dropout(self.mlp_norm(self.mlp(x_BTD)))
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cos, sin, reading, cache))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class Decoder(nn.Module):
    """The shared transformer. Weights start normal with std 0.02, those that write to the residual stream smaller by depth."""

    def __init__(self, config: DecoderConfig, block: type[Block] = Block):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.depth))
        self.norm = RMSNorm(config.width, config.norm_eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not weight.is_meta:  # there is nothing to fill where a model is built without memory
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * config.depth) ** 0.5 if last else 0.02)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], position_BT3: Int[Tensor, "B T 3"], reading: Attends, cache: Remembers | None = None
    ) -> Float[Tensor, "B T D"]:
        return self.turned(x_BTD, *self.rotation(position_BT3), reading, cache or NoCache())

    def rotation(self, position_BT3: Int[Tensor, "B T 3"]) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
        """Cosine and sine of the angles by which queries and keys at these positions are turned."""
        c = self.config
        return rotation(position_BT3, c.head_width, c.rope_theta, c.position_axes, c.rope_frequencies, c.rope_gain)

    def turned(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Attends, cache: Remembers) -> Float[Tensor, "B T D"]:
        """All blocks, with rotations that are known."""
        c = self.config
        near = replace(reading, window=c.window) if c.window else reading
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos, sin, near if not c.windowed or layer in c.windowed else reading, cache)
        return self.norm(x_BTD)

    def new_cache(self, rows: int, length: int) -> Cache:
        weight = self.norm.weight
        c = self.config
        return Cache(c.depth, rows, c.num_kv_heads, length, c.head_width, weight.device, weight.dtype)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
