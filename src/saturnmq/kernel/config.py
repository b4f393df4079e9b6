"""Settings: frozen, with Apache's key names on the outside (`flushDiskType`) and ours on the inside.

A file feeds several structs from one flat key space, as Apache's reader does. Names carry their unit where Apache's
do; the comment after a field says why our default differs, where it does (docs/configuration.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

GIB = 1 << 30
MIB = 1 << 20

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
#: of HTTP/2 (RFC 9113 6.9)
Window = Annotated[int, msgspec.Meta(ge=65_535, le=2_147_483_647)]
Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]

_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How messages are stored (store/config/MessageStoreConfig.java)."""

    store_path_root_dir: str = ""
    #: `path,path`: log files are made in them in turn; empty: <root>/commitlog
    store_path_commit_log: str = ""
    #: `path,path`: directories whose log files are read and, when their time has come, deleted
    read_only_commit_log_store_paths: str = ""
    #: bytes
    mapped_file_size_commit_log: Positive = GIB
    #: bytes: 300,000 entries of 20
    mapped_file_size_consume_queue: Positive = 6_000_000
    #: Apache: ASYNC_FLUSH. Durable by default: an acknowledged message survives a power cut.
    flush_disk_type: Literal["SYNC_FLUSH", "ASYNC_FLUSH"] = "SYNC_FLUSH"
    #: milliseconds between flushes of ASYNC_FLUSH
    flush_interval_commit_log: Positive = 500
    #: milliseconds between flushes of the consume queues
    flush_interval_consume_queue: Positive = 1000
    #: milliseconds that a send waits for its flush before it is answered FLUSH_DISK_TIMEOUT
    sync_flush_timeout: Positive = 5000
    #: bytes of a body
    max_message_size: Positive = 4 * MIB
    message_delay_level: str = LEVELS
    #: milliseconds between writes of config/*.json that changed
    flush_interval_config: Natural = 5000
    #: `hour;hour`, local time, when expired files are deleted
    delete_when: str = "04"
    #: hours since its last write after which a log file is expired
    file_reserved_time: Positive = 72
    #: percent of the disk above which expired files are deleted at any time
    disk_max_used_space_ratio: Percent = 75
    #: Apache: true. Files that are not expired are deleted too when the disk is fuller than the next setting says:
    #: what fills a disk may be anybody's, and messages are not ours to lose.
    clean_file_forcibly_enable: bool = False
    #: percent
    disk_space_clean_forcibly_ratio: Percent = 85
    #: percent of the disk above which no messages are taken, if there is also less free than the next setting says
    disk_space_warning_level_ratio: Percent = 90
    #: bytes; ours: one log file of the default size, so that a disk without room for the next one counts as full
    disk_min_free_bytes: Natural = GIB
    #: milliseconds between looks for expired files
    clean_resource_interval: Positive = 10_000
    #: log files that one look deletes at most
    delete_file_batch_max: Positive = 10
    #: milliseconds between the deletions of two log files: some file systems halt over a large one
    delete_commit_log_files_interval: Natural = 100
    #: messages are found by key (`index/`)
    message_index_enable: bool = True
    #: no effect: after a crash the index is always repaired from the commit log
    message_index_safe: bool = False
    #: slots of an index file, 4 bytes each
    max_hash_slot_num: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 5_000_000
    #: keys in an index file, 20 bytes each; the file takes room only for those that it has
    max_index_num: Annotated[int, msgspec.Meta(ge=2, le=80_000_000)] = 20_000_000
    #: messages that a query by key finds at most
    max_msgs_num_batch: Positive = 64
    #: messages that a query by unique key finds at most
    default_query_max_num: Positive = 32
    #: messages for an arbitrary time are taken; without it they are refused
    timer_wheel_enable: bool = True
    #: milliseconds: how long a slot of the timer wheel is; messages are delivered when one is over
    timer_precision_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 1000
    #: seconds from now; a message for a later time is refused
    timer_max_delay_sec: Positive = 259_200
    #: slots; a message that is due later is written to the log again when so many are over, and so on
    timer_roll_window_slot: Positive = 172_800
    #: messages in one slot of the timer wheel from which on some are refused, and all of them at twice as many
    timer_congest_num_each_slot: Positive = 2_147_483_647
    #: milliseconds between writes of how far the delayed messages are: what a crash may repeat
    timer_flush_interval_ms: Positive = 1000
    #: bytes of a file of the timer log, 52 for each message
    mapped_file_size_timer_log: Annotated[int, msgspec.Meta(ge=1000)] = 100 * MIB
    #: messages for an arbitrary time are taken, and wait whatever their time
    timer_stop_enqueue: bool = False
    #: none is delivered, whatever its time
    timer_stop_dequeue: bool = False
    #: a message that takes back another names its topic too, as Apache's before 5.5 do; both forms are understood
    append_topic_for_timer_delete_key: bool = False


class BrokerConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Who the broker is and what it allows (common/BrokerConfig.java)."""

    broker_cluster_name: str = "DefaultCluster"
    broker_name: str = "broker-a"
    broker_id: Natural = 0
    #: the host that routes give to clients; empty: the address that the client dialled
    broker_ip1: str = msgspec.field(default="", name="brokerIP1")
    listen_port: Port = 10911
    #: `host:port;host:port`
    namesrv_addr: str = ""
    broker_permission: Natural = 6
    auto_create_topic_enable: bool = True
    auto_create_subscription_group: bool = True
    #: groups; where there are so many, none is made because a client names it
    max_group_nums: Positive = 100_000
    default_topic_queue_nums: Positive = 8
    #: queues of one topic
    max_topic_queue_nums: Positive = 16_384
    #: queues of all topics of users; each takes about 1 KiB of memory when it is used
    max_queue_nums: Positive = 1_000_000
    cluster_topic_enable: bool = True
    broker_topic_enable: bool = True
    trace_topic_enable: bool = False
    trace_on: bool = True
    region_id: str = "DefaultRegion"
    #: Apache: false. A producer may take back a message whose time has not come.
    recall_message_enable: bool = True
    #: also while brokerPermission forbids sending
    allow_recall_when_broker_not_writeable: bool = True
    #: milliseconds
    register_name_server_period: Positive = 30_000
    #: milliseconds without a heart-beat after which a client is gone
    channel_expired_timeout: Positive = 120_000
    long_polling_enable: bool = True
    lite_pull_message_enable: bool = True
    #: Apache: false. Consumers may pull with an SQL92 filter over properties; pops may always.
    enable_property_filter: bool = True
    #: an SQL92 filter for a retry topic is replaced by the one that the group has for the topic of each message
    filter_support_retry: bool = False
    max_transfer_count_on_message_in_memory: Positive = 32
    #: bytes of records in one answer
    max_transfer_bytes_on_message_in_memory: Positive = 256 * 1024
    #: milliseconds; a queue lock of an orderly consumer lives this long without renewal
    lock_max_live_time: Positive = 60_000
    revive_queue_num: Positive = 8
    #: how groups read topics for which nobody said it (mqadmin setConsumeMode), where consumers leave it to the broker
    default_message_request_mode: Literal["PULL", "POP"] = "PULL"
    #: of a popping consumer: how many of those that follow it share its queues; less than 1: all
    default_pop_share_queue_num: int = -1
    #: consumers that ask get a share of the queues; false: all of them
    server_load_balancer_enable: bool = True
    #: milliseconds for which a broker remembers where other brokers have queues of a topic
    load_balance_poll_name_server_interval: Positive = 30_000
    #: out of 100 pops, how many look at the retry topic first
    pop_from_retry_probability: Percent = 20
    #: a queue of which a group holds more than the threshold gives it no more until it acknowledges
    enable_pop_message_threshold: bool = False
    pop_inflight_message_threshold: Natural = 10_000
    #: waiting pops per topic and group
    pop_polling_size: Natural = 1024
    #: waiting pops in all
    max_pop_polling_size: Natural = 100_000
    #: a group that pops for the first time begins at 0 when offset 0 is still there
    init_pop_offset_by_check_msg_in_mem: bool = True
    enable_retry_topic_v2: bool = msgspec.field(default=False, name="enableRetryTopicV2")
    store_reply_message_enable: bool = True
    #: operators may make topics of the type MIXED, which takes messages of all types
    enable_mixed_message_type: bool = False
    #: `key;key`: settings that updateBrokerConfig does not change
    config_black_list: str = "configBlackList;brokerConfigPath"
    #: topics or groups in one answer to those who page through them
    split_metadata_size: Positive = 2000
    #: where an operator sends a group is kept until its consumers are told; else they are told only while connected
    use_server_side_reset_offset: bool = True
    #: half messages are refused
    reject_transaction_message: bool = False
    #: milliseconds after which a half message that nobody ended is asked about first
    transaction_time_out: Natural = 6_000
    #: how often a producer is asked before a half message is given up (to TRANS_CHECK_MAX_TIME_TOPIC)
    transaction_check_max: Natural = 15
    #: milliseconds between looks for half messages that nobody ended
    transaction_check_interval: Positive = 30_000
    #: bytes, and milliseconds, after which it is written which half messages were committed
    transaction_op_msg_max_size: Positive = 4096
    transaction_op_batch_interval: Positive = 3_000
    #: milliseconds between writes of how many half messages there are
    transaction_metric_flush_interval: Positive = 10_000
    #: message ids that topics with dedup.window.seconds remember, all of them together; each takes about 250 bytes
    dedup_window_max_messages: Positive = 200_000
    #: whatever a client of either protocol names is created, topics as MIXED (`--dev`)
    dev_auto_create: bool = msgspec.field(default=False, name="devAutoCreate")


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the Proxy allows (proxy/config/ProxyConfig.java)."""

    grpc_server_port: Port = 8081
    remoting_listen_port: Port = 8080
    #: the host that routes give to Remoting clients; empty: the one that they dialled
    remoting_access_addr: str = ""
    #: gRPC is served on the Remoting port too
    enable_remoting_local_proxy_grpc: bool = True
    #: Apache: empty
    region_id: str = "DefaultRegion"
    #: Apache: false, which keeps clients from tracing what they send over Remoting
    trace_on: bool = True
    #: bytes of a body
    max_message_size: Positive = 4 * MIB
    #: bytes of user properties, tag and keys together
    max_user_property_size: Natural = 16 * 1024
    user_property_max_num: Natural = 128
    #: bytes; a message group must be shorter than this
    max_message_group_size: Positive = 64
    #: milliseconds from now; a message for a later time is refused, and by the broker with timerMaxDelaySec
    max_delay_time_mills: Natural = 86_400_000
    #: seconds for which a producer may ask not to be asked about its transaction
    max_transaction_recovery_second: Natural = 3_600
    #: messages for a time get the delay level that comes next instead
    use_delay_level: bool = False
    #: the broker's, for useDelayLevel
    message_delay_level: str = LEVELS
    min_invisible_time_mills_for_recv: Natural = 10_000
    max_invisible_time_mills: Positive = 43_200_000
    default_invisible_time_mills: Positive = 60_000
    #: what a message gets back to when the client that held it is gone
    invisible_time_millis_when_clear: Natural = 1000
    grpc_client_consumer_min_long_polling_timeout_millis: Natural = 5_000
    grpc_client_consumer_max_long_polling_timeout_millis: Positive = 20_000
    grpc_client_consumer_long_polling_batch_size: Positive = 32
    grpc_client_producer_max_attempts: Positive = 3
    grpc_client_producer_backoff_initial_millis: Natural = 10
    grpc_client_producer_backoff_max_millis: Natural = 1000
    grpc_client_producer_backoff_multiplier: Positive = 2
    enable_topic_message_type_check: bool = True
    enable_message_body_empty_check: bool = True
    enable_proxy_auto_renew: bool = True
    #: milliseconds between looks at the leases to renew
    renew_schedule_period_millis: Positive = 5_000
    #: a lease with less than this left is renewed
    renew_ahead_time_millis: Natural = 10_000
    #: a message is renewed for this long after it was received, then goes back
    renew_max_time_millis: Natural = 10_800_000
    #: milliseconds without a heart-beat after which a client is gone
    channel_expired_timeout: Positive = 120_000
    #: where gRPC clients are told to send their metrics: nowhere, to metricCollectorAddress, or to the address that
    #: they know of us, where a load balancer must lead that to a collector
    metric_collector_mode: Literal["off", "on", "proxy"] = "off"
    #: `host:port`
    metric_collector_address: str = ""
    #: `host:port[,host:port]` that gRPC routes answer with; port 0: the listener's; empty: what the client dialled
    advertise: str = ""
    #: PEM files; empty: a self-signed certificate, made at the first start in the data directory
    tls_cert_path: str = ""
    tls_key_path: str = ""
    #: milliseconds between looks whether these files have changed; new connections get the new certificate
    tls_cert_watch_interval_ms: Positive = 3_600_000


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How a Proxy of its own finds and treats its brokers (proxy/config/ProxyConfig.java)."""

    #: `host:port;host:port`
    namesrv_addr: str = ""
    proxy_mode: Literal["CLUSTER", "cluster"] = "CLUSTER"
    #: where the topic is that Proxies tell each other of their clients in
    rocket_mq_cluster_name: str = msgspec.field(default="DefaultCluster", name="rocketMQClusterName")
    #: empty: rocketMQClusterName
    heartbeat_syncer_topic_cluster_name: str = ""
    heartbeat_syncer_topic_name: str = "DefaultHeartBeatSyncerTopic"
    #: seconds until a route is asked for again, and until whoever wants it waits for the answer
    topic_route_service_cache_refresh_seconds: Positive = 20
    topic_route_service_cache_expired_seconds: Positive = 300
    topic_route_service_cache_max_num: Positive = 20_000
    topic_config_cache_refresh_seconds: Positive = 20
    topic_config_cache_expired_seconds: Positive = 300
    topic_config_cache_max_num: Positive = 20_000
    subscription_group_config_cache_refresh_seconds: Positive = 20
    subscription_group_config_cache_expired_seconds: Positive = 300
    subscription_group_config_cache_max_num: Positive = 20_000
    #: what is acknowledged at a broker at the same time goes in one request; who is too late does not hear of it
    enable_batch_ack: bool = False


class NameserverConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """common/namesrv/NamesrvConfig.java"""

    listen_port: Port = 9876
    #: milliseconds between looks for brokers that stopped registering
    scan_not_active_broker_interval: Positive = 5_000
    #: milliseconds without a registration after which a broker is gone
    broker_channel_expired_time: Positive = 120_000
    #: routes tell the order of topics that is configured as KV config (mqadmin updateOrderConf)
    order_message_enable: bool = False
    #: brokers are told of it too, when they register
    return_order_topic_config_to_broker: bool = True
    #: where a master is gone, its replica with the lowest id stands in for it in routes
    support_acting_master: bool = False
    #: replicas are told which of them that is
    notify_min_broker_id_changed: bool = False
    #: answer GET_ALL_TOPIC_LIST_FROM_NAMESERVER
    enable_all_topic_list: bool = True
    #: answer for the topics of a cluster and for unit topics
    enable_topic_list: bool = True
    #: give no routes in the first time after the start, while brokers still register
    need_wait_for_service: bool = False
    wait_seconds_for_service: Natural = 45
    #: a broker's topics that its registration does not name are forgotten
    delete_topic_with_broker_registration: bool = False
    #: empty: namesrv/kvConfig.json in the data directory; Apache: in the user's home directory
    kv_config_path: str = ""
    #: where settings go that are changed while the server runs; empty: the file that was read (`-c`), without one
    #: namesrv/namesrv.properties in the data directory, which is then read at the start
    config_store_path: str = ""
    #: `key;key`: settings that cannot be changed while the server runs
    config_black_list: str = "configBlackList;configStorePath;kvConfigPath"
    #: bytes of kvConfig.json
    max_kv_config_bytes: Positive = 16 * MIB
    #: registered processes
    max_brokers: Positive = 10_000
    #: topics times their brokers; each takes about 500 bytes of memory
    max_routes: Positive = 2_000_000


class Limits(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Bounds of the wire, so that no peer can make a process grow. Each is counted where it bites.

    "In all" is all connections of one port.
    """

    #: one Remoting frame; NettyDecoder's FRAME_MAX_LENGTH
    remoting_frame_bytes: Positive = 16 * MIB
    #: requests of one Remoting connection that are handled in one turn of the loop
    remoting_requests_per_turn: Positive = 256
    #: requests of one Remoting connection that wait (for a flush, a message) before others are told SYSTEM_BUSY
    remoting_requests_waiting: Positive = 100_000
    #: of all; a pull that waits takes about 4 KiB of memory
    remoting_requests_waiting_in_all: Positive = 250_000
    #: Remoting requests that are not whole, or that a peer sends without taking the answers, in all; over it, who holds
    #: most of them is told SYSTEM_BUSY or cut off
    remoting_held_bytes: Positive = 512 * MIB
    #: answers that slow peers have not taken, in all; over it, who leaves most of them is cut off
    remoting_unsent_bytes: Positive = 512 * MIB
    #: unsent reply bytes of one connection before it is no longer read
    connection_write_buffer_bytes: Positive = 4 * MIB
    #: unsent reply bytes of one Remoting connection before it is cut off: what it asked for before keeps coming
    connection_unsent_bytes: Positive = 64 * MIB
    #: one gRPC request message
    grpc_message_bytes: Positive = msgspec.field(default=130 * MIB, name="grpcMaxInboundMessageSize")
    #: what a gRPC message may hold that its gzip made over ten times smaller: a body of maxMessageSize and the rest
    grpc_inflated_bytes: Positive = 5 * MIB
    #: gRPC requests that are not whole yet, all connections together
    grpc_held_bytes: Positive = 512 * MIB
    http2_max_concurrent_streams: Positive = 1000
    #: our windows: how much a peer may have in flight to us
    http2_stream_window_bytes: Window = 1 * MIB
    http2_connection_window_bytes: Window = 4 * MIB
    http2_max_frame_bytes: Annotated[int, msgspec.Meta(ge=16_384, le=16_777_215)] = 16_384
    http2_header_table_bytes: Positive = 4096
    #: decoded headers of one request, names and values with 32 bytes each (RFC 9113 6.5.2)
    http2_header_list_bytes: Positive = 16 * 1024
    #: requests of one HTTP/2 connection that are handled in one turn of the loop
    http2_requests_per_turn: Positive = 32
    #: RST_STREAM, PING, SETTINGS and empty frames from one peer in any 10 s before it is told ENHANCE_YOUR_CALM
    http2_control_frames_per_10s: Positive = 2000
    #: of one port; at most a fifth of what the process may open (`ulimit -n`): a store needs files
    max_connections: Positive = 50_000
    #: of one port, from one address, be it that of a load balancer; 0: no limit
    max_connections_per_host: Natural = 0
    #: a load balancer in front may say for whom a connection is (HAProxy's PROXY protocol, 1 and 2), as at Apache's
    proxy_protocol: bool = True
    #: milliseconds without any request before a Remoting connection is closed
    idle_connection_ms: Positive = 120_000
    #: milliseconds without any call before a gRPC connection is closed
    grpc_idle_ms: Positive = msgspec.field(default=120_000, name="grpcClientIdleTimeMills")
    #: milliseconds, and up to a tenth more, after which the clients of a gRPC connection are sent to a new one, which
    #: a load balancer may place elsewhere; 0: never, as at Apache's
    grpc_max_connection_age_ms: Natural = 0
    #: milliseconds from accept to a recognised protocol
    handshake_ms: Positive = 10_000


def parse_delays(levels: str) -> list[int]:
    """`messageDelayLevel` ("1s 5s 10s") in milliseconds. Raises ValueError."""
    try:
        return [int(level[:-1]) * _UNIT_MS[level[-1]] for level in levels.split()]
    except (ValueError, KeyError, IndexError):
        raise ValueError(f"messageDelayLevel {levels!r}: write numbers with s, m, h or d, as in `1s 5s 1m`") from None
