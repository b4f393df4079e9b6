"""What the conformance tests stand on: official clients as processes, a server as a process, and a way in."""

import pytest

pytest.register_assert_rewrite("harness.exchange", "harness.processes", "harness.remoting", "harness.shared_broker")
