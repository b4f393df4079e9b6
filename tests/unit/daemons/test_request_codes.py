"""The table of request codes in docs/compatibility.md: made of the dispatch tables, each served code with a test.

`make rewrite` writes it anew (SATURNMQ_REWRITE=1). A code that is served from now on needs a test in TESTS.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from saturnmq.kernel.config import ProxyConfig
from saturnmq.proxy import remoting as proxy_remoting
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.nameserver import OfflineNameServer
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting.codes import RequestCode as Code

TESTS_DIRECTORY = Path(__file__).parents[2]
PAGE = TESTS_DIRECTORY.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- request codes, by make rewrite -->\n", "<!-- end of the request codes -->\n"
HEAD = "| code | name | asked of | at the Proxy | state | test |\n| --- | --- | --- | --- | --- | --- |\n"

#: asked of clients, by a server: what makes ours ask
OF_CLIENTS = {
    Code.CHECK_TRANSACTION_STATE: "about half messages that nobody ended",
    Code.NOTIFY_CONSUMER_IDS_CHANGED: "when members of a group come and go",
    Code.RESET_CONSUMER_CLIENT_OFFSET: "for 222",
    Code.GET_CONSUMER_STATUS_FROM_CLIENT: "for 223",
    Code.PUSH_REPLY_MESSAGE_TO_CLIENT: "for 324 and 325",
    Code.NOTIFY_UNSUBSCRIBE_LITE: "",
}
#: the broker hands them to a client, and the client's answer back
RELAYED = {Code.GET_CONSUMER_RUNNING_INFO, Code.CONSUME_MESSAGE_DIRECTLY}
#: what they are about is not for SaturnMQ; those that have a handler get an answer that says so
NEVER = {
    **dict.fromkeys([Code.UPDATE_AND_CREATE_STATIC_TOPIC], "static topics"),
    **dict.fromkeys([Code.CHECK_ROCKSDB_CQ_WRITE_PROGRESS, Code.EXPORT_ROCKSDB_CONFIG_TO_JSON], "RocksDB"),
    **dict.fromkeys([Code.SWITCH_TIMER_ENGINE], "RocksDB"),
    **dict.fromkeys([Code.ADD_BROKER, Code.REMOVE_BROKER], "broker containers"),
    **dict.fromkeys([Code.UPDATE_COLD_DATA_FLOW_CTR_CONFIG, Code.REMOVE_COLD_DATA_FLOW_CTR_CONFIG], "cold reads"),
    **dict.fromkeys([Code.GET_COLD_DATA_FLOW_CTR_INFO, Code.SET_COMMITLOG_READ_MODE], "cold reads"),
}
#: nobody answers them any more, Apache's servers neither
OBSOLETE = {
    Code.QUERY_BROKER_OFFSET, Code.GET_TOPIC_CONFIG_LIST, Code.GET_TOPIC_NAME_LIST, Code.TRIGGER_DELETE_FILES,
    Code.GET_CLIENT_CONFIG, Code.SUSPEND_CONSUMER, Code.RESUME_CONSUMER, Code.RESET_CONSUMER_OFFSET_IN_CONSUMER,
    Code.RESET_CONSUMER_OFFSET_IN_BROKER, Code.ADJUST_CONSUMER_THREAD_POOL, Code.WHO_CONSUME_THE_MESSAGE,
    Code.REGISTER_FILTER_SERVER, Code.REGISTER_MESSAGE_FILTER_CLASS,
}  # fmt: skip
#: answered by a later version
LATER = {
    **dict.fromkeys([code for code in Code if 905 <= code <= 1013], "replication"),
    **dict.fromkeys([code for code in Code if 3001 <= code <= 3010], "users and policies"),
    **dict.fromkeys([code for code in Code if 200_070 <= code <= 200_079], "lite topics"),
}

#: what Apache's Proxy has in its table (proxy/remoting/RemotingProtocolServer.java) and answers; three more it answers
#: wrongly or never: POP_MESSAGE, ACK_MESSAGE, CHANGE_MESSAGE_INVISIBLETIME
APACHES_PROXY = {
    Code.SEND_MESSAGE, Code.SEND_MESSAGE_V2, Code.SEND_BATCH_MESSAGE, Code.CONSUMER_SEND_MSG_BACK, Code.END_TRANSACTION,
    Code.RECALL_MESSAGE, Code.HEART_BEAT, Code.UNREGISTER_CLIENT, Code.CHECK_CLIENT_CONFIG, Code.PULL_MESSAGE,
    Code.LITE_PULL_MESSAGE, Code.UPDATE_CONSUMER_OFFSET, Code.GET_CONSUMER_CONNECTION_LIST,
    Code.GET_CONSUMER_LIST_BY_GROUP, Code.GET_MAX_OFFSET, Code.GET_MIN_OFFSET, Code.QUERY_CONSUMER_OFFSET,
    Code.SEARCH_OFFSET_BY_TIMESTAMP, Code.LOCK_BATCH_MQ, Code.UNLOCK_BATCH_MQ, Code.GET_ROUTEINFO_BY_TOPIC,
}  # fmt: skip

NAMESERVER = "unit/nameserver/test_nameserver_conversation.py::test_every_answer_is_apaches"
BROKER = "unit/broker/test_broker_conversation.py::test_every_answer_is_apaches"
CONSUMERS = "unit/broker/test_broker_consumers_conversation.py::test_every_answer_is_apaches"
CONVERSATIONS = {
    NAMESERVER: "nameserver/conversation.json",
    BROKER: "broker/conversation.json",
    CONSUMERS: "broker/consumers.json",
}
ADMIN, CLIENTS = "unit/broker/test_broker_admin.py", "unit/broker/test_broker_clients.py"
PULL, SEND, PEEKS = "unit/broker/test_broker_pull.py", "unit/broker/test_broker_send.py", "unit/broker/test_peeks.py"
TRANSACTIONS = "unit/broker/test_transactions.py"
QUERY, RECALL = "unit/broker/test_broker_query.py", "unit/broker/test_recall.py"
ASSIGNMENT, POPS = "unit/broker/test_broker_assignment.py", "unit/broker/test_broker_remoting_pop.py"
PROGRESS = "unit/broker/test_broker_progress.py"

#: the test that asks it
TESTS: dict[int, str] = {
    **dict.fromkeys(OfflineNameServer().handlers, NAMESERVER),
    Code.GET_NAMESRV_CONFIG: (
        "unit/nameserver/test_nameserver_admin.py::test_settings_change_at_once_and_for_the_next_start"
    ),
    **dict.fromkeys(
        [
            Code.UPDATE_AND_CREATE_TOPIC,
            Code.UPDATE_AND_CREATE_TOPIC_LIST,
            Code.GET_ALL_TOPIC_CONFIG,
            Code.UPDATE_BROKER_CONFIG,
            Code.GET_BROKER_CONFIG,
            Code.GET_BROKER_RUNTIME_INFO,
            Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST,
            Code.GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
            Code.GET_TOPIC_STATS_INFO,
            Code.GET_PRODUCER_CONNECTION_LIST,
            Code.DELETE_SUBSCRIPTIONGROUP,
            Code.QUERY_TOPIC_CONSUME_BY_WHO,
            Code.GET_SYSTEM_TOPIC_LIST_FROM_BROKER,
            Code.CLEAN_EXPIRED_CONSUMEQUEUE,
            Code.VIEW_BROKER_STATS_DATA,
            Code.CLEAN_UNUSED_TOPIC,
            Code.GET_ALL_PRODUCER_INFO,
            Code.DELETE_EXPIRED_COMMITLOG,
            Code.QUERY_TOPICS_BY_CONSUMER,
            Code.GET_TOPIC_CONFIG,
            Code.GET_SUBSCRIPTIONGROUP_CONFIG,
            Code.UPDATE_AND_GET_GROUP_FORBIDDEN,
        ],
        BROKER,
    ),
    **dict.fromkeys(
        [
            Code.QUERY_CONSUMER_OFFSET,
            Code.UPDATE_CONSUMER_OFFSET,
            Code.GET_ALL_CONSUMER_OFFSET,
            Code.GET_CONSUMER_CONNECTION_LIST,
            Code.GET_CONSUME_STATS,
            Code.INVOKE_BROKER_TO_RESET_OFFSET,
            Code.INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
            Code.QUERY_CONSUME_TIME_SPAN,
            Code.QUERY_CORRECTION_OFFSET,
            Code.CLONE_GROUP_OFFSET,
            Code.GET_BROKER_CONSUME_STATS,
            Code.QUERY_CONSUME_QUEUE,
            Code.QUERY_SUBSCRIPTION_BY_CONSUMER,
            Code.POLLING_INFO,
            Code.POP_ROLLBACK,
        ],
        CONSUMERS,
    ),
    Code.SEND_MESSAGE: f"{SEND}::test_code_10_has_long_names",
    Code.SEND_MESSAGE_V2: f"{SEND}::test_a_missing_header_field_is_named",
    Code.SEND_BATCH_MESSAGE: f"{SEND}::test_a_batch_is_consecutive_messages",
    Code.SEND_REPLY_MESSAGE: f"{CLIENTS}::test_an_answer_of_an_older_client_has_long_names",
    Code.SEND_REPLY_MESSAGE_V2: f"{CLIENTS}::test_an_answer_goes_to_the_requester_and_into_the_log",
    Code.PUSH_REPLY_MESSAGE_TO_CLIENT: f"{CLIENTS}::test_an_answer_goes_to_the_requester_and_into_the_log",
    Code.CONSUMER_SEND_MSG_BACK: f"{ADMIN}::test_what_was_sent_back_is_counted_by_topic_and_group",
    Code.PULL_MESSAGE: "test_flow_control.py::test_too_many_requests_that_wait",
    Code.LITE_PULL_MESSAGE: f"{PULL}::test_lite_pull_can_be_forbidden",
    **dict.fromkeys(
        [
            Code.SEARCH_OFFSET_BY_TIMESTAMP,
            Code.GET_MAX_OFFSET,
            Code.GET_MIN_OFFSET,
            Code.GET_EARLIEST_MSG_STORETIME,
        ],
        f"{PULL}::test_where_a_queue_begins_and_ends",
    ),
    Code.QUERY_MESSAGE: f"{QUERY}::test_a_field_is_missing",
    Code.VIEW_MESSAGE_BY_ID: f"{QUERY}::test_by_log_position",
    Code.HEART_BEAT: f"{CLIENTS}::test_consumers_and_what_they_want_are_listed",
    Code.UNREGISTER_CLIENT: f"{CLIENTS}::test_every_member_is_told_once_a_turn_when_members_come_and_go",
    Code.NOTIFY_CONSUMER_IDS_CHANGED: f"{CLIENTS}::test_every_member_is_told_once_a_turn_when_members_come_and_go",
    Code.GET_CONSUMER_LIST_BY_GROUP: f"{CLIENTS}::test_members_are_known_by_their_heart_beats",
    Code.LOCK_BATCH_MQ: f"{CLIENTS}::test_a_queue_is_locked_for_a_minute",
    Code.UNLOCK_BATCH_MQ: f"{CLIENTS}::test_a_queue_is_unlocked_by_its_owner_only",
    Code.CHECK_CLIENT_CONFIG: "unit/broker/test_broker_sql92.py::test_remoting_pops",
    Code.GET_ALL_DELAY_OFFSET: f"{ADMIN}::test_how_far_delay_levels_are",
    Code.GET_TIMER_CHECK_POINT: f"{RECALL}::test_the_check_point",
    Code.GET_TIMER_METRICS: f"{RECALL}::test_how_many_wait",
    Code.DELETE_TOPIC_IN_BROKER: f"{ADMIN}::test_a_deleted_topic_is_gone_with_its_messages_offsets_and_retries",
    Code.DELETE_TOPIC_IN_BROKER_LIST: f"{ADMIN}::test_topics_and_groups_that_are_deleted_together",
    Code.DELETE_SUBSCRIPTION_GROUP_LIST: f"{ADMIN}::test_topics_and_groups_that_are_deleted_together",
    Code.RESET_CONSUMER_CLIENT_OFFSET: (
        "unit/broker/test_broker_resets.py::test_an_operator_makes_one_group_go_on_where_another_is"
    ),
    Code.GET_CONSUMER_STATUS_FROM_CLIENT: (
        "unit/broker/test_broker_relay.py::test_what_a_consumer_says_of_itself_goes_back_as_it_is"
    ),
    Code.GET_CONSUMER_RUNNING_INFO: (
        "unit/broker/test_broker_relay.py::test_what_a_consumer_says_of_itself_goes_back_as_it_is"
    ),
    Code.CONSUME_MESSAGE_DIRECTLY: "unit/broker/test_broker_relay.py::test_a_message_is_handed_to_a_consumer",
    Code.END_TRANSACTION: f"{TRANSACTIONS}::test_a_half_message_is_seen_by_nobody_until_it_is_committed",
    Code.CHECK_TRANSACTION_STATE: f"{TRANSACTIONS}::test_a_producer_is_asked_and_may_not_know_yet",
    Code.RESUME_CHECK_HALF_MESSAGE: (
        f"{TRANSACTIONS}::test_one_that_was_asked_about_too_often_is_given_up_and_brought_back"
    ),
    Code.RECALL_MESSAGE: f"{RECALL}::test_what_is_recalled_does_not_come",
    Code.SWITCH_TIMER_ENGINE: f"{RECALL}::test_there_is_one_engine",
    Code.QUERY_ASSIGNMENT: f"{ASSIGNMENT}::test_no_answer_changes_nothing",
    Code.SET_MESSAGE_REQUEST_MODE: f"{ASSIGNMENT}::test_modes_that_are_refused",
    Code.GET_ALL_MESSAGE_REQUEST_MODE: f"{ASSIGNMENT}::test_modes_outlive_the_broker",
    Code.UPDATE_AND_CREATE_STATIC_TOPIC: f"{ADMIN}::test_static_topics_are_refused",
    Code.POP_MESSAGE: f"{POPS}::test_an_answer_names_every_message",
    Code.ACK_MESSAGE: f"{PROGRESS}::test_what_was_popped_is_not_done_before_it_is_acknowledged",
    Code.BATCH_ACK_MESSAGE: f"{POPS}::test_a_batch_acknowledges_what_its_bits_say",
    Code.CHANGE_MESSAGE_INVISIBLETIME: f"{POPS}::test_hiding_longer_gives_a_new_handle",
    Code.PEEK_MESSAGE: f"{PEEKS}::test_a_peek_takes_nothing",
    Code.NOTIFICATION: f"{PEEKS}::test_it_waits_for_a_message",
}


def served() -> dict[int, str]:
    """By whom, of a NameServer and a Broker on their own."""
    by_both = dict.fromkeys(OfflineNameServer().handlers, "NameServer")
    for code in OfflineBroker().handlers:
        assert code not in by_both, "port 8080 of Local mode serves both tables"
        by_both[code] = "Broker"
    return by_both


def at_proxy() -> set[int]:
    """What the Remoting port of a Proxy serves."""
    broker = OfflineBroker()
    proxy = Proxy({}, broker.broker, OfflineNameServer().server.routes, ProxyConfig(), broker.clock)
    return set(proxy_remoting.table(proxy, lambda dialled: dialled))


def state(code: Code, served_by: str) -> str:
    if code in NEVER:
        return f"never: {NEVER[code]}" + (", and the answer says so" if served_by else "")
    if served_by:
        return "relayed to the client" if code in RELAYED else "served"
    if code in OBSOLETE:
        return "never: obsolete"
    if code in LATER:
        return f"not in this version: {LATER[code]}"
    return f"asked {OF_CLIENTS[code]}"


def table() -> str:
    by, of_proxy = served(), at_proxy()
    rows = []
    for code in sorted(Code):
        whom = by.get(code) or ("clients" if code in OF_CLIENTS else "")
        test = TESTS.get(code)
        proxy = ("as Apache's" if code in APACHES_PROXY else "more than Apache's") if code in of_proxy else ""
        cells = [str(int(code)), code.name, whom, proxy, state(code, by.get(code, "")), f"`{test}`" if test else ""]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)


def test_the_page_has_the_table_of_today() -> None:
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    today = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if os.environ.get("SATURNMQ_REWRITE"):
        PAGE.write_text(today)
    assert page == today or os.environ.get("SATURNMQ_REWRITE"), "make rewrite, and read the diff"


def test_the_proxy_serves_what_apaches_does() -> None:
    assert APACHES_PROXY - at_proxy() == set()


def test_every_code_is_served_or_somebody_says_why_not() -> None:
    known = [served().keys(), NEVER, OBSOLETE, LATER, OF_CLIENTS]
    assert set(Code) - {code for codes in known for code in codes} == set()
    assert (NEVER.keys() | OBSOLETE | LATER.keys()) & served().keys() == {
        Code.UPDATE_AND_CREATE_STATIC_TOPIC, Code.SWITCH_TIMER_ENGINE,
    }  # fmt: skip


def test_every_code_that_is_served_has_a_test() -> None:
    missing = {Code(code).name for code in served().keys() - TESTS.keys()}
    assert missing == set(), "name the test of each in TESTS"
    asked = {code for code, why in OF_CLIENTS.items() if why}
    assert TESTS.keys() - served().keys() == asked


@pytest.mark.parametrize("code", TESTS)
def test_the_test_is_about_the_code(code: int) -> None:
    """Its file names it, or the conversation that it goes through asks it. test_compatibility_page finds the test."""
    test = TESTS[code]
    if test in CONVERSATIONS:
        vector = (TESTS_DIRECTORY / "vectors" / CONVERSATIONS[test]).read_text()
        assert re.search(rf'"code": {code}\b', vector)
        return
    path = test.partition("::")[0]
    file = TESTS_DIRECTORY / (path if path.startswith("unit/") else f"conformance/{path}")
    assert re.search(rf"\b{Code(code).name}\b", file.read_text())
