"""config.json of an Emu3 -> a GPT that reads and writes text and pictures in one vocabulary (Wang et al., 2024, arXiv:2409.18869).

picture   begin "H*W" start  H x (W codes, row end)  codes' end  end
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError, GuidanceError
from mmgpt.generate.sampling import Sampling
from mmgpt.interop.pictures import VQPictures, code_ids, own, processor_of, token
from mmgpt.interop.released import Released
from mmgpt.interop.text import begin_of, config_class, decoder_of, keys, text_port, tokenizer_of
from mmgpt.layout import CodesLayout
from mmgpt.model import GPT, Port
from mmgpt.native import kind_of_pictures
from mmgpt.script import Span
from mmgpt.types import Part

SAMPLING, GUIDANCE, GRID = Sampling(top_k=2048), 3.0, (1, 90, 90)  # of baaivision/Emu3
NEGATIVE = "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, "
NEGATIVE += "normal quality, jpeg artifacts, signature, watermark, username, blurry."


def build(values: dict, texts: Mapping[str, str], folder: Path) -> tuple[GPT, Released]:
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    whole = config_class(values, folder)
    config, vq = whole.text_config, whole.vq_config
    text = tokenizer_of(texts, config.vocab_size, folder)
    codes, table = code_ids(whole.vocabulary_map or {}, code_of, vq.codebook_size, folder)
    codec = codec_of(vq, processor_of(texts, Emu3ImageProcessor, folder))
    begin, start, row_end, end_codes, end = (
        token(text.tokenizer, name, folder) for name in ("<|image start|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>")
    )
    layout = CodesLayout(begin, Span(codes.start, codes.stop), end, row_end, end_codes, start, digits(text, folder), table=table, flat=True)
    ports = {
        "text": text_port(text, config, texts, folder),
        "image": Port(
            kind_of_pictures(), codec=codec, writes=layout, grid=GRID, sampling=SAMPLING, guidance=GUIDANCE, unconditional=with_negative_prompt
        ),
    }
    decoder, tied = decoder_of(config, folder), bool(whole.tie_word_embeddings)
    first = begin_of(text, config, texts)
    gpt = GPT(decoder, ports, config.vocab_size, config.bos_token_id if first is None else first, config.max_position_embeddings, tied)
    found = {**keys(decoder, config.vocab_size, tied, "text_model.model.", "text_model."), **own(codec.model, "codecs.image.model", "vqmodel")}
    return gpt, Released(whole.model_type, values, found, texts)


def codec_of(config, processor) -> VQPictures:
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

    return VQPictures(Emu3VQVAE(config), processor, config.codebook_size, to_codes, lambda model, codes: model.decode(codes))


def code_of(name: str) -> int | None:
    return int(name[-8:-2]) if name.startswith("<|visual token") else None


def to_codes(model, pixels):
    return model.encode(pixels, torch.tensor([pixels.shape[-2:]])).image_tokens[0]


def digits(text: TextCodec, folder: Path) -> tuple[int, ...]:
    """The ids of "0" .. "9" and "*", of which the size is written, character by character."""
    found = [text.encode(character) for character in "0123456789*"]
    if any(len(ids) != 1 for ids in found) or text.encode("90*81").tolist() != [int(found["0123456789*".index(c)][0]) for c in "90*81"]:
        raise CheckpointError(f"{folder}: tokenizer.json does not write 90*81 character by character, as the size of a picture is")
    return tuple(int(ids[0]) for ids in found)


def with_negative_prompt(sample) -> list[Part]:
    """All words give way to what a picture should not be; there must have been some."""
    given = [isinstance(part.value, str) and not part.learn for part in sample]
    if not any(given):
        raise GuidanceError("guidance was asked for, but the request has no words to replace by the negative prompt: pass a prompt, or guidance=1")
    first = given.index(True)
    return [Part(NEGATIVE) if i == first else part for i, part in enumerate(sample) if i == first or not given[i]]
