"""TLS and basic authentication of the HTTP pages, in the format of Prometheus' web configuration file.

Supported are certificate, key, client CA and users. Any other key is rejected, so that no one relies on a protection
that is not in effect. Source: Prometheus' documentation.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
import ssl
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import bcrypt
import msgspec
from msgspec import Meta, Struct

from guestd.core.errors import ConfigError
from guestd.core.tls import TlsFile, explain_unusable, load_certificate

# A bcrypt check takes a tenth of a second, and Prometheus sends the same credentials every few seconds.
MAX_CACHED = 100
# Passwords that wait for their check or are being checked, of all addresses and of one.
MAX_CHECKS, MAX_CHECKS_OF_ADDRESS = 16, 2
_BCRYPT_HASH = re.compile(rb"\$2[aby]\$(?:0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{53}")


_FileName = Annotated[str, Meta(min_length=1)]


class _Tls(Struct, frozen=True, forbid_unknown_fields=True):
    cert_file: _FileName
    key_file: _FileName
    client_auth_type: Literal["NoClientCert", "RequireAndVerifyClientCert"] = "NoClientCert"
    client_ca_file: str = ""
    min_version: Literal["TLS12", "TLS13"] = "TLS12"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    tls_server_config: _Tls | None = None
    basic_auth_users: dict[str, str] = {}


class TooManyLogins(Exception):
    """A password is not checked, because too many others wait for their check."""


class PasswordChecks:
    """bcrypt on one thread of its own, whoever asks: it takes a core for as long as strangers send passwords."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="password-check")
        self._waiting: Counter[str] = Counter()

    async def check(self, password: bytes, hashed: bytes, address: str) -> bool:
        """Check a password that came from this address. Raises TooManyLogins."""
        if self._waiting.total() >= MAX_CHECKS or self._waiting[address] >= MAX_CHECKS_OF_ADDRESS:
            raise TooManyLogins
        self._waiting[address] += 1
        try:
            # bcrypt uses 72 bytes at most, and newer versions reject longer passwords.
            return await asyncio.get_running_loop().run_in_executor(self._thread, bcrypt.checkpw, password[:72], hashed)
        finally:
            self._waiting -= Counter({address: 1})  # drops it at 0


@dataclass(slots=True)
class WebAuth:
    """Access to the pages. `tls` None: no TLS. No users: no login."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    _checks: PasswordChecks = field(default_factory=PasswordChecks, repr=False)
    _cache_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _cached: set[bytes] = field(default_factory=set, repr=False)

    async def is_authorised(self, authorization: str, address: str) -> bool:
        """Check the Authorization header of a request from this address. Raises TooManyLogins.

        What was right before needs no check, so that nobody who sends wrong passwords delays it.
        """
        if not self.users:
            return True
        key = hashlib.blake2b(authorization.encode("utf-8", "replace"), key=self._cache_key).digest()
        if key in self._cached:
            return True
        credentials = _parse_credentials(authorization)
        if credentials is None:
            return False
        user, password = credentials
        # For an unknown user too, so that the response time does not reveal whether the user exists.
        hashed = self.users.get(user) or max(self.users.values(), key=_get_cost)
        is_correct = await self._checks.check(password, hashed, address)
        if not is_correct or user not in self.users:
            return False
        if len(self._cached) >= MAX_CACHED:
            self._cached.clear()
        self._cached.add(key)
        return True


def read_web_config(file: str) -> WebAuth:
    """Read a web configuration file; an empty name: no TLS, no login. Raises ConfigError."""
    if not file:
        return WebAuth()
    path = Path(file)
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=_File)
    except OSError as exc:
        raise ConfigError(f"telemetry.web_config_file {file}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"telemetry.web_config_file {file}: {exc}") from exc
    if found.tls_server_config is not None:
        _check_client_authorities(found.tls_server_config, file)
    users = {user: hashed.encode() for user, hashed in found.basic_auth_users.items()}
    for user, hashed in users.items():
        if not _BCRYPT_HASH.fullmatch(hashed):
            raise ConfigError(
                f"telemetry.web_config_file {file}: the password of {user} is no bcrypt hash; run: htpasswd -nBC 10"
            )
    return WebAuth(
        None if found.tls_server_config is None else _build_tls_context(found.tls_server_config, path.parent), users
    )


def _check_client_authorities(chosen: _Tls, file: str) -> None:
    is_required = chosen.client_auth_type == "RequireAndVerifyClientCert"
    if is_required and not chosen.client_ca_file:
        raise ConfigError(
            f"telemetry.web_config_file {file}: client_auth_type {chosen.client_auth_type} needs client_ca_file"
        )
    if chosen.client_ca_file and not is_required:
        raise ConfigError(
            f"telemetry.web_config_file {file}: client_ca_file has no effect without client_auth_type"
            " RequireAndVerifyClientCert: set it, or remove client_ca_file"
        )


def _build_tls_context(chosen: _Tls, directory: Path) -> ssl.SSLContext:
    """Build the TLS context; relative file names are relative to the configuration file."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # A client that negotiates again and again would have the event loop compute for it.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if chosen.min_version == "TLS13" else ssl.TLSVersion.TLSv1_2
    named = "telemetry.web_config_file: "
    load_certificate(
        context,
        TlsFile(f"{named}cert_file", str(directory / chosen.cert_file)),
        TlsFile(f"{named}key_file", str(directory / chosen.key_file)),
    )
    try:
        if chosen.client_auth_type == "RequireAndVerifyClientCert":
            context.load_verify_locations(directory / chosen.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # an SSLError is one too
        reason = explain_unusable(exc, str(directory / chosen.client_ca_file), "")
        raise ConfigError(f"{named}client_ca_file {chosen.client_ca_file}: {reason}") from exc
    return context


def _parse_credentials(authorization: str) -> tuple[str, bytes] | None:
    """User and password of a header; None for another kind of header, or none."""
    kind, _, encoded = authorization.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    user, _, password = decoded.partition(b":")
    return user.decode("utf-8", "replace"), password


def _get_cost(hashed: bytes) -> bytes:
    """Get the two digits of a hash that say how long a check takes."""
    return hashed[4:6]
