"""`import mmgpt` costs next to nothing: what is heavy is imported where it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torchvision", "torchaudio", "transformers", "tokenizers", "datasets", "pandas", "pyarrow", "torch._dynamo", "vector_quantize_pytorch"}


def loaded_by(code: str) -> set[str]:
    """Modules that a fresh interpreter holds after `code`."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())


def test_import_brings_nothing_along():
    assert not loaded_by("import mmgpt, mmgpt.cli") & (HEAVY | {"torch", "numpy", "PIL", "rich"})


def test_the_model_and_the_engine_bring_nothing_heavy_along():
    found = loaded_by("import mmgpt; mmgpt.load, mmgpt.GPT, mmgpt.Request, mmgpt.open_picture") & (HEAVY | {"rich"})
    assert not found - loaded_by("import torch"), found


def test_every_public_name_can_be_imported():
    import mmgpt

    for name in mmgpt.__all__:
        assert getattr(mmgpt, name).__name__ == name
    assert set(mmgpt.__all__) <= set(dir(mmgpt))
    with pytest.raises(AttributeError, match="nothing"):
        _ = mmgpt.nothing


def test_shapes_are_checked_in_tests():
    import torch
    from jaxtyping import TypeCheckError, config

    from mmgpt.generate.guidance import guide

    if config.jaxtyping_disable:
        pytest.skip("JAXTYPING_DISABLE is set")
    with pytest.raises(TypeCheckError, match="unconditional"):
        guide(torch.zeros(3), torch.zeros(4), 2.0)
