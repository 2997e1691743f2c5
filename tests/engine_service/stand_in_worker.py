"""A process that speaks a worker's protocol and does no work.

A cancel is a wish here: `crash` ends the process at once, `load` has it hold layers from the next hello on, `mute`
makes it deaf to Leave and SIGTERM, `close` closes the connection, `garbage` breaks the protocol. With `--spare` it
waits first, as a worker does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from exoengine.process import spare
from exoengine.protocol import Cancel, Hello, Leave, Left, Load, SyncSettings, decode_to_worker, encode, read_frame


async def main(path: str) -> None:
    deaf = asyncio.Event()
    ended = asyncio.Event()
    held: list[Load] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            encode(Hello(1, os.getpid(), {}, None, None, 0, False, (), load=held[0] if held else None)),
        )
        while (body := await read_frame(reader)) is not None:
            match decode_to_worker(body):
                case Cancel("crash"):
                    print("the worker's last words", flush=True)
                    os._exit(3)
                case Cancel("load"):
                    held.append(Load("/models/m", 0, 4, SyncSettings()))
                case Cancel("mute"):
                    deaf.set()
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                case Cancel("close"):
                    writer.close()
                case Cancel("garbage"):
                    writer.write(b"\0\0\0\4abcd")
                case Leave() if not deaf.is_set():
                    writer.write(encode(Left()))
                    await writer.drain()
                    writer.close()
                    ended.set()

    await asyncio.start_unix_server(serve, path)
    await ended.wait()


if "--spare" in sys.argv:
    spare.NEEDED = ()  # type: ignore[misc]
    spare.Spare().wait()
asyncio.run(main(sys.argv[sys.argv.index("--socket") + 1]))
