"""Prints every record of some Kafka topics from given positions to their present ends, as JSON lines. Runs inside the compose network.

    python dump_topics.py kafka:9092 '{"moedge.task-events.v1": {"0": 17}}'      positions of partitions; those not named: from the start

Stands alone: it is handed to a container's Python as text, which has aiokafka and nothing of the tests.
"""

import asyncio
import base64
import json
import sys

from aiokafka import AIOKafkaConsumer


async def dump(bootstrap, positions):
    consumer = AIOKafkaConsumer(
        *positions, bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = sorted(consumer.assignment())
        for partition in partitions:
            consumer.seek(partition, positions[partition.topic].get(str(partition.partition), 0))
        first, last = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for partition in partitions:
            if await consumer.position(partition) < first[partition]:
                consumer.seek(partition, first[partition])
        while [p for p in partitions if await consumer.position(p) < last[p]]:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    show(record)
        ends = {p: await consumer.position(p) for p in partitions}
        print(json.dumps({"ends": [[p.topic, p.partition, offset] for p, offset in ends.items()]}), flush=True)
    finally:
        await consumer.stop()


def show(record):
    value = base64.b64encode(record.value or b"").decode()
    print(json.dumps({"topic": record.topic, "partition": record.partition, "offset": record.offset, "value": value}))


if __name__ == "__main__":
    asyncio.run(dump(sys.argv[1], json.loads(sys.argv[2])))
