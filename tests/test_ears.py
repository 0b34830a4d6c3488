"""A sound encoder that learns letters: its task, its folder, and the model that begins with it."""

import json
import math

import numpy as np
import pytest
import torch
from mutants import sound_file
from tiny import any_gpt, gap, tone

from mmgpt.data.speech import Speech
from mmgpt.decoders.audio_codec import AudioCodec, AudioCodecConfig
from mmgpt.errors import CheckpointError, InputError, TrainingError
from mmgpt.native import SoundConfig, build_from
from mmgpt.train import any as modalities
from mmgpt.train import ears
from mmgpt.train.any import spelled
from mmgpt.train.ears import LETTERS, Ears, EarTask, beginnings, heard, load_ears, save_ears
from mmgpt.train.recipes_any import AnyOptions, any_to_any
from mmgpt.train.settings import Settings
from mmgpt.train.sound import save_codec
from mmgpt.types import Audio, join

TEXTS = ["ab", "ba", "a", "bb", "b", "aa", "abb", "baa"]


def spoken(text: str) -> Audio:
    """Each letter a tone of its own, with a little silence between."""
    parts = [x for c in text for x in (tone(0.12, 300.0 if c == "a" else 1200.0).samples, torch.zeros(640))]
    return Audio(torch.cat(parts), 16_000)


ROWS = [Speech(b"", text, "tones", "name", "train", 0.16 * len(text)) for text in TEXTS]


def task_of(batch_size: int = 8, seconds: float = 2.0, blocks: int = 1) -> EarTask:
    torch.manual_seed(0)
    return EarTask(Ears(32, blocks, seconds), ROWS, [spoken(text) for text in TEXTS], batch_size)


def test_every_weight_learns():
    task = task_of()
    loss, figures = task.losses(task.batch(0))
    loss.backward()
    still = [name for name, p in task.model.named_parameters() if p.grad is None or not p.grad.any()]
    assert figures == {"letter": loss.item()} and math.isfinite(figures["letter"])
    assert all(".up." in name or ".time." in name or ".norm." in name for name in still)  # behind a map that begins at zero


