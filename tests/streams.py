"""Small sources of every kind and a writer without a model, for tests of streams: a letter is a position, a picture is four codes."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmgpt.data.mixture import Mixture
from mmgpt.data.sources import open_source
from mmgpt.layout import CodesLayout, TextLayout
from mmgpt.model import control
from mmgpt.script import Span

HEADS = {"text": Span(0, 257), "image": Span(300, 556)}
WORDS, CODES = TextLayout(HEADS["text"], 256), CodesLayout(257, HEADS["image"], 258)


def write(sample):
    """A document: a letter a position; of a picture the first four bytes, as codes."""
    slots = [control(259)]
    for part in sample:
        if isinstance(part.value, str):
            slots.append(WORDS.write(np.frombuffer(part.value.encode(), np.uint8).astype(np.int64), part.learn))
        else:
            slots.append(CODES.write(np.asarray(part.value).reshape(-1)[:4].astype(np.int64).reshape(2, 2), part.learn))
    return slots


def png(seed: int, side: int = 4) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(content, "PNG")
    return content.getvalue()


def words(seed: int, longest: int = 40) -> str:
    random = np.random.default_rng(seed)
    return f"{seed}:" + "".join(random.choice(list("abcdefgh "), random.integers(3, longest))) + "."


def lines(path: Path, rows: list) -> Path:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def parquet(path: Path, rows: list[dict], group: int = 4) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def pairs(count: int, first: int = 0) -> list[tuple[str, bytes]]:
    return [member for n in range(first, first + count) for member in ((f"{n:04}.png", png(n)), (f"{n:04}.txt", words(n).encode()))]


def three_sources(folder: Path) -> tuple:
    """Texts and long pages as lines, pairs in parquet and in two tars."""
    page = {"parts": [{"text": words(1)}, {"image": "a.png"}, {"text": words(2, 200)}, {"image": "a.png", "learn": True}]}
    (folder / "a.png").write_bytes(png(0))
    lines(folder / "texts.jsonl", [{"text": words(n)} for n in range(11)] + [page])
    parquet(folder / "pairs.parquet", [{"image": {"bytes": png(n), "path": None}, "text": words(n)} for n in range(20, 33)])
    (folder / "shards").mkdir(exist_ok=True)
    tar(folder / "shards" / "0.tar", pairs(5, 40))
    tar(folder / "shards" / "1.tar", pairs(4, 50))
    return tuple(open_source(str(folder / name)) for name in ("texts.jsonl", "pairs.parquet", "shards"))


def mixture(sources, **changes) -> Mixture:
    settings = {"row_length": 96, "lanes": 1, "begins": 1, "waiting": 6, "window": 2} | changes
    return Mixture(tuple(sources), write, HEADS, **settings)


def same(one, other) -> bool:
    """Two packed rows in every bit: stream, names, what was left out, state."""
    a, b = one.stream, other.stream
    columns = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ids_BT", "document_BT", "block_BT", "position_BT3"))
    targets = [(t.head, t.slot_N.tolist(), t.id_N.tolist()) for t in a.targets] == [(t.head, t.slot_N.tolist(), t.id_N.tolist()) for t in b.targets]
    return columns and targets and (one.names, one.bad) == (other.names, other.bad) and json.dumps(one.state) == json.dumps(other.state)
