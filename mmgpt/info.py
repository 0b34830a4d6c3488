"""A checkpoint folder -> what is in it, as lines for a terminal."""

from pathlib import Path

from mmgpt.checkpoint import MANIFEST, read_manifest
from mmgpt.decoders.transformer import num_parameters
from mmgpt.evaluate.report import report
from mmgpt.interop.compose import Composed
from mmgpt.model import GPT, Port
from mmgpt.native import NativeConfig


def info(folder: Path, gpt: GPT) -> str:
    """Files, parameters, sizes, layouts, vocabulary, codec, and the first lines of the model card."""
    if (folder / MANIFEST).is_file():
        files = {name: size(facts["bytes"]) for name, facts in read_manifest(folder)["files"].items()}
    else:
        files = {path.name: size(path.stat().st_size) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")}
    c = gpt.decoder.config
    figures = {
        "checkpoint": str(folder),
        "files": files,
        "parameters": {name: f"{count:,}" for name, count in parameters(gpt).items()},
        "decoder": {"width": c.width, "blocks": c.depth, "heads": f"{c.num_heads} of {c.head_width}, {c.num_kv_heads} for keys and values"},
        "longest": f"{gpt.max_length} positions",
        "vocabulary": {name: f"ids {span.start} to {span.stop - 1}" for name, span in gpt.spans.items()},
        "layouts": {name: layouts(port) for name, port in gpt.ports.items()},
    }
    if isinstance(gpt.config, NativeConfig):
        codec, side = gpt.config.codec, gpt.config.picture
        figures["image codec"] = {"stride": codec.stride, "levels": codec.levels, "codes": codec.num_codes, "picture": f"{side} x {side} pixels"}
    if isinstance(gpt.config, Composed):
        figures["parts"] = parts(gpt.config)
        figures["trained"] = {name: policy.how for name, policy in gpt.config.policy.items()}
    return "\n".join([report(figures), *card(folder / "README.md")])


def size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes:,} bytes"


def parameters(gpt: GPT) -> dict[str, int]:
    """Each part's parameters. Heads are views of the table's rows: what they own themselves is in `all` only."""
    parts = {"all": gpt, "table of ids": gpt.table, "decoder": gpt.decoder, "encoders": gpt.encoders, "codecs": gpt.codecs}
    return {name: num_parameters(part) for name, part in parts.items()}


def parts(config: Composed) -> dict[str, str]:
    """What was put to the decoder, and before that to the decoder's own model, if that was composed too."""
    inner = parts(config.decoder) if isinstance(config.decoder, Composed) else {}
    return inner | {name: facts.get("config", {}).get("model_type", facts["kind"]) for name, facts in config.parts.items()}


def layouts(port: Port) -> dict[str, str]:
    """How a modality is read and written: the layout and the number of slots of one segment, where that is fixed."""
    lines = {}
    if port.reads is not None:
        lines["read"] = f"{type(port.reads).__name__}: {'vectors that read each other' if port.reads.whole else 'vectors'}"
    elif port.codec is not None:
        lines["read"] = "as it is written"
    if port.writes is not None:
        sides = " x ".join(map(str, port.grid[port.grid[0] == 1 :])) if port.grid else ""
        grid = f", {sides} codes in {len(port.writes.script(port.grid))} positions" if port.grid else ""
        lines["written"] = f"{type(port.writes).__name__}{grid}"
    return lines


def card(path: Path, lines: int = 12) -> list[str]:
    return ["", *path.read_text().splitlines()[:lines]] if path.is_file() else []
