"""TLS and users of /metrics, as Prometheus' exporters name them: its web configuration file. Source: its documentation.

Of that file the certificate, the key, the authorities of clients and the users are taken; a key that is not known here
is refused, so that nobody believes in a protection that is not there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import bcrypt
import msgspec
from msgspec import Struct

from guestd.core.errors import ConfigError

# A hash takes a tenth of a second on purpose; Prometheus asks every few seconds with the same words.
MAX_CACHED = 100
# Of nobody's password: an unknown user takes as long as a known one.
_UNKNOWN_USER_HASH = b"$2b$10$YE60/e0sBzc90GdGz3A51upr4LXfXjIHzIGl5rUhXU7CcZ40crU2."


class _Tls(Struct, frozen=True, forbid_unknown_fields=True):
    cert_file: str
    key_file: str
    client_auth_type: Literal["NoClientCert", "RequireAndVerifyClientCert"] = "NoClientCert"
    client_ca_file: str = ""
    min_version: Literal["TLS12", "TLS13"] = "TLS12"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    tls_server_config: _Tls | None = None
    basic_auth_users: dict[str, str] = {}


@dataclass(slots=True)
class WebAuth:
    """Who may ask for pages, and how. `tls` None: in the clear. No users: everybody."""

    tls: ssl.SSLContext | None = None
    users: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    _known: set[bytes] = field(default_factory=set, repr=False)

    async def is_authorised(self, authorization: str) -> bool:
        """Whether the header of a request names a user with his password."""
        if not self.users:
            return True
        seen = hashlib.sha256(authorization.encode("utf-8", "replace")).digest()
        if seen in self._known:
            return True
        user, password = _parse_credentials(authorization)
        is_right = await asyncio.to_thread(_check_password, password, self.users.get(user, _UNKNOWN_USER_HASH))
        if not is_right or user not in self.users:
            return False
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known.add(seen)
        return True


def read_web_config(file: str) -> WebAuth:
    """The web configuration of a file; an empty name: in the clear, for everybody. ConfigError for what is wrong."""
    if not file:
        return WebAuth()
    path = Path(file)
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=_File)
    except OSError as exc:
        raise ConfigError(f"telemetry.web_config_file {file}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"telemetry.web_config_file {file}: {exc}") from exc
    users = {user: hashed.encode() for user, hashed in found.basic_auth_users.items()}
    for user, hashed in users.items():
        if not hashed.startswith((b"$2a$", b"$2b$", b"$2y$")):
            raise ConfigError(
                f"telemetry.web_config_file {file}: the password of {user} is no bcrypt hash: htpasswd -nBC 10"
            )
    return WebAuth(
        None if found.tls_server_config is None else _build_tls_context(found.tls_server_config, path.parent), users
    )


def _build_tls_context(chosen: _Tls, beside: Path) -> ssl.SSLContext:
    """Files are named from where the configuration lies."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if chosen.min_version == "TLS13" else ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(beside / chosen.cert_file, beside / chosen.key_file)
        if chosen.client_auth_type == "RequireAndVerifyClientCert":
            context.load_verify_locations(beside / chosen.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # an SSLError is one too
        raise ConfigError(f"telemetry.web_config_file: its certificates: {exc.strerror or exc}") from exc
    return context


def _parse_credentials(authorization: str) -> tuple[str, bytes]:
    kind, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        decoded = b""
    user, _, password = decoded.partition(b":")
    return user.decode("utf-8", "replace"), password


def _check_password(password: bytes, hashed: bytes) -> bool:
    # bcrypt looks at 72 bytes, and newer ones refuse more.
    return bcrypt.checkpw(password[:72], hashed)
