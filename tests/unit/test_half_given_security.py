"""Half of a security option is refused with its other half named, or completed; it is never ignored."""

import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from guestd.cli import agent, simulate
from guestd.cli.broker_arguments import PORT, TLS_PORT, read_broker
from guestd.cli.main import make_parser
from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.doctor.configuration import check_configuration
from guestd.service.exposures import list_exposures
from guestd.store.connection import check_dsn
from gueststore.database import connect
from gueststore.errors import ConfigurationError

MACHINE = "--machine-id 6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem, cert.pem, key.pem, both.pem, open.pem (world-readable), locked.pem and a password."""
    directory = tmp_path_factory.mktemp("files")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    key = load_pem_private_key(leaf.private_key_pem.bytes(), password=None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    contents = {
        "ca.pem": authority.cert_pem.bytes(),
        "cert.pem": leaf.cert_chain_pems[0].bytes(),
        "key.pem": leaf.private_key_pem.bytes(),
        "open.pem": leaf.private_key_pem.bytes(),
        "both.pem": leaf.private_key_and_cert_chain_pem.bytes(),
        "locked.pem": locked,
        "other.pem": authority.issue_cert("elsewhere").private_key_pem.bytes(),
        "cut.pem": leaf.private_key_pem.bytes()[:-80] + b"\n-----END PRIVATE KEY-----\n",
        "password": b"secret\n",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o604 if name == "open.pem" else 0o600)
    return directory


def arguments_of(files: Path, words: str) -> Any:
    """What the parser makes of the words of an agent, with FILES/ as the directory of the files."""
    return make_parser().parse_args(["agent", *words.replace("FILES", str(files)).split()])


def refusal_of(settings: dict[str, Any], files: Path) -> str:
    """The one fault that `guestd check` finds in settings."""
    text = msgspec.json.encode(settings).decode().replace("FILES", str(files))
    [finding] = check_configuration(msgspec.json.decode(text, type=Settings))
    assert finding.level == "fault", finding
    return finding.text


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("--mqtt-key FILES/key.pem", "--mqtt-key needs --mqtt-cert"),
        ("--mqtt-ca FILES/ca.pem --mqtt-key FILES/key.pem", "--mqtt-key needs --mqtt-cert"),
        ("--mqtt-cert FILES/cert.pem", "--mqtt-cert .*, without --mqtt-key: .*/cert.pem has no private key in PEM$"),
        ("--mqtt-cert FILES/both.pem --mqtt-key FILES/password", ": .*/password has no private key in PEM$"),
        ("--mqtt-cert FILES/key.pem --mqtt-key FILES/key.pem", ": .*/key.pem has no certificate in PEM$"),
        ("--mqtt-cert FILES/cert.pem --mqtt-key FILES/other.pem", "the key is not that of the certificate$"),
        ("--mqtt-cert FILES/cert.pem --mqtt-key FILES/cut.pem", "the certificate or the key is damaged"),
        ("--mqtt-cert FILES/cert.pem --mqtt-key FILES/open.pem", "--mqtt-key .* world-readable; run: chmod"),
        ("--mqtt-cert FILES/cert.pem --mqtt-key FILES/locked.pem", "--mqtt-key .*: the key is encrypted"),
        ("--mqtt-cert FILES/cert.pem --mqtt-key FILES/none", "--mqtt-key .*/none: No such file"),
        ("--mqtt-ca FILES/none", "--mqtt-ca .*/none: No such file"),
        ("--mqtt-ca FILES/password", "--mqtt-ca .*/password has no certificate in PEM$"),
        ("--mqtt-password-file FILES/password", "--mqtt-password-file needs --mqtt-user"),
    ],
)
def test_half_a_security_option_of_an_agent_is_refused(files: Path, words: str, refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        read_broker(arguments_of(files, f"--mqtt broker {words}"))


@pytest.mark.parametrize(
    "words", ["--mqtt-tls", "--mqtt-ca FILES/ca.pem", "--mqtt-cert FILES/both.pem",
              "--mqtt-cert FILES/cert.pem --mqtt-key FILES/key.pem"],
)  # fmt: skip
def test_any_option_of_tls_means_tls_with_a_verified_broker(files: Path, words: str) -> None:
    address = read_broker(arguments_of(files, f"--mqtt broker {words}"))
    assert address.tls is not None
    assert (address.tls.verify_mode, address.tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert address.port == TLS_PORT
    assert read_broker(arguments_of(files, f"--mqtt broker:1883 {words}")).port == PORT


def test_without_an_option_of_tls_there_is_none(files: Path) -> None:
    address = read_broker(arguments_of(files, "--mqtt broker --mqtt-user me"))
    assert (address.tls, address.port, address.user, address.password) == (None, PORT, "me", None)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (agent, "agent --mqtt-ca FILES/ca.pem"),
        (agent, "agent --listen FILES/a.socket --mqtt-tls"),
        (agent, "agent --mqtt-user me"),
        (agent, "agent --listen FILES/a.socket --mqtt-prefix guestd/v1"),
        (agent, "agent --mqtt-tls --listen FILES/a.socket --machine-id 6a1f0d5c-2b1e-4b62-9a52-8a3c1f5e7d90"),
        (simulate, "simulate --directory FILES --mqtt-prefix a/b"),
        (simulate, "simulate --directory FILES --mqtt-cert FILES/both.pem"),
        (simulate, "simulate --directory FILES --mqtt-password-file FILES/password"),
    ],
)
def test_an_option_of_the_broker_without_a_broker_is_refused(files: Path, verb: Any, words: str) -> None:
    arguments = make_parser().parse_args(words.replace("FILES", str(files)).split())
    option = next(word for word in words.split() if word.startswith("--mqtt"))
    with pytest.raises(ConfigError, match=f"{option}: only with --mqtt"):
        verb.run(arguments)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (f"--listen FILES/a.socket {MACHINE}", "--machine-id: only with --mqtt"),
        (f"--device FILES/a {MACHINE}", "--machine-id: only with --mqtt"),
        (MACHINE, "--machine-id: only with --mqtt"),
        (f"--mqtt broker {MACHINE} --secret-file FILES/password", "--secret-file has no effect with --mqtt"),
        ("--mqtt broker --secret-file FILES/password", "--secret-file has no effect with --mqtt"),
    ],
)
def test_an_option_of_an_agent_without_an_effect_is_refused(files: Path, words: str, refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        agent.run(arguments_of(files, words))


@pytest.mark.parametrize(
    ("mqtt", "refusal"),
    [
        ({"tls_ca_file": "FILES/ca.pem"}, "mqtt.tls_ca_file without TLS: set mqtt.tls = true"),
        ({"tls_certificate_file": "FILES/both.pem"}, "mqtt.tls_certificate_file without TLS"),
        (
            {"tls_ca_file": "FILES/ca.pem", "tls_key_file": "FILES/key.pem"},
            "mqtt.tls_ca_file, mqtt.tls_key_file without TLS",
        ),
        ({"tls": True, "tls_key_file": "FILES/key.pem"}, "mqtt.tls_key_file needs mqtt.tls_certificate_file"),
        ({"tls": True, "tls_certificate_file": "FILES/cert.pem"}, "without mqtt.tls_key_file: "),
        (
            {"tls": True, "tls_certificate_file": "FILES/cert.pem", "tls_key_file": "FILES/open.pem"},
            "it is world-readable",
        ),
        (
            {"tls": True, "tls_certificate_file": "FILES/cert.pem", "tls_key_file": "FILES/locked.pem"},
            "the key is encrypted",
        ),
        ({"password_file": "FILES/password"}, "mqtt.password_file needs mqtt.username"),
    ],
    ids=str,
)
def test_half_a_security_setting_of_the_broker_is_refused(files: Path, mqtt: dict[str, Any], refusal: str) -> None:
    assert refusal in refusal_of({"mqtt": {"host": "broker", **mqtt}}, files)


@pytest.mark.parametrize(
    ("dsn", "refusal"),
    [
        ("host=h sslrootcert=FILES/ca.pem", "sslrootcert is not enforced with sslmode=prefer: set sslmode=verify-full"),
        ("host=h sslmode=disable sslrootcert=FILES/ca.pem", "sslrootcert is not enforced with sslmode=disable"),
        ("host=h sslmode=allow sslcert=FILES/cert.pem sslkey=FILES/key.pem", "sslcert, sslkey is not enforced with"),
        ("host=h sslmode=verify-full sslcert=FILES/cert.pem", "sslcert needs sslkey"),
        ("host=h sslmode=verify-full sslkey=FILES/key.pem", "sslkey needs sslcert"),
        ("postgresql://h/d?sslcrl=FILES/ca.pem", "sslcrl is not enforced with sslmode=prefer"),
    ],
)
def test_half_a_security_option_of_the_store_is_refused(files: Path, dsn: str, refusal: str) -> None:
    assert refusal in refusal_of({"store": {"dsn": dsn}}, files)


def test_a_whole_security_option_of_the_store_is_accepted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files / "ca.pem"
    for mode in ("require", "verify-ca", "verify-full"):
        check_dsn(f"host=h sslmode={mode} sslrootcert={root}")
    check_dsn("host=h sslrootcert=system")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    check_dsn(f"host=h sslrootcert={root}")


@pytest.mark.parametrize(
    "environment", [{"PGSSLROOTCERT": "ca.pem"}, {"PGSSLCERT": "cert.pem", "PGSSLMODE": "require"}]
)
def test_half_a_security_option_of_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"store.dsn: ssl(rootcert|cert) "):
        check_dsn("host=h")


