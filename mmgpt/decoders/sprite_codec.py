"""Video of one thing at a time on white <-> codes: the thing's picture, once, and where it is, how large and how turned in each frame.

Frames that are each a picture cost 128 codes each, of which almost all say again what the frame before them said. Sprites (ISO/IEC 14496-2,
MPEG-4 Visual) say what is seen once, and then only how it moves: some 150 codes for six frames. What has several things on it at once, or
changes its shape, comes back wrongly: for such videos there is `VideoCodec`, frame by frame.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from mmgpt.data.pictures import as_rgb
from mmgpt.decoders.image_codec import ImageCodec, PictureCodec
from mmgpt.decoders.sprite import PALE, Pose, Thing, course_of, drawn, exchanged, thing_of
from mmgpt.decoders.sprite_layout import shots_of
from mmgpt.encoders.video import check, evenly
from mmgpt.errors import InputError
from mmgpt.types import Video

PLACES, SIZES, SMALLEST, LARGEST = 64, 32, 0.1, 1.2  # of a first frame: steps across the frame; sizes, evenly by ratio, as shares of its side
SLIDE, SLIDES = 1 / 128, 24  # of a later frame: how far to either side of where the thing was, in shares of the side
RATIO, RATIOS = 0.02, 8  # how much larger or smaller (logarithm)
TURN, TURNS = 5.0, 12  # degrees
FIRST = (PLACES, PLACES, SIZES)  # codes of x, y, size
LATER = (2 * SLIDES + 1, 2 * SLIDES + 1, 2 * RATIOS + 2, 2 * TURNS + 1)  # of changes of x, y, size and turn; the last size: nothing is seen
LEAST = 255 * PALE  # ink: what codecs of pictures leave on paper is paler
MARGIN = 1.08  # of the picture of a thing, around it


class SpriteCodec:
    """Shots, of each a picture of `codec` with `picture` pixels a side, and a pose a frame of `side` pixels; `fps` frames a second.

    codes of a shot     picture's codes | x y size | dx dy dsize dturn | dx dy dsize dturn ...       each kind behind the others: see `FIRST`, `LATER`
    It sees the image codec, but does not own it: its weights are saved once, with the pictures'.
    """

    def __init__(self, codec: ImageCodec, picture: int, side: int, frames: int, fps: float):
        self.picture, self.side, self.frames, self.fps = PictureCodec(codec, picture), side, frames, fps
        self.num_pictures, self.grid = codec.num_codes, tuple(picture // stride for stride in codec.config.stride)
        self.num_codes = self.num_pictures + sum(FIRST) + sum(LATER)

    def encode(self, value: Video, /) -> Int[np.ndarray, "N"]:
        return self.join([(self.picture.encode(picture).reshape(-1), poses) for picture, poses in self.shots(value)])

    def decode(self, codes: Int[np.ndarray, "N"], /) -> Video:
        """Also of codes that are not all there yet: the frames that are complete, or else the picture."""
        frames: list[Image.Image] = []
        for picture, rest in self.cut(codes):
            shown = self.picture.decode(picture.reshape(1, *self.grid))
            frames += self.posed(shown, poses_of(rest.tolist(), self.side)) or [shown.resize((self.side, self.side))] * (not frames)
        if not frames:
            raise InputError(f"{len(codes)} codes hold no picture of {math.prod(self.grid)} codes: pass whole shots")
        return Video(tuple(frames), self.fps)

    # codes

    def join(self, shots: Sequence[tuple[Int[np.ndarray, "n"], Sequence[Pose | None]]]) -> Int[np.ndarray, "N"]:
        """Each shot's codes of its picture, and its poses in a frame of 1 x 1."""
        return np.concatenate([part for picture, poses in shots for part in (picture, self.num_pictures + np.array(codes_of(poses)))])

    def exchange(self, codes: Int[np.ndarray, "N"], pictures: Sequence[Int[np.ndarray, "*grid"] | None]) -> Int[np.ndarray, "N"]:
        """The same with other pictures' codes, shot by shot, where there are any."""
        shots = self.cut(codes)
        seen = [picture if other is None else other.reshape(-1) for (picture, _), other in zip(shots, pictures, strict=False)]
        seen += [picture for picture, _ in shots[len(seen) :]]
        return np.concatenate([part for picture, (_, rest) in zip(seen, shots, strict=True) for part in (picture, rest + self.num_pictures)])

    def cut(self, codes: Int[np.ndarray, "N"]) -> list[tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]]:
        """Of each shot its picture's codes, and what follows them as codes of poses. A picture that is not all there is left out."""
        codes, size = np.asarray(codes).reshape(-1), math.prod(self.grid)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.num_codes:
            raise InputError(f"codes {codes.min()}..{codes.max()} of a codec with {self.num_codes} codes: they run from 0 to {self.num_codes - 1}")
        ends = shots_of(codes, self.num_pictures)
        shots = [(codes[begin : begin + size], codes[begin + size : end] - self.num_pictures) for begin, end in ends]
        return [(picture, rest) for picture, rest in shots if len(picture) == size and (picture < self.num_pictures).all()]

    # pictures and poses

    def shots(self, value: Video) -> list[tuple[Image.Image, list[Pose | None]]]:
        check(value)
        stills = [as_rgb(value.frames[n]).resize((self.side, self.side)) for n in evenly(len(value.frames), self.frames)]
        course = course_of(stills)
        changed = None if course.gone_T.any() else exchanged(course)
        return [self.shot(part) for part in ([stills] if changed is None else [stills[:changed], stills[changed:]])]

    def shot(self, stills: list[Image.Image]) -> tuple[Image.Image, list[Pose | None]]:
        """(the thing, as large as it fills a picture; its poses in a frame of 1 x 1, None where nothing is seen)."""
        gone_T = course_of(stills).gone_T.tolist()
        if all(gone_T):
            return Image.new("RGB", (self.picture.side,) * 2, "white"), [Pose(0.5, 0.5, SMALLEST), *[None] * (len(stills) - 1)]
        shown = [n for n, gone in enumerate(gone_T) if not gone]
        course, things = course_of([stills[n] for n in shown]), [thing_of(stills[n], LEAST) for n in shown]
        turns = course.turn_S.tolist() if len(shown) > 1 and abs(course.turn_S.median()) >= TURN / 2 else [0.0] * (len(shown) - 1)
        spread = course.spread_T.tolist()
        largest = max(range(len(shown)), key=spread.__getitem__)
        best = 0 if any(turns) or spread[largest] < spread[0] + 0.05 else largest  # turned things are shown as they stood at first
        poses: list[Pose | None] = [None] * len(stills)
        for k, n in enumerate(shown):
            size = things[best].edge * math.exp(spread[k] - spread[best])
            poses[n] = Pose(things[k].x / self.side, things[k].y / self.side, size / self.side, sum(turns[:k]))
        poses[0] = poses[0] or poses[shown[0]]
        return close_up(things[best], self.picture.side), poses

    def posed(self, picture: Image.Image, poses: Sequence[Pose | None]) -> list[Image.Image]:
        white = Image.new("RGB", (self.side, self.side), "white")
        try:
            thing = thing_of(picture, LEAST)
        except InputError:  # nothing was drawn
            return [white] * len(poses)
        return [white if pose is None else drawn(thing, pose, self.side) for pose in poses]


