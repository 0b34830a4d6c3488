"""Video <-> (frames, h, w) codes: the image codec, frame by frame."""

import numpy as np
from jaxtyping import Int

from mmgpt.decoders.image_codec import ImageCodec, PictureCodec
from mmgpt.encoders.video import check, evenly
from mmgpt.types import Video


class VideoCodec:
    """`frames` pictures of `side` x `side` pixels, evenly chosen of those that there are, shown `fps` a second when they are decoded.

    It sees the image codec, but does not own it: its weights are saved once, with the pictures'.
    """

    def __init__(self, codec: ImageCodec, side: int, frames: int, fps: float):
        self.picture, self.frames, self.fps = PictureCodec(codec, side), frames, fps
        self.num_codes = codec.num_codes

    def encode(self, value: Video, /) -> Int[np.ndarray, "T h w"]:
        check(value)
        return self.picture.encode_all([value.frames[n] for n in evenly(len(value.frames), self.frames)])

    def decode(self, codes: Int[np.ndarray, "T h w"], /) -> Video:
        return Video(tuple(self.picture.decode(frame) for frame in codes[:, None]), self.fps)
