"""What every request passes on its way in and out: its id, the Host and Origin checks, the safety headers, the log line, the last catch.

Binding to loopback does not keep a web page out: with DNS rebinding its own name resolves to 127.0.0.1. So the Host
must be a name of ours, and a write that a browser sends must come from a page of ours.
"""

import logging
import sys
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import structlog
from asgi_correlation_id import correlation_id
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regtrain.contract.errors import Problem
from service.problems import problem, unexpected
from service.settings import LOOPBACK, Settings, is_address

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
log = structlog.get_logger()


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = LOOPBACK | {settings.host} | set(settings.allowed_hosts)
        self.any_host = "*" in settings.allowed_hosts
        self.addresses = settings.allow_remote

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = perf_counter(), 0

        async def finish(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, finish)
        except ClientDisconnect:
            status = 499
        except Exception:
            log.exception("unexpected")
            if status:
                raise
            await unexpected()(scope, receive, finish)
        finally:
            log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=round(1000 * (perf_counter() - begun), 2))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = hostname(headers.get("host", ""))
        if not self._ours(host):
            hint = f"use http://127.0.0.1, or set REGTRAIN_ALLOWED_HOSTS={host}" if host else "send a Host header"
            return problem(421, f"this server is not addressed as {host[:100]!r}", errors=[Problem("Host", "not a name of this server", hint)])
        origin = headers.get("origin")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        if headers.get("sec-fetch-site") == "cross-site" or (origin is not None and not self._ours(hostname(origin.partition("://")[2]))):
            return problem(
                403,
                "a page of another site may not write here",
                errors=[Problem("Origin", "not a page of this server", "send the request from a program, or from a page of this server")],
            )
        return None

    def _ours(self, host: str) -> bool:
        """An address cannot be rebound, so with remote access every address is good."""
        return self.any_host or host in self.hosts or (self.addresses and is_address(host))


def hostname(host: str) -> str:
    """The name in a Host header, in lower case, without port and brackets; empty if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def configure_logs() -> None:
    """One JSON object a line on stderr, with the id of the request to which it belongs, also for lines of the libraries."""
    shared: list[Any] = [_with_request_id, structlog.stdlib.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _with_request_id(_: Any, __: str, event: Any) -> Any:
    if (identity := correlation_id.get()) is not None:
        event["request_id"] = identity
    return event


def _add_headers(headers: MutableHeaders) -> None:
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-cache")
