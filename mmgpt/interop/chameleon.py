"""config.json of a Chameleon -> a GPT that reads and writes text and pictures in one vocabulary (Meta, 2024, arXiv:2405.09818).

picture   begin  1,024 codes  end; which id a code has stands in the config's vocabulary_map
drawing   the released weights hold no decoder of codes to pixels
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmgpt.generate.sampling import Sampling
from mmgpt.interop.pictures import VQPictures, code_ids, own, processor_of, token
from mmgpt.interop.released import Released
from mmgpt.interop.text import IGNORED, begin_of, config_class, decoder_of, keys, text_port, tokenizer_of
from mmgpt.layout import CodesLayout
from mmgpt.model import GPT, Port
from mmgpt.native import kind_of_pictures
from mmgpt.script import Span

LETTERS = {chr(ord("A") + digit): str(digit) for digit in range(10)}
GUIDANCE, SAMPLING = 3.0, Sampling(0.7, top_p=0.9)  # of facebookresearch/chameleon


def build(values: dict, texts: Mapping[str, str], folder: Path) -> tuple[GPT, Released]:
    from transformers.models.chameleon.image_processing_chameleon import ChameleonImageProcessor

    config = config_class(values, folder)
    text, vq = tokenizer_of(texts, config.vocab_size, folder), config.vq_config
    codes, table = code_ids(config.vocabulary_map or {}, code_of, vq.num_embeddings, folder)
    ids, side = Span(codes.start, codes.stop), vq.resolution // 2 ** (len(vq.channel_multiplier) - 1)
    codec = codec_of(vq, processor_of(texts, ChameleonImageProcessor, folder))
    layout = CodesLayout(
        token(text.tokenizer, "<racm3:break>", folder), ids, token(text.tokenizer, "<eoss>", folder), table=table, sizes=((1, side, side),), flat=True
    )
    ports = {
        "text": text_port(text, config, texts, folder, ids),
        "image": Port(kind_of_pictures(), codec=codec, writes=layout, grid=(1, side, side), sampling=SAMPLING, guidance=GUIDANCE),
    }
    decoder, tied = decoder_of(config, folder), bool(config.tie_word_embeddings)
    gpt = GPT(decoder, ports, config.vocab_size, begin_of(text, config, texts), config.max_position_embeddings, tied)
    found = {**keys(decoder, config.vocab_size, tied), **own(codec.model, "codecs.image.model", "model.vqmodel")}
    return gpt, Released(config.model_type, values, found, texts, (*IGNORED, "lm_head.weight") if tied else IGNORED)


def codec_of(config, processor) -> VQPictures:
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    return VQPictures(ChameleonVQVAE(config), processor, config.num_embeddings, to_codes, None)


def code_of(name: str) -> int | None:
    """`IMGIMGBDZ` is code 13: letters stand for digits."""
    return int("".join(LETTERS[c] for c in name[6:-1])) if name.startswith("IMGIMG") else None


def to_codes(model, pixels):
    side = pixels.shape[-1] // 2 ** (len(model.config.channel_multiplier) - 1)
    return model.encode(pixels).image_tokens.view(side, side)


def lumina(gpt: GPT, folder: Path = Path("tokenizer")) -> GPT:
    """Lumina-mGPT (Liu et al., 2024, arXiv:2408.02657): on this vocabulary pictures of any size, in steps of 32 pixels.

    picture   begin  height  width  H x (W codes, row end)  end; height and width are reserved ids 8800 + n
    """
    port, tokenizer = gpt.ports["image"], gpt.ports["text"].codec.tokenizer
    sizes, row_end = (token(tokenizer, f"<reserved{number:05d}>", folder) for number in (8800, 8799))
    gpt.ports["image"] = replace(
        port, writes=replace(port.writes, sizes=(), sized=(sizes, 2), row_end=row_end), sampling=Sampling(top_k=2000), guidance=4.0
    )
    return gpt
