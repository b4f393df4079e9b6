"""Sends an order a second, through whichever Proxy is there."""

import itertools
import sys
import time

from rocketmq import ClientConfiguration, Credentials, Message, Producer

producer = Producer(ClientConfiguration(sys.argv[1], Credentials()), {"orders"})
for number in itertools.count(1):
    message = Message()
    message.topic, message.body = "orders", f"order {number}".encode()
    while True:
        try:
            if not producer.is_running:
                producer.startup()
            print(f"sent order {number} as {producer.send(message).message_id}", flush=True)
            break
        except Exception as error:  # noqa: BLE001 - the client raises nothing narrower while the cluster starts
            print(f"not yet: {error}", flush=True)
            time.sleep(1)
    time.sleep(1)
