"""Without the extra, a dataset is refused in one line that says how to get it."""

import sys

import pytest

from mezzotint.data.sources import read_records
from mezzotint.errors import UsageError


def test_without_the_extra_it_says_so(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'mezzotint\[datasets\]'"):
        read_records(tmp_path)
