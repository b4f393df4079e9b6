"""Takes orders and acknowledges them."""

import sys
import time

from rocketmq import ClientConfiguration, Credentials, FilterExpression, SimpleConsumer

consumer = SimpleConsumer(ClientConfiguration(sys.argv[1], Credentials()), "baristas", {"orders": FilterExpression()})
while True:
    try:
        if not consumer.is_running:
            consumer.startup()
        for message in consumer.receive(32, 15):
            print("took", message.body.decode(), flush=True)
            consumer.ack(message)
    except Exception as error:  # noqa: BLE001 - the client raises nothing narrower while the cluster starts
        print(f"not yet: {error}", flush=True)
        time.sleep(1)
