"""The sender of webhooks: a thread of every worker, beside the jobs.

A delivery is claimed for `LOST_SECONDS`; if the sender dies, another one sends it again with the same ``webhook-id``,
so that it arrives at least once. The address is resolved and checked at every try, and the connection goes to the
address that was checked. Redirects are not followed. No answer takes longer than `ANSWER_SECONDS` or more than
`MAX_HEAD_BYTES` of memory.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from trd_data.network_address import AddressRefusedError, Network, pin_address
from worker.attempt import Slot
from worker.periodic import Periodic
from worker.webhooks import repository
from worker.webhooks.repository import DueDelivery, Outcome

RETRY_SECONDS = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0)
"""Delays after failed tries, as Standard Webhooks recommends: about a day and a half in all."""
LOST_SECONDS = 120.0
ANSWER_SECONDS = 10.0
"""Longest time from the resolution of the name to the end of the answer."""
MAX_HEAD_BYTES = 1_000
"""Bytes of an answer that are read and shown to the webhook's owner."""
MAX_TOGETHER = 32
"""Receivers that are called at the same time. Each gets one delivery at a time, the oldest first."""


def make_sender(slot: Slot) -> Periodic:
    """Return the worker's thread that sends webhooks."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each URL, which may contain a token

    def send_all_due() -> None:
        while not slot.stopping.is_set() and send_due(slot):
            pass

    return slot.repeat("webhooks", send_all_due, slot.settings.webhook_seconds)


def send_due(slot: Slot, *, retry_seconds: Sequence[float] = RETRY_SECONDS) -> int:
    """Send one due delivery to each receiver; return how many were sent. No transaction is open meanwhile."""
    with slot.database.write() as session:
        due = repository.claim_due(session, most=MAX_TOGETHER, lost_seconds=LOST_SECONDS)
    if due:
        outcomes = asyncio.run(_send_all(due, slot.settings.webhook_network))
        with slot.database.write() as session:
            for outcome in outcomes:
                repository.record(session, outcome, retry_seconds)
    return len(due)


async def _send_all(due: Sequence[DueDelivery], network: Network) -> list[Outcome]:
    # A proxy from the environment would resolve the name again. SSL_CERT_FILE still applies.
    context = ssl.create_default_context()
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False, verify=context) as client:
        return await asyncio.gather(*(_send(client, delivery, network) for delivery in due))


async def _send(client: httpx.AsyncClient, delivery: DueDelivery, network: Network) -> Outcome:
    started = time.monotonic()
    status, head, error = None, None, None
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            address, now = await asyncio.to_thread(pin_address, delivery.url, network), datetime.now(UTC)
            headers = {
                "host": address.host_header,
                "content-type": "application/json",
                "user-agent": "trd-webhooks",
                "webhook-id": delivery.id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(delivery.secret).sign(delivery.id, now, delivery.body),
            }
            request = client.build_request(
                "POST",
                address.url,
                content=delivery.body.encode(),
                headers=headers,
                extensions={"sni_hostname": address.server_name},
            )
            response = await client.send(request, stream=True, follow_redirects=False)
            try:
                status = response.status_code
                head = await _head(response)
            finally:
                await response.aclose()
    except AddressRefusedError as refused:
        error = f"the address {refused}"
    except TimeoutError:
        error = f"no complete answer within {ANSWER_SECONDS:g} s"
    except Exception as failure:  # noqa: BLE001 - the boundary of one receiver, which must not affect the others
        error = f"{type(failure).__name__}: {failure}"[:500]
    return Outcome(delivery, time.monotonic() - started, status, head, error)


async def _head(response: httpx.Response) -> str:
    """Return the first bytes of the answer, as they come: packed ones may unpack to any length."""
    head = b""
    async for piece in response.aiter_raw():
        head += piece
        if len(head) >= MAX_HEAD_BYTES:
            break
    return head[:MAX_HEAD_BYTES].decode("utf-8", "replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