def test_letters_are_heard_that_nobody_placed(tmp_path):
    task = task_of()
    batch = join([task.model.encoder.prepare(spoken(text)) for text in TEXTS]), TEXTS
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    for _ in range(30):
        loss, _ = task.losses(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [heard(task.model.eval(), spoken(text)) for text in ("ab", "ba", "bab")] == ["ab", "ba", "bab"]
    task.sample(tmp_path, 7)
    assert "'ab' -> 'ab'" in (tmp_path / "0000007.txt").read_text()


@pytest.mark.parametrize("text", ["a", "ab"])
def test_the_loss_is_nats_a_letter(text):
    """With scores that are all alike, each of the (n + u over 2 u) ways to write u letters at n vectors is as likely: L ** -n."""
    task = task_of(1)
    for p in task.model.letters.parameters():
        p.data.zero_()
    prepared, u = task.model.encoder.prepare(spoken("ab")), len(text)
    loss, _ = task.losses((prepared, [text]))
    n = len(prepared)
    assert task.size((prepared, [text])) == n
    assert abs(loss.item() - (n * math.log(len(LETTERS) + 1) - math.log(math.comb(n + u, 2 * u))) / u) < 1e-4


def test_a_batch_follows_from_its_step_and_its_parts_are_it():
    task = task_of()
    (one, texts), (again, _), (other, _) = task.batch(3), task.batch(3), task.batch(4)
    assert torch.equal(one.values_NF, again.values_NF) and sorted(texts) == sorted(TEXTS)
    assert one.values_NF.shape != other.values_NF.shape or gap(one.values_NF, other.values_NF) > 0
    parts = [task.share(3, n, 2) for n in range(2)]
    assert sum(task.size(part) for part in parts) == task.size((one, texts)) and sorted(parts[0][1] + parts[1][1]) == sorted(TEXTS)


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(TrainingError, match="2 of 8 clips are short enough, for batches of 8"):
        task_of(seconds=0.33)  # two letters are 0.32 seconds, and might be said more slowly
    with pytest.raises(TrainingError, match="batch_size=8 in 3 parts"):
        task_of().share(0, 0, 3)


def test_saved_is_loaded(tmp_path):
    model = task_of(blocks=2).model
    save_ears(tmp_path / "ears", model)
    again = load_ears(tmp_path / "ears")
    assert again.encoder.max_seconds == 2.0 and len(again.encoder.blocks) == 2
    prepared = model.encoder.prepare(spoken("ab"))
    assert gap(model(prepared), again(prepared)) == 0
    from mmgpt.checkpoint import write_folder

    write_folder(tmp_path / "other", {"ears.safetensors": {"x": torch.zeros(1)}}, {"ears.json": json.dumps({"width": 8, "blocks": 1})})
    with pytest.raises(CheckpointError, match="seconds"):
        load_ears(tmp_path / "other")


def test_a_model_hears_with_them():
    gpt = any_gpt()
    audio = SoundConfig(gpt.config.audio.codec, seconds=0.4, blocks=2)
    made = build_from(gpt, type(gpt.config)(**{**vars(gpt.config), "audio": audio}))
    ears = Ears(gpt.config.decoder.width, 2, 0.4)
    made.encoders["audio"].load_state_dict(ears.encoder.state_dict())
    prepared = ears.encoder.prepare(tone())
    assert gap(made.encoders["audio"](prepared), ears.encoder(prepared)) == 0


@pytest.mark.parametrize("words", [{"blocks": -1}, {"blocks": 2, "encoder": "frames"}])
def test_blocks_that_cannot_be_are_refused(words):
    with pytest.raises(InputError, match=f"blocks={words['blocks']}"):
        SoundConfig(**words)


def test_a_tower_that_stays_is_asked_once(monkeypatch, tmp_path):
    """What it heard before gives the loss that hearing now gives, and only the map behind it learns."""
    monkeypatch.setattr(ears, "varied", lambda sound, generator: sound)
    monkeypatch.setattr(ears, "masked", lambda values, parts, generator: values)
    torch.manual_seed(0)
    model, sounds = Ears(32, 1, 2.0, "whisper"), [spoken(text) for text in TEXTS]
    model.encoder.tower.requires_grad_(False)
    with torch.no_grad():
        known = [model.encoder.heard(model.encoder.prepare(sound)).half().numpy() for sound in sounds]
    now, before = EarTask(model, ROWS, sounds, 8), EarTask(model, ROWS, batch_size=8, heard=known)
    losses = [task.losses(task.batch(2))[0] for task in (now, before)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-3)
    losses[1].backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if ".tower." not in name}
    save_ears(tmp_path / "ears", model)
    again = load_ears(tmp_path / "ears")
    assert again.kind == "whisper" and gap(again.encoder(again.encoder.prepare(sounds[0])), model.encoder(model.encoder.prepare(sounds[0]))) == 0
    with pytest.raises(InputError, match="ears with encoder='frames': use one of mel, whisper"):
        Ears(32, 1, 2.0, "frames")


SURE = 9.0


def scores_of(letters: str) -> torch.Tensor:
    """Of each vector, a letter that is sure, or `_`, the blank."""
    score_TL = torch.zeros(len(letters), 1 + len(LETTERS))
    for n, letter in enumerate(letters):
        score_TL[n, 0 if letter == "_" else 1 + LETTERS.index(letter)] = SURE
    return score_TL


@pytest.mark.parametrize(
    "heard_as, pieces, starts",
    [
        ("__a_b_b c_", ["a", "bb", " c"], [0, 4, 7]),  # each where its first letter is, and what begins a word where the space is
        ("__ab__", ["a", "-", "b"], [0, 3, 3]),  # what has no letters begins with what follows
        ("ab____", ["a", "b", "!"], [0, 1, 6]),
        ("a_____", ["ab"], [0]),
        ("abc", ["Ab", "cdefg", "h"], [0, 0, 2]),  # more letters than vectors: spread evenly
        ("aa", ["a", "a"], [0, 1]),  # no room for the blank between
        ("__", ["-"], [0]),
    ],
)
def test_pieces_begin_where_their_letters_are_heard(heard_as, pieces, starts):
    assert beginnings(scores_of(heard_as), pieces) == starts


