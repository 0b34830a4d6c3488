"""config.json of a Janus or Janus-Pro -> a GPT with a tower to read pictures and codes of their own to write them (arXiv:2501.17811).

picture, read      begin  576 vectors of SigLIP and a projector  end
picture, written   begin  576 codes; their vectors and scores are not in the text's table
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmgpt.checkpoint import parsed
from mmgpt.decoders.heads import MLPHead
from mmgpt.encoders.text import TextCodec
from mmgpt.errors import GuidanceError
from mmgpt.generate.sampling import Sampling
from mmgpt.interop.parts import ImageTower
from mmgpt.interop.pictures import VQPictures, own, processor_of, token
from mmgpt.interop.released import Released
from mmgpt.interop.text import begin_of, config_class, decoder_of, keys, text_port, tokenizer_of
from mmgpt.layout import CodesLayout, VectorsLayout
from mmgpt.model import GPT, Port
from mmgpt.native import kind_of_pictures
from mmgpt.script import Span
from mmgpt.types import Part

SAMPLING, GUIDANCE = Sampling(), 5.0  # of deepseek-ai/Janus


class AlignedTable(nn.Module):
    """codes -> rows of a narrow table -> vectors of the decoder's width."""

    def __init__(self, rows: nn.Embedding, aligner: nn.Module):
        super().__init__()
        self.rows, self.aligner = rows, aligner

    def forward(self, codes_N: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        return self.aligner(self.rows(codes_N))


def build(values: dict, texts: Mapping[str, str], folder: Path) -> tuple[GPT, Released]:
    from transformers.models.janus import modeling_janus as theirs
    from transformers.models.janus.image_processing_janus import JanusImageProcessor

    whole = config_class(values, folder)
    config, vq, vision = whole.text_config, whole.vq_config, whole.vision_config
    text, processor = tokenizer_of(texts, config.vocab_size, folder), processor_of(texts, JanusImageProcessor, folder)
    begin, end = (token(text.tokenizer, name, folder) for name in ("<begin_of_image>", "<end_of_image>"))
    side, ids = vq.num_patches, Span(config.vocab_size, config.vocab_size + vq.num_embeddings)
    codec, aligner = codec_of(vq, processor), theirs.JanusVisionAlignerMLP(vision)
    tower = ImageTower(theirs.JanusVisionModel(vision), processor, vision.image_size, vision.patch_size, aligner)
    said = parsed(texts.get("generation_config.json", "{}"), "generation_config.json")
    pad = said.get("pad_token_id", config.pad_token_id)
    ports = {
        "text": text_port(text, config, texts, folder),
        "image": Port(
            kind_of_pictures(), tower, VectorsLayout(begin, end, whole=False, flat=True),
            codec, CodesLayout(begin, ids, sizes=((1, side, side),), flat=True), (1, side, side),
            head=lambda _, ids: MLPHead(ids, vq.image_token_embed_dim, vq.projection_dim), sampling=SAMPLING, guidance=GUIDANCE,
            table=AlignedTable(nn.Embedding(vq.num_embeddings, vq.embed_dim), theirs.JanusVQVAEAlignerMLP(vq)),
            unconditional=partial(padded, text, pad),
        ),
    }  # fmt: skip
    decoder, tied = decoder_of(config, folder), bool(whole.tie_word_embeddings)
    gpt = GPT(decoder, ports, config.vocab_size, begin_of(text, config, texts), config.max_position_embeddings, tied)
    head, table = gpt.heads["image"], ports["image"].table
    found = {**keys(decoder, config.vocab_size, tied, "model.language_model."), **own(codec.model, "codecs.image.model", "model.vqmodel")}
    found |= own(tower.tower, "encoders.image.tower", "model.vision_model") | own(tower.projector, "encoders.image.projector", "model.aligner")
    found |= own(table.rows, "tables.image.rows", "model.generation_embeddings")
    found |= own(table.aligner, "tables.image.aligner", "model.generation_aligner")
    found |= own(head.hidden, "heads.image.hidden", "model.generation_head.proj_out")
    found |= own(head.out, "heads.image.out", "model.generation_head.vision_head")
    return gpt, Released(whole.model_type, values, found, texts, ("lm_head.weight",) if tied else ())


def codec_of(config, processor) -> VQPictures:
    from transformers.models.janus.modeling_janus import JanusVQVAE

    return VQPictures(JanusVQVAE(config), processor, config.num_embeddings, to_codes, lambda model, codes: model.decode(codes.flatten(1)))


def to_codes(model, pixels):
    side = model.config.num_patches
    return model.encode(pixels).image_tokens.view(side, side)


def padded(text: TextCodec, pad: int | None, sample: Sequence[Part]) -> list[Part]:
    """Every id of the words gives way to the pad id: the unconditional form that Janus was trained with."""
    if pad is None or not any(isinstance(part.value, str) and part.value and not part.learn for part in sample):
        raise GuidanceError(f"guidance was asked for, with pad id {pad} and no words to replace by it: pass a prompt, or guidance=1")
    return [Part("", codes=np.full(len(text.encode(part.value)), pad)) if isinstance(part.value, str) and not part.learn else part for part in sample]
