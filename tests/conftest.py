"""What all tests share: shapes in annotations are checked, few threads, a tiny untrained model, the pictures of the fixture."""

from dataclasses import replace
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
install_import_hook("mmgpt", f"{__name__}.checked")  # must stand before the first import of mmgpt; JAXTYPING_DISABLE=1 turns the checks off


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))  # fewer where OMP_NUM_THREADS says so


@pytest.fixture(scope="session")
def emoji40() -> Path:
    return Path(__file__).parent / "data" / "emoji40.parquet"


@pytest.fixture(scope="session")
def tiny():
    """Untrained, pictures of 16 x 16 pixels, answers of at most 8 ids: it never learned to stop."""
    from tiny import text_codec, tiny_gpt

    from mmgpt.native import build

    gpt = tiny_gpt()
    short = build(replace(gpt.config, max_text=8, left_out="emojione"), text_codec(), gpt.codecs["image"].codec).eval()
    short.load_state_dict(gpt.state_dict())
    return short


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    """The tiny model as a checkpoint folder."""
    from mmgpt.native import save

    return save(tiny, tmp_path_factory.mktemp("checkpoints") / "tiny", card="# tiny\n\nUntrained, for tests.\n")


@pytest.fixture(scope="session")
def any_folder(tmp_path_factory) -> Path:
    """A tiny model of all four modalities as a checkpoint folder."""
    from tiny import any_gpt

    from mmgpt.native import save

    return save(any_gpt(), tmp_path_factory.mktemp("checkpoints") / "any", card="# any\n\nUntrained, for tests.\n")


def pytest_collection_modifyitems(items):
    """Tests that fork this process come first: once autograd has threads of its own, nothing can be learned in a fork."""
    items.sort(key=lambda item: item.path.name != "test_ranks.py")
