"""`exod`: arguments, configuration, event loop, exit codes. Everything else is `app.py`'s."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
from pathlib import Path

from exod import VERSION
from exod.errors import ExitCode, ExodError
from exod.plain_text import printable
from exod.platform.standard_streams import drop_unwritten, fill_closed
from exod.platform.stop_signals import end_before_the_start
from exoengine.installed import why_not_imported

DEMO_OVERRIDES = {"EXOD_MQTT__BROKER": "embedded"}
"""`--demo` is what `make run` starts: this broker, whatever the configuration says. The demo model is no wish: it
runs where nobody names another."""

DESCRIPTORS = 8192
"""All connections that the daemon's own bounds allow are some 1,500; macOS allows a process 10,240."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="exod", description="The supervisor of an MLX cluster of Macs.")
    parser.add_argument("--version", action="version", version=VERSION)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="run")
    run = verbs.add_parser("run", help="run the daemon in the foreground")
    run.add_argument("--version", action="version", version=VERSION)
    run.add_argument("--config", type=Path, metavar="FILE", help="the configuration, a TOML file")
    run.add_argument(
        "--demo",
        action="store_true",
        help="use the embedded demo model and the embedded MQTT broker, and say what to try",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; an error that a person can mend is one line, never a traceback."""
    fill_closed()
    end_before_the_start()
    options = parse(arguments)
    try:
        return run(options)
    except ImportError as error:
        print(f"exod: {printable(why_not_imported(error))}", file=sys.stderr)
        return int(ExitCode.INTERNAL)
    except ExodError as error:
        print(f"exod: {printable(str(error))}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.OK)
    finally:
        drop_unwritten()


def run(options: argparse.Namespace) -> int:
    import asyncio

    import uvloop

    from exod import log
    from exod.app import Daemon
    from exod.config.settings import load

    environment = {**os.environ, **DEMO_OVERRIDES} if options.demo else dict(os.environ)
    config = load(options.config, environment)
    named = environment.get(log.FILE_VARIABLE)
    file = config.log.file or (Path(named) if named else None)
    log.configure(config.log.level, config.log.format, file, config.log.max_mib * 1024 * 1024, config.log.keep)
    raise_descriptor_limit()
    daemon = Daemon(config, announce=options.demo)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(daemon.run())
    return int(ExitCode.OK)


def raise_descriptor_limit(wanted: int = DESCRIPTORS) -> None:
    """launchd and shells of macOS give 256, which strangers' connections alone can use up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    sys.exit(main())
