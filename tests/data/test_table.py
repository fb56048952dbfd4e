"""Datasets saved on disk, and parquet files: rows become records, columns are chosen by type, and that is said."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mezzotint.data.doctor import check_folder
from mezzotint.data.shards import Access
from mezzotint.data.sources import find_layout, read_records
from mezzotint.data.table import chosen_columns
from mezzotint.errors import MezzotintError, UsageError
from shards import encoded

datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'mezzotint[datasets]'")


def rows(count=6):
    return {
        "id": [f"id-{i}" for i in range(count)],
        "caption": [f"number {i}" if i != 3 else "  " for i in range(count)],
        "picture": [{"bytes": encoded(i * 10), "path": f"{i}.png"} for i in range(count)],
        "kind": [i % 2 for i in range(count)],
    }


def table(content=None, **changes):
    features = {
        "id": datasets.Value("string"),
        "caption": datasets.Value("string"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["even", "odd"]),
    }
    return datasets.Dataset.from_dict(content or rows(), features=datasets.Features(features | changes))


def colours(records):
    return [int(np.asarray(Image.open(io.BytesIO(r.read())))[0, 0, 0]) for r in records]


@pytest.fixture(params=["arrow", "parquet"])
def folder(request, tmp_path):
    if request.param == "arrow":
        datasets.DatasetDict({"test": table(), "train": table()}).save_to_disk(str(tmp_path / "d"))
    else:
        whole = table()
        for i in range(2):
            part = whole.select(range(3 * i, 3 * i + 3))
            (tmp_path / "d" / "data").mkdir(parents=True, exist_ok=True)
            part.to_parquet(str(tmp_path / "d" / "data" / f"train-{i:05}-of-00002.parquet"))
        whole.to_parquet(str(tmp_path / "d" / "data" / "test-00000-of-00001.parquet"))
    return tmp_path / "d"


def test_rows_become_records(folder, tmp_path):
    assert find_layout(folder) == "table"
    access = Access(index=tmp_path / "cache")
    for one in (access, Access()):
        records = read_records(folder, access=one)
        assert colours(records) == [0, 10, 20, 30, 40, 50]  # of the split 'train' alone
        assert [r.captions for r in records][2:4] == [("number 2",), ()]
        assert [r.extra["class"] for r in records] == ["even", "odd"] * 3
        assert records[4].name == f"{folder}: row 4"
    assert chosen_columns(folder, {}) == ("picture", "caption", "kind")
    chosen = Access(columns={"caption": "id"})
    assert read_records(folder, access=chosen)[3].captions == ("id-3",)
    _, told, _ = check_folder(folder)
    assert told == "table (pictures: column 'picture', captions: column 'caption', classes: column 'kind')"
    for wrong, message in (
        ({"caption": "captoin"}, "unknown column of d 'captoin'; did you mean 'caption'"),
        ({"captions": "caption"}, r"unknown key of dataset\.columns 'captions'; did you mean 'caption'"),
    ):
        with pytest.raises(UsageError, match=message):
            read_records(folder, access=Access(columns=wrong))


def test_pictures_as_bytes_and_as_paths_and_lists_of_captions(tmp_path):
    (tmp_path / "p.png").write_bytes(encoded(77))
    plain = datasets.Dataset.from_dict({"png": [encoded(5), encoded(6)], "said": [["a", "b"], [""]]})
    plain.save_to_disk(str(tmp_path / "bytes"))
    records = read_records(tmp_path / "bytes")
    assert colours(records) == [5, 6]
    assert [r.captions for r in records] == [("a", "b"), ()]
    kinds = datasets.Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    )
    by_path = [{"bytes": None, "path": str(tmp_path / "p.png")}, {"bytes": None, "path": None}]
    datasets.Dataset.from_dict({"image": by_path}, features=kinds).save_to_disk(str(tmp_path / "paths"))
    records = read_records(tmp_path / "paths")
    assert colours(records[:1]) == [77]
    with pytest.raises(MezzotintError, match="row 1: column 'image' is empty"):
        records[1].read()


def test_refusals(tmp_path):
    datasets.Dataset.from_dict({"a": [1], "b": ["x"]}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"no column holds pictures \(a \(int64\), b \(string\)\)"):
        read_records(tmp_path / "none")
    datasets.DatasetDict({"dev": table(), "test": table()}).save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(UsageError, match="has the parts dev, test, none of them 'train'"):
        read_records(tmp_path / "parts")
    assert len(read_records(tmp_path / "parts" / "dev")) == 6
    state = tmp_path / "parts" / "dev" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    with pytest.raises(MezzotintError, match=r"dev cannot be read"):
        read_records(tmp_path / "parts" / "dev")
