"""(N, 3, H, W) uint8 pictures -> a trained image codec: the task that the loop runs."""

from dataclasses import asdict
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mmgpt.checkpoint import load_part, save_part
from mmgpt.decoders.image_codec import ImageCodec, ImageCodecConfig, codebook_usage, reconstruction_loss
from mmgpt.errors import TrainingError


class CodecTask:
    """Random pictures, reconstructed. Batches are a function of (seed, step)."""

    def __init__(self, model: ImageCodec, pictures: UInt8[Tensor, "N 3 H W"], batch_size: int = 32, seed: int = 0):
        self.model, self.pictures, self.batch_size, self.seed = model, pictures, batch_size, seed

    def batch(self, step: int) -> Float[Tensor, "B 3 H W"]:
        return self.share(step, 0, 1)

    def share(self, step: int, number: int, of: int) -> Float[Tensor, "B 3 H W"]:
        if self.batch_size % of:
            raise TrainingError(f"batch_size={self.batch_size} in {of} parts (ranks times accumulate): use a multiple of {of}")
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = torch.randint(len(self.pictures), (self.batch_size,), generator=generator)[number::of]
        return (self.pictures[index].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def losses(self, batch: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(next(self.model.parameters()).device)
        ours, codes = self.model(batch)
        loss = reconstruction_loss(ours.float(), batch)
        with torch.no_grad():
            error = ((ours - batch) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
            used, _ = codebook_usage(codes.long(), self.model.num_codes)
        return loss, {"image": float(loss.detach()), "psnr": float(-10 * error.log10().mean()), "used": used}

    def compile(self) -> None:
        self.model.compile()

    def size(self, batch: Tensor) -> int:
        return len(batch)

    @torch.no_grad()
    def sample(self, folder: Path, step: int) -> None:
        """A strip: originals above, reconstructions below."""
        pixels = self.pictures[:8].to(next(self.model.parameters()).device).float() / 127.5 - 1
        both = torch.stack([pixels, self.model.decode(self.model.encode(pixels))])
        strip = rearrange(both, "two n c h w -> c (two h) (n w)")
        from torchvision.utils import save_image

        save_image((strip + 1) / 2, folder / f"{step:07d}.png")

    def export(self, folder: Path, weights: dict[str, Tensor]) -> None:
        save_codec(folder, self.model, weights)


def save_codec(folder: Path, codec: ImageCodec, weights: dict[str, Tensor] | None = None) -> None:
    save_part(folder, "codec", codec, asdict(codec.config), weights)


def load_codec(folder: str | Path) -> ImageCodec:
    return load_part(folder, "codec", lambda **settings: ImageCodec(ImageCodecConfig(**settings)))
