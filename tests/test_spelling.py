"""Words as phones or letters, where they stand in speech, and a model that says them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import any_gpt

import mmgpt
from mmgpt import native
from mmgpt.data.speech import Speech, load_speech
from mmgpt.decoders.audio_codec import AudioCodec
from mmgpt.encoders.spelling import Spelling, parted, words_in
from mmgpt.errors import CheckpointError, DataError, InputError, TrainingError
from mmgpt.train.any import phones_of, spelled

bounded = settings(max_examples=60, deadline=None, derandomize=True)
DOG = ("d", "ˈɑ", "ɡ")
SAID = (("a dog", ("ə", " ", *DOG)), ("A dog", ("ə", " ", *DOG)), ("a", ("ˈA",)), ("dog a", DOG))  # of the last one the words are not parted


def row(text: str, phones: tuple, seconds: float = 1.0) -> Speech:
    begins = tuple(np.linspace(0.1, 0.9 * seconds, len(phones)).tolist())
    return Speech(b"", text, "heart", "name", "train", seconds, phones, begins)


def speaking(spelling: Spelling):
    """A model that says words so."""
    base = any_gpt(quantizers=1)
    audio = replace(base.config.audio, words=True, verbatim=True, letters=True, phones=spelling.phones, ahead=2)
    return native.build_from(base, replace(base.config, audio=audio), AudioCodec(base.config.audio.codec), spelling).eval()


def test_a_word_is_what_was_said_most_often():
    spelling = Spelling.heard(SAID)
    assert spelling.words == {"a": ("ə",), "dog": DOG} and spelling.phones == ("d", "ə", "ɡ", "ˈA", "ˈɑ") == tuple(sorted(spelling.phones))
    assert spelling.codes("A dog, Bo.") == [257, 32, 256, 260, 258, 32, *b"bo"] and spelling.num_codes == 261
    assert Spelling.from_text(spelling.phones, spelling.text()).words == spelling.words and spelling.text() == "a  ə\ndog  d ˈɑ ɡ\n"
    assert parted(("ð", "ə", " ", " ", "d")) == [[0, 1], [4]] and parted(()) == [] == Spelling().codes(" -!\n")
    assert words_in("Don't_go, T-shirt 3!") == ["don't", "go", "t", "shirt", "3"]
    with pytest.raises(CheckpointError, match="phones \\['x'\\]: known are a b"):
        Spelling(("a", "b"), {"ax": ("a", "x")})
    with pytest.raises(CheckpointError, match="of a word that has none"):
        Spelling.from_text(("a",), "ax\n")


@bounded
@given(st.lists(st.text("abc'é,. -", max_size=6), max_size=6))
def test_any_text_is_spelled(parts):
    """Letters are those of its words, whatever else stands between them."""
    text = " ".join(parts)
    codes = Spelling(("a",), {"abc": ("a",)}).codes(text)
    assert "".join("abc" if c == 256 else chr(c) if c < 128 else "" for c in codes) == " ".join(words_in(text)).replace("é", "")


def test_phones_stand_where_they_were_said():
    spelling = Spelling.heard(SAID)
    said = row("a dog", SAID[0][1])
    seconds, codes = phones_of(spelling, said, 0.0)
    assert codes == spelling.codes("a dog") and seconds == list(said.begins)
    seconds, codes = phones_of(spelling, said, 1.0)  # spelled: the letters of a word share its time
    assert bytes(codes) == b"a dog" and seconds == pytest.approx([0.1, 0.3, 0.5, 0.5 + 0.5 / 3, 0.5 + 1 / 3])
    seconds, codes = phones_of(spelling, row("a cat", ("ə", " ", "k", "æ", "t")), 0.0)
    assert codes == [257, 32, *b"cat"] and len(seconds) == 5
    assert phones_of(spelling, row("dog a", DOG), 1.0)[1] == [256, 260, 258]  # words that cannot be told apart are said as they were


def test_a_model_says_the_phones_of_its_lexicon(tmp_path):
    spelling = Spelling.heard(SAID)
    gpt = speaking(spelling)
    layout = gpt.ports["audio"].writes
    rows = [row("a dog", SAID[0][1]), row("a dog", ())]
    codes = [np.arange(10)[:, None]] * 2
    with pytest.raises(TrainingError, match="1 clips without phones"):
        spelled(gpt, None, rows, codes)
    (found,) = spelled(gpt, None, rows[:1], codes[:1])
    owed = [layout.num_codes + code for code in (*phones_of(spelling, rows[0])[1], 0, 0)]
    assert found[found >= layout.num_codes].tolist() == owed and found[found < layout.num_codes].tolist() == list(range(10))
    assert found[:3, 0].tolist() == [*owed[:2], 0]  # two ahead
    native.save(gpt, tmp_path / "gpt")
    for model in (gpt, mmgpt.load(tmp_path / "gpt")):
        (result,) = mmgpt.Engine(model).run([mmgpt.Request(["A dog, Bo!"], "audio", mmgpt.Sampling(temperature=3.0))])
        said = result.codes[result.codes >= layout.num_codes] - layout.num_codes
        assert said.tolist() == [*spelling.codes("a dog bo"), 0, 0]
    with pytest.raises(InputError, match="a pronunciation with 5 phones for 0"):
        native.build_from(gpt, replace(gpt.config, audio=replace(gpt.config.audio, phones=())))


def test_phones_of_a_file_are_checked(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = load_speech("tests/data/speech6.parquet")
    spoken = [r for r in rows if r.phones]
    assert {r.voice for r in spoken} == {"heart"} and spoken[0].phones == ("ɹ", "ˈɛ", "d", " ", "ˈæ", "p", "ᵊ", "l")
    table = parquet.read_table("tests/data/speech6.parquet").to_pylist()
    for begins in ([0.0], [9.0] * len(table[0]["phones"]), [0.1 - 0.01 * n for n in range(len(table[0]["phones"]))]):
        parquet.write_table(pa.Table.from_pylist([{**table[0], "begins": begins}]), tmp_path / "bad.parquet")
        with pytest.raises(DataError, match="in order within the clip"):
            load_speech(tmp_path / "bad.parquet")
