"""Trains a tiny model on the 40 pictures of the test fixture, from nothing: codec, tokenizer, then one decoder for both directions.

    python examples/train_tiny.py                # 300 steps, under two minutes on two cores
    python examples/train_tiny.py 1000 runs/tiny

Forty pictures are learned by heart, no more: it shows that every loss falls and how the parts go together.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

import mmgpt
from mmgpt.data.emoji import drawing_prompt, load_emoji, picture
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig
from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.native import NativeConfig, build
from mmgpt.train.codec import CodecTask, load_codec
from mmgpt.train.gpt import GPTTask, Item, Mix
from mmgpt.train.loop import Settings, train
from mmgpt.train.recipe import pixels

DATA = Path(__file__).parents[1] / "tests" / "data" / "emoji40.parquet"


def show(trainer, figures: dict[str, float]) -> None:
    if trainer.step % 50 == 0 or trainer.step == 1:
        print(f"  step {trainer.step:4}  " + "  ".join(f"{name} {figures[name]:.3f}" for name in ("image", "text") if name in figures))


def train_codec(rows: list, steps: int, out: Path) -> ImageCodec:
    """Pixels <-> 8 x 8 codes of 1,000 kinds."""
    codec = ImageCodec(ImageCodecConfig(stride=(8, 8), levels=(8, 5, 5, 5), width=32, blocks=1))
    settings = Settings(steps, learning_rate=2e-3, warmup=10, weight_decay=1e-4, ema=0.98, save_every=0, log_every=1)
    train(CodecTask(codec, pixels(rows), batch_size=16), settings, out, show=show)
    return load_codec(out / "final")


def train_gpt(rows: list, codec: ImageCodec, steps: int, out: Path) -> mmgpt.GPT:
    """One decoder: given a picture it writes the name, given the name it writes the picture."""
    prompts = [drawing_prompt(row.label, row.style) for row in rows]
    text = TextCodec.train([*prompts, "caption:"], 400)
    model = build(NativeConfig(DecoderConfig(128, 3, 2, 1, 64, 320), codec.config, text.num_codes), text, codec)
    items = [Item((prompt,), (("caption:", row.label),)) for row, prompt in zip(rows, prompts, strict=True)]
    settings = Settings(steps, learning_rate=3e-3, warmup=10, decay=0.5, ema=0.95, save_every=0, log_every=1)
    train(GPTTask(model.train(), pixels(rows), items, Mix(captions=10, draws=10, augment=False)), settings, out, show=show)
    return mmgpt.load(out / "final")


def losses(out: Path, name: str) -> tuple[float, float]:
    """The mean of a loss over the first and over the last tenth of a run."""
    values = [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]
    tenth = max(1, len(values) // 10)
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def main(steps: int = 300, folder: str | None = None) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    out, rows = Path(folder or tempfile.mkdtemp(prefix="mmgpt-tiny-")), load_emoji(DATA)
    print(f"codec, {len(rows)} pictures")
    codec = train_codec(rows, steps, out / "codec")
    print("decoder, both directions")
    gpt = train_gpt(rows, codec, steps, out / "gpt")

    falls = {"codec": losses(out / "codec", "image"), "image": losses(out / "gpt", "image"), "text": losses(out / "gpt", "text")}
    for name, (first, last) in falls.items():
        print(f"loss of {name:5}  {first:.3f} -> {last:.3f}")
    said = gpt.caption([picture(row) for row in rows])
    print(f"{sum(a == row.label for a, row in zip(said, rows, strict=True))} of {len(rows)} names right, for example {said[0]!r}")
    print(mmgpt.save_picture(gpt.draw([drawing_prompt(rows[0].label, rows[0].style)])[0], out / "drawn.png"))
    return falls


if __name__ == "__main__":
    main(*[int(word) for word in sys.argv[1:2]], *sys.argv[2:3])
