"""The page as a web server: the client underneath, Gradio on top, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.async_client import AsyncClient
from triptych.cli.options import LOCAL
from triptych.errors import invalid
from triptych.patience import Patience
from triptych_contract.families import DEFAULT, FAMILIES
from triptych_web.gates import LOOPBACK, check_hosts, check_pem, check_proxies, is_loopback
from triptych_web.limits import Limits
from triptych_web.listening import Listening

from .desk import Desk
from .gate import gates
from .jobs import Jobs
from .loading import load_gradio, without_apps, without_collection
from .monitor import Monitor
from .private import Private
from .routes import routes
from .store import Store
from .users import Door, read_users

HOUSEKEEPING_S = 60.0
# Passwords that are hashed at once.
HASHES = 2
# The page waits for a server itself, and tells that it does.
PATIENCE = Patience(absent_s=1, loading_s=1)
QUEUE = 256
EVENTS_AT_ONCE = 32
# How often Gradio looks whether an event waits in its queue, every millisecond by itself, and whether one has progress of
# Gradio's own kind to tell, which none has. All day long that took more of a core than twenty pages.
QUEUE_LOOK_S, PROGRESS_LOOK_S = 0.02, 1.0


@dataclass(frozen=True)
class Options:
    """How to serve the page.

    Args:
        client: `AsyncClient`'s arguments but `model`: url, tls, certificates.
        host, port: where to listen; a port of 0 takes a free one.
        root_path: where a proxy has the page, as /triptych; the proxy strips it.
        users: file of those who may log in; None for no login, which only loopback may have.
        allow_hosts: further names that a page without a login may be asked for by; *.example.org for all below one.
        trusted_proxies: addresses, or networks as 10.0.0.0/8, of proxies whose X-Forwarded headers are believed.
        certificate, key: PEM files; with them the page is served over TLS.
        max_upload_mb: largest file that may be dropped or started from.
        under_way, a_minute: pictures for each user at once, and in a minute.
    """

    client: Mapping[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 7860
    root_path: str = ""
    users: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    max_upload_mb: int = 32
    under_way: int = 64
    a_minute: float = 120

    def check(self) -> None:
        """Raise InvalidRequest where the options contradict each other."""
        if self.users is None and not is_loopback(self.host):
            legal = "127.0.0.1, or any with --users FILE, which asks for a login"
            raise invalid("host", f"{self.host} without --users", legal)
        check_pem(self.certificate, self.key)
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise invalid("root_path", repr(self.root_path), "a path as /triptych")
        check_hosts(self.allow_hosts)
        check_proxies(self.trusted_proxies)


def serve(options: Options, told: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM; `told` gets its address when it can be opened.

    Raises:
        InvalidRequest: the options contradict each other, or the users' file is not one.
        OSError: the port is in use.
    """
    options.check()
    store = Store()
    try:
        asyncio.run(_serve(options, store, told))
    finally:
        store.close()


async def _serve(options: Options, store: Store, told: Callable[[str], None]) -> None:
    listening = Listening(options.host, options.port, options.certificate, options.key)
    await listening.serve(build(options, store), lambda address: told(f"{address}{options.root_path}/"), grace_s=3)


def build(options: Options, store: Store, clients: Mapping[str, Any] | None = None) -> Any:
    """Make the ASGI application.

    Args:
        options: as for `serve`.
        store: where pictures are kept; the caller closes it.
        clients: by ensemble, instead of those that `options.client` makes.
    """
    load_gradio(store.folder)
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    made = clients or {model: AsyncClient(**options.client, model=model, patience=PATIENCE) for model in FAMILIES}
    monitor = Monitor(made[DEFAULT.name])
    jobs = Jobs(lambda ensemble: made[ensemble], store, monitor, _limits(options))
    desk = Desk(store, jobs, monitor)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        kept = _keep_house(store, jobs, app.routes[-1].app.get_blocks().temp_file_sets)
        tasks = [asyncio.ensure_future(monitor.run()), asyncio.ensure_future(kept)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await jobs.close()
            await asyncio.gather(*(client.close() for client in made.values()), return_exceptions=True)

    def user_of(cookies: Mapping[str, str]) -> str | None:
        gradio = app.routes[-1].app
        names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
        found: str | None = gradio.tokens.get(next((cookies[name] for name in names if cookies.get(name)), None))
        return found

    hosts = None if options.users else (*LOOPBACK, *options.allow_hosts)
    passed = gates(hosts=hosts, proxies=options.trusted_proxies, root_path=options.root_path)
    most = options.max_upload_mb * 2**20
    kept: dict[str, Any] = {"store": store, "user_of": user_of, "login": options.users is not None}
    own = Middleware(Private, **kept, max_upload_bytes=most, own=routes(desk))
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, middleware=[*passed, own])
    with without_collection():
        _mount(app, desk, options)
    return app


def _limits(options: Options) -> Limits:
    return Limits(under_way=options.under_way, a_minute=options.a_minute)


async def _keep_house(store: Store, jobs: Jobs, noted: Sequence[set[str]]) -> None:
    """Forget what is over, and the files that Gradio notes to delete some day: they are the store's."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_S)
        store.expire()
        for paths in noted:
            paths.clear()
        jobs.forget_ended(store.alive)


def _mount(app: Any, desk: Desk, options: Options) -> None:
    import gradio as gr

    from .assets import head, read
    from .page import lay_out, theme
    from .wiring import Wiring

    with without_apps():
        page = lay_out()
        Wiring(page, desk, str(options.client.get("url", LOCAL))).connect()
        page.blocks.queue(max_size=QUEUE, default_concurrency_limit=EVENTS_AT_ONCE, api_open=False)
        queue = page.blocks._queue
        queue.sleep_when_free, queue.progress_update_sleep_when_free = QUEUE_LOOK_S, PROGRESS_LOOK_S
    # Mounted pages never count as launched, and then Gradio does not look where a file comes from that an event names.
    page.blocks.has_launched = True
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        auth=_login(options),
        auth_message="Log in to Triptych." if options.users else None,
        root_path=options.root_path or None,
        show_error=False,
        max_file_size=options.max_upload_mb * 2**20,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=theme(),
        css=read("page.css"),
        head=head(),
    )
    # The queue runs events in the name of the application that a page has; here the mounted one.
    page.blocks.app = app.routes[-1].app


def _login(options: Options) -> Callable[[str, str], Awaitable[bool]] | None:
    if options.users is None:
        return None
    door = Door(read_users(options.users))
    # Hashing takes a while: few at a time, and the page goes on meanwhile.
    pool = ThreadPoolExecutor(HASHES, thread_name_prefix="password")

    async def check(name: str, password: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(pool, door, name, password)

    return check
