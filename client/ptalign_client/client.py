"""The service for asyncio programs."""

from __future__ import annotations

from ptalign_client.library import Library
from ptalign_client.verbs import Verbs


class AsyncClient(Verbs, Library):
    """The service for asyncio programs: the four verbs, operations and the library.

    ::

        async with AsyncClient("127.0.0.1:50051") as client:
            running = await client.align(model="smollm2-135m-instruct", pair_set="pairSets/ID")
            async for event in running.events():
                print(event.progress.phase, event.progress.done, event.progress.total)
            adapter = await running.result()

    Belongs to the event loop that makes its first call. Calls in flight are capped (see
    `Options.max_calls` and `Options.max_streams`); more wait for their turn.
    """
