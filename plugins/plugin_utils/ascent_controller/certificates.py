"""Certificates on the controller: what a PEM file says, and a small authority of a cluster's own.

The authority lives in a directory of the controller, readable for its owner alone::

    ca.key  ca.pem      the authority; ca.pem is what clients trust
    tls.key tls.crt     the endpoint's key, and its certificate with the authority's behind it
"""

from __future__ import annotations

__all__ = ["CA", "CA_DAYS", "DAYS", "RENEW_DAYS", "Certificate", "certificate", "ensure", "private_key_fits"]

import datetime
import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: The certificate that clients trust, in an authority's directory.
CA = "ca.pem"

#: Days that an endpoint's certificate and its authority hold, and how long before its end the first is renewed.
DAYS, CA_DAYS, RENEW_DAYS = 397, 3650, 30

# Clocks differ a little: what is made now holds since a day ago.
_BEFORE = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: whom it is for, and seconds since the epoch between which it holds."""

    names: frozenset[str]
    not_before: float
    not_after: float

    def covers(self, name: str) -> bool:
        """Whether it is for a host's name or address; a star stands for one label.

        >>> Certificate(frozenset(("*.example.org", "192.0.2.1")), 0, 0).covers("llm.example.org")
        True
        """
        first, _, rest = name.lower().partition(".")
        return name.lower() in self.names or bool(first and rest and f"*.{rest}" in self.names)


def certificate(text: str) -> Certificate:
    """The first certificate of a PEM text. ValueError when there is none."""
    found = x509.load_pem_x509_certificate(text.encode())
    names: set[str] = set()
    try:
        others = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        others = None
    if others is not None:
        names |= {name.lower() for name in others.get_values_for_type(x509.DNSName)}
        names |= {str(address) for address in others.get_values_for_type(x509.IPAddress)}
    return Certificate(frozenset(names), found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())


def private_key_fits(text: str, key: str) -> bool:
    """Whether a private key is that of a PEM text's first certificate. ValueError when it can't be read.

    A key with a passphrase is none that a server could start with by itself.
    """
    try:
        private = serialization.load_pem_private_key(key.encode(), password=None)
    except TypeError:
        raise ValueError("the private key has a passphrase") from None
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.public_key().public_bytes(*form) == x509.load_pem_x509_certificate(
        text.encode()
    ).public_key().public_bytes(*form)


def ensure(directory: Path, cluster: str, names: Iterable[str], now: float, *, write: bool = True) -> bool:
    """Make the authority and the endpoint's certificate where they are missing, too old, or for other names.

    Returns whether anything was, or without ``write`` would be, made. The authority itself is never replaced: all
    clients trust it. OSError when the directory can't be used, ValueError when what lies there is no certificate.
    """
    wanted = sorted({name.lower() for name in names if name})
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    ca_file, ca_key_file = directory / CA, directory / "ca.key"
    if not write:
        return not (ca_file.is_file() and ca_key_file.is_file() and _holds(directory, wanted, now))
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Several hosts' tasks want it at once.
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = not (ca_file.is_file() and ca_key_file.is_file())
        if made:
            _make_authority(directory, cluster, moment)
        renew = made or not _holds(directory, wanted, now)
        if renew:
            _issue(directory, cluster, wanted, moment)
    return renew


def _holds(directory: Path, wanted: list[str], now: float) -> bool:
    """Whether the endpoint's certificate is there, for these names, and good for a while."""
    try:
        text, key = ((directory / name).read_text(encoding="utf-8") for name in ("tls.crt", "tls.key"))
        found = certificate(text)
        authority = x509.load_pem_x509_certificate((directory / CA).read_bytes())
        x509.load_pem_x509_certificate(text.encode()).verify_directly_issued_by(authority)
        fits = private_key_fits(text, key)
    except Exception:  # whatever is wrong with it, a new one is the repair
        return False
    return fits and found.names == frozenset(wanted) and found.not_after - now > RENEW_DAYS * 86400


def _make_authority(directory: Path, cluster: str, moment: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Ascent cluster {cluster}")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        _begun(name, name, key.public_key(), moment, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _keep(directory / "ca.key", _pem(key))
    _keep(directory / CA, made.public_bytes(serialization.Encoding.PEM), 0o644)


def _issue(directory: Path, cluster: str, names: list[str], moment: datetime.datetime) -> None:
    authority = x509.load_pem_x509_certificate((directory / CA).read_bytes())
    signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{directory / 'ca.key'} is no key that was made here")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cluster} endpoint")])
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    made = (
        _begun(name, authority.subject, key.public_key(), moment, DAYS)
        .add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(signed_by, critical=False)
        .sign(signer, hashes.SHA256())
    )
    chain = made.public_bytes(serialization.Encoding.PEM) + authority.public_bytes(serialization.Encoding.PEM)
    _keep(directory / "tls.key", _pem(key))
    _keep(directory / "tls.crt", chain, 0o644)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, moment: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BEFORE)
        .not_valid_after(moment + datetime.timedelta(days=days))
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _keep(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file in one step; it never is readable for more than it is to be."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
