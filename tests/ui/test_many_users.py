"""Twenty users at once on the real server: every picture ends, and nobody waits for all of somebody else's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from triptych import AsyncClient
from triptych.ui.desk import Desk
from triptych.ui.jobs import Batch, Jobs, Status
from triptych.ui.limits import Limits
from triptych.ui.monitor import Monitor
from triptych.ui.store import Store

USERS, EACH = 20, 2


async def begin(desk: Desk, name: str) -> Batch:
    values = {"prompt": "a 3d render of a red apple", "num_inference_steps": 8, "seed": "7"}
    batch, _ = await desk.generate(desk.store.session(name), None, "sdxl", values, EACH, keep_seed=True)
    return batch


def test_twenty_users_are_served_in_turn(url, tmp_path):
    # On a thread of its own: Playwright's loop runs on this one as long as there is a browser.
    with ThreadPoolExecutor(1) as thread:
        batches, ends = thread.submit(asyncio.run, drawn(url, tmp_path)).result()
    assert {picture.status for batch in batches for picture in batch.pictures} == {Status.DONE}
    # Nobody waits for all of somebody else's: most have their first before anybody but a few has both.
    assert set(ends[: USERS + USERS // 2]) == set(range(USERS))


async def drawn(url: str, uploads: Path) -> tuple[list[Batch], list[int]]:
    """All users' pictures, and whose ended when."""
    store = Store()
    ends: list[int] = []
    try:
        async with AsyncClient(url) as client:
            monitor = Monitor(client)
            await monitor.look()
            desk = Desk(store, Jobs(lambda _: client, store, monitor, Limits()), monitor, uploads)
            batches = [await begin(desk, f"user {k}") for k in range(USERS)]
            for user, batch in enumerate(batches):
                for task in batch.tasks:
                    task.add_done_callback(lambda _, user=user: ends.append(user))
            await asyncio.wait_for(asyncio.gather(*(task for batch in batches for task in batch.tasks)), 300)
    finally:
        store.close()
    return batches, ends
