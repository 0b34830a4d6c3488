"""Models of every version of the format are read; a config that is damaged, or lies, is named in one line before any memory is taken."""

import json
from pathlib import Path

import pytest
import torch
from tiny import picture

from mmgpt import native
from mmgpt.checkpoint import read_folder, write_folder
from mmgpt.errors import MmgptError
from mmgpt.hub import load
from mmgpt.interop import composed  # noqa: F401  (so that its memory is not counted below)
from mmgpt.pack import pack
from mmgpt.types import Part

OLD = Path(__file__).parent / "data" / "format-1"
TENSORS, TEXTS = read_folder(OLD / "model")
CONFIG = json.loads(TEXTS["config.json"])
HUGE = 10**12


@torch.no_grad()
def test_a_model_of_format_1():
    """It computes what that version computed."""
    gpt = load(OLD / "model")
    document = gpt.write([Part(picture(0)), Part("caption:"), Part("a cat", learn=True)])
    wanted = json.loads((OLD / "expected.json").read_text())["losses"]
    assert gpt.losses(pack([document], gpt.spans))["text"].tolist() == pytest.approx(wanted["text"], rel=1e-4)
    assert all(tensor.dtype == torch.float16 for tensor in TENSORS["model.safetensors"].values())


def nested(depth: int) -> str:
    return '{"kind":"composed","decoder":' * depth + "{}" + "}" * depth


def of(part: str, **changes) -> str:
    return json.dumps(CONFIG | {part: CONFIG[part] | changes})


def with_(**changes) -> str:
    return json.dumps(CONFIG | changes)


DAMAGED = {
    "empty": "",
    "half": TEXTS["config.json"][:300],
    "a list": "[1]",
    "deep": "[" * 100_000,
    "a key twice": TEXTS["config.json"].replace("{", '{"picture": 8, ', 1),
    "no kind": json.dumps({key: value for key, value in CONFIG.items() if key != "kind"}),
    "another kind": with_(kind="os.system"),
    "kind of a wrong type": with_(kind=["native"]),
    "unknown key": with_(taste=1),
    "unknown key below": of("decoder", smell=1),
    "no decoder": json.dumps({key: value for key, value in CONFIG.items() if key != "decoder"}),
    "decoder is a number": with_(decoder=7),
    "decoder is nothing": with_(decoder=None),
    "text for a size": of("decoder", width="16"),
    "truth for a size": of("decoder", depth=True),
    "fraction for a size": of("decoder", depth=1.5),
    "nothing for a size": of("decoder", num_heads=None),
    "no heads": of("decoder", num_kv_heads=0),
    "negative": of("decoder", width=-16),
    "huge width": of("decoder", width=HUGE),
    "huge depth": of("decoder", depth=HUGE),
    "huge head": of("decoder", head_width=HUGE),
    "huge MLP": of("decoder", mlp_width=10**30),
    "huge table": with_(num_text=HUGE),
    "huge picture": with_(picture=2**40),
    "no picture": with_(picture=0),
    "huge codec": of("codec", width=8 * HUGE),
    "huge depth of a codec": of("codec", blocks=HUGE),
    "huge codebook": of("codec", levels=[HUGE, HUGE]),
    "text for a tuple": of("codec", levels="88"),
    "other sizes": of("decoder", width=32),
    "another depth": of("decoder", depth=2),
    "composed of itself": nested(100),
    "deeply": nested(400),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_config(tmp_path, text):
    """T-16: one line that names the folder or the setting; no memory is taken for what the file does not hold."""
    folder = write_folder(tmp_path / "one", TENSORS, TEXTS | {"config.json": text})
    before = peak_memory(again=True)
    with pytest.raises(MmgptError) as error:
        load(folder)
    assert "\n" not in str(error.value) and ": " in str(error.value)
    assert peak_memory() - before < 32 * 2**20


def peak_memory(again: bool = False) -> int:
    """Bytes that this process has held at most; `again`: since now. 0 where the system does not say."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if again:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_the_sound_config_is_read(tmp_path):
    assert native.load(write_folder(tmp_path / "one", TENSORS, TEXTS)).config == load(OLD / "model").config
