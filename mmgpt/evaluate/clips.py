"""A model that watches and animates, and clips with words -> how often it names the motion, and draws it, and the thing that moves."""

from collections.abc import Sequence

import torch
from PIL import Image

from mmgpt.data.clips import MOTIONS
from mmgpt.data.emoji import Emoji, picture, seen_concepts, training_rows
from mmgpt.data.footage import Clip
from mmgpt.decoders.sprite import thing_of
from mmgpt.errors import DataError, InputError
from mmgpt.evaluate.judge import Judge, means, top
from mmgpt.evaluate.video import measured_motion
from mmgpt.generate.engine import Engine, Request
from mmgpt.types import Video

BATCH = 10
SIDE = 64  # pixels that a thing is shown to the judge with


def evaluate_clips(gpt, clips: Sequence[Clip], rows: Sequence[Emoji], judge: Judge | None, num: int = 100, seed: int = 0, best_of: int = 1) -> dict:
    """Of clips whose thing and motion were seen, but never together:

    watching    `motion` named right, from the clip and (`one_frame`) from its middle frame alone; `words` all right, letter by letter
    animating   `num` of them, each the best of `best_of`: the motion that is measured in what was drawn; and of things among the 300
                seen concepts the judge's top five
    """
    if not {"text", "video"} <= set(gpt.heads):
        raise InputError(f"this model writes {', '.join(gpt.heads)}: clips are measured of one that writes text and video")
    unseen = [clip for clip in clips if clip.split == "test_combination"]
    if not unseen:
        raise DataError(f"0 of {len(clips)} clips are unseen combinations: use the whole file of tools/build_clips.py")
    watched = describe(gpt, [clip.video for clip in unseen])
    alone = describe(gpt, [still(clip.video) for clip in unseen])
    asked = unseen[:num]
    requests = [Request([clip.text], "video", seed=seed + n, best_of=best_of) for n, clip in enumerate(asked)]
    drawn = [result.value for n in range(0, len(asked), BATCH) for result in Engine(gpt).run(requests[n : n + BATCH])]
    animating: dict = {
        "clips": len(asked),
        "best_of": best_of,
        "motion": share(measured_motion(video) == clip.motion for video, clip in zip(drawn, asked, strict=True)),
    }
    if judge is not None:
        animating |= things(judge, rows, asked, drawn)
    return {
        "watching": {
            "clips": len(unseen),
            "motion": share(motion_in(words) == clip.motion for words, clip in zip(watched, unseen, strict=True)),
            "one_frame": share(motion_in(words) == clip.motion for words, clip in zip(alone, unseen, strict=True)),
            "words": share(words == clip.text for words, clip in zip(watched, unseen, strict=True)),
        },
        "animating": animating,
    }


def describe(gpt, videos: Sequence[Video]) -> list[str]:
    asked = [Request([video, gpt.ports["video"].asks], "text") for video in videos]
    return [result.value for n in range(0, len(asked), BATCH) for result in Engine(gpt).run(asked[n : n + BATCH])]


def still(video: Video) -> Video:
    """Its middle frame, for as long."""
    return Video(video.frames[len(video.frames) // 2 :][:1] * len(video.frames), video.fps)


def motion_in(words: str) -> str:
    """The motion that a description names; "" where it names none."""
    found = [name for name, said in MOTIONS.items() if said in words]
    return "then" if ", then " in words else found[0] if len(found) == 1 else ""


def things(judge: Judge, rows: Sequence[Emoji], asked: Sequence[Clip], drawn: Sequence[Video]) -> dict:
    """Top one and five of the judge among 300 concepts and the things that were asked for, over the frame with the most ink."""
    single = [(clip.things[0], video) for clip, video in zip(asked, drawn, strict=True) if len(clip.things) == 1]
    train = training_rows(rows)
    known = {row.label for row in train}
    single = [(thing, video) for thing, video in single if thing in known]
    wanted = {thing for thing, _ in single}
    candidates = [*sorted(wanted), *(label for label in seen_concepts(rows, 300) if label not in wanted)][:300]
    some = [row for row in train if row.label in set(candidates)]
    mean_KF = means(judge.features([picture(row) for row in some], "judging real pictures"), [row.label for row in some], candidates)
    feature_NF = judge.features([close_up(video) for _, video in single], "judging clips")
    ranks = judge.rank(feature_NF, mean_KF, torch.tensor([candidates.index(thing) for thing, _ in single]))
    return {"things": len(single), "candidates": len(candidates), "top1": top(ranks, 1), "top5": top(ranks, 5)}


def close_up(video: Video) -> Image.Image:
    """The thing in the frame that shows the most of it, as large as a picture of it alone."""
    frame = min(video.frames, key=lambda frame: sum(n * count for n, count in enumerate(frame.convert("L").histogram())))
    try:
        thing = thing_of(frame)
    except InputError:  # nothing on it
        return frame.resize((SIDE, SIDE))
    half = thing.edge / 2 + 1
    x, y = thing.x + (thing.right - thing.left) / 2, thing.y + (thing.down - thing.up) / 2
    box = tuple(round(v) for v in (x - half, y - half, x + half, y + half))
    paper = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "white")
    paper.paste(frame, (-box[0], -box[1]))
    return paper.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def share(right) -> float:
    found = list(right)
    return sum(found) / len(found)
