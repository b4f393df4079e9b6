"""The Proxy: what gRPC clients speak to. Stateless but for sessions and the renewal of leases.

`proxy.py` speaks kernel terms. `routing.py` chooses queues and addresses, `sessions.py` owns the clients, `receipts.py`
keeps messages invisible while their clients work on them.

`grpc.py` is the gRPC face: the table of RPCs, and those that send and settle; the others are in `routes.py` (where to
dial), `receiving.py`, `telemetry.py` (who clients are, with `settings.py`, what they are told) and `reflection.py`. All
of them use `checks.py` (what any request must keep to), `codes.py` (errors as clients read them) and `messages.py`
(messages both ways).
"""
