"""What goes wrong for a user, in one line: what, where, and the remedy.

Everything that a user can cause is a `MezzotintError`; the command line prints its text alone and leaves
with its exit status. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MezzotintError(Exception):
    """A failure the user can act on; its text is the one line that they see."""

    exit_status = 1


class UsageError(MezzotintError):
    """The request itself is wrong: an unknown name, an impossible size."""

    exit_status = 2


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does.

    `raise unknown("sampler", "eular", SAMPLERS)` says
    ``unknown sampler 'eular'; did you mean 'euler'? (known: ddim, ddpm, ...)``.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    return UsageError(f"unknown {kind} '{name}'{hint} (known: {', '.join(names)})")
