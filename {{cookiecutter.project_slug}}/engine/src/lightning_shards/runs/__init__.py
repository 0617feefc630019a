"""The folder that a training leaves behind: its name, its files, its checkpoints."""
