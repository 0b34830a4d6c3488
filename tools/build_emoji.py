"""Public npm packages of open emoji artists -> a parquet file of 64x64 pictures with names, tags, groups, artists and a split.

    python tools/build_emoji.py emoji.parquet     # all 12,265 pictures, about two minutes
    python tools/build_emoji.py --fixture         # only tests/data/emoji40.parquet and examples/pictures/*.png

Needs `npm` and `pip install pillow pyarrow resvg-py`. Licences of the artwork: tests/data/README.md.
The test split, a tenth of the concepts, is listed in tools/emoji_test_concepts.txt: a rebuilt file never trains on what is tested.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIZE = 64
NAMES = "emojibase-data@17.0.0"
PACKAGES = {
    "twemoji": "@discordapp/twemoji@16.0.1",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
}
EXAMPLES = {  # all of the test split: no checkpoint has trained on these things
    "cat face": "twemoji", "red apple": "fluent-3d", "octopus": "fluent-flat", "key": "emojione",
    "jack-o-lantern": "fxemoji", "crab": "fluent-3d", "bell": "twemoji", "sun with face": "emojione",
}  # fmt: skip
FIXTURE = [  # (name, artists); the test split has red heart, top hat, waving hand: dark skin tone, hammer and ship
    ("red heart", "twemoji fluent-3d fluent-flat emojione fxemoji"),
    ("dog face", "twemoji fluent-3d fluent-flat emojione"),
    ("banana", "twemoji fluent-3d fluent-flat emojione"),
    ("rocket", "twemoji fluent-3d emojione fxemoji"),
    ("top hat", "twemoji fluent-flat emojione fxemoji"),
    ("soccer ball", "twemoji fluent-3d fluent-flat"),
    ("grinning face with big eyes", "twemoji fluent-3d"),
    ("thumbs up", "twemoji fluent-flat"),
    ("thumbs up: medium skin tone", "twemoji fluent-3d"),
    ("woman cook: dark skin tone", "twemoji fluent-flat"),
    ("waving hand: dark skin tone", "twemoji fluent-3d"),
    ("hammer", "fluent-flat fxemoji"),
    ("ship", "twemoji"),
    ("check mark button", "twemoji"),
    ("flag: France", "twemoji"),
    ("regional indicator A", "twemoji"),
]
FEATURES = {name: {"dtype": "string", "_type": "Value"} for name in ("label", "group", "style", "hexcode", "split")} | {
    "image": {"_type": "Image"},
    "tags": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "skin": {"dtype": "bool", "_type": "Value"},
}
COLUMNS = [
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.string()), ("tags", pa.list_(pa.string())),
    ("group", pa.string()), ("style", pa.string()), ("skin", pa.bool_()), ("hexcode", pa.string()), ("split", pa.string()),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, help="parquet file to write")
    parser.add_argument("--fixture", action="store_true", help="write the small committed files instead")
    arguments = parser.parse_args()
    if bool(arguments.output) == arguments.fixture:
        parser.error("give either an output file or --fixture")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.fixture:
            write_fixture(Path(folder))
        else:
            concepts = read_concepts(download(NAMES, Path(folder)))
            write(arguments.output, [row for style in PACKAGES for row in rows_of(style, concepts, Path(folder))])


def write_fixture(folder: Path) -> None:
    concepts = read_concepts(download(NAMES, folder))
    wanted = {(name, style) for name, styles in FIXTURE for style in styles.split()}
    rows = {(row["label"], row["style"]): row for style in PACKAGES for row in rows_of(style, concepts, folder, wanted | set(EXAMPLES.items()))}
    if missing := (wanted | set(EXAMPLES.items())) - set(rows):
        sys.exit(f"not drawn by that artist: {sorted(missing)}; change FIXTURE or EXAMPLES")
    write(ROOT / "tests/data/emoji40.parquet", [rows[key] for key in sorted(wanted)])
    for key in EXAMPLES.items():
        if rows[key]["split"] != "test":
            sys.exit(f"{key[0]} is in the training split; examples must come from the test split")
        path = ROOT / "examples/pictures" / f"{slug(key[0])}-{key[1]}.png"
        Image.open(io.BytesIO(rows[key]["image"]["bytes"])).save(path, optimize=True)


def write(path: Path, rows: list[dict]) -> None:
    features = {name: FEATURES[name] for name, _ in COLUMNS}
    schema = pa.schema(COLUMNS, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd", row_group_size=1000)
    print(f"{path}: {len(rows)} pictures, {path.stat().st_size} bytes")


def download(package: str, folder: Path) -> Path:
    """`npm pack` of one pinned version; the folder with its content."""
    run = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"npm pack {package} failed: {run.stderr.strip() or run.stdout.strip()}")
    target = folder / slug(package)
    with tarfile.open(folder / run.stdout.strip().splitlines()[-1]) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def read_concepts(package: Path) -> dict[str, dict]:
    """Code points without FE0F -> the columns that do not depend on the artist; skin tones belong to the concept of their base."""
    groups = {group["order"]: group["key"] for group in json.loads((package / "en/messages.json").read_text("utf-8"))["groups"]}
    held_out = set((ROOT / "tools/emoji_test_concepts.txt").read_text("utf-8").splitlines())
    concepts = {}
    for base in json.loads((package / "en/data.json").read_text("utf-8")):
        for entry in [base, *base.get("skins", [])]:
            concepts[bare(entry["hexcode"])] = {
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups[entry.get("group", 2)],  # regional indicators have none: component
                "skin": "tone" in entry,
                "hexcode": entry["hexcode"],
                "split": "test" if base["label"] in held_out else "train",
            }
    return concepts


def rows_of(style: str, concepts: dict, folder: Path, wanted: set | None = None) -> Iterator[dict]:
    """One row for each concept that this artist has drawn (and that is wanted)."""
    drawings = find_drawings(download(PACKAGES[style], folder), style, concepts)
    for code in sorted(drawings):
        if wanted is None or (concepts[code]["label"], style) in wanted:
            content = io.BytesIO()
            drawings[code]().save(content, "WEBP", lossless=True)
            yield {"image": {"bytes": content.getvalue(), "path": None}, "style": style, **concepts[code]}


def find_drawings(package: Path, style: str, concepts: dict) -> dict:
    """Code points -> a function that returns the picture."""
    if style == "twemoji":
        paths = {bare(path.stem): path for path in (package / "dist/svg").glob("*.svg")}
        return {code: partial(render, path.read_text("utf-8")) for code, path in paths.items() if code in concepts}
    if style == "fluent-3d":
        paths = {bare(path.stem): path for path in (package / "assets").glob("*.webp")}
        return {code: partial(shrink, path) for code, path in paths.items() if code in concepts}
    icons = json.loads((package / "icons.json").read_text("utf-8"))
    if style == "fluent-flat":
        names = {bare(code): name for code, name in json.loads((package / "chars.json").read_text("utf-8")).items()}
    else:  # known by name only; fxemoji writes most names without hyphens
        spellings = {code: (slug(concept["label"]), slug(concept["label"], "")) for code, concept in concepts.items()}
        names = {code: name for code, pair in spellings.items() for name in pair if name in icons["icons"]}
    return {code: partial(render, icon_svg(icons, name)) for code, name in names.items() if code in concepts}


def icon_svg(icons: dict, name: str) -> str:
    """An icon of an iconify set as SVG; an alias may be the mirror image of its parent."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    body = f'<g transform="translate({width} 0) scale(-1 1)">{icon["body"]}</g>' if alias.get("hFlip") else icon["body"]
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">{body}</svg>'


def render(svg: str) -> Image.Image:
    try:
        import resvg_py
    except ModuleNotFoundError:
        sys.exit("resvg-py is missing, it renders the SVG drawings: pip install resvg-py")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    return on_white(Image.open(io.BytesIO(bytes(png))))


def shrink(path: Path) -> Image.Image:
    return on_white(Image.open(path))


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)  # four drawings are not square and are stretched
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def bare(hexcode: str) -> str:
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def slug(name: str, joint: str = "-") -> str:
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", joint, plain).strip("-")


if __name__ == "__main__":
    main()
