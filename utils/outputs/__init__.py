"""Files that a run writes: models, pruned models, logs and pictures."""
