"""Content Credentials (C2PA 2): a signed manifest inside a picture's file that says how it came about.

The signature binds the claim (made by a machine, by which program) to the file's bytes: whoever changes either breaks
it. Who signed is another question: a certificate that one has made oneself says that the same key signed, and no more;
one from an authority says whose key it is. The pixels, the recipe and the other labels stay as they are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import __version__
from ..errors import MezzotintError
from .atomic import new_file, write_file
from .recipe import SOURCE_TYPE

CERTIFICATES, KEY = (
    "certificates.pem",
    "key.pem",
)  # in an operator's folder: the signer's first, then who vouches for it
YEARS = 10  # that a certificate lasts that is made here
CREATED, ACTIONS = "c2pa.created", ("c2pa.actions.v2", "c2pa.actions")
QUIET = {  # no address that a file names is asked for anything; no second, smaller picture goes along
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}


@dataclass(frozen=True)
class Signing:
    """Certificates and the key that belongs to the first of them, both PEM."""

    certificates: bytes
    key: bytes = field(repr=False)
    algorithm: str = "es256"

    @classmethod
    def read(cls, folder: Path) -> Signing:
        """Those in a folder (`CERTIFICATES`, `KEY`), which are made there if there are none.

        Raises MezzotintError if one is missing, they do not belong together, or C2PA knows no such key.
        """
        library()
        paths = [folder / CERTIFICATES, folder / KEY]
        there = [path for path in paths if path.is_file()]
        if not there:
            _write_own(*paths)
        elif len(there) == 1:
            raise MezzotintError(
                f"{folder} has {there[0].name} alone; lay {CERTIFICATES} and {KEY} there, or neither"
            )
        try:
            certificates, key = (path.read_bytes() for path in paths)
        except OSError as error:
            raise MezzotintError(f"{error.filename} cannot be read ({error.strerror})") from error
        return cls(certificates, key, _algorithm(folder, certificates, key))


def signed(data: bytes, signing: Signing, *, kind: str, source: str) -> bytes:
    """A picture's file with a manifest: `kind` is png, jpeg or webp, `source` IPTC's word for how it came about.

    Raises MezzotintError if the certificate does not do.
    """
    c2pa = library()
    agent = {"name": "mezzotint", "version": __version__}
    action = {"action": CREATED, "digitalSourceType": SOURCE_TYPE + source, "softwareAgent": agent}
    manifest = {
        "claim_generator_info": [agent],
        "format": f"image/{kind}",
        "assertions": [{"label": ACTIONS[0], "data": {"actions": [action]}}],
    }
    made = io.BytesIO()
    info = c2pa.C2paSignerInfo(
        alg=signing.algorithm.encode(), sign_cert=signing.certificates, private_key=signing.key, ta_url=None
    )
    try:
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=_context("")) as builder:
            builder.sign(signer, f"image/{kind}", io.BytesIO(data), made)
    except c2pa.C2paError as error:
        raise MezzotintError(f"the picture cannot be signed with this certificate ({error})") from error
    return made.getvalue()


def read_credentials(data: bytes, *, trusted: bytes = b"") -> dict[str, Any] | None:
    """What a picture's manifest says and how far it holds; None if it has none.

    {"state": "trusted" (signed by whom one of the certificates `trusted`, PEM, vouches for), "valid" (unchanged since
    it was signed, by whomever), "invalid" (changed, or not signed well) or "unread" (they lie elsewhere, or mezzotint's
    c2pa extra is not installed), "signer", "generator", "source": IPTC's word, "why": what does not hold}. Nothing is
    fetched. Raises MezzotintError if the certificates cannot be read.
    """
    if b"c2pa" not in data:  # each manifest has its name in it
        return None
    try:
        c2pa = library()
    except MezzotintError as error:
        return {"state": "unread", "signer": None, "generator": None, "source": None, "why": [str(error)]}
    try:
        context = _context(trusted.decode())
    except (c2pa.C2paError, ValueError) as error:
        raise MezzotintError(f"the certificates to trust cannot be read ({_line(error)})") from error
    try:
        reader = c2pa.Reader.try_create(None, io.BytesIO(data), context=context)
        if reader is None:
            return None
        with reader:
            manifest = reader.get_active_manifest() or {}
            state, results = reader.get_validation_state(), reader.get_validation_results() or {}
    except (c2pa.C2paError, ValueError) as error:
        state, why = "invalid", _line(error)
        if why.startswith("Remote"):
            state, why = "unread", "they lie at an address that the file names, and nothing is fetched"
        return {"state": state, "signer": None, "generator": None, "source": None, "why": [why]}
    by = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    failures = (results.get("activeManifest") or {}).get("failure") or []
    return {
        "state": str(state).lower(),
        "signer": " / ".join(filter(None, [by.get("issuer"), by.get("common_name")])) or None,
        "generator": " ".join(str(generators[0][key]) for key in ("name", "version") if key in generators[0])
        or None,
        "source": _source(manifest),
        "why": [_line(each.get("explanation") or each.get("code")) for each in failures],
    }


def library() -> ModuleType:
    """The c2pa package; MezzotintError if it is not installed."""
    try:
        import c2pa
        import cryptography  # noqa: F401  (which it needs to sign)
    except ImportError as error:
        raise MezzotintError(
            f"Content Credentials need more packages ({error.name}): pip install 'mezzotint[c2pa]'"
        ) from error
    return c2pa


@lru_cache(4)
def _context(trusted: str) -> Any:
    anchors: Mapping[str, Any] = {"trust": {"user_anchors": trusted}} if trusted else {}
    return library().Context.from_dict({**QUIET, **anchors})


def _source(manifest: Mapping[str, Any]) -> str | None:
    """IPTC's word for how the picture came about, from the last action that has one."""
    found = [
        str(action["digitalSourceType"]).rpartition("/")[2]
        for assertion in manifest.get("assertions") or ()
        if assertion.get("label") in ACTIONS
        for action in assertion.get("data", {}).get("actions", ())
        if action.get("digitalSourceType")
    ]
    return found[-1] if found else None


def _line(text: object) -> str:
    return " ".join(str(text).split())[:200]


# --- certificates ---


def _algorithm(folder: Path, certificates: bytes, key: bytes) -> str:
    """C2PA's name for the key's way of signing."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(key, None)
        first = x509.load_pem_x509_certificates(certificates)[0]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MezzotintError(
            f"{folder}: {CERTIFICATES} or {KEY} is damaged or locked ({_line(error)})"
        ) from error
    if first.public_key() != private.public_key():
        raise MezzotintError(f"{folder}: {KEY} does not belong to the first certificate in {CERTIFICATES}")
    if isinstance(private, ec.EllipticCurvePrivateKey):
        known = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if private.curve.name in known:
            return known[private.curve.name]
    elif isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    elif isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise MezzotintError(
        f"{folder}: C2PA signs with P-256, P-384, P-521, RSA or Ed25519 keys, and this is none"
    )


def _write_own(certificates: Path, key: Path) -> None:
    """A key, a certificate for it, and the root that vouches for that one, whose own key is thrown away."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    own, root = keys
    names = [
        x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "mezzotint, self-made"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{what} {x509.random_serial_number() % 10**8:08}"),
            ]
        )
        for what in ("signer", "root")
    ]
    made = []
    for name, private in zip(names, keys, strict=True):
        authority = private is root
        builder = (
            x509.CertificateBuilder(names[1], name, private.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not authority, content_commitment=False, key_encipherment=False,
                    data_encipherment=False, key_agreement=False, key_cert_sign=authority, crl_sign=authority,
                    encipher_only=False, decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
        )  # fmt: skip
        if not authority:
            usage = x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.EMAIL_PROTECTION]
            )  # what C2PA asks of a signer
            builder = builder.add_extension(usage, critical=False)
        made.append(builder.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM))
    with new_file(key) as part, os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.write(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_file(certificates, b"".join(made))
