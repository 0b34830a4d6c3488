"""str <-> ids: the text codec, a byte-level BPE tokenizer. Ordinary text never becomes a control id."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from mmgpt.errors import CheckpointError, InputError

PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that a byte-level vocabulary writes as themselves, the rest from 256 on
BYTES = {chr(b): b for b in PLAIN} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in PLAIN)}
MAX_TEXT = 100_000  # characters: a longer prompt is refused before any work is done on it


class TextCodec:
    """A `tokenizers` tokenizer as a codec. Control ids are not in its vocabulary, the layouts put them in by number."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.num_codes: int = tokenizer.get_vocab_size()
        self.lead = " " if self.written(self.encode("a")).startswith(" ") else ""  # what the tokenizer puts before every text

    @classmethod
    def train(cls, texts: Iterable[str], num_codes: int) -> "TextCodec":
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes: nothing is ever unknown
        tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=num_codes, initial_alphabet=alphabet, show_progress=False))
        return cls(tokenizer)

    @classmethod
    def from_text(cls, text: str) -> "TextCodec":
        """From the text of a tokenizer.json."""
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"tokenizer.json cannot be read ({error}): copy the checkpoint again") from None

    def text(self) -> str:
        return self.tokenizer.to_str()

    def encode(self, value: str) -> Int[np.ndarray, "N"]:
        if not isinstance(value, str):
            raise InputError(f"text of type {type(value).__name__}: pass a str")
        if len(value) > MAX_TEXT:
            raise InputError(f"a text of {len(value)} characters, the limit is {MAX_TEXT}: split it")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"character {error.start} of the text is half a surrogate pair: pass valid Unicode") from None
        return np.asarray(self.tokenizer.encode(value, add_special_tokens=False).ids, np.int64)

    def letters(self, code: int) -> bytes:
        """What one id writes, in UTF-8, of which it may be a part of a character."""
        return b"".join(bytes([BYTES[c]]) if c in BYTES else c.encode() for c in self.tokenizer.id_to_token(code) or "")

    def decode(self, codes: Int[np.ndarray, "*grid"]) -> str:
        return self.written(codes).removeprefix(self.lead)

    def written(self, codes: Int[np.ndarray, "*grid"]) -> str:
        return self.tokenizer.decode([int(c) for c in np.asarray(codes).reshape(-1)], skip_special_tokens=False)
