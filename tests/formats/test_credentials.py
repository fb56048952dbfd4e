"""Content Credentials, read back by C2PA's own reader."""

import io
import stat
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("c2pa", reason="the c2pa extra is not installed")

import c2pa

from mezzotint.errors import MezzotintError
from mezzotint.formats.credentials import CERTIFICATES, KEY, Signing, read_credentials
from mezzotint.formats.image import encode_image, read_recipe, read_source
from mezzotint.mark import find, marked
from mezzotint.origin import origin

RECIPE = {"prompt": "a red apple", "seed": 7, "version": "mezzotint 0", "width": 256, "height": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signing") / "own"


@pytest.fixture(scope="module")
def signing(folder):
    return Signing.read(folder)


@pytest.fixture(scope="module")
def picture():
    smooth = np.random.default_rng(0).integers(40, 215, (8, 8, 3), dtype=np.uint8)
    return marked(Image.fromarray(smooth).resize((256, 256), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    ("recipe", "source"),
    [(RECIPE, "trainedAlgorithmicMedia"), (RECIPE | {"image": {}} | {"image": {"sha256": "0"}}, None)],
)
def test_the_reader_of_c2pa_finds_what_was_signed(signing, picture, kind, recipe, source):
    data = encode_image(picture, recipe, kind=kind, signing=signing)
    reader = c2pa.Reader(f"image/{kind}", io.BytesIO(data))
    assert reader.get_validation_state() == "Valid"
    failures = reader.get_validation_results()["activeManifest"]["failure"]
    assert [each["code"] for each in failures] == ["signingCredential.untrusted"]
    (assertion,) = reader.get_active_manifest()["assertions"]
    (action,) = assertion["data"]["actions"]
    assert action["action"] == "c2pa.created"
    word = source or "compositeWithTrainedAlgorithmicMedia"
    assert action["digitalSourceType"] == f"http://cv.iptc.org/newscodes/digitalsourcetype/{word}"
    assert read_credentials(data)["source"] == read_source(data) == word


def test_pixels_recipe_label_and_mark_are_as_without(signing, picture):
    plain = encode_image(picture, RECIPE)
    with_manifest = encode_image(picture, RECIPE, signing=signing)
    assert len(with_manifest) < len(plain) + 25_000
    images = [Image.open(io.BytesIO(data)) for data in (plain, with_manifest)]
    assert np.array_equal(*map(np.asarray, images))
    assert read_recipe(with_manifest) == read_recipe(plain) == RECIPE
    assert read_source(with_manifest) == "trainedAlgorithmicMedia"
    assert find(images[1].convert("RGB")).sure


def test_how_sure_it_is_depends_on_who_is_believed(signing, picture):
    data = encode_image(picture, RECIPE, signing=signing)
    told = read_credentials(data)
    assert (told["state"], told["source"]) == ("valid", "trainedAlgorithmicMedia")
    assert told["generator"].startswith("mezzotint")
    assert "self-made" in told["signer"]
    assert read_credentials(data, trusted=signing.certificates)["state"] == "trusted"
    assert "nobody known vouches" in origin(data)["says"]
    assert "whom you trust" in origin(data, trusted=signing.certificates)["says"]
    for wrong in (b"no certificates", b"\xff"):  # says nothing of the picture
        with pytest.raises(MezzotintError, match="to trust cannot be read"):
            read_credentials(data, trusted=wrong)


def test_who_changes_the_picture_breaks_the_signature(signing, picture):
    data = encode_image(picture, RECIPE, kind="jpeg", signing=signing)
    other = bytearray(data)
    other[-40] ^= 1  # in the pixels
    told = read_credentials(bytes(other), trusted=signing.certificates)
    assert told["state"] == "invalid"
    assert "do not hold" in origin(bytes(other))["says"]
    assert read_credentials(encode_image(picture, RECIPE)) is None
    assert read_credentials(data[: len(data) // 8])["state"] == "invalid"


def test_the_key_stays_and_nobody_else_reads_it(folder, signing):
    assert Signing.read(folder) == signing
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600


def test_what_does_not_belong_together_is_told(folder, signing, tmp_path):
    other = Signing.read(tmp_path / "other")
    (tmp_path / KEY).write_bytes(other.key)
    with pytest.raises(MezzotintError, match=f"{KEY} alone"):
        Signing.read(tmp_path)
    (tmp_path / CERTIFICATES).write_bytes(signing.certificates)
    with pytest.raises(MezzotintError, match="does not belong"):
        Signing.read(tmp_path)
    (tmp_path / KEY).write_bytes(b"no key")
    with pytest.raises(MezzotintError, match="damaged"):
        Signing.read(tmp_path)


def test_no_address_in_a_file_is_asked_for_anything(signing, picture):
    """A manifest may lie elsewhere, and the file name where: asking there would be a request of the file's choosing."""
    import http.server
    import threading

    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    action = {"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [action]}}
    manifest = {"claim_generator_info": [{"name": "x"}], "format": "image/jpeg", "assertions": [actions]}
    held, given = io.BytesIO(), io.BytesIO(encode_image(picture, RECIPE, kind="jpeg"))
    builder = c2pa.Builder(manifest)
    builder.set_no_embed()
    builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest.c2pa")
    info = c2pa.C2paSignerInfo(b"es256", signing.certificates, signing.key, None)
    builder.sign(c2pa.Signer.from_info(info), "image/jpeg", given, held)
    asked.clear()
    assert b"manifest.c2pa" in held.getvalue()
    assert read_credentials(held.getvalue())["state"] == "unread"
    origin(held.getvalue())
    assert asked == []
    with suppress(c2pa.C2paError):
        c2pa.Reader("image/jpeg", io.BytesIO(held.getvalue()))
    assert asked == ["/manifest.c2pa"]  # left to itself, that library does ask
    server.shutdown()
