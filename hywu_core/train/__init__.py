"""Training: recipes for every shipped model, one loop, resumable checkpoints."""
