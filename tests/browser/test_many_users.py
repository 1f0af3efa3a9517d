"""Twenty users at once on the real server: every picture ends, and nobody waits for all of somebody else's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from triptych import AsyncClient
from triptych_page.desk import Desk
from triptych_page.jobs import Batch, Jobs, Status
from triptych_page.monitor import Monitor
from triptych_page.seeds import MAX_IMAGES
from triptych_page.store import Store
from triptych_web.limits import Limits

USERS, LONG = 20, 16
# In the midst of the others one wants many short ones, which "first come" and "shortest first" alike would draw at once.
GREEDY, MANY, SHORT = 10, 32, 4


async def begin(desk: Desk, user: int) -> list[Batch]:
    presses, n, steps = (MANY // MAX_IMAGES, MAX_IMAGES, SHORT) if user == GREEDY else (1, 1, LONG)
    values = {"prompt": "a 3d render of a red apple", "num_inference_steps": steps, "seed": "7"}
    session = desk.store.session(f"user {user}")
    return [(await desk.generate(session, None, "sdxl", values, n, keep_seed=True))[0] for _ in range(presses)]


def test_twenty_users_are_served_in_turn(url):
    """Tenants take turns, a step each: while another draws its LONG steps, the greedy one has LONG + 1 of its own at most.

    Those are less than a quarter of what MANY short pictures need. As many may have been before the last of the others came.
    """
    # On a thread of its own: Playwright's loop runs on this one as long as there is a browser.
    with ThreadPoolExecutor(1) as thread:
        batches, ends = thread.submit(asyncio.run, drawn(url)).result()
    assert {picture.status for batch in batches for picture in batch.pictures} == {Status.DONE}
    others_done = max(place for place, user in enumerate(ends) if user != GREEDY)
    assert ends[:others_done].count(GREEDY) * SHORT <= 2 * (LONG + 1)


async def drawn(url: str) -> tuple[list[Batch], list[int]]:
    """All users' pictures, and whose ended when."""
    store = Store()
    ends: list[int] = []
    try:
        async with AsyncClient(url) as client:
            monitor = Monitor(client)
            await monitor.look()
            desk = Desk(store, Jobs(lambda _: client, store, monitor, Limits()), monitor)
            of_users = [await begin(desk, user) for user in range(USERS)]
            batches = [batch for begun in of_users for batch in begun]
            for user, begun in enumerate(of_users):
                for task in (task for batch in begun for task in batch.tasks):
                    task.add_done_callback(lambda _, user=user: ends.append(user))
            await asyncio.wait_for(asyncio.gather(*(task for batch in batches for task in batch.tasks)), 300)
    finally:
        store.close()
    return batches, ends
