"""The backward stage: which parameters a training step updates."""
