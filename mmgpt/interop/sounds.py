"""Pretrained sound codecs of transformers (Mimi, EnCodec, DAC), by folder or hub id -> codecs in our contract, to be mixed by `compose`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from mmgpt.errors import CheckpointError, InputError
from mmgpt.interop.parts import model_again, model_of
from mmgpt.interop.pictures import plain
from mmgpt.types import Audio

KINDS = {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel"}


class SoundCodes(nn.Module):
    """A neural sound codec of transformers: samples at its rate <-> (T, K) residual codes, K codes a frame."""

    def __init__(self, model: nn.Module, quantizers: int = 0):
        super().__init__()
        config = model.config
        self.model, self.rate, self.num_codes, self.kind = model, config.sampling_rate, config.codebook_size, config.model_type
        self.quantizers = quantizers  # 0: as many as the codec uses unasked
        if getattr(config, "audio_channels", 1) != 1 or getattr(config, "chunk_length_s", None):
            raise CheckpointError(
                f"a codec of {config.audio_channels} channels, in chunks of {config.chunk_length_s} s: known are those of 1 channel, of one piece"
            )
        most = config.n_codebooks if self.kind == "dac" else config.num_quantizers
        if not 0 <= quantizers <= most:
            raise InputError(f"quantizers={quantizers} of a codec with {most}: use 1 to {most}, or 0 for as many as it uses unasked")
        self.asked = self.asking() if quantizers else {}

    @classmethod
    def load(cls, folder: str | Path, quantizers: int = 0) -> "SoundCodes":
        return cls(model_of(folder, KINDS, "sound codec"), quantizers)

    def facts(self) -> dict:
        return {"config": plain(self.model.config), "quantizers": self.quantizers}

    @classmethod
    def of(cls, facts: Mapping, place: Path) -> "SoundCodes":
        return cls(model_again(facts["config"], KINDS, "sound codec", place), facts["quantizers"])

    def asking(self) -> dict[str, float]:
        """The number of codes a frame, in the words of the model; EnCodec takes a bandwidth, of which it has a few."""
        if self.kind != "encodec":
            return {"num_quantizers" if self.kind == "mimi" else "n_quantizers": self.quantizers}
        widths = {self.model.quantizer.get_num_quantizers_for_bandwidth(width): width for width in self.model.config.target_bandwidths}
        if self.quantizers not in widths:
            raise InputError(f"quantizers={self.quantizers}: this EnCodec writes {', '.join(map(str, sorted(widths)))} codes a frame")
        return {"bandwidth": widths[self.quantizers]}

    @torch.no_grad()
    def encode(self, value: Audio, /) -> Int[np.ndarray, "T K"]:
        from torchaudio.functional import resample

        samples = torch.atleast_2d(value.samples.float()).mean(0)
        samples = resample(samples, int(value.rate), self.rate) if value.rate != self.rate else samples
        codes = self.model.encode(samples[None, None].to(next(self.model.parameters())), **self.asked).audio_codes
        return codes.reshape(-1, codes.shape[-1]).T.contiguous().cpu().numpy()

    @torch.no_grad()
    def decode(self, codes: Int[np.ndarray, "T *one K"], /) -> Audio:
        codes_1KT = torch.from_numpy(np.asarray(codes).reshape(-1, codes.shape[-1]).T.copy())[None].to(next(self.model.parameters()).device)
        made = self.model.decode(codes_1KT[None], [None]) if self.kind == "encodec" else self.model.decode(audio_codes=codes_1KT)
        return Audio(made.audio_values.reshape(-1).float().cpu(), self.rate)
