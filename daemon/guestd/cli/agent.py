"""`guestd agent`: a guest agent for this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from guestd.cli.arguments import DAY_SECONDS, add_verb, number, path, text, uuid, whole_number
from guestd.cli.broker_arguments import add_broker_options, read_broker, reject_unused_options
from guestd.core.errors import ConfigError

if TYPE_CHECKING:
    from guestd.agent.run import Broker, UnixSocket, VirtioPort
    from guestd.cli.arguments import Subparsers

DEVICE = Path("/dev/virtio-ports/org.infinibay.agent")
BUFFER_BYTES, MOST_BUFFER_BYTES = 8 * 1024**2, 64 * 1024**3
# More than Linux has.
MOST_PROCESSES = 2**22

DESCRIPTION = """\
Reports this machine to guestd at every interval: CPU, memory, disks, network, processes, ports, applications and
services. Each sample stays in the agent's buffer until guestd has it on disk, and is sent again after a lost
connection or a crash of guestd.

In a guest the agent writes to the virtio-serial port that QEMU connects to the host. With --listen it serves a unix
socket in QEMU's place, so that a host can monitor itself. With --mqtt it publishes to a broker that guestd subscribes
to. The agent stops on SIGTERM and SIGINT.
"""
EPILOG = """\
examples:
  guestd agent --state /var/lib/guestd-agent/minutes.json
  guestd agent --listen run/channels/<machine id>.socket --interval 5
  guestd agent --mqtt broker:8883 --mqtt-ca ca.pem --mqtt-user <machine id> --mqtt-password-file FILE \\
    --machine-id <machine id>

exit status: 0 stopped by a signal, 1 the socket cannot be used, 2 wrong usage,
78 an option names a file or an address that cannot be used
"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the verb."""
    parser = add_verb(
        subparsers, "agent", summary="run a guest agent on this machine", description=DESCRIPTION, epilog=EPILOG
    )
    channel = parser.add_mutually_exclusive_group()
    add, add_channel = parser.add_argument, channel.add_argument
    device_help = f"virtio-serial port to report over (default: {DEVICE})"
    add_channel("--device", type=path, metavar="PATH", default=DEVICE, help=device_help)
    listen_help = "serve this unix socket instead, one client at a time"
    add_channel("--listen", type=path, metavar="SOCKET", help=listen_help)
    mqtt_help = "publish to this broker instead; requires --machine-id"
    add_channel("--mqtt", type=text, metavar="HOST[:PORT]", help=mqtt_help)
    add_broker_options(parser)
    machine_help = "this machine's id in the store, for --mqtt; on a channel the host knows it"
    add("--machine-id", type=uuid, metavar="UUID", help=machine_help)
    add("--interval", type=_interval, default=30.0, metavar="SECONDS", help="time between samples (default: 30)")
    processes_help = "report at most N processes, the busiest first (default: all)"
    add("--processes", type=_process_count, default=None, metavar="N|all", help=processes_help)
    state_help = "keep the applications' minutes in this file over restarts (default: not kept)"
    add("--state", type=path, metavar="FILE", help=state_help)
    signed_help = (
        "this machine's secret (`guestd secret`); host lines that it does not sign are ignored; not with --mqtt"
    )
    add("--secret-file", type=path, metavar="FILE", help=signed_help)
    buffer_help = f"size limit of the unacknowledged samples; beyond it the oldest go (default: {BUFFER_BYTES}, 8 MiB)"
    add("--buffer-bytes", type=_buffer_bytes, default=BUFFER_BYTES, metavar="BYTES", help=buffer_help)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the agent until a signal; returns the exit status."""
    from guestd.agent.run import Options
    from guestd.agent.run import run as run_agent

    return run_agent(
        Options(
            target=_read_target(arguments),
            interval_seconds=arguments.interval,
            most_processes=arguments.processes,
            state=arguments.state,
            secret_file=arguments.secret_file,
            buffer_bytes=arguments.buffer_bytes,
        )
    )


def _read_target(arguments: argparse.Namespace) -> VirtioPort | UnixSocket | Broker:
    from guestd.agent.run import Broker, UnixSocket, VirtioPort

    reject_unused_options(arguments)
    if arguments.mqtt is not None:
        if arguments.secret_file is not None:
            raise ConfigError("--secret-file has no effect with --mqtt: a broker brings no host lines; remove it")
        if arguments.machine_id is None:
            raise ConfigError("--mqtt: a broker does not know which machine this is; add --machine-id")
        return Broker(read_broker(arguments), arguments.machine_id)
    if arguments.machine_id is not None:
        raise ConfigError("--machine-id: only with --mqtt; add it, or remove it: on a channel the host knows the id")
    return VirtioPort(arguments.device) if arguments.listen is None else UnixSocket(arguments.listen)


def _interval(given: str) -> float:
    from guestd.agent.run import SHORTEST_INTERVAL_SECONDS

    return number(SHORTEST_INTERVAL_SECONDS, DAY_SECONDS)(given)


def _process_count(given: str) -> int | None:
    return None if given == "all" else whole_number(0, MOST_PROCESSES)(given)


def _buffer_bytes(given: str) -> int:
    from guestd.agent.outbox import LINE_LIMIT_BYTES

    return whole_number(LINE_LIMIT_BYTES, MOST_BUFFER_BYTES)(given)
