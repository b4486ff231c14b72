"""The embedded frozen models: their weights, and the scripts that trained them from scratch on rendered scenes."""
