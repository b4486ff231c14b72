"""The embedded default data: rendered scenes, written in the official on-disk formats of RefCOCO and PNG."""
