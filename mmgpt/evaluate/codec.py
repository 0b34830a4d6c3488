"""An image codec and real pictures -> how much of them survives codes: pixels, codebook usage, and what a judge still recognises."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from mmgpt.data.emoji import Emoji, picture
from mmgpt.decoders.image_codec import codebook_usage
from mmgpt.errors import DataError
from mmgpt.evaluate.judge import Judge, rank_unseen_artists, shared_concepts, top
from mmgpt.evaluate.report import report as report

BATCH = 32


def evaluate_codec(codec, rows: Sequence[Emoji], judge: Judge) -> dict:
    """On the test pictures, which no codec was trained on. `kept` is the judge's top-5 on reconstructions over that on originals.

    The judge ranks each picture among the test concepts that two artists drew, against means of the other artists' originals.
    """
    test = [row for row in rows if row.split == "test"]
    concepts = shared_concepts(test)
    if not concepts:
        raise DataError(f"{len(test)} test pictures show 0 concepts drawn by two artists: the judge needs at least one")
    images = [picture(row) for row in test]
    codes_Nhw, ours = reconstruct(codec, images)
    used, perplexity = codebook_usage(codes_Nhw, codec.num_codes)
    result = {"pictures": len(test), "codes_per_picture": codes_Nhw[0].numel(), "codebook": codec.num_codes}
    result |= {"codes_used": used, "codebook_perplexity": perplexity, **fidelity(images, ours)}
    real_NF = judge.features(images, "judging originals")
    ours_NF = judge.features(ours, "judging reconstructions")
    before, after = (rank_unseen_artists(judge, x, real_NF, test, concepts)[1] for x in (real_NF, ours_NF))
    result["judge"] = {"concepts": len(concepts), "pictures": len(before), "originals_top1": top(before, 1), "originals_top5": top(before, 5)}
    result["judge"] |= {"reconstructions_top1": top(after, 1), "reconstructions_top5": top(after, 5)}
    result["judge"]["kept"] = top(after, 5) / top(before, 5) if top(before, 5) else None
    return result


@torch.inference_mode()
def reconstruct(codec, images: Sequence[Image.Image]) -> tuple[Int[Tensor, "N h w"], list[Image.Image]]:
    """Codes of the pictures, and the pictures that the codes decode to."""
    from rich.progress import track

    device = next((p.device for p in codec.parameters()), torch.device("cpu"))
    codes, ours = [], []
    for i in track(range(0, len(images), BATCH), description=f"coding {len(images)} pictures"):
        codes.append(codec.encode(_pixels(images[i : i + BATCH]).to(device)))
        ours += _pictures(codec.decode(codes[-1]))
    return torch.cat(codes).cpu(), ours


def fidelity(images: Sequence[Image.Image], ours: Sequence[Image.Image]) -> dict:
    """PSNR in decibels, mean over pictures (a perfect one counts 100), and mean absolute difference, values in [0, 1]."""
    difference_BCHW = torch.cat([_pixels([a]) - _pixels([b]) for a, b in zip(images, ours, strict=True)]) / 2
    psnr_B = -10 * difference_BCHW.square().mean((1, 2, 3)).clamp_min(1e-10).log10()
    return {"psnr": float(psnr_B.mean()), "l1": float(difference_BCHW.abs().mean())}


def _pixels(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
    values = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return rearrange(values, "b h w c -> b c h w").float() / 127.5 - 1


def _pictures(pixels_BCHW: Float[Tensor, "B 3 H W"]) -> list[Image.Image]:
    values = ((pixels_BCHW + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return [Image.fromarray(value) for value in rearrange(values, "b c h w -> b h w c").numpy()]
