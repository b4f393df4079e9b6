"""The Proxy: what gRPC clients speak to. Stateless but for sessions and the renewal of leases.

`proxy.py` speaks kernel terms; `grpc.py` is its gRPC face, with `messages.py` (messages both ways), `settings.py`
(what clients are told) and `reflection.py` beside it. `routing.py` chooses queues and addresses, `sessions.py` owns the
clients, `receipts.py` keeps messages invisible while their clients work on them.
"""
