"""Data of a task: sources, splits, augmentation and what turns raw rows into model inputs."""
