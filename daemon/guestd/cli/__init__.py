"""argv -> settings -> verb."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from uuid import UUID

import msgspec
import structlog

from guestd import __version__
from guestd.cli import agent, simulate
from guestd.core import config
from guestd.core.errors import ConfigError
from guestd.core.log import configure_logging, format_error_line
from guestd.filters import desired
from guestd.filters import explain as telling
from guestd.filters.desired import CompiledRows
from guestd.filters.snapshot import MachineRow

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78

DESCRIPTION = """\
guestd reads what guest agents report, and writes it exactly once to TimescaleDB.

  guestd run --config /etc/guestd.toml     the daemon of a hypervisor host
  guestd setup                             user, directories, unit and configuration on this host, as root
  guestd check --config /etc/guestd.toml   whether the configuration can be worked with; starts nothing
  guestd doctor --config /etc/guestd.toml  what is wrong on this host, at the store and the broker, each with its fix
  guestd plan --config /etc/guestd.toml    what it would do to virtual machines, rows and filters; does nothing
  guestd apply --config /etc/guestd.toml   do what concerns filters now; --yes and --take for what waits for a person
  guestd secret --config FILE ID           a machine's secret, for the agent that is to take signed lines only
  guestd filters show MACHINE              the rules that protect a machine, in the order in which they match
  guestd filters plan                      what would be done to libvirt's filters, and which are not as they should be
  guestd filters explain MACHINE tcp 10.0.0.5:443 in      which rule decides on a connection
  guestd quarantine list                   frames that were set aside; show, retry, drop
  guestd show MACHINE                      a machine: its latest sample, processes, ports, changes
  guestd top                               all machines, sorted, again and again
  guestd agent --listen /run/my.socket     a guest agent that watches this machine
  guestd simulate --directory DIR ...      a fleet of believable guests, for demos and load
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = make_parser().parse_args(argv)
    configure_logging()
    try:
        return int(arguments.run(arguments))
    except ConfigError as exc:
        print(format_error_line(f"guestd: {exc}"), file=sys.stderr)
        return EXIT_CONFIG
    except OSError as exc:
        # What the system refused before there was anything to lose: no bug, and perhaps gone at the next start.
        print(format_error_line(f"guestd: {exc}"), file=sys.stderr)
        return EXIT_FAILURE


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; a verb's module sets `run`."""
    parser = argparse.ArgumentParser(
        prog="guestd", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"guestd {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = verbs.add_parser("run", help="the daemon", description="Run the daemon in the foreground until SIGTERM.")
    run.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    run.set_defaults(run=_run)
    setup = verbs.add_parser(
        "setup",
        help="user, directories, unit, configuration",
        description="Lay down what systemd needs, as root; a configuration that is there is left alone.",
    )
    setup.set_defaults(run=_setup)
    for name, verb, text in (
        ("check", _check, "whether the configuration can be worked with"),
        ("doctor", _doctor, "what is wrong, each with its fix"),
    ):
        sub = verbs.add_parser(name, help=text, description=f"Say {text}; changes nothing.")
        sub.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
        sub.add_argument("--json", action="store_true", help="for programs")
        sub.set_defaults(run=verb)
    plan = verbs.add_parser(
        "plan",
        help="what would be done to virtual machines and filters",
        description="Print what guestd would do; does nothing.",
    )
    plan.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.set_defaults(run=_planning("plan"))
    apply = verbs.add_parser(
        "apply", help="put the filters of this host right now", description="Make one pass over this host's filters."
    )
    apply.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    apply.add_argument("--yes", action="store_true", help="also when that removes more than filters.most_removals")
    apply.add_argument("--take", action="store_true", help="also on interfaces that name somebody else's filter")
    apply.set_defaults(run=_planning("apply"))
    secret = verbs.add_parser(
        "secret", help="a machine's secret, for its agent", description="Print the secret for an agent's --secret-file."
    )
    secret.add_argument("--config", type=Path, metavar="FILE", help="names virtio.master_secret_file")
    secret.add_argument("machine", type=UUID, metavar="ID", help="Machine.id")
    secret.set_defaults(run=_secret)
    _add_filters(verbs.add_parser("filters", help="the rules that protect machines"))
    _add_quarantine(verbs)
    _add_looking(verbs)
    agent.add_parser(verbs)
    simulate.add_parser(verbs)
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="WHAT")
    show = verbs.add_parser("show", help="a machine's rules in the order in which they match")
    plan = verbs.add_parser("plan", help="what would be done to libvirt's filters; does nothing")
    plan.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    plan.set_defaults(run=_planning("plan_filters"))
    explain = verbs.add_parser("explain", help="which rule decides on a connection")
    for sub in (show, explain):
        sub.add_argument("machine", metavar="MACHINE", help="id, internalName or name")
        sub.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    explain.add_argument("protocol", choices=("tcp", "udp", "sctp", "icmp", "arp"))
    explain.add_argument("peer", metavar="ADDRESS[:PORT]", help="the other side, and the port that is connected to")
    explain.add_argument("way", choices=("in", "out"), help="as the machine sees it")
    show.set_defaults(run=_show_filters)
    explain.set_defaults(run=_explain_filters)


