"""The server: a socket, the worker's thread, and what a signal ends."""

import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Any

from torchtune_lite.errors import ConfigError, Stopped
from torchtune_lite.generation import Engine
from torchtune_lite.serving.app import Service, make_app
from torchtune_lite.serving.parameters import Reader
from torchtune_lite.serving.worker import Worker
from torchtune_lite.utils import get_logger

GRACE = 5
"""Seconds that connections have to end in when the server stops."""

LAST_PORT = 2**16 - 1

log = get_logger()


def listen(host: str, port: int) -> socket.socket:
    """Take the port of a host; ConfigError where that cannot be, or the libraries are missing.

    It listens from here on, so that no other process takes it while the model is read; who connects so early waits.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError("serving needs starlette and uvicorn: pip install 'torchtune_lite[serve]'") from error
    if port > LAST_PORT:
        raise ConfigError(f"port is {port}; it must be from 0 to {LAST_PORT}")
    try:
        [family, *_, address] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        taken = socket.socket(family)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen()
    except (OSError, UnicodeError) as error:  # the latter of a name that none can have
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot serve at host={host} port={port}: {reason}; choose another") from error
    return taken


def serve(
    taken: socket.socket,
    engine: Engine,
    name: str,
    *,
    system: str | None = None,
    question: Callable[[str], str] = str,
) -> None:
    """Answer requests for the model `name` at a socket, until a signal comes; Stopped tells of Ctrl-C.

    `system` is the system prompt of conversations that have none, `question` is applied to what users say in one. What
    ends the engine is raised.
    """
    reader = Reader(engine.tokenizer, engine.max_seq_len, engine.model.config.vocab_size, system, question)
    worker = Worker(engine)
    host, port = taken.getsockname()[:2]
    is_local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    app = make_app(Service(name, reader, worker), ["localhost", host] if is_local else None)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    server = _server(app, worker, lambda: _say(address, name, is_local))
    worker.on_end = lambda: setattr(server, "should_exit", True)
    worker.start()
    try:
        server.run(sockets=[taken])
    except KeyboardInterrupt:
        raise Stopped("stopped by SIGINT", signal.SIGINT) from None
    finally:
        worker.stop()
        worker.join(GRACE)
    if worker.error is not None:
        raise worker.error


def _say(address: str, name: str, is_local: bool) -> None:
    log.info("serving '%s' at %s, for trying it out; Ctrl-C stops", name, address)
    if not is_local:
        log.warning("every machine that reaches this one can use it: there is no password and no encryption")


def _server(app: Any, worker: Worker, started: Callable[[], None]) -> Any:
    """Make the server, which calls `started` once it takes requests, and with the first signal ends all answers."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        def handle_exit(self, sig: int, frame: Any) -> None:
            worker.stop()
            super().handle_exit(sig, frame)

    quiet = {"log_config": None, "access_log": False, "lifespan": "off"}
    return Server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE, **quiet))
