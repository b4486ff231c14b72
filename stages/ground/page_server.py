"""How the page is served: a port that is free, a folder for what Gradio writes, looks that need no other machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from manifests.errors import PipelineError


def theme() -> gr.themes.Base:
    """System fonts only: none is fetched."""
    sans = [gr.themes.utils.fonts.Font(name) for name in ("system-ui", "Segoe UI", "Roboto", "sans-serif")]
    mono = [gr.themes.utils.fonts.Font(name) for name in ("ui-monospace", "monospace")]
    return gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", radius_size="md", spacing_size="md", font=sans, font_mono=mono
    )


def free_port(host: str, port: int) -> int:
    """The port, or any for 0. PipelineError where it is taken or may not be used, or the host is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a page that has just ended is not in the way
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            raise taken(host, port) from None
        return int(probe.getsockname()[1])


def taken(host: str, port: int) -> PipelineError:
    return PipelineError(f"no page at {host}:{port}, it is taken or not this machine's: give another --port or --host")


@contextmanager
def environment(folder: str) -> Iterator[None]:
    """Where Gradio writes, and how soon it sees that a tab was closed (seconds): it takes both from here alone."""
    variables = {"GRADIO_TEMP_DIR": folder, "GRADIO_HEARTBEAT_INTERVAL": "2"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
