"""`python -m mezzotint` is the command `mezzotint`."""

from .cli import main

main()
