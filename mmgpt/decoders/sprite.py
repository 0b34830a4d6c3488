"""Frames with one thing on white paper <-> where it is, how large and how turned in each of them. Nothing is learned: ink is measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmgpt.data.pictures import as_rgb
from mmgpt.errors import InputError

FINE = 4  # each pixel is drawn as 4x4 smaller ones: motions by parts of a pixel, smooth edges
INK = 12  # of 255: what is darker than white by more belongs to the thing
PALE = 0.1  # of full ink: lighter is paper, and what a codec leaves on it
RINGS, RAYS, REACH = 16, 120, 2.2  # a thing as seen from its middle: rings out to so many times its spread, rays a 3rd of which are 120 degrees
GONE = 0.03  # of the most ink that a frame has
SEEN = 0.008  # likeness that turning back must win: of a disc, any turn is as good as none
CHANGED = 0.05  # likeness that one step must lose more than twice what any other step loses


@dataclass(frozen=True)
class Thing:
    """A picture with what of it is no paper: the middle of its ink, and how far the ink reaches from there, all in its pixels."""

    picture: Image.Image
    x: float
    y: float
    left: float
    up: float
    right: float
    down: float

    @property
    def edge(self) -> float:
        return max(self.left + self.right, self.up + self.down)

    @property
    def radius(self) -> float:
        return math.hypot(max(self.left, self.right), max(self.up, self.down))


@dataclass(frozen=True)
class Pose:
    """Where the middle of the ink is, how long the longer edge is (both in pixels of the frame), turned clockwise by how many degrees."""

    x: float
    y: float
    size: float
    angle: float = 0.0


def thing_of(picture: Image.Image, least: float = INK) -> Thing:
    """The thing on white; `least` of 255 is the palest ink. InputError where there is none."""
    picture = as_rgb(picture)
    ink = 255.0 - np.asarray(picture).min(2)
    ink[ink < least] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        raise InputError(f"a picture of {picture.width}x{picture.height} pixels, 0 of them darker than white: pass a thing on white")
    y, x = (float((ink.sum(1 - axis) * (np.arange(ink.shape[axis]) + 0.5)).sum() / ink.sum()) for axis in (0, 1))
    return Thing(picture, x, y, x - columns[0], y - rows[0], columns[-1] + 1 - x, rows[-1] + 1 - y)


def drawn(thing: Thing, pose: Pose, side: int) -> Image.Image:
    scale, angle = FINE * pose.size / thing.edge, math.radians(pose.angle)
    a, b = math.cos(angle) / scale, math.sin(angle) / scale  # from the frame back to the picture
    x, y = FINE * pose.x, FINE * pose.y
    back = (a, b, thing.x - a * x - b * y, -b, a, thing.y + b * x - a * y)
    large = thing.picture.transform((FINE * side,) * 2, Image.Transform.AFFINE, back, Image.Resampling.BICUBIC, fillcolor="white")
    return large.reduce(FINE)


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

    @property
    def gone_T(self) -> Bool[Tensor, "T"]:
        """Whether a frame is empty."""
        return self.mass_T <= GONE * self.mass_T.max()


def course_of(stills: Sequence[Image.Image]) -> Course:
    frames = np.stack([np.asarray(as_rgb(frame)) for frame in stills])
    ink_TCHW = (rearrange(torch.from_numpy(255 - frames), "t h w c -> t c h w") / 255 - PALE).clamp_min(0)
    weight_THW = ink_TCHW.amax(1)
    mass_T = weight_THW.sum((1, 2))
    x_T, across_T = middle(weight_THW.sum(1))
    y_T, along_T = middle(weight_THW.sum(2))
    height, width = weight_THW.shape[1:]
    edge, spread_T = max(height, width), (across_T + along_T).clamp_min(1e-6).sqrt()
    seen_TRA = as_seen(ink_TCHW, x_T, y_T, spread_T)
    turns = [turned(a, b) for a, b in zip(seen_TRA, seen_TRA[1:], strict=False)]
    return Course(mass_T, x_T / edge, y_T / edge, spread_T.log(), *torch.tensor(turns).reshape(-1, 2).T)


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


def exchanged(course: Course) -> int | None:
    """The first frame of another thing, where one step loses more likeness than twice what any other step does; None where nothing else comes."""
    lost_S = 1 - course.alike_S
    most = lost_S.sort(descending=True).values
    return int(lost_S.argmax()) + 1 if len(most) > 1 and most[0] - 2 * most[1] > CHANGED else None
