"""The broker's end of a TCP connection, scripted byte by byte: for what no broker of ours sends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8


class Peer:
    """One client of the scripted broker; counts the PUBLISH packets that it has sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.published: list[int] = []

    async def read(self) -> tuple[int, bytes]:
        """The type and the content of the next packet. Raises IncompleteReadError at the end."""
        first = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        content = await self._reader.readexactly(length)
        if first >> 4 == PUBLISH and first & 0x06:
            at = 2 + int.from_bytes(content[:2], "big")
            self.published.append(int.from_bytes(content[at : at + 2], "big"))
        return first >> 4, content

    async def accept(self, properties: bytes = b"", *, reason: int = 0, is_version_5: bool = True) -> None:
        """Read CONNECT and answer with CONNACK."""
        packet_type, _ = await self.read()
        assert packet_type == CONNECT
        body = bytes([0, reason]) + (bytes([len(properties)]) + properties if is_version_5 else b"")
        await self.send(0x20, body)

    async def send(self, first: int, body: bytes) -> None:
        """Send a packet of fewer than 128 bytes."""
        self._writer.write(bytes([first, len(body)]) + body)
        await self._writer.drain()

    async def puback(self, packet_id: int, reason: int = 0) -> None:
        """Acknowledge a message."""
        await self.send(0x40, packet_id.to_bytes(2, "big") + bytes([reason, 0]))

    async def read_until_end(self) -> None:
        """Read whatever comes until the client is gone."""
        try:
            while True:
                await self.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass


@asynccontextmanager
async def scripted_broker(script: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve each client by the script, then close its connection; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
