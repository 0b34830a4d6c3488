"""Sources -> how full packed rows are, how fast they are made, and how big the state is that they go on from.

python benchmarks/stream.py tests/data/emoji40.parquet --row-length 512 --rows 4 --batches 10 --workers 0 1 2
"""

import argparse
import json
import time

import mmgpt
from mmgpt.data.feed import Feed
from mmgpt.data.mixture import Mixture
from mmgpt.data.samples import Form
from mmgpt.data.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--checkpoint", default="emoji")
    parser.add_argument("--row-length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--waiting", type=int, default=48)
    parser.add_argument("--draws", type=float, default=0.5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    gpt = mmgpt.load(options.checkpoint)
    sources = tuple(open_source(word) for word in options.sources)
    shape = {"begins": int(gpt.begin is not None), "form": Form(draws=options.draws), "waiting": options.waiting}
    mixture = Mixture(sources, gpt.write, gpt.spans, options.row_length, options.rows, **shape)
    for workers in options.workers:
        with Feed(mixture, workers=workers) as feed:
            next(feed)  # the first one fills the waiting documents
            begun, rows = time.perf_counter(), [packed for _ in range(options.batches) for packed in next(feed)]
            seconds = time.perf_counter() - begun
            fill = sum(packed.stream.fill for packed in rows) / len(rows)
            state = len(json.dumps(feed.state()))
        samples = sum(len(packed.names) for packed in rows)
        speed = f"{samples / seconds:,.0f} samples and {len(rows) / seconds:,.1f} rows a second"
        print(f"workers {workers}: {fill:.2%} filled, {speed}, state {state:,} bytes")


if __name__ == "__main__":
    main()
