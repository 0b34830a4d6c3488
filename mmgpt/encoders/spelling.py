"""Text -> codes of how it is said: each word by its phones where a lexicon has it, by its letters where not."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmgpt.encoders.text import TextCodec
from mmgpt.errors import CheckpointError
from mmgpt.script import Span

LETTERS = 256  # codes below are bytes of UTF-8, those from here on are phones
SPACE = ord(" ")
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Spelling:
    """`phones` are the speech sounds that have codes of their own; `words` says of which of them a word is made, in lower case.

    example: phones d ˈɑ ɡ, words {"dog": ("d", "ˈɑ", "ɡ")}
    "A dog."    a " " 256 257 258     (letters and the space as bytes)
    """

    def __init__(self, phones: Sequence[str] = (), words: Mapping[str, Sequence[str]] | None = None):
        self.phones, self.words = tuple(phones), {word: tuple(said) for word, said in (words or {}).items()}
        self.code_of = {phone: LETTERS + n for n, phone in enumerate(self.phones)}
        unknown = sorted({phone for said in self.words.values() for phone in said} - set(self.phones))
        if unknown or not all(self.words.values()):
            raise CheckpointError(f"a pronunciation with the phones {unknown or 'of a word that has none'}: known are {' '.join(self.phones)}")

    @property
    def num_codes(self) -> int:
        return LETTERS + len(self.phones)

    def codes(self, text: str) -> list[int]:
        """Of all words, with a space between them. Marks and case are left out."""
        found: list[int] = []
        for word in words_in(text):
            said = self.words.get(word)
            found += [SPACE] * bool(found) + ([self.code_of[phone] for phone in said] if said else list(word.encode()))
        return found

    def text(self) -> str:
        """A word a line, and behind it its phones, as in the CMU Pronouncing Dictionary."""
        return "".join(f"{word}  {' '.join(said)}\n" for word, said in sorted(self.words.items()))

    @classmethod
    def from_text(cls, phones: Sequence[str], text: str) -> "Spelling":
        lines = [line.split() for line in text.splitlines() if line.strip()]
        return cls(phones, {word: said for word, *said in lines})

    @classmethod
    def heard(cls, said: Iterable[tuple[str, Sequence[str]]]) -> "Spelling":
        """From texts and how they were said, their words parted by spaces: of each word what was said most often."""
        found, phones = defaultdict(Counter), set()
        for text, marks in said:
            phones.update(marks)
            if len(groups := parted(marks)) == len(words := words_in(text)):
                for word, group in zip(words, groups, strict=True):
                    found[word][tuple(marks[n] for n in group)] += 1
        most = {word: min(counts, key=lambda said: (-counts[said], said)) for word, counts in found.items()}
        return cls(sorted(phones - {" "}), most)


@dataclass(frozen=True)
class Said:
    """The ids of a text -> the codes of the words with which it is said: its own, or those of its spelling."""

    text: Span
    codec: TextCodec
    spelling: Spelling | None = None

    def __call__(self, ids: Sequence[int]) -> list[int]:
        codes = [id - self.text.start for id in ids if id in self.text]
        return self.spelling.codes(self.codec.decode(np.array(codes, np.int64))) if self.spelling else codes


def words_in(text: str) -> list[str]:
    return WORD.findall(text.lower())


def parted(marks: Sequence[str]) -> list[list[int]]:
    """The places of the phones of each word.

    example: ð ə " " d    [[0, 1], [3]]
    """
    groups: list[list[int]] = [[]]
    for n, mark in enumerate(marks):
        if mark == " ":
            groups.append([])
        else:
            groups[-1].append(n)
    return [group for group in groups if group]
