"""Models of others <-> models of ours: released checkpoints, pretrained parts, transformers."""
