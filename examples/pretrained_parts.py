"""A captioner of pretrained parts: SmolLM2-135M says what EfficientNet-Lite0 sees; only a projector and LoRA matrices learn.

    python tools/fetch_parts.py
    python examples/pretrained_parts.py --data emoji.parquet --leave-out emojione --minutes 10

With a network, `compose("HuggingFaceTB/SmolLM2-135M-Instruct", "google/siglip-base-patch16-224")` builds the same of hub ids.
"""

import argparse
import random
from pathlib import Path

import torch
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from mmgpt.data.emoji import load_emoji, picture, training_rows
from mmgpt.evaluate.judge import WEIGHTS, EfficientNetLite0
from mmgpt.interop.compose import FROZEN, LORA, compose
from mmgpt.interop.parts import FeatureTower
from mmgpt.pack import pack
from mmgpt.train.loop import Settings, Trainer
from mmgpt.types import Part

CACHE = Path("~/.cache/mmgpt").expanduser()
ROWS = 1  # a picture becomes one vector


class Eyes(nn.Module):
    """EfficientNet-Lite0 without its mean over the picture."""

    def __init__(self):
        super().__init__()
        from safetensors.torch import load_file

        self.network = EfficientNetLite0()
        self.network.load_state_dict(load_file(WEIGHTS.expanduser()))

    def forward(self, pixels):
        x = self.network.blocks(F.relu6(self.network.stem(pixels)))
        return F.adaptive_avg_pool2d(F.relu6(self.network.head(x)), ROWS)


class Captions:
    """The task: pictures, seen once by the frozen tower, and their names."""

    def __init__(self, gpt, rows, batch: int):
        self.model, self.batch_size = gpt, batch
        tower = gpt.encoders["image"]
        self.names, self.seen = [row.label for row in rows], []
        for start in track(range(0, len(rows), 32), "looking at the pictures"):
            self.seen += tower.prepare_all([picture(row) for row in rows[start : start + 32]])

    def batch(self, step: int):
        chosen = random.Random(step).sample(range(len(self.names)), self.batch_size)
        reads = self.model.ports["image"].reads
        asked = [self.model.write([Part("caption:"), Part(" " + self.names[n], learn=True)]) for n in chosen]
        documents = [[*start, reads.write(self.seen[n], "image"), *words] for n, (*start, question, answer) in zip(chosen, asked, strict=True)
                     for words in [(question, answer)]]  # fmt: skip
        return pack(documents, self.model.spans)

    def losses(self, batch):
        loss = self.model.losses(batch)["text"].mean()
        return loss, {"text": float(loss.detach())}

    def size(self, batch):
        return int((batch.document_BT > 0).sum())


def main() -> None:
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--leave-out", default="emojione")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    rows = load_emoji(arguments.data)
    tower = FeatureTower(Eyes().eval(), 224, ROWS, 1280, mean=127 / 255, std=128 / 255, early=True)
    gpt = compose(CACHE / "smollm2-135m-instruct", tower, policy={"decoder": LORA, "table": FROZEN, "tower": FROZEN})
    shown = [picture(row) for row in rows if row.style == arguments.leave_out][::200]
    print("before:", gpt.caption(shown, grid=(1, 1, 12)))
    task = Captions(gpt, training_rows(rows, arguments.leave_out), 32)
    trainer = Trainer(task, Settings(minutes=arguments.minutes, learning_rate=1e-3, warmup=20, weight_decay=0.0))
    gpt.train()
    while trainer.progress < 1:
        figures = trainer.update()
        if trainer.step % 20 == 0:
            print(f"{trainer.spent / 60:5.1f} min  step {trainer.step}  loss {figures['text']:.3f}", flush=True)
    gpt.eval()
    print("after:", gpt.caption(shown, grid=(1, 1, 12)))
    asked, right = [row for row in rows if row.split == "train" and row.style == arguments.leave_out], 0
    for some in track([asked[n : n + 64] for n in range(0, len(asked), 64)], "reading the artist left out"):
        right += sum(said.strip() == row.label for row, said in zip(some, gpt.caption([picture(row) for row in some], grid=(1, 1, 16)), strict=True))
    print(f"exact names: {right} of {len(asked)} = {right / len(asked):.3f} (mmgpt eval caption prints the nearest neighbour's share)")


if __name__ == "__main__":
    main()
