"""A captioner of pretrained parts: SmolLM2-135M says what EfficientNet-Lite0 sees; only what stands between them and LoRA matrices learn.

    python tools/fetch_parts.py
    python examples/pretrained_parts.py --data emoji.parquet --leave-out emojione --minutes 10

Between them: least squares says which known names a picture's features go with, and the decoder reads the likeliest, as words of its own
table, mixed. LoRA learns from names recalled without the picture's artist, so that it sees in training the mistakes it will see later.
"""

import argparse
import random
from pathlib import Path

import torch
from einops import rearrange
from rich.progress import track
from torch import nn
from torch.nn import functional as F

from mmgpt.data.emoji import load_emoji, picture, training_rows
from mmgpt.encoders.places import on_grid
from mmgpt.evaluate.judge import WEIGHTS, EfficientNetLite0
from mmgpt.hub import load
from mmgpt.interop.compose import FROZEN, LORA, compose
from mmgpt.interop.parts import FeatureTower
from mmgpt.pack import pack
from mmgpt.train.loop import Settings, Trainer
from mmgpt.types import Part

CACHE = Path("~/.cache/mmgpt").expanduser()
SIDE, ROWS = 128, 3  # pixels; a picture becomes 3 x 3 vectors, one for each of the first nine ids of a name
RIDGE, SHARP = 300.0, 60.0  # of least squares; of the scores, before the softmax


class Eyes(nn.Module):
    """(B, 3, SIDE, SIDE) pixels -> (B, D, ROWS, ROWS): the names that the features recall, as words of the decoder's table."""

    def __init__(self, gpt, names):
        super().__init__()
        from safetensors.torch import load_file

        self.network = EfficientNetLite0()
        self.network.load_state_dict(load_file(WEIGHTS.expanduser()))
        self.network.to(memory_format=torch.channels_last)
        table, encode = gpt.table.weight.detach(), gpt.ports["text"].codec.encode
        spelled = torch.zeros(len(names), ROWS**2, table.shape[1])
        for k, name in enumerate(names):
            ids = torch.as_tensor(encode(" " + name))[: ROWS**2]
            spelled[k, : len(ids)] = table[ids]
        self.spelled_KND, self.recall_FK = nn.Buffer(spelled), nn.Buffer(torch.zeros(1280, len(names)))

    def features(self, pixels):
        return F.layer_norm(self.network(pixels.contiguous(memory_format=torch.channels_last)), (1280,))

    def words(self, features_BF, recall_FK):
        return torch.einsum("bk,knd->bnd", (features_BF @ recall_FK * SHARP).softmax(1), self.spelled_KND)

    def forward(self, pixels):
        return rearrange(self.words(self.features(pixels), self.recall_FK), "b (h w) d -> b d h w", h=ROWS)

    def fit(self, feature_NF, name_N, artists) -> torch.Tensor:
        """Least squares on all pictures; what each picture recalls (N, ROWS², D) where its own artist is left out."""
        unit, found = torch.eye(feature_NF.shape[1]), torch.zeros(len(name_N), *self.spelled_KND.shape[1:])
        squares = {a: feature_NF[artists == a].T @ feature_NF[artists == a] for a in artists.unique().tolist()}
        sums = {a: torch.zeros_like(self.recall_FK.T).index_add_(0, name_N[artists == a], feature_NF[artists == a]) for a in squares}
        squares_FF, sums_KF = RIDGE * unit + sum(squares.values()), sum(sums.values())
        for a in squares:
            found[artists == a] = self.words(feature_NF[artists == a], torch.linalg.solve(squares_FF - squares[a], (sums_KF - sums[a]).T))
        self.recall_FK.copy_(torch.linalg.solve(squares_FF, sums_KF.T))
        return found


class Captions:
    """The task: what pictures recall, computed once, and their names."""

    def __init__(self, gpt, recalled_NKD, names, batch: int):
        self.model, self.recalled, self.names, self.batch_size = gpt, recalled_NKD, names, batch

    def batch(self, step: int):
        documents = []
        for n in random.Random(step).sample(range(len(self.names)), self.batch_size):
            read = self.model.ports["image"].reads.write(on_grid(self.recalled[n], (1, ROWS, ROWS)), "image")
            *begin, question, answer = self.model.write([Part("caption:"), Part(" " + self.names[n], learn=True)])
            documents.append([*begin, read, question, answer])
        return pack(documents, self.model.spans)

    def losses(self, batch):
        loss = self.model.losses(batch)["text"].mean()
        return loss, {"text": float(loss.detach())}

    def size(self, batch):
        return int((batch.document_BT > 0).sum())


def captioner(chosen, batch: int = 32):
    """The composed model, its tower fitted to the chosen pictures, and the task that trains the rest."""
    decoder, names = load(CACHE / "smollm2-135m-instruct"), sorted({row.label for row in chosen})
    eyes = Eyes(decoder, names).eval()
    tower = FeatureTower(eyes, SIDE, ROWS, decoder.decoder.config.width, mean=127 / 255, std=128 / 255, early=True)
    tower.projector = nn.Sequential(nn.Linear(tower.width, tower.width, bias=False))
    nn.init.eye_(tower.projector[0].weight)
    found = []
    for start in track(range(0, len(chosen), 32), "looking at the pictures"):
        found.append(eyes.features(tower.pixels([picture(row) for row in chosen[start : start + 32]])))
    artists = torch.tensor([sorted({row.style for row in chosen}).index(row.style) for row in chosen])
    recalled = eyes.fit(torch.cat(found), torch.tensor([names.index(row.label) for row in chosen]), artists)
    gpt = compose(decoder, tower, policy={"decoder": LORA, "table": FROZEN, "tower": FROZEN})
    return gpt, Captions(gpt, recalled, [row.label for row in chosen], batch)


def main() -> None:
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--leave-out", default="emojione")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    rows = load_emoji(arguments.data)
    asked = [row for row in rows if row.split == "train" and row.style == arguments.leave_out]
    with torch.no_grad():
        gpt, task = captioner(training_rows(rows, arguments.leave_out))
    print("before:", gpt.caption([picture(row) for row in asked[::200]], grid=(1, 1, 12)))
    trainer = Trainer(task, Settings(minutes=arguments.minutes, learning_rate=1e-3, warmup=20, weight_decay=0.0))
    gpt.train()
    while trainer.progress < 1:
        figures = trainer.update()
        if trainer.step % 20 == 0:
            print(f"{trainer.spent / 60:5.1f} min  step {trainer.step}  loss {figures['text']:.3f}", flush=True)
    gpt.eval()
    print("after:", gpt.caption([picture(row) for row in asked[::200]], grid=(1, 1, 12)))
    right = 0
    for some in track([asked[n : n + 64] for n in range(0, len(asked), 64)], "reading the artist left out"):
        right += sum(said.strip() == row.label for row, said in zip(some, gpt.caption([picture(row) for row in some], grid=(1, 1, 16)), strict=True))
    print(f"exact names: {right} of {len(asked)} = {right / len(asked):.3f} (mmgpt eval caption prints the nearest neighbour's share)")


if __name__ == "__main__":
    main()
