"""A video -> the name of its motion, from its frames alone: ink that comes and goes, is exchanged, changes size, turns or moves."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mmgpt.errors import InputError
from mmgpt.types import Video

PALE = 0.1  # of full ink: lighter is paper, and what a codec leaves on it
RINGS, RAYS, REACH = 16, 120, 2.2  # a thing as seen from its middle: rings out to so many times its spread, rays a 3rd of which are 120 degrees
GONE = 0.03  # of the most ink that a frame has
CHANGED = 0.05  # likeness that one step must lose more than twice what any other step loses
SIZED = 0.12  # of the logarithm of the size, from the first frame to the last
TURNED = 45.0  # degrees, from the first frame to the last
SEEN = 0.008  # likeness that turning back must win: of a disc, any turn is as good as none
MOVED = 0.05  # of the frame's edge, from the first frame to the last


@dataclass(frozen=True)
class Course:
    """What the ink does, frame by frame (T): how much there is, where its middle is (of the frame's edge), how far it spreads (logarithm);
    and from each frame to the next (S = T - 1): how far it turned in degrees, clockwise, and how alike it is then, at most 1."""

    mass_T: Float[Tensor, "T"]
    x_T: Float[Tensor, "T"]
    y_T: Float[Tensor, "T"]
    spread_T: Float[Tensor, "T"]
    turn_S: Float[Tensor, "S"]
    alike_S: Float[Tensor, "S"]


def measured_motion(video: Video) -> str:
    """One of the motions of `data.clips.MOTIONS`, "then" (one thing, then another), or "still"; for one thing on white.

    Nothing is learned: centroid, spread and turn of the ink are fitted by lines over time. Raises InputError below 4 frames.
    """
    if len(video.frames) < 4:
        raise InputError(f"{len(video.frames)} frames, a motion is measured from at least 4: pass more frames")
    course = course_of(video)
    if course.mass_T.min() <= GONE * course.mass_T.max():
        return "blink" if course.mass_T.max() > 0 else "still"
    lost = (1 - course.alike_S).sort(descending=True).values
    if lost[0] - 2 * lost[1] > CHANGED:
        return "then"
    if abs(change := trend(course.spread_T)) > SIZED:
        return "grow" if change > 0 else "shrink"
    if abs(course.turn_S.median()) * len(course.turn_S) > TURNED:
        return "spin"
    x, y = trend(course.x_T), trend(course.y_T)
    if max(abs(x), abs(y)) <= MOVED:
        return "still"
    return ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")


def course_of(video: Video) -> Course:
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in video.frames])
    ink_TCHW = (rearrange(torch.from_numpy(255 - frames), "t h w c -> t c h w") / 255 - PALE).clamp_min(0)
    weight_THW = ink_TCHW.amax(1)
    mass_T = weight_THW.sum((1, 2))
    x_T, across_T = middle(weight_THW.sum(1))
    y_T, along_T = middle(weight_THW.sum(2))
    height, width = weight_THW.shape[1:]
    edge, spread_T = max(height, width), (across_T + along_T).clamp_min(1e-6).sqrt()
    seen_TRA = as_seen(ink_TCHW, x_T, y_T, spread_T)
    turns = [turned(a, b) for a, b in zip(seen_TRA, seen_TRA[1:], strict=False)]
    return Course(mass_T, x_T / edge, y_T / edge, spread_T.log(), *torch.tensor(turns).T)


def middle(weight_TN: Float[Tensor, "T N"]) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """(mean, variance) of the places 0.5, 1.5 ... by weight; 0 where there is none."""
    place_N, total_T = torch.arange(weight_TN.shape[1]) + 0.5, weight_TN.sum(1).clamp_min(1e-6)
    mean_T = (weight_TN * place_N).sum(1) / total_T
    return mean_T, (weight_TN * (place_N - mean_T[:, None]).square()).sum(1) / total_T


def as_seen(ink_TCHW: Float[Tensor, "T C H W"], x_T: Tensor, y_T: Tensor, spread_T: Tensor) -> Float[Tensor, "T C R A"]:
    """Ink on rings around its middle, in units of its spread: the same wherever the thing is, however large; turning shifts it along A."""
    height, width = ink_TCHW.shape[2:]
    ring_R1, ray_A = (torch.arange(RINGS)[:, None] + 0.5) / RINGS * REACH, torch.arange(RAYS) / RAYS * 2 * torch.pi
    x_TRA = x_T[:, None, None] + spread_T[:, None, None] * ring_R1 * ray_A.cos()
    y_TRA = y_T[:, None, None] + spread_T[:, None, None] * ring_R1 * ray_A.sin()
    grid = torch.stack([2 * x_TRA / width - 1, 2 * y_TRA / height - 1], -1)
    return F.grid_sample(ink_TCHW, grid, align_corners=False) * ring_R1.sqrt()  # outer rings stand for more of the picture


def turned(a_CRA: Float[Tensor, "C R A"], b_CRA: Float[Tensor, "C R A"]) -> tuple[float, float]:
    """(degrees from a to b, likeness after turning back): where the correlation around the circle is highest."""
    likeness_A = torch.fft.irfft((torch.fft.rfft(b_CRA) * torch.fft.rfft(a_CRA).conj()).sum((0, 1)), n=RAYS)
    likeness_A = likeness_A / (a_CRA.norm() * b_CRA.norm()).clamp_min(1e-6)
    best = int(likeness_A.argmax())
    if likeness_A[best] - likeness_A[0] < SEEN:
        best = 0
    return ((best + RAYS // 2) % RAYS - RAYS // 2) * 360 / RAYS, float(likeness_A[best])


def trend(value_T: Float[Tensor, "T"]) -> float:
    """The change from the first frame to the last of the line that fits best."""
    time_T = torch.linspace(-0.5, 0.5, len(value_T))
    return float((time_T * value_T).sum() / time_T.square().sum())