def _add_quarantine(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    aside = verbs.add_parser("quarantine", help="frames that were set aside: list, show, retry, drop")
    aside.set_defaults(run=_quarantine)
    inner = aside.add_subparsers(required=True, metavar="VERB", dest="quarantine_verb")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    common.add_argument("--json", action="store_true", help="for programs")
    listing = inner.add_parser("list", parents=[common], help="the newest frames that are set aside")
    listing.add_argument("--reason", metavar="R")
    listing.add_argument("--limit", type=int, default=100, metavar="N")
    show = inner.add_parser("show", parents=[common], help="one of them whole")
    show.add_argument("id", type=UUID)
    for name, text in (("retry", "store what can be stored now"), ("drop", "delete")):
        verb = inner.add_parser(name, parents=[common], help=text)
        verb.add_argument("id", type=UUID, nargs="?")
        verb.add_argument("--reason", metavar="R", help="all of that reason")
        if name == "drop":
            verb.add_argument("--older-than", type=float, metavar="DAYS", help="all that were received before")


def _add_looking(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="TOML; deploy/guestd.toml lists every key")
    show = verbs.add_parser("show", parents=[common], help="what the store knows of a machine")
    show.add_argument("machine", metavar="MACHINE", help="id, internalName or name")
    top = verbs.add_parser("top", parents=[common], help="all machines, sorted, again and again")
    top.add_argument("--sort", choices=("cpu", "memory", "name"), default="cpu")
    top.add_argument("--seconds", type=float, default=2.0, metavar="S", help="between two looks (default: 2)")
    top.add_argument("--rounds", type=int, metavar="N", help="how many; without it, until interrupted")
    for parser, verb in ((show, _show_machine), (top, _top)):
        parser.set_defaults(run=verb)


def _show_machine(arguments: argparse.Namespace) -> int:
    from guestd.cli import show as looking

    return looking.show(arguments, _settings(arguments))


def _top(arguments: argparse.Namespace) -> int:
    from guestd.cli import show as looking

    return looking.top(arguments, _settings(arguments))


def _quarantine(arguments: argparse.Namespace) -> int:
    from guestd.cli import quarantine

    return quarantine.run(arguments, _settings(arguments))


def _setup(_: argparse.Namespace) -> int:
    from guestd.cli import setup as installation

    for line in installation.set_up():
        print(line)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from guestd import doctor

    found = doctor.check(_settings(arguments))
    return EXIT_CONFIG if doctor.print_findings(found, as_json=arguments.json) else 0


def _doctor(arguments: argparse.Namespace) -> int:
    from guestd import doctor

    try:
        found = doctor.examine(_settings(arguments))
    except ConfigError as exc:
        found = [doctor.refused(str(exc))]
    return doctor.print_findings(found, as_json=arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    import uvloop

    from guestd import app

    try:
        uvloop.run(app.run(_settings(arguments), lambda: _settings(arguments)))
    except ExceptionGroup as group:
        failures = list(_leaves(group))
        for exc in failures:
            if isinstance(exc, ConfigError):
                raise exc from None
        for exc in failures:
            structlog.get_logger().error("guestd ends because a task failed", exc_info=exc)
        return EXIT_FAILURE
    return 0


def _settings(arguments: argparse.Namespace) -> config.Settings:
    chosen = config.load_settings(arguments.config) if arguments.config else config.Settings()
    dsn = os.environ.get("GUESTD_DATABASE_DSN") or chosen.store.dsn
    if chosen.store.password_file:
        from guestd.core.secrets import read_secret
        from guestd.store.connection import with_password

        dsn = with_password(dsn, read_secret(Path(chosen.store.password_file), "store.password_file"))
    return msgspec.structs.replace(chosen, store=msgspec.structs.replace(chosen.store, dsn=dsn))


def _planning(verb: str) -> Callable[[argparse.Namespace], int]:
    """A verb of plan_verbs, which is imported when it is used."""

    def run(arguments: argparse.Namespace) -> int:
        from guestd.cli import plan as plan_verbs

        return int(getattr(plan_verbs, verb)(arguments, _settings(arguments)))

    return run


def _secret(arguments: argparse.Namespace) -> int:
    from guestd.core.secrets import read_secret
    from guestd.wire.signing import machine_secret

    file = _settings(arguments).virtio.master_secret_file
    if not file:
        raise ConfigError("virtio.master_secret_file is empty: nothing is signed here")
    print(machine_secret(read_secret(Path(file), "virtio.master_secret_file"), arguments.machine).decode())
    return 0


def _show_filters(arguments: argparse.Namespace) -> int:
    return _tell_filters(arguments, telling.describe_rules)


def _explain_filters(arguments: argparse.Namespace) -> int:
    try:
        asking = telling.parse_question(arguments.protocol, arguments.peer, arguments.way)
    except ValueError as exc:
        print(f"guestd: {exc}", file=sys.stderr)
        return EXIT_USAGE
    return _tell_filters(arguments, lambda asked, machine: telling.explain_connection(asked, machine, asking))


def _tell_filters(arguments: argparse.Namespace, tell: Callable[[CompiledRows, MachineRow], Iterable[str]]) -> int:
    from guestd.core.errors import StoreUnavailable
    from guestd.filters.store import read_store_snapshot

    try:
        chosen = _settings(arguments)
        rows = desired.add_static_ips(
            asyncio.run(read_store_snapshot(chosen.store.dsn)), _static_ips(chosen.libvirt.uri)
        )
        machine = telling.find_machine(rows.machines, arguments.machine)
    except (StoreUnavailable, ValueError) as exc:
        print(f"guestd: {exc}", file=sys.stderr)
        return EXIT_FAILURE
    print("\n".join(tell(desired.compile_rows(rows), machine)))
    return 0


def _static_ips(uri: str) -> Mapping[str, tuple[str, ...]]:
    """What this host's networks give to machines; nothing, and why, when libvirt cannot be asked."""
    from guestd.core.errors import SourceLost
    from guestd.filters import driver

    try:
        return driver.observe_host(uri).static_ips if uri else {}
    except (SourceLost, ConfigError) as exc:
        print(f"guestd: told without the addresses of libvirt's networks: {exc}", file=sys.stderr)
        return {}


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for exc in group.exceptions:
        if isinstance(exc, ExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