def test_the_other_half_may_be_where_libpq_reads_it_by_default(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(files))
    certificate, key = f"sslcert={files}/cert.pem", f"sslkey={files}/key.pem"
    for one, default in ((certificate, "postgresql.key"), (key, "postgresql.crt")):
        with pytest.raises(ConfigError, match=f"there is no ~/.postgresql/{default}"):
            check_dsn(f"host=h sslmode=verify-full {one}")
    (files / ".postgresql").mkdir()
    for one, default in ((certificate, "postgresql.key"), (key, "postgresql.crt")):
        (files / ".postgresql" / default).touch()
        check_dsn(f"host=h sslmode=verify-full {one}")


def test_the_options_of_a_service_count(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = files / "services.conf"
    services.write_text("[strict]\nhost=db.example\nsslmode=verify-full\n[weak]\nhost=db.example\nsslmode=prefer\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    root = f"sslrootcert={files}/ca.pem"
    # libpq reads the file of a service that the string names only when it connects: nothing is said of it.
    for dsn in ("service=strict", "service=weak", f"service=strict {root}"):
        check_dsn(dsn)
        assert list(list_exposures(msgspec.convert({"store": {"dsn": dsn}}, Settings))) == []
    monkeypatch.setenv("PGSERVICE", "strict")
    check_dsn(root)
    assert list(list_exposures(msgspec.convert({"store": {"dsn": root}}, Settings))) == []
    monkeypatch.setenv("PGSERVICE", "weak")
    with pytest.raises(ConfigError, match="sslrootcert is not enforced with sslmode=prefer"):
        check_dsn(root)
    [risk] = list_exposures(msgspec.convert({"store": {"dsn": "dbname=d"}}, Settings))
    assert "with sslmode=prefer the connection to db.example may be unencrypted" in risk.text


@pytest.mark.parametrize(
    "dsn", ["host=h sslrootcert=FILES/ca.pem", "host=h sslmode=verify-full sslcert=FILES/cert.pem",
            "postgresql://h/d?sslmode=allow&sslcrl=FILES/ca.pem"],
)  # fmt: skip
def test_half_a_security_option_of_a_tool_of_the_store_is_refused(files: Path, dsn: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"the DSN: ssl\w+ (needs|is not enforced)"),
        connect(dsn.replace("FILES", str(files))),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        ("client_ca_file: ca.pem", "client_ca_file has no effect without client_auth_type"),
        ("client_auth_type: NoClientCert, client_ca_file: ca.pem", "client_ca_file has no effect"),
        ("client_auth_type: RequireAndVerifyClientCert", "RequireAndVerifyClientCert needs client_ca_file"),
        ("client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem", "VerifyClientCertIfGiven"),
        ("client_auth_type: RequireAndVerifyClientCert, client_ca_file: password", "client_ca_file password: "),
    ],
)
def test_half_a_client_authentication_of_the_pages_is_refused(files: Path, content: str, refusal: str) -> None:
    web = files / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: cert.pem, key_file: key.pem, {content}}}\n")
    assert refusal in refusal_of({"telemetry": {"web_config_file": str(web)}}, files)


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        ("cert_file: cert.pem", "`key_file`"),
        ("cert_file: cert.pem, key_file: ''", "key_file"),
        ("cert_file: cert.pem, key_file: open.pem", "open.pem: it is world-readable"),
        ("cert_file: cert.pem, key_file: locked.pem", "locked.pem: the key is encrypted"),
    ],
)
def test_a_certificate_of_the_pages_needs_its_key(files: Path, content: str, refusal: str) -> None:
    web = files / "web.yml"
    web.write_text(f"tls_server_config: {{{content}}}\n")
    assert refusal in refusal_of({"telemetry": {"web_config_file": str(web)}}, files)


