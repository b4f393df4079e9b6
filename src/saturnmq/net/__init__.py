"""The only room with sockets, threads and the real time."""
