"""A checkpoint and pictures that it was trained on -> how much its drawings depend on their words.

    python benchmarks/words.py emoji --data emoji.parquet

Prints nats a code under the right words, and the *hold of the words*: by how many nats a picture becomes less likely under the words
of another one in the same style.
"""

import argparse

import torch

import mmgpt
from mmgpt.data.emoji import Emoji, drawing_prompt, load_emoji, training_rows
from mmgpt.evaluate.draw import PREFERRED
from mmgpt.evaluate.report import report
from mmgpt.pack import pack
from mmgpt.train.gpt import all_codes
from mmgpt.train.recipe import pixels
from mmgpt.types import Part

BATCH = 50
SHIFT = 7  # whose words are the wrong ones


@torch.inference_mode()
def nats(gpt, rows: list[Emoji], codes, shift: int) -> torch.Tensor:
    """(pictures,): what each picture's codes cost under the words of the picture `shift` places further."""
    found = []
    for start in range(0, len(rows), BATCH):
        documents = []
        for n in range(start, min(start + BATCH, len(rows))):
            begin, words = gpt.write([Part(drawing_prompt(rows[(n + shift) % len(rows)].label, rows[n].style))])
            documents.append([begin, words, gpt.ports["image"].writes.write(codes[n], learn=True)])
        found.append(gpt.losses(pack(documents, gpt.spans))["image"].view(len(documents), -1).sum(1))
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=200)
    arguments = parser.parse_args()
    gpt = mmgpt.load(arguments.checkpoint)
    rows = [row for row in training_rows(load_emoji(arguments.data), gpt.config.left_out or None) if row.style in PREFERRED and not row.skin]
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[: arguments.pictures].tolist()
    rows = [rows[n] for n in chosen]
    codes = all_codes(gpt, pixels(rows))
    right, wrong = nats(gpt, rows, codes, 0), nats(gpt, rows, codes, SHIFT)
    held = wrong - right
    figures = {"pictures": len(rows), "nats_a_code": float(right.mean()) / codes[0].size, "hold_of_the_words": float(held.mean())}
    print(report(figures | {"median_hold": float(held.median()), "right_words_win": float((held > 0).float().mean())}))


if __name__ == "__main__":
    main()
