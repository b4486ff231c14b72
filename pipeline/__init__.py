"""Running things: the commands, presets, the Ray runtime, progress and logging."""
