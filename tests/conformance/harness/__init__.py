"""What the conformance tests stand on: official clients as processes, a server as a process, and a way in."""
