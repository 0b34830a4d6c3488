"""A captioner of pretrained parts: SmolLM2-135M says what EfficientNet-Lite0 sees; LoRA and what stands between them learn, five minutes.

python tools/fetch_parts.py; python examples/pretrained_parts.py emoji.parquet [emojione [5]]     the artist left out, minutes
"""

import random
import sys

import torch
from einops import rearrange
from rich.progress import track
from torch import nn

from mmgpt.data.emoji import load_emoji, picture, training_rows
from mmgpt.encoders.efficientnet import WEIGHTS, EfficientNetLite0
from mmgpt.encoders.places import on_grid
from mmgpt.hub import load
from mmgpt.interop.compose import FROZEN, LORA, compose
from mmgpt.interop.parts import FeatureTower
from mmgpt.interop.recall import Recall
from mmgpt.pack import pack
from mmgpt.train.loop import Settings, Trainer
from mmgpt.types import Part

SIDE, ROWS, WIDTH = 128, 3, 1280  # pixels; a picture becomes 3 x 3 vectors, one for each of the first nine ids of a name


class Eyes(nn.Module):
    """(B, 3, SIDE, SIDE) pixels -> (B, D, ROWS, ROWS): the names that the features recall, as words of the decoder's table."""

    def __init__(self, recall: Recall):
        super().__init__()
        self.network, self.recall = EfficientNetLite0.load().to(memory_format=torch.channels_last), recall

    def features(self, pixels):
        return nn.functional.layer_norm(self.network(pixels.contiguous(memory_format=torch.channels_last)), (WIDTH,))

    def forward(self, pixels):
        return rearrange(self.recall(self.features(pixels)), "b (h w) d -> b d h w", h=ROWS)


class Captions:
    def __init__(self, gpt, recalled_NKD, names):
        self.model, self.recalled, self.names = gpt, recalled_NKD, names

    def batch(self, step: int):
        documents = []
        for n in random.Random(step).sample(range(len(self.names)), 16):
            read = self.model.ports["image"].reads.write(on_grid(self.recalled[n], (1, ROWS, ROWS)), "image")
            *begin, question, answer = self.model.write([Part("caption:"), Part(" " + self.names[n], learn=True)])
            documents.append([*begin, read, question, answer])
        return pack(documents, self.model.spans)

    def losses(self, batch):
        loss = self.model.losses(batch)["text"].mean()
        return loss, {"text": loss.item()}

    def size(self, batch):
        return int((batch.document_BT > 0).sum())


@torch.no_grad()
def captioner(chosen) -> Captions:
    """The composed model, its tower fitted to the chosen pictures, as the task that trains the rest."""
    decoder, names = load(WEIGHTS.expanduser().with_name("smollm2-135m-instruct")), sorted({row.label for row in chosen})
    eyes = Eyes(Recall(decoder, [" " + name for name in names], WIDTH, ROWS**2)).eval()
    tower = FeatureTower(eyes, SIDE, ROWS, decoder.decoder.config.width, mean=127 / 255, std=128 / 255, early=True)
    tower.projector = nn.Sequential(nn.Linear(tower.width, tower.width, bias=False))
    nn.init.eye_(tower.projector[0].weight)
    batches = track([chosen[n : n + 32] for n in range(0, len(chosen), 32)], "looking at the pictures")
    found = [eyes.features(tower.pixels([picture(row) for row in some])) for some in batches]
    name = torch.tensor([names.index(row.label) for row in chosen])
    eyes.recall.fit(torch.cat(found), name)
    recalled = torch.cat([eyes.recall(features) for features in found])
    gpt = compose(decoder, tower, policy={"decoder": LORA, "table": FROZEN, "tower": FROZEN})
    return Captions(gpt, recalled, [row.label for row in chosen])


def main(data: str, leave_out: str = "emojione", minutes: str = "5") -> None:
    torch.manual_seed(0)
    rows = load_emoji(data)
    asked, task = [row for row in rows if row.split == "train" and row.style == leave_out], captioner(training_rows(rows, leave_out))
    print("before:", task.model.caption([picture(row) for row in asked[::200]], grid=(1, 1, 12)))
    trainer = Trainer(task, Settings(minutes=float(minutes), learning_rate=1e-3, warmup=20, weight_decay=0.0))
    while trainer.progress < 1:
        figures = trainer.update()
        print(f"{trainer.spent / 60:5.1f} min  step {trainer.step}  loss {figures['text']:.3f}", flush=True)
    gpt, right = task.model, 0
    print("after:", gpt.caption([picture(row) for row in asked[::200]], grid=(1, 1, 12)))
    for some in track([asked[n : n + 64] for n in range(0, len(asked), 64)], "reading the artist left out"):
        right += sum(said.strip() == row.label for row, said in zip(some, gpt.caption([picture(row) for row in some], grid=(1, 1, 16)), strict=True))
    print(f"exact names: {right} of {len(asked)} = {right / len(asked):.3f} (mmgpt eval caption prints the nearest neighbour's share)")


if __name__ == "__main__":
    main(*sys.argv[1:])
