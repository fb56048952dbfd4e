"""mezzotint: a complete diffusion image-generation system."""

__version__ = "0.1.0"
