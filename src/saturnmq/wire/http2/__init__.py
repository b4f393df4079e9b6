"""HTTP/2 for a server, sans-IO (RFC 9113, RFC 7541): as much of it as gRPC uses, and all of it that keeps peers honest.

`connection.ServerConnection` is the door; the shell around it is `net.grpc_server`. Left out because no gRPC client
uses them: push, priorities (RFC 9113 deprecates them), CONNECT, upgrade from HTTP/1.1.
"""
