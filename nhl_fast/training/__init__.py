"""Settings, trainer, checkpoints, run folders, comparison."""
