"""Running the page: its address, its start and its end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..memory import format_size
from .bombs import guard_pillow
from .restoring import SHOWN, Restore, Restorer
from .storage import Storage
from .threads import Threads

SHOWN_SIZE = 2 * 4 * SHOWN**2  # bytes of both pictures that the page shows, at most
CONNECTIONS = 256  # that are served; as many wait, and half as many are let in to be told so
SECONDS_TO_FINISH = 2  # for answers under way when the server ends


@dataclass(frozen=True)
class Limits:
    """What visitors may ask for.

    Attributes:
        upload: bytes of a file.
        pixels: of a picture, by its header.
        queue: calls that may wait.
        stored: bytes of all uploads and results; the oldest go first.
    """

    upload: int = 25 * 2**20
    pixels: int = 50_000_000
    queue: int = 32
    stored: int = 4 * 2**30

    def __post_init__(self) -> None:
        for name in ("pixels", "queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.stored < (least := self.upload + 5 * self.pixels + SHOWN_SIZE):
            raise ValueError(
                f"{format_size(self.stored)} cannot hold a file of {format_size(self.upload)} and its result "
                f"of {self.pixels / 1e6:g} megapixels: store up to {format_size(least)} or more"
            )

    def __str__(self) -> str:
        return f"Files up to {format_size(self.upload)}, pictures up to {self.pixels / 1e6:g} megapixels."


def serve(
    models: Mapping[str, Callable[[], Restore]],
    host: str = "127.0.0.1",
    port: int = 7860,
    limits: Limits | None = None,
    about: str = "",
    root_path: str = "",
    tried: Sequence[str] = (),
) -> None:
    """Serve the page until a signal ends it, and print its address on a line when it can be visited.

    The process is the server's from then on: Pillow's limits and Gradio's environment variables are set.

    Args:
        models: by what they are called, functions that load one and return what restores a picture by it.
        host: the address to listen on.
        port: 0 for any that is free.
        limits: what visitors may ask for; `Limits()` by default.
        about: what computes, to be shown with each result.
        root_path: where the page is for visitors, as "/restore", behind a proxy that takes it off.
        tried: the models that are loaded, and restore a small picture, before the start.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the address cannot be had, or there is no folder for temporary files.
        Exception: what loading a model in `tried`, or restoring by it, raises.
    """
    limits = limits or Limits()
    with Storage(limits.stored) as storage, listening(host, port) as listener:
        restorer = Restorer(models, storage)
        restorer.try_out(tried)
        server = server_of(restorer, limits, about, root_path)
        shown = f"[{host}]" if ":" in host else host
        print(f"irnext: serving on http://{shown}:{listener.getsockname()[1]}/", flush=True)
        server.run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError, with the address and what to do, where it cannot be had."""
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}: it must be from 0, for any that is free, to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror.partition(" (while")[0]  # it names the address, too
        raise OSError(
            f"cannot serve on {host}, port {port}: {reason}; give another --host or --port"
        ) from None


def server_of(restorer: Restorer, limits: Limits, about: str, root_path: str):
    """The web server, of which `run` serves and returns after a signal."""
    folder = restorer.storage.folder
    os.environ.update(
        GRADIO_TEMP_DIR=str(folder),
        GRADIO_EXAMPLES_CACHE=str(folder),
        GRADIO_RUN_HISTORY="False",
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_ANALYTICS_MAX_EVENTS="1",
        GRADIO_ANALYTICS_CACHE_FREQUENCY=str(sys.maxsize),  # calls between two statistics, by pandas
    )
    try:
        import gradio as gr
        import uvicorn
        from starlette.applications import Starlette
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as error:
        raise ImportError(f"the page needs {error.name}: pip install 'irnext[demo]'") from None
    from . import page as pages
    from .guard import Guard

    guard_pillow(limits.pixels)
    threads = Threads()
    page = pages.build(restorer, threads, str(limits), about, limits.queue)
    application = gr.mount_gradio_app(
        Starlette(),
        page,
        "/",
        root_path=root_path,
        max_file_size=limits.upload,
        show_error=False,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(font=pages.FONTS, font_mono=["ui-monospace", "monospace"]),
        css=pages.CSS,
    )

    class Protocol(H11Protocol):
        def connection_made(self, transport) -> None:
            super().connection_made(transport)
            if len(self.connections) > 3 * CONNECTIONS // 2:  # silent ones, too, take a descriptor each
                transport.close()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None) -> None:
            page.close(verbose=False)  # ends the streams that browsers keep open
            await super().shutdown(sockets)
            threads.stop()

    return Server(
        uvicorn.Config(
            Guard(application, restorer.storage, limits.upload),
            http=Protocol,
            limit_concurrency=CONNECTIONS,
            backlog=CONNECTIONS,  # so many asyncio takes at a time before it looks at them
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
        )
    )
