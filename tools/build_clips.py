"""emoji.parquet -> a parquet file of two-second clips of moving things, with captions that say what moves how.

    python tools/build_clips.py clips.parquet --emoji emoji.parquet     # 8,000 clips to train, 300 of each kind of test, about 20 minutes on one core
    python tools/build_clips.py --fixture --emoji emoji.parquet         # only tests/data/clips3.parquet

Needs nothing but mmgpt and the file that tools/build_emoji.py makes; the artists' licences are in tests/data/README.md.

Columns: `video` {bytes, path} (6 frames of 64x64 pixels, lossless animated WebP, `mmgpt.open_video` reads it), `text`, `things`, `motion`
("then": one thing, then another), `speed` (how fast it is; half of the texts do not say), `style` (the artist) and `split`:
"train"; "test_concept": things of the emoji's test split, never trained on; "test_combination": thing and motion are both in training,
but never together. No skin tones, and without the artist of emojione, who is left for tests.
"""

import argparse
import io
import json
import random
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from mmgpt.data.clips import MOTIONS, SPEEDS, caption, in_order, moving
from mmgpt.data.emoji import Emoji, load_emoji, picture
from mmgpt.evaluate.video import measured_motion
from mmgpt.types import Video

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 6
NUM_CLIPS = {"train": 8000, "test_concept": 300, "test_combination": 300}
STYLES = ("fluent-3d", "twemoji", "fluent-flat", "fxemoji")
HELD_OUT = 9  # one of so many combinations of thing and motion is never trained on
GROUPS = ("smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects")
ODD = (" o’clock", "-thirty", "hourglass", "locked")  # in the names of things alike, or that no article fits
NO_THINGS = frozenset(  # conditions, actions, and what would contradict a motion
    "foggy|milky way|Tokyo tower|Statue of Liberty|camping|kaaba|cooking|ZZZ|hundred points|dashing away|dizzy|head shaking horizontally|"
    "head shaking vertically|rolling on the floor laughing|star-struck|growing heart|shaking face".split("|")
)
FIXTURE = (("fluent-3d", "left", "slowly", "banana"), ("twemoji", "grow", "quickly", "dog face"), ("twemoji", "then", "", "rocket", "banana"))
FEATURES = {name: {"dtype": "string", "_type": "Value"} for name in ("text", "motion", "speed", "style", "split")} | {
    "video": {"bytes": {"dtype": "binary", "_type": "Value"}, "path": {"dtype": "string", "_type": "Value"}},
    "things": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
}
COLUMNS = [
    ("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string()), ("things", pa.list_(pa.string())),
    ("motion", pa.string()), ("speed", pa.string()), ("style", pa.string()), ("split", pa.string()),
]  # fmt: skip

Drawings = dict[str, dict[str, Emoji]]  # name -> artist -> picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, help="parquet file to write")
    parser.add_argument("--emoji", type=Path, default=Path("emoji.parquet"), help="the pictures, made by tools/build_emoji.py")
    parser.add_argument("--fixture", action="store_true", help="write the small committed file instead")
    arguments = parser.parse_args()
    if bool(arguments.output) == arguments.fixture:
        parser.error("give either an output file or --fixture")
    if not arguments.emoji.is_file():
        sys.exit(f"{arguments.emoji} is missing, it holds the pictures: python tools/build_emoji.py {arguments.emoji}, or name it with --emoji")
    emoji = load_emoji(arguments.emoji)
    if arguments.fixture:
        drawings = drawings_of(emoji, "train")
        write(ROOT / "tests/data/clips3.parquet", [row(drawings, *clip, seed=0, split="train") for clip in FIXTURE])
    else:
        write(arguments.output, list(every_row(emoji)))


def write(path: Path, rows: list[dict]) -> None:
    features = {name: FEATURES[name] for name, _ in COLUMNS}
    schema = pa.schema(COLUMNS, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd", row_group_size=100)
    print(f"{path}: {len(rows)} clips, {path.stat().st_size} bytes")


def every_row(emoji: list[Emoji]) -> Iterator[dict]:
    """Train first: a combination is only tested when both its parts have been trained on."""
    from rich.progress import Progress

    seen, unseen = set(), []
    with Progress() as progress:
        for split, count in NUM_CLIPS.items():
            drawings = drawings_of(emoji, "test" if split == "test_concept" else "train")
            yield from progress.track(clips(drawings, split, count, seen, unseen), count, description=split)
    print(f"{len(unseen)} clips left out, as nobody could see the motion: {', '.join(sorted(set(unseen)))}")


def clips(drawings: Drawings, split: str, count: int, seen: set[str], unseen: list[str]) -> Iterator[dict]:
    generator, names, made = random.Random(split), sorted(drawings), 0
    while made < count:
        motion, speed = generator.choice([*MOTIONS, "then"]), generator.choice(SPEEDS)
        things = generator.sample(names, 2 if motion == "then" else 1)
        styles = sorted(set.intersection(*(set(drawings[thing]) for thing in things)))
        held_out = split != "test_concept" and is_held_out(things, motion)
        if not styles or held_out != (split == "test_combination") or (held_out and not seen.issuperset(things)):
            continue
        found = row(drawings, generator.choice(styles), motion, "" if motion == "then" else speed, *things, seed=made, split=split)
        if not found:
            unseen.append(f"{motion} {things[0]}")
            continue
        seen.update(things if split == "train" else ())
        made += 1
        yield found


def is_held_out(things: list[str], motion: str) -> bool:
    return int(sha256("|".join([motion, *things]).encode()).hexdigest(), 16) % HELD_OUT == 0


def drawings_of(emoji: list[Emoji], split: str) -> Drawings:
    """What can be called by a name with an article, in the split."""
    drawings: Drawings = {}
    for each in emoji:
        named = each.group in GROUPS and each.label not in NO_THINGS and not any(word in each.label for word in ODD)
        if each.split == split and each.style in STYLES and named and not each.skin:
            drawings.setdefault(each.label, {})[each.style] = each
    return drawings


def row(drawings: Drawings, style: str, motion: str, speed: str, *things: str, seed: int, split: str) -> dict | None:
    """The clip; None where the motion cannot be told from blurred frames, as that of a turning disc."""
    pictures = [picture(drawings[thing][style]) for thing in things]
    if motion == "then":
        video = in_order(*pictures, FRAMES, seed=seed)
    else:
        video = moving(pictures[0], motion, FRAMES, speed=speed, seed=seed)
    if measured_motion(Video(tuple(frame.filter(ImageFilter.GaussianBlur(1.5)) for frame in video.frames), video.fps)) != motion:
        return None
    text = caption(things, motion, speed if seed % 2 else "")
    about = {"text": text, "things": list(things), "motion": motion, "speed": speed, "style": style, "split": split}
    return {"video": {"bytes": webp(video), "path": None}, **about}


def webp(video: Video) -> bytes:
    frames, content = told_apart(video.frames), io.BytesIO()
    ends = [round(1000 * (t + 1) / video.fps) for t in range(len(frames))]
    shown = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0, lossless=True)
    return content.getvalue()


def told_apart(frames: tuple[Image.Image, ...]) -> list[Image.Image]:
    """A frame like the one before would be stored as one that lasts longer: one pixel in the corner becomes a little less white."""
    found = [frames[0]]
    for frame in frames[1:]:
        if frame.tobytes() == found[-1].tobytes():
            frame = frame.copy()
            frame.putpixel((0, 0), (254, 254, 254))
        found.append(frame)
    return found


if __name__ == "__main__":
    main()
