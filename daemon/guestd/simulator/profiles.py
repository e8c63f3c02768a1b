"""What simulated guests are made of: programs, ports, applications and services of three kinds of machine."""

from __future__ import annotations

from dataclasses import dataclass

KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class Program:
    """A program as it runs: its path, its arguments, its memory and the TCP ports it listens on."""

    path: str
    arguments: str
    memory_mib: int
    listens: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The file name, as a process list shows it."""
        return self.path.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Desktop:
    """An application that a user sees."""

    path: str
    name: str
    version: str
    publisher: str


@dataclass(frozen=True, slots=True)
class WindowsService:
    """A service: its name, its name in the control panel, and its start mode (Auto, Manual, Disabled)."""

    name: str
    display_name: str
    start_mode: str


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of machine. `statuses` name a sleeping and a running process on it."""

    system_name: str
    os_version: str
    kernel_version: str
    interface: str
    mounts: tuple[tuple[str, str, float], ...]
    statuses: tuple[str, str]
    programs: tuple[Program, ...]
    helpers: tuple[Program, ...]
    applications: tuple[Desktop, ...]
    services: tuple[WindowsService, ...] = ()
    memory_gib: tuple[int, ...] = (4, 8, 16)


_LINUX_BASE = (
    Program("/usr/lib/systemd/systemd", "--system --deserialize=42", 12),
    Program("/usr/lib/systemd/systemd-journald", "", 24),
    Program("/usr/lib/systemd/systemd-udevd", "", 8),
    Program("/usr/sbin/sshd", "-D", 9, (22,)),
    Program("/usr/sbin/cron", "-f -P", 3),
    Program("/usr/bin/dbus-daemon", "--system --address=systemd: --nofork", 5),
    Program("/usr/sbin/rsyslogd", "-n -iNONE", 6),
)

SERVER = Profile(
    system_name="Debian GNU/Linux",
    os_version="12",
    kernel_version="6.1.0-37-amd64",
    interface="enp1s0",
    mounts=(("/", "ext4", 40.0), ("/var", "xfs", 120.0)),
    statuses=("Sleeping", "Running"),
    programs=(
        *_LINUX_BASE,
        Program("/usr/sbin/nginx", "-g daemon on; master_process on;", 14, (80, 443)),
        Program("/usr/lib/postgresql/15/bin/postgres", "-D /var/lib/postgresql/15/main", 96, (5432,)),
        Program("/usr/bin/redis-server", "127.0.0.1:6379", 18, (6379,)),
        Program("/usr/bin/node", "/srv/shop/server.js --port 3000", 160, (3000,)),
        Program("/usr/bin/python3.11", "-m gunicorn shop.wsgi --workers 8", 85, (8000,)),
    ),
    helpers=(
        Program("/usr/sbin/nginx", "worker process", 11),
        Program("/usr/lib/postgresql/15/bin/postgres", "shop shop 10.20.0.4 idle", 34),
        Program("/usr/bin/python3.11", "-m gunicorn shop.wsgi --worker", 92),
        Program("/usr/bin/bash", "-c /usr/local/bin/collect", 4),
    ),
    applications=(
        Desktop("/usr/sbin/nginx", "nginx", "1.22.1", "Debian"),
        Desktop("/usr/lib/postgresql/15/bin/postgres", "PostgreSQL", "15.18", "Debian"),
        Desktop("/usr/bin/node", "Node.js", "20.20.2", "Debian"),
    ),
)

