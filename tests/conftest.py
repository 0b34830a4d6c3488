"""What all tests share: shapes in annotations are checked, few threads, a tiny untrained model, the pictures of the fixture."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("mmgpt", "beartype.beartype")  # must stand before the first import of mmgpt; JAXTYPING_DISABLE=1 turns the checks off


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def emoji40() -> Path:
    return Path(__file__).parent / "data" / "emoji40.parquet"


@pytest.fixture(scope="session")
def tiny():
    from tiny import tiny_gpt

    return tiny_gpt()


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    """The tiny model as a checkpoint folder."""
    from mmgpt.native import save

    return save(tiny, tmp_path_factory.mktemp("checkpoints") / "tiny", card="# tiny\n\nUntrained, for tests.\n")