def test_words_stand_where_they_are_heard(monkeypatch, tmp_path):
    """Codes of speech with its pieces among them: those of clips, in their order, each at its frame; from what was heard before as from the sound."""
    monkeypatch.setattr(modalities, "CODES", tmp_path)
    gpt, text = any_gpt(quantizers=1, words=True), "a red cat"
    model = Ears(gpt.config.decoder.width, 1, 2.0, "whisper")
    row = Speech(sound_file(tone(1.0).samples.numpy()[:, None], 16_000, "WAV"), text, "tones", "name", "train", 1.0)
    heard_as = " ".join("a_ _red_ _cat")  # 25 vectors
    listened = []

    def scores(self, vectors_ND):
        listened.append(len(vectors_ND))
        return scores_of(heard_as.replace(" ", "_")[: len(vectors_ND)])

    monkeypatch.setattr(Ears, "scores", scores)
    codes, long = np.arange(25)[:, None] % 16, Speech(row.audio, text, "tones", "name", "train", 9.0)
    rows, given = [row, long, row], [codes, codes, codes[:0]]
    found = spelled(gpt, model, rows, given)
    first = gpt.ports["audio"].writes.num_codes
    pieces = found[0][found[0] >= first] - first
    assert gpt.ports["text"].codec.decode(pieces) == text and (found[0][found[0] < first] == codes[:, 0]).all()
    assert [len(some) for some in found[1:]] == [0, 0]
    assert found[0][0] >= first and (found[0][1:5] < first).any()
    again = spelled(gpt, model, [row, long, row], [codes + 1, codes, codes])
    assert again[0].tolist() == [[c + (c < first)] for (c,) in found[0].tolist()] and again[2].tolist() == found[0].tolist()
    assert len(listened) == 2 + 3  # the first one again, to see that it is the same
    spelled(gpt, model, [row, long, row], given[:2] + [codes])
    assert len(listened) == 2 + 3 + 1  # where words begin was kept


@pytest.mark.parametrize("encoder", ["mel", "whisper"])
def test_words_are_heard_by_the_ears_that_are_given(monkeypatch, tmp_path, encoder):
    """Where pieces begin are the beginnings of the scores that these ears give the sound, whatever the model hears with."""
    monkeypatch.setattr(modalities, "CODES", tmp_path)
    torch.manual_seed(0)
    gpt, text = any_gpt(quantizers=1, words=True), "a red cat"
    model = Ears(gpt.config.decoder.width, 1, 2.0, encoder)
    row = Speech(sound_file(tone(1.0).samples.numpy()[:, None], 16_000, "WAV"), text, "tones", "name", "train", 1.0)
    with torch.no_grad():
        scores_TL = model(model.encoder.prepare(row.sound))
    codec, first = gpt.ports["text"].codec, gpt.ports["audio"].writes.num_codes
    starts = beginnings(scores_TL, [codec.written(piece) for piece in codec.encode(text)[:, None]])
    (found,) = spelled(gpt, model, [row], [np.zeros((25, 1), int)])
    at = np.flatnonzero(found[:, 0] >= first)
    assert (at - np.arange(len(at))).tolist() == starts and len(set(starts)) > 1


def test_words_without_ears_are_refused(tmp_path):
    """At once, before anything is opened or coded."""
    save_codec(tmp_path / "codec", AudioCodec(AudioCodecConfig(levels=(4, 4), quantizers=1, width=16, blocks=1)))
    with pytest.raises(TrainingError, match="no ears to hear where they begin"):
        any_to_any(AnyOptions(words=True, codec=str(tmp_path / "codec"), data="nowhere"), Settings(), {"words": "true"})
