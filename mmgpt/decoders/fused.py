"""Elementwise steps of the decoder -> the same numbers with gradients written by hand: fewer passes over memory, and less of it kept.

Autograd keeps what each small operation read and allocates what it gives back. Here an RMSNorm keeps its input and one number a vector, a
rotation nothing, a gated activation its input, and the scores of a head become their own gradient in place. These are for what is not
compiled, in float32: `torch.compile` fuses the plain forms by itself, and low precision wants its sums in float32, so both take those (`plain`).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def plain(*tensors: Tensor) -> bool:
    """Whether the plain form is as good: compiled, or not float32 throughout. With and without gradients the numbers are the same."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(tensors[0].device.type):
        return True
    return any(t.dtype != torch.float32 for t in tensors)


class NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        product = grad * normal
        along = product @ (weight / -x.shape[-1])
        grad_x = (grad * weight).addcmul_(normal, along[..., None]).mul_(scale)
        return grad_x, product.flatten(0, -2).sum(0), None


class RMSNorm(nn.RMSNorm):
    """torch's, for vectors of one axis (Zhang & Sennrich, 2019, arXiv:1910.07467)."""

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        if x.is_cuda or plain(x, self.weight):  # on a GPU torch's is one kernel
            return super().forward(x)
        return NormFunction.apply(x, self.weight, self.eps)


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """x turned by the angles of cos and sin, or back: channel i is paired with channel i + E/2."""
    half, out = x.shape[-1] // 2, x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class RotateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad):
        return turned(grad, *ctx.saved_tensors, -1), None, None


class GateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        (gate, up), grad_x = x.chunk(2, -1), torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return grad_x


def gated(x: Float[Tensor, "*n m2"]) -> Float[Tensor, "*n m"]:
    """silu(gate) * up, of which x holds one beside the other."""
    if plain(x):
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up
    return GateFunction.apply(x)


class CrossEntropyFunction(torch.autograd.Function):
    """What is kept of the scores is softmax minus target: times each target's gradient, that is their gradient."""

    @staticmethod
    def forward(ctx, h, weight, target, z_loss):
        scores, place = h @ weight.T, target[:, None]
        slope = scores.log_softmax(-1)
        loss = -slope.gather(1, place)[:, 0]
        total = scores.gather(1, place) + loss[:, None]  # the logarithm of the normaliser
        del scores
        slope.exp_()
        if z_loss:
            loss += z_loss * total[:, 0].square()
            slope.mul_(1 + 2 * z_loss * total)
        slope.scatter_add_(1, place, torch.full_like(total, -1.0))
        ctx.save_for_backward(h, weight, slope)
        return loss

    @staticmethod
    def backward(ctx, grad):
        h, weight, slope = ctx.saved_tensors
        return (slope @ weight).mul_(grad[:, None]), slope.T @ (h * grad[:, None]), None, None


def linear_cross_entropy(
    h_ND: Float[Tensor, "N D"], weight_VD: Float[Tensor, "V D"], target_N: Int[Tensor, "N"], z_loss: float = 0.0
) -> Float[Tensor, "N"]:
    """Cross-entropy of the scores `h weight^T`, in nats, plus z_loss times the squared logarithm of the softmax' normaliser."""
    return CrossEntropyFunction.apply(h_ND, weight_VD, target_N, z_loss)
