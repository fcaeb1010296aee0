"""`moedge topics`: create the Kafka topics that the services use, with their partitions and retention. What exists is left as it is."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated

import typer

from loadgen.cli.console import CommandError, ExitCode, command, print_json, stderr, stdout, table
from loadgen.cli.options import Json


@command
def topics(
    kafka: Annotated[str, typer.Option(help="Kafka to create them at.", metavar="HOST:PORT")] = "127.0.0.1:9092",
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each topic: 3 in a cluster of three or more.")] = 1,
    wait: Annotated[float, typer.Option(min=0.0, help="How long to wait for a Kafka that is not there yet.", metavar="SECONDS")] = 0.0,
    json: Json = False,
) -> None:
    """Create the Kafka topics that are missing."""
    from services.runtime.topics import TOPICS, with_dead_letters

    created = asyncio.run(_created(kafka, replication, wait))
    rows = [
        (topic.name, str(topic.num_partitions), _kept(topic.config), "created" if topic.name in created else "was there")
        for topic in with_dead_letters(TOPICS)
    ]
    if json:
        print_json({"kafka": kafka, "created": sorted(created), "topics": [row[0] for row in rows]})
    else:
        stdout().print(table("", ("topic", "partitions", "kept", ""), rows, text_columns=4))


async def _created(kafka: str, replication: int, wait_s: float) -> tuple[str, ...]:
    from aiokafka.errors import KafkaError

    from services.runtime.clock import SystemClock
    from services.runtime.topics import create_topics

    # aiokafka reports each refused connection as an error; this command says once that it waits.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    clock = SystemClock()
    give_up_at_s = clock.now_s() + wait_s
    told = False
    while True:
        try:
            return await create_topics(kafka, replication)
        except (KafkaError, OSError, TimeoutError) as error:
            if clock.now_s() >= give_up_at_s:
                why = str(error) or "no answer"
                raise CommandError(
                    f"Kafka at {kafka}: {why}; start it, or give another --kafka or a longer --wait", ExitCode.UNREACHABLE
                ) from error
        if not told:
            stderr().print(f"waiting for Kafka at {kafka}")
            told = True
        await clock.sleep(1.0)


def _kept(config: object) -> str:
    settings = dict(config) if isinstance(config, dict) else {}
    if settings.get("cleanup.policy") == "compact":
        return "latest of each key"
    return f"{int(settings.get('retention.ms', 0)) // 3_600_000} h"
