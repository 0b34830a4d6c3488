"""(B, T, D) vectors, their positions and who may read whom -> (B, T, D) vectors. It knows no modality."""

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.decoders.attention import Reading, attend
from mmgpt.decoders.cache import Cache, NoCache
from mmgpt.decoders.rope import rotate, rotation
from mmgpt.errors import InputError


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the shared decoder: Llama and Qwen3 are settings of it.

    `position_axes` 3 gives interleaved (time, row, column) positions, 1 the plain ones of a text model.
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
    qk_norm: bool = True
    qkv_bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"{self.num_heads} heads over {self.num_kv_heads} key/value heads: the first must be a multiple of the second")


def decoder_preset(depth: int) -> DecoderConfig:
    """One dial: `depth` blocks of width 32 * depth, heads of 64 channels, half as many key/value heads where that divides."""
    width = 64 * max(1, round(depth / 2))
    heads = width // 64
    return DecoderConfig(width, depth, heads, heads // 2 if heads % 2 == 0 else heads, 64, 64 * round(width * 8 / 3 / 64))


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.heads, self.kv_heads, self.layer = config.num_heads, config.num_kv_heads, layer
        width = config.head_width
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * width, config.width, bias=False)
        self.q_norm = nn.RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Reading, cache: Cache | NoCache) -> Float[Tensor, "B T D"]:
        x_BHTE = rearrange(self.qkv(x_BTD), "b t (h e) -> b h t e", h=self.heads + 2 * self.kv_heads)
        q, k, v = x_BHTE.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        k, v = cache.extend(self.layer, k, v)
        return self.out(rearrange(attend(q, k, v, reading), "b h t e -> b t (h e)"))


class SwiGLU(nn.Module):
    """Gated MLP (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, up = self.gate_up(x_BTD).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Float[Tensor, "B T D"], cos, sin, reading: Reading, cache: Cache | NoCache) -> Float[Tensor, "B T D"]:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), cos, sin, reading, cache))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class Decoder(nn.Module):
    """The shared transformer. Weights start normal with std 0.02, those that write to the residual stream smaller by depth."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.RMSNorm(config.width, config.norm_eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * config.depth) ** 0.5 if last else 0.02)

    def forward(
        self, x_BTD: Float[Tensor, "B T D"], position_BT3: Int[Tensor, "B T 3"], reading: Reading, cache: Cache | NoCache | None = None
    ) -> Float[Tensor, "B T D"]:
        cache = cache or NoCache()
        cos, sin = rotation(position_BT3, self.config.head_width, self.config.rope_theta, self.config.position_axes)
        for block in self.blocks:
            x_BTD = block(x_BTD, cos, sin, reading, cache)
        return self.norm(x_BTD)

    def new_cache(self, rows: int, length: int) -> Cache:
        weight = self.norm.weight
        c = self.config
        return Cache(c.depth, rows, c.num_kv_heads, length, c.head_width, weight.device, weight.dtype)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
