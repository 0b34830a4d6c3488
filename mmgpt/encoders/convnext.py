"""(B, T, C) -> (B, T, C): convolutions over time, the block that the sound encoder and the sound codec share."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """ConvNeXt (Liu et al., 2022, arXiv:2201.03545) over time, silence beyond both ends. It reads `before` and `behind` its own frame."""

    def __init__(self, width: int, before: int, behind: int):
        super().__init__()
        self.edges = (before, behind)
        self.time = nn.Conv1d(width, width, before + 1 + behind, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        mixed = self.time(F.pad(rearrange(x, "b t c -> b c t"), self.edges))
        return x + self.down(F.gelu(self.up(self.norm(rearrange(mixed, "b c t -> b t c")))))
