"""The agent's process that takes samples: how it is started, and what ends it."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tools.harness.waiting import eventually_async

from guestd.agent.hostlines import pass_through
from guestd.agent.outbox import Outbox
from guestd.agent.sampling import NoSample, Sampler, SamplerOptions
from guestd.agent.transport import ReliableSender, listen, serve_socket
from support.daemon import environment

# The agent does not wait for the process that takes samples: it might never end.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
DEADLINE_SECONDS = 30
FAILING = """
import sys
from guestd.agent.sampler import run
from guestd.agent.sampling import SamplerOptions
from guestd.core.log import configure_logging

def fail(_):
    raise ZeroDivisionError("an odd machine")

configure_logging()
run(SamplerOptions(None, sys.argv[1]), fail)
"""


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


async def sample_once(state: Path | None) -> bytes:
    sampler = Sampler(SamplerOptions(None, None if state is None else os.fspath(state)))
    try:
        return await sampler.sample()
    finally:
        await sampler.close()


def test_a_module_in_the_working_directory_is_not_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "psutil.py").write_text("import pathlib\npathlib.Path('run').touch()\n")
    monkeypatch.chdir(directory)
    assert msgspec.json.decode(asyncio.run(sample_once(None)))["data"]["system"]["processes"]
    assert not (directory / "run").exists()


def test_a_state_file_may_have_any_name(directory: Path) -> None:
    state = directory / os.fsdecode(b"caf\xe9 'all'.json")
    assert asyncio.run(sample_once(state))
    assert msgspec.json.decode(state.read_bytes())["records"]


@pytest.fixture
def descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_without_free_descriptors_there_is_no_sample_and_nothing_ends(free: int) -> None:
    async def start() -> None:
        first_free = os.dup(0)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with pytest.raises(NoSample, match="Too many open files"):
            await Sampler(SamplerOptions(None, None)).start()
        assert os.dup(0) == first_free if free else True

    asyncio.run(start())


@pytest.mark.usefixtures("descriptors")
def test_a_host_that_connects_without_a_free_descriptor_is_served_later(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def serve() -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        sender = ReliableSender(Outbox("boot", 1_000_000), on_request=lambda: None, unwrap=pass_through)
        with listen(directory / "a.socket") as listener, socket.socket(socket.AF_UNIX) as host:
            first_free = os.dup(0)
            os.close(first_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
            host.setblocking(False)
            host.connect(os.fspath(directory / "a.socket"))
            async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(serve_socket(listener, sender))
                await eventually_async(lambda: "client not accepted" in capsys.readouterr().out, "it says so", 10)
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                assert await asyncio.get_running_loop().sock_recv(host, 1) == b"\n"
                serving.cancel()

    asyncio.run(serve())


def test_a_sample_that_fails_as_a_whole_ends_the_process_with_its_state_and_the_reason(directory: Path) -> None:
    state = directory / "state.json"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(DEADLINE_SECONDS)
        with subprocess.Popen(
            [sys.executable, "-c", FAILING, state],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
        ) as process:
            theirs.close()
            ours.sendall(b"\n")
            assert ours.recv(1) == b""
            assert process.wait(DEADLINE_SECONDS) == 0
            assert process.stderr is not None
            log = process.stderr.read().decode()
    assert "a sample failed as a whole" in log
    assert "ZeroDivisionError: an odd machine" in log
    assert state.exists()
