"""A picture on white and the name of a motion -> a short video of the thing moving so, and the words that say exactly that.

A clip is the same forwards as the clip of the opposite motion backwards: "left" shows the frames of "right", "grow" those of "shrink".
What a frame shows therefore tells next to nothing, only the order does. Place and size are drawn by `seed`, before the motion is looked at.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

from PIL import Image

from mmgpt.decoders.sprite import Pose, Thing, drawn, thing_of
from mmgpt.errors import InputError
from mmgpt.types import Video

MOTIONS = {
    "left": "moving left", "right": "moving right", "up": "moving up", "down": "moving down",
    "grow": "growing", "shrink": "shrinking", "spin": "spinning", "blink": "blinking",
}  # fmt: skip
SLIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = ("slowly", "quickly")
TRAVEL, FACTOR, TURN, HOLD = (0.1, 0.2), (1.25, 1.55), (90, 240), (3, 6)  # shares of the side, times, degrees, changes in a clip; by speed
SIZES = (0.40, 0.58)  # of the side: the thing's longer edge, in the middle of the clip
SECONDS = 2.0  # that a clip lasts, whatever the number of its frames

BARE = frozenset(  # many of a thing, or no thing to be counted: without an article
    "fireworks|flower playing cards|Japanese dolls|admission tickets|performing arts|bowling|tennis|skis|rugby football|field hockey|ice hockey|"
    "ping pong|badminton|lacrosse|thread|yarn|nesting dolls|sparkles|mount fuji|fog|building construction|construction|houses|light rail|luggage|"
    "wood|hot springs|high voltage|grapes|cherries|french fries|peanuts|pancakes|chopsticks|clinking beer mugs|clinking glasses|beans|"
    "cooked rice|curry rice|spaghetti|bread|shaved ice|soft ice cream|dango|oden|sushi|custard|sake|popcorn|bacon|baguette bread|garlic|salt|"
    "canned food|butter|mate|ice|falafel|bubble tea|broccoli|blueberries|fondue|pouring liquid|candy|meat on bone|paw prints|coral|control knobs|"
    "film frames|musical notes|glasses|jeans|woman’s clothes|money with wings|books|bookmark tabs|prayer beads|linked paperclips|sunglasses|"
    "shopping bags|goggles|gloves|socks|ballet shoes|briefs|shorts|maracas|bubbles|crossed swords|chains|scissors|card index dividers|soap|dna|"
    "two hearts|revolving hearts|sweat droplets".split("|")
)


def moving(picture: Image.Image, motion: str, frames: int = 8, side: int = 64, speed: str = "slowly", seed: int = 0) -> Video:
    """The thing in the picture, `side` x `side` pixels a frame, in one of the MOTIONS; the same for the same arguments.

    Raises InputError at an unknown motion or speed, fewer than 4 frames, and a picture with nothing on it.
    """
    checked("motion", motion, MOTIONS)
    checked("speed", speed, SPEEDS)
    thing, fast = thing_of(picture), SPEEDS.index(speed)
    return video([None if pose is None else drawn(thing, pose, side) for pose in poses(thing, motion, fast, frames, side, seed)], side)


def in_order(first: Image.Image, second: Image.Image, frames: int = 8, side: int = 64, seed: int = 0) -> Video:
    """One thing, then another in its place, each for at least 2 frames. Raises InputError as `moving`."""
    cut = random.Random(f"cut {seed}").randint(2, max(2, frames - 2))
    stills = [moving(picture, "blink", frames, side, seed=seed).frames[0] for picture in (first, second)]
    return video([stills[t >= cut] for t in range(frames)], side)


def caption(things: Sequence[str], motion: str = "", speed: str = "") -> str:
    """["red apple"], "left", "slowly" -> "a red apple moving left slowly"; ["ant", "rocket"] -> "an ant, then a rocket"."""
    if len(things) == 2:
        return ", then ".join(map(with_article, things))
    return " ".join(filter(None, (with_article(things[0]), MOTIONS[motion], speed)))


def with_article(thing: str) -> str:
    """ "a unicorn", "an umbrella", "an x-ray", "scissors"."""
    if thing in BARE:
        return thing
    word = thing.lower()
    sounds_open = word[0] in "aeiou" and not word.startswith(("uni", "eu", "ewe", "one", "use"))
    return f"{'an' if sounds_open or word.startswith(('herb', 'hour', 'x-')) else 'a'} {thing}"


def poses(thing: Thing, motion: str, fast: int, frames: int, side: int, seed: int) -> list[Pose | None]:
    """The thing's pose in each frame, None where it is hidden; in the middle of the clip it is where the seed puts it."""
    generator = random.Random(seed)
    size, across, along = (generator.random() for _ in range(3))
    size = side * (SIZES[0] + size * (SIZES[1] - SIZES[0]))
    dx, dy = SLIDES.get(motion, (0, 0))
    travel, factor, turn = side * TRAVEL[fast], FACTOR[fast], TURN[fast]
    scale = size / thing.edge * (factor**0.5 if motion in ("grow", "shrink") else 1)
    reach = [thing.radius] * 4 if motion == "spin" else [thing.left, thing.right, thing.up, thing.down]
    left, right, up, down = (1 + length * scale for length in reach)
    middle = Pose(
        between(left + abs(dx) * travel / 2, side - right - abs(dx) * travel / 2, across),
        between(up + abs(dy) * travel / 2, side - down - abs(dy) * travel / 2, along),
        size,
    )

    def at(t: int) -> Pose | None:
        phase = t / max(1, frames - 1) - 0.5
        if motion in SLIDES:
            return replace(middle, x=middle.x + dx * travel * phase, y=middle.y + dy * travel * phase)
        if motion in ("grow", "shrink"):
            return replace(middle, size=size * factor ** (phase if motion == "grow" else -phase))
        if motion == "spin":
            return replace(middle, angle=turn * (phase + 0.5))
        return None if t * HOLD[fast] // frames % 2 else middle

    return [at(t) for t in range(frames)]


def between(low: float, high: float, share: float) -> float:
    """What does not fit (low > high) stands in the middle."""
    return (low + high) / 2 if low > high else low + (high - low) * share


def video(stills: Sequence[Image.Image | None], side: int) -> Video:
    if len(stills) < 4:
        raise InputError(f"{len(stills)} frames, a motion takes at least 4 to be seen: raise frames")
    return Video(tuple(still or Image.new("RGB", (side, side), "white") for still in stills), len(stills) / SECONDS)


def checked(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise InputError(f"the {what} {name!r} is none of the {len(known)} known: use one of {', '.join(known)}")
