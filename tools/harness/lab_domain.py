"""The XML of the lab's domains."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

AGENT_CHANNEL = "org.infinibay.agent"
CONTROL_CHANNEL = "org.guestd.lab"
# 96 MiB boot; Python and its modules, unpacked in memory, take the rest.
MEMORY_MIB = 176


def domain_xml(name: str, uuid: UUID, channels: Path, program: str) -> str:
    """A guest that boots in seconds without KVM: `type='qemu'` always, for a /dev/kvm that opens may still not work.

    `program` stands on the kernel's command line: lab.interval=SECONDS or lab.sender=MILLISECONDS.
    """
    return f"""\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/guest/kernel</kernel>
    <initrd>/guest/initrd</initrd>
    <cmdline>console=ttyS0 quiet {program}</cmdline>
  </os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>preserve</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    <memballoon model='virtio'><stats period='2'/></memballoon>
    <panic model='isa'/>
    <serial type='file'><source path='{channels / name}.log' append='on'/></serial>
    {agent_channel_xml(uuid, channels)}
    {channel_xml(CONTROL_CHANNEL, channels / f"{name}.control", port=2)}
  </devices>
</domain>
"""


def agent_channel_xml(uuid: UUID, channels: Path) -> str:
    """The agent's channel, under the name that guestd looks for in a directory."""
    return channel_xml(AGENT_CHANNEL, channels / f"{uuid}.socket", port=1)


def channel_xml(target: str, path: Path, *, port: int) -> str:
    """A virtio-serial port of the guest that QEMU serves on a unix socket."""
    return (
        f"<channel type='unix'><source mode='bind' path='{path}'/><target type='virtio' name='{target}'/>"
        f"<address type='virtio-serial' controller='0' bus='0' port='{port}'/></channel>"
    )
