"""Whisper's encoder: the same vectors as transformers', for clips of any length at once."""

import pytest
import torch
from safetensors.torch import save_file

from mmgpt.encoders.whisper import Whisper, WhisperEncoder, waves
from mmgpt.errors import CheckpointError
from mmgpt.types import Audio, join

RATE = 16_000


def sound(seconds: float, seed: int = 0) -> Audio:
    return Audio(0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(seed)), RATE)


def small() -> WhisperEncoder:
    torch.manual_seed(0)
    return WhisperEncoder(16, blocks=2, hidden=32, heads=2).eval()


def theirs(mine: Whisper, mels: int, seconds: float):
    """transformers' encoder of the same weights, for sounds of exactly this length."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    width, blocks = mine.norm.normalized_shape[0], len(mine.blocks)
    config = WhisperConfig(
        d_model=width, encoder_layers=blocks, encoder_attention_heads=mine.blocks[0].heads, encoder_ffn_dim=4 * width,
        num_mel_bins=mels, max_source_positions=int(seconds * 50), attn_implementation="eager",
    )  # fmt: skip
    found, own = {}, mine.state_dict()
    for name, tensor in own.items():
        if name.startswith("blocks."):
            _, number, part, end = name.split(".")
            names = {
                "attention_norm": "self_attn_layer_norm",
                "out": "self_attn.out_proj",
                "mlp_norm": "final_layer_norm",
                "up": "fc1",
                "down": "fc2",
            }
            if part == "qkv":
                for letter, piece in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"layers.{number}.self_attn.{letter}_proj.{end}"] = piece
            else:
                found[f"layers.{number}.{names[part]}.{end}"] = tensor
        else:
            part, end = name.split(".")
            found[{"near": "conv1", "halve": "conv2", "norm": "layer_norm"}[part] + f".{end}"] = tensor
    found |= {f"layers.{n}.self_attn.k_proj.bias": found[f"layers.{n}.self_attn.k_proj.bias"] * 0 for n in range(blocks)}  # Whisper has none
    encoder = Encoder(config).eval()
    missing = encoder.load_state_dict(found, strict=False)
    assert missing.missing_keys == ["embed_positions.weight"]
    assert set(missing.unexpected_keys) == {f"layers.{n}.self_attn.k_proj.bias" for n in range(blocks)}
    return encoder


@torch.no_grad()
def test_hears_as_transformers_does():
    from transformers import WhisperFeatureExtractor

    mine, clip = small(), sound(1.2)
    clip.samples[:5000] *= 1e-6  # far below the rest: Whisper cuts that off
    for block in mine.tower.blocks:
        block.qkv.bias[32:64] = 0
    prepared = mine.prepare(clip)
    mel = WhisperFeatureExtractor(chunk_length=1.2)(clip.samples.numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"]
    assert torch.allclose(prepared.values_NF.view(-1, 80, 4).permute(1, 0, 2).flatten(1), mel[0], atol=2e-3)
    assert torch.allclose(waves(60, 32), theirs(mine.tower, 80, 1.2).embed_positions.weight, atol=1e-5)
    expected = theirs(mine.tower, 80, 1.2)(prepared.values_NF.view(-1, 80, 4).permute(1, 0, 2).flatten(1)[None]).last_hidden_state[0]
    assert torch.allclose(mine.heard(prepared), expected.view(-1, 64), atol=1e-5)


@torch.no_grad()
def test_a_clip_has_the_vectors_that_it_has_alone():
    mine = small()
    clips = [sound(seconds, n) for n, seconds in enumerate((0.7, 1 / RATE, 2.0, 0.04))]
    alone = [mine(mine.prepare(clip)) for clip in clips]
    together = mine(join([mine.prepare(clip) for clip in clips]))
    assert [len(x) for x in alone] == [18, 1, 50, 1]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_weights_are_found_or_asked_for(tmp_path):
    mine, other = small().tower, Whisper(80, 1, 32, 2)
    with pytest.raises(CheckpointError, match=r"not at .*nothing\.safetensors.*convert_ears"):
        mine.fill(tmp_path / "nothing.safetensors")
    save_file({name: t + 1 for name, t in mine.state_dict().items()}, tmp_path / "ears.safetensors")
    other.fill(tmp_path / "ears.safetensors")  # the first block of two
    assert torch.equal(other.blocks[0].up.weight, mine.blocks[0].up.weight + 1)
    save_file({"near.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        mine.fill(tmp_path / "other.safetensors")
