"""A video -> the name of its motion, from its frames alone: ink that comes and goes, is exchanged, changes size, turns or moves."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmgpt.decoders.sprite import course_of, exchanged
from mmgpt.errors import InputError
from mmgpt.types import Video

SIZED = 0.12  # of the logarithm of the size, from the first frame to the last
TURNED = 45.0  # degrees, from the first frame to the last
MOVED = 0.05  # of the frame's edge, from the first frame to the last


def measured_motion(video: Video) -> str:
    """One of the motions of `data.clips.MOTIONS`, "then" (one thing, then another), or "still"; for one thing on white.

    Nothing is learned: centroid, spread and turn of the ink are fitted by lines over time. Raises InputError below 4 frames.
    """
    if len(video.frames) < 4:
        raise InputError(f"{len(video.frames)} frames, a motion is measured from at least 4: pass more frames")
    course = course_of(video.frames)
    if course.gone_T.any():
        return "blink" if not course.gone_T.all() else "still"
    if exchanged(course) is not None:
        return "then"
    if abs(change := trend(course.spread_T)) > SIZED:
        return "grow" if change > 0 else "shrink"
    if abs(course.turn_S.median()) * len(course.turn_S) > TURNED:
        return "spin"
    x, y = trend(course.x_T), trend(course.y_T)
    if max(abs(x), abs(y)) <= MOVED:
        return "still"
    return ("left" if x < 0 else "right") if abs(x) > abs(y) else ("up" if y < 0 else "down")


def trend(value_T: Float[Tensor, "T"]) -> float:
    """The change from the first frame to the last of the line that fits best."""
    time_T = torch.linspace(-0.5, 0.5, len(value_T))
    return float((time_T * value_T).sum() / time_T.square().sum())