def close_up(thing: Thing, side: int) -> Image.Image:
    """The thing in the middle of a picture that it fills."""
    x, y = thing.x + (thing.right - thing.left) / 2, thing.y + (thing.down - thing.up) / 2
    scale = MARGIN * thing.edge / side
    box = (scale, 0, x - scale * side / 2, 0, scale, y - scale * side / 2)
    return thing.picture.transform((side, side), Image.Transform.AFFINE, box, Image.Resampling.BICUBIC, fillcolor="white")


def codes_of(poses: Sequence[Pose | None]) -> list[int]:
    """Poses in a frame of 1 x 1 -> codes. What is rounded off in one frame is made good in the next."""
    first = poses[0]
    if first is None:
        raise InputError("a shot whose first frame shows nothing: give it the pose with which the thing will appear")
    at = [whole(first.x * PLACES - 0.5, PLACES), whole(first.y * PLACES - 0.5, PLACES), whole(sizes(first.size), SIZES)]
    codes, now = behind(at, FIRST), placed(at)
    for pose in poses[1:]:
        if pose is None:
            changes = [SLIDES, SLIDES, 2 * RATIOS + 1, TURNS]
        else:
            changes = [
                whole((pose.x - now.x) / SLIDE + SLIDES, 2 * SLIDES + 1),
                whole((pose.y - now.y) / SLIDE + SLIDES, 2 * SLIDES + 1),
                whole(math.log(pose.size / now.size) / RATIO + RATIOS, 2 * RATIOS + 1),
                whole(((pose.angle - now.angle + 180) % 360 - 180) / TURN + TURNS, 2 * TURNS + 1),
            ]
            now = moved(now, changes)
        codes += [sum(FIRST) + code for code in behind(changes, LATER)]
    return codes


def poses_of(codes: Sequence[int], side: int) -> list[Pose | None]:
    """Codes of one shot -> poses in frames of so many pixels; what is not complete, or of another kind than it should be, ends them."""
    found: list[Pose | None] = []
    at = ahead(codes[: len(FIRST)], FIRST)
    if at is None:
        return found
    now = placed(at)
    found.append(now)
    for begin in range(len(FIRST), len(codes), len(LATER)):
        changes = ahead([code - sum(FIRST) for code in codes[begin : begin + len(LATER)]], LATER)
        if changes is None:
            break
        gone = changes[2] == 2 * RATIOS + 1
        now = now if gone else moved(now, changes)
        found.append(None if gone else now)
    return [pose and Pose(side * pose.x, side * pose.y, side * pose.size, pose.angle) for pose in found]


def placed(at: Sequence[int]) -> Pose:
    return Pose((at[0] + 0.5) / PLACES, (at[1] + 0.5) / PLACES, SMALLEST * (LARGEST / SMALLEST) ** (at[2] / (SIZES - 1)))


def sizes(size: float) -> float:
    return math.log(size / SMALLEST) / math.log(LARGEST / SMALLEST) * (SIZES - 1)


def moved(pose: Pose, changes: Sequence[int]) -> Pose:
    dx, dy, ratio, turn = (changes[0] - SLIDES) * SLIDE, (changes[1] - SLIDES) * SLIDE, (changes[2] - RATIOS) * RATIO, (changes[3] - TURNS) * TURN
    return Pose(pose.x + dx, pose.y + dy, min(LARGEST, max(SMALLEST, pose.size * math.exp(ratio))), pose.angle + turn)


def whole(value: float, count: int) -> int:
    """The nearest of 0 .. count - 1."""
    return min(count - 1, max(0, round(value)))


def behind(codes: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Codes of several kinds, each kind's behind the others'."""
    return [int(code) + sum(counts[:n]) for n, code in enumerate(codes)]


def ahead(codes: Sequence[int], counts: Sequence[int]) -> list[int] | None:
    """The other way; None where one is missing or of another kind."""
    found = [int(code) - sum(counts[:n]) for n, code in enumerate(codes)]
    return found if len(found) == len(counts) and all(0 <= code < count for code, count in zip(found, counts, strict=True)) else None
