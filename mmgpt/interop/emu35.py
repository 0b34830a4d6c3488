"""Emu3.5 (arXiv:2510.26583): its layout and its decoder. Its code and its codec are remote, so that its folder is not loaded.

picture   begin "H*W" start  H x (W codes, row end); the last row end is the end
"""

from pathlib import Path

from mmgpt.decoders.transformer import DecoderConfig
from mmgpt.encoders.text import TextCodec
from mmgpt.generate.sampling import Sampling
from mmgpt.interop.emu3 import digits
from mmgpt.interop.pictures import token
from mmgpt.layout import CodesLayout
from mmgpt.script import Span

NUM_CODES = 131_072  # of its IBQ codec, 16 pixels a code
SAMPLING = Sampling(top_k=5120)  # of pictures from words; 10,240 in interleaved documents
GUIDANCE = 5.0  # on log-probabilities, which differ from logits by what softmax forgets: the same choice as here


def layout(text: TextCodec, first_code: int, num_codes: int = NUM_CODES) -> CodesLayout:
    """`first_code` is the id of code 0 (151854 in the released vocabulary)."""
    begin, start, row_end, end = (
        token(text.tokenizer, name, Path("tokenizer")) for name in ("<|image start|>", "<|image token|>", "<|extra_200|>", "<|image end|>")
    )
    codes = Span(first_code, first_code + num_codes)
    return CodesLayout(begin, codes, end, row_end, start=start, digits=digits(text, Path("tokenizer")), end_is_row_end=True, flat=True)


def decoder(width: int, depth: int, num_heads: int, num_kv_heads: int, mlp_width: int, rope_theta: float = 1e6) -> DecoderConfig:
    """Emu3's blocks with an RMSNorm on queries and keys."""
    return DecoderConfig(width, depth, num_heads, num_kv_heads, width // num_heads, mlp_width, rope_theta, position_axes=1, qk_norm="rms")
