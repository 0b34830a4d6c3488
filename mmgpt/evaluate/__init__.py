"""A checkpoint -> figures: captions, drawings, the codec."""
