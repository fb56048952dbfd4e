"""mezzotint: a diffusion image-generation system that reads like the textbook.

    import mezzotint
    picture = mezzotint.load("emoji")("a red apple")

Names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Pipeline, load
    from .request import Request

__version__ = "0.1.0"
__all__ = ["Pipeline", "Request", "__version__", "load"]

_HOME = {"Pipeline": "pipeline", "Request": "request", "load": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mezzotint' has no attribute '{name}'")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