@pytest.mark.parametrize("uri", ["qemu:///system?pkipath=/x", "qemu+ssh://h/system?pkipath=/x", "qemu://[::1/system"])
def test_a_libvirt_uri_whose_certificates_have_no_effect_is_refused(files: Path, uri: str) -> None:
    assert f"libvirt.uri {uri}: " in refusal_of({"libvirt": {"uri": uri}}, files)


USER = 'basic_auth_users: {alice: "$2b$10$YE60/e0sBzc90GdGz3A51upr4LXfXjIHzIGl5rUhXU7CcZ40crU2."}\n'


@pytest.mark.parametrize(
    ("settings", "risk"),
    [
        ({"mqtt": {"host": "b.example", "username": "u", "password_file": "FILES/password"}}, "unencrypted to b"),
        ({"mqtt": {"host": "127.0.0.1", "username": "u", "password_file": "FILES/password"}}, ""),
        ({"mqtt": {"host": "::1", "username": "u", "password_file": "FILES/password"}}, ""),
        ({"mqtt": {"host": "b", "tls": True, "username": "u", "password_file": "FILES/password"}}, ""),
        ({"store": {"dsn": "host=db.example"}}, "sslmode=prefer the connection to db.example may be unencrypted"),
        ({"store": {"dsn": "host=localhost,db.example sslmode=disable"}}, "the connection to db.example may be"),
        ({"store": {"dsn": "host=db.example sslmode=require"}}, "the name of db.example is not verified"),
        ({"store": {"dsn": "host=db.example sslrootcert=system"}}, ""),
        ({"store": {"dsn": "host=/run/postgresql,127.0.0.1,::1,localhost"}}, ""),
        ({"telemetry": {"web_config_file": "FILES/users.yml", "listen_host": "0.0.0.0"}}, "passwords are sent unenc"),
        ({"telemetry": {"web_config_file": "FILES/users.yml", "listen_host": "::"}}, "passwords are sent unencrypted"),
        ({"telemetry": {"web_config_file": "FILES/users.yml"}}, ""),
        ({"libvirt": {"uri": "qemu+tcp://h/system"}}, "the transport tcp is unencrypted"),
        ({"libvirt": {"uri": "qemu://h/system?no_verify=1"}}, "no_verify accepts any server"),
        ({"libvirt": {"uri": "qemu+tls://h/system?pkipath=/x&no_verify=0"}}, ""),
        ({"libvirt": {"uri": "qemu:///system"}}, ""),
        ({}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_valid_configuration_leaves_unprotected_is_named(
    files: Path, settings: dict[str, Any], risk: str
) -> None:
    (files / "users.yml").write_text(USER)
    text = msgspec.json.encode(settings).decode().replace("FILES", str(files))
    found = msgspec.json.decode(text, type=Settings)
    risks = [each.text for each in list_exposures(found)]
    assert len(risks) == (1 if risk else 0), risks
    assert risk in "".join(risks)
    levels = [(each.level, each.text) for each in check_configuration(found)]
    assert levels[1:] == [("warning", each) for each in risks]
