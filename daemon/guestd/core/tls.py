"""The TLS context of a client: from the files that options or settings name, each used or refused, never ignored."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from guestd.core.errors import ConfigError
from guestd.core.secrets import require_private


@dataclass(frozen=True, slots=True)
class TlsFile:
    """A file and the option or setting that names it; an empty path: not given."""

    named_by: str
    path: str

    def __bool__(self) -> bool:
        return bool(self.path)

    def __str__(self) -> str:
        return f"{self.named_by} {self.path}"


def make_client_context(authorities: TlsFile, certificate: TlsFile, key: TlsFile) -> ssl.SSLContext:
    """A context that verifies the server; without `authorities` against the system's.

    A certificate without a key has it in the same file. Raises ConfigError for a key without a certificate, for a file
    that cannot be used, and for a key that every user of this machine can read.
    """
    if key and not certificate:
        raise ConfigError(f"{key.named_by} needs {certificate.named_by}: name the certificate of the key as well")
    try:
        context = ssl.create_default_context(cafile=authorities.path or None)
    except OSError as exc:  # an SSLError is one too
        raise ConfigError(f"{authorities}: {explain_unusable(exc, authorities.path, '')}") from exc
    if certificate:
        load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: TlsFile, key: TlsFile) -> None:
    """Load a certificate and its key. Raises ConfigError as `make_client_context` does."""
    holder = key or certificate
    require_private(Path(holder.path), holder.named_by)
    named = f"{certificate}, {key}" if key else f"{certificate}, without {key.named_by}"
    try:
        context.load_cert_chain(certificate.path, key.path or None, _refuse_passphrase(holder))
    except OSError as exc:
        raise ConfigError(f"{named}: {explain_unusable(exc, certificate.path, holder.path)}") from exc


def explain_unusable(exc: OSError, certificate: str, key: str) -> str:
    """Why these files were refused, as a sentence: OpenSSL's own texts name no file. An empty path: not given."""
    if not isinstance(exc, ssl.SSLError):
        return exc.strerror or str(exc)
    for path, label, content in ((certificate, b"CERTIFICATE-----", "certificate"), (key, b"KEY-----", "private key")):
        if path and label not in Path(path).read_bytes():
            return f"{path} has no {content} in PEM"
    if exc.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return f"the certificate{' or the key' if key else ''} is damaged: {exc.reason or exc}"


def explain_unconnected(exc: Exception, tls: ssl.SSLContext | None) -> str:
    """Why a connection could not be opened; with TLS, with a hint where the server seems not to speak it."""
    text = str(getattr(exc, "strerror", None) or exc)
    # With an alert it answered in TLS; with a refusal nothing listens.
    is_answer_of_tls = isinstance(exc, ssl.SSLError) and "ALERT" in str(exc.reason)
    is_lost = isinstance(exc, ConnectionError) and not isinstance(exc, ConnectionRefusedError)
    if tls is None or is_answer_of_tls or not (is_lost or isinstance(exc, ssl.SSLError)):
        return text
    return f"{text} (is this port a TLS listener (usually 8883)?)"


def _refuse_passphrase(key: TlsFile) -> Callable[[], str]:
    def refuse() -> str:
        # OpenSSL would ask for it on the terminal.
        raise ConfigError(f"{key}: the key is encrypted; store it without a passphrase")

    return refuse
