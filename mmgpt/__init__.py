"""One GPT that reads and writes text, pictures, sound and video: segments in, one stream of vectors, segments out."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# name -> module that defines it: imported on first use, so that `import mmgpt` costs next to nothing
_WHERE = {
    "load": "mmgpt.hub",
    "save": "mmgpt.hub",
    "compose": "mmgpt.interop.compose",
    "GPT": "mmgpt.model",
    "Port": "mmgpt.model",
    "Audio": "mmgpt.types",
    "Video": "mmgpt.types",
    "Part": "mmgpt.types",
    "Request": "mmgpt.generate.request",
    "Sampling": "mmgpt.generate.sampling",
    "Guidance": "mmgpt.generate.guidance",
    "Engine": "mmgpt.generate.engine",
    "Conversation": "mmgpt.chat",
    "open_picture": "mmgpt.data.pictures",
    "save_picture": "mmgpt.data.pictures",
    "open_sound": "mmgpt.data.sound",
    "save_sound": "mmgpt.data.sound",
    "open_video": "mmgpt.data.moving",
    "save_video": "mmgpt.data.moving",
    "MmgptError": "mmgpt.errors",
    "InputError": "mmgpt.errors",
    "LengthError": "mmgpt.errors",
    "CheckpointError": "mmgpt.errors",
    "DataError": "mmgpt.errors",
    "GuidanceError": "mmgpt.errors",
    "TrainingError": "mmgpt.errors",
}
__all__ = [*_WHERE]

if TYPE_CHECKING:
    from mmgpt.chat import Conversation
    from mmgpt.data.moving import open_video, save_video
    from mmgpt.data.pictures import open_picture, save_picture
    from mmgpt.data.sound import open_sound, save_sound
    from mmgpt.errors import CheckpointError, DataError, GuidanceError, InputError, LengthError, MmgptError, TrainingError
    from mmgpt.generate.engine import Engine
    from mmgpt.generate.guidance import Guidance
    from mmgpt.generate.request import Request
    from mmgpt.generate.sampling import Sampling
    from mmgpt.hub import load, save
    from mmgpt.interop.compose import compose
    from mmgpt.model import GPT, Port
    from mmgpt.types import Audio, Part, Video


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'mmgpt' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
