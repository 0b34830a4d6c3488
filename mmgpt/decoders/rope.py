"""(B, T, 3) positions -> rotations of queries and keys (RoPE; Su et al., 2021, arXiv:2104.09864)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmgpt.decoders.fused import RotateFunction, plain


def rotation(
    position_BT3: Int[Tensor, "B T 3"], head_width: int, theta: float, axes: int, frequencies: tuple[float, ...] = (), gain: float = 1.0
) -> tuple[Float[Tensor, "B 1 T E"], Float[Tensor, "B 1 T E"]]:
    """Cosine and sine of each channel's angle, times `gain`.

    Pair i of a head's channels turns at theta ** (-i / pairs), or at `frequencies[i]`. With `axes` 1 every pair follows the first axis, with 3
    pair i follows axis i mod 3: time, row and column each get fast and slow pairs (interleaved multimodal RoPE, Qwen3-VL).
    Where the three positions are equal, as in text, both are the same rotation.
    """
    pairs = head_width // 2
    index = torch.arange(pairs, device=position_BT3.device)
    frequency = torch.tensor(frequencies, device=index.device) if frequencies else theta ** (-index.float() / pairs)
    angle_BTE = position_BT3[..., index % axes].float() * frequency
    angle_B1TE = torch.cat([angle_BTE, angle_BTE], -1)[:, None]
    return angle_B1TE.cos() * gain, angle_B1TE.sin() * gain


def rotate(x_BHTE: Float[Tensor, "B H T E"], cos_B1TE: Float[Tensor, "B 1 T E"], sin_B1TE: Float[Tensor, "B 1 T E"]) -> Float[Tensor, "B H T E"]:
    """Channel i is paired with channel i + E/2 (the convention of Llama's released weights)."""
    if not plain(x_BHTE, cos_B1TE):
        return RotateFunction.apply(x_BHTE, cos_B1TE, sin_B1TE)
    low, high = x_BHTE.chunk(2, -1)
    return (x_BHTE * cos_B1TE + torch.cat([-high, low], -1) * sin_B1TE).to(x_BHTE.dtype)