WORKSTATION = Profile(
    system_name="Ubuntu",
    os_version="24.04",
    kernel_version="6.8.0-60-generic",
    interface="ens3",
    mounts=(("/", "ext4", 80.0), ("/home", "btrfs", 200.0)),
    statuses=("Sleeping", "Running"),
    programs=(
        *_LINUX_BASE,
        Program("/usr/bin/gnome-shell", "", 310),
        Program("/usr/bin/Xwayland", ":0 -rootless", 70),
        Program("/usr/lib/firefox/firefox", "", 520),
        Program("/usr/lib/libreoffice/program/soffice.bin", "--calc budget.ods", 240),
        Program("/usr/bin/code", "--unity-launch /home/ada/projects", 280),
        Program("/usr/bin/pipewire", "", 16),
    ),
    helpers=(
        Program("/usr/lib/firefox/firefox", "-contentproc -childID 7 tab", 190),
        Program("/usr/bin/code", "--type=renderer", 150),
        Program("/usr/libexec/gvfsd", "", 7),
        Program("/usr/bin/bash", "", 5),
    ),
    applications=(
        Desktop("/usr/lib/firefox/firefox", "Firefox", "139.0", "Mozilla"),
        Desktop("/usr/lib/libreoffice/program/soffice.bin", "LibreOffice Calc", "24.2", "Document Foundation"),
        Desktop("/usr/bin/code", "Visual Studio Code", "1.101", "Microsoft"),
        Desktop("/usr/bin/gnome-shell", "GNOME Shell", "46.0", "Ubuntu"),
    ),
)

_SYSTEM32 = "C:\\Windows\\System32\\"
_CHROME = "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe"
_EXCEL = "C:\\Program Files\\Microsoft Office\\root\\Office16\\EXCEL.EXE"

WINDOWS = Profile(
    system_name="Windows",
    os_version="11 (26100)",
    kernel_version="26100",
    interface="Ethernet",
    mounts=(("C:\\", "NTFS", 120.0),),
    statuses=("Sleep", "Run"),
    programs=(
        Program(_SYSTEM32 + "smss.exe", "", 1),
        Program(_SYSTEM32 + "csrss.exe", "", 5),
        Program(_SYSTEM32 + "wininit.exe", "", 6),
        Program(_SYSTEM32 + "services.exe", "", 11),
        Program(_SYSTEM32 + "lsass.exe", "", 22, (49664,)),
        Program(_SYSTEM32 + "svchost.exe", "-k RPCSS -p", 14, (135,)),
        Program(_SYSTEM32 + "svchost.exe", "-k termsvcs", 18, (3389,)),
        Program("C:\\Windows\\explorer.exe", "", 140),
        Program(_EXCEL, "budget.xlsx", 210),
        Program(_CHROME, "", 260),
    ),
    helpers=(
        Program(_SYSTEM32 + "svchost.exe", "-k netsvcs -p", 16),
        Program(_CHROME, "--type=renderer", 120),
        Program(_SYSTEM32 + "RuntimeBroker.exe", "-Embedding", 24),
        Program(_SYSTEM32 + "conhost.exe", "0x4", 7),
    ),
    applications=(
        Desktop(_CHROME, "Google Chrome", "137.0", "Google LLC"),
        Desktop(_EXCEL, "Excel", "16.0", "Microsoft"),
        Desktop("C:\\Windows\\explorer.exe", "Windows Explorer", "10.0", "Microsoft"),
    ),
    services=(
        WindowsService("RpcSs", "Remote Procedure Call (RPC)", "Auto"),
        WindowsService("EventLog", "Windows Event Log", "Auto"),
        WindowsService("Dhcp", "DHCP Client", "Auto"),
        WindowsService("Dnscache", "DNS Client", "Auto"),
        WindowsService("TermService", "Remote Desktop Services", "Manual"),
        WindowsService("W32Time", "Windows Time", "Manual"),
        WindowsService("Spooler", "Print Spooler", "Auto"),
        WindowsService("wuauserv", "Windows Update", "Manual"),
        WindowsService("BITS", "Background Intelligent Transfer Service", "Manual"),
        WindowsService("RemoteRegistry", "Remote Registry", "Disabled"),
        WindowsService("WinDefend", "Microsoft Defender Antivirus Service", "Auto"),
        WindowsService("LanmanServer", "Server", "Auto"),
    ),
)
