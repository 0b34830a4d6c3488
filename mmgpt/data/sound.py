"""A WAV file or its bytes -> Audio. The header is held against the limits before a sample is read."""

import io
import wave
from pathlib import Path

import numpy as np
import torch

from mmgpt.data.pictures import read_bytes
from mmgpt.errors import InputError
from mmgpt.types import Audio

MAX_BYTES = 25 * 2**20
MAX_SECONDS = 600.0
MAX_CHANNELS = 8


def open_sound(source: str | Path | bytes, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> Audio:
    """WAV of whole numbers with 8, 16, 24 or 32 bits -> samples in [-1, 1], (channels, samples). Anything else raises `InputError`."""
    name = "the sound" if isinstance(source, bytes) else repr(str(source))[:300]
    data = source if isinstance(source, bytes) else read_bytes(source, name, max_bytes)
    if len(data) > max_bytes:
        raise InputError(f"{name} has {len(data)} bytes or more, at most {max_bytes} are read; cut it or raise max_bytes")
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, size, rate, count = file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()
            if not 1 <= channels <= MAX_CHANNELS or rate < 1 or not 0 < count <= max_seconds * rate or size > 4:
                asked = f"{name} has {channels} channels, {count} samples at {rate} Hz, {8 * size} bits"
                raise InputError(f"{asked}; read are 1 to {MAX_CHANNELS} channels, up to {max_seconds:g} seconds, up to 32 bits")
            stored = file.readframes(count)
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} ({len(data)} bytes) is no WAV file of whole numbers, or cut short; save it as 16-bit PCM") from error
    if len(stored) != count * channels * size:
        raise InputError(f"{name} holds {len(stored)} bytes of samples, its header says {count * channels * size}; save or download it again")
    return Audio(torch.from_numpy(values(stored, size).reshape(count, channels).T.copy()), rate)


def values(stored: bytes, size: int) -> np.ndarray:
    """Little-endian whole numbers of `size` bytes -> float32 in [-1, 1]; those of one byte have no sign and lie around 128."""
    if size == 1:
        return (np.frombuffer(stored, np.uint8).astype(np.float32) - 128) / 128
    wide = np.zeros((len(stored) // size, 4), np.uint8)
    wide[:, 4 - size :] = np.frombuffer(stored, np.uint8).reshape(-1, size)  # at the upper end, so that the sign is where it belongs
    return (wide.view("<i4")[:, 0] / 2**31).astype(np.float32)
