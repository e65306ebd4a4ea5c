"""The service as a process: `python -P -m service`. Exits with 2 where it must not start."""

import argparse
import fcntl
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from regtrain.contract.errors import RegtrainError
from service.app import create_app
from service.guard import configure_logs
from service.settings import Settings, is_loopback


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is told to stop. Returns the exit status."""
    try:
        settings = _settings(arguments)
        return serve(settings)
    except ValidationError as error:
        return _stop("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    except (Forbidden, RegtrainError, SQLAlchemyError) as error:
        return _stop(str(error))


class Forbidden(Exception):
    """The service must not start like this: says why, and what to do."""


def serve(settings: Settings) -> int:
    """Binds, opens the database and answers until SIGTERM or SIGINT.

    Raises:
        Forbidden: an address that is not allowed or not free, or a database that another server has.
    """
    if not is_loopback(settings.host) and not settings.allow_remote:
        raise Forbidden(
            f"binding to {settings.host} lets other machines in, and there are no keys yet: whoever reaches the port may do everything. Bind to 127.0.0.1, or say --allow-remote (REGTRAIN_ALLOW_REMOTE=true)"
        )
    configure_logs()
    with ExitStack() as stack:
        listener = stack.enter_context(_listen(settings))
        stack.enter_context(_only_server(settings))
        app = create_app(settings)
        stack.callback(app.state.database.close)
        server = Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=10, timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # uvicorn raises the signal again when it has stopped: that is a clean end
        server.run(sockets=[listener])
        return 0 if server.started else 1


class Server(uvicorn.Server):
    """Says where it listens, and lets nobody wait when it is told to stop."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            print(f"regtrain service on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        app: Any = self.config.app
        app.state.stop()
        super().handle_exit(sig, frame)


def _settings(arguments: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="python -P -m service", description=__doc__)
    parser.add_argument("--host", help="address to bind to; default 127.0.0.1")
    parser.add_argument("--port", help="port; 0 takes any free one; default 8321")
    parser.add_argument("--data", help="folder of the database, uploads and models; default regtrain-data")
    parser.add_argument("--database-url", help="sqlite:///FILE or postgresql://…; default regtrain.db in the data folder")
    parser.add_argument("--allow-remote", action="store_const", const=True, help="let other machines in")
    parser.add_argument("--allowed-hosts", help="names by which requests may address this server, with commas")
    return Settings(**{name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None})


def _listen(settings: Settings) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise Forbidden(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another with --port") from error
    # Inherited by every connection. asyncio does not set it for sockets made like this, and each answer on a connection that is kept took 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _only_server(settings: Settings) -> Any:
    """A lock beside the database file, held as long as this process lives: one server a file. PostgreSQL takes several."""
    url = make_url(settings.database_url) if settings.database_url else None
    if url is not None and url.get_backend_name() != "sqlite":
        return ExitStack()
    database = Path(url.database or "") if url is not None else settings.data / "regtrain.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = open(f"{database}.server", "a+")  # noqa: SIM115 (the caller closes it)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read(20).strip()
        lock.close()
        raise Forbidden(f"another server (process {holder or 'unknown'}) already serves {database}: stop it, or use another --data folder") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _stop(message: str) -> int:
    print(f"regtrain service: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
