"""Every command of mqadmin 5.5.0, what is asked of it in which order, and how our answer stands to Apache's.

tests/oracle/test_mqadmin.py runs the script against Apache's NameServer and Broker and against ours, and compares what
is printed; docs/compatibility.md shows the verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Situation(Enum):
    """What happens in both clusters before the next commands."""

    MESSAGES = "messages of fixed ids are in the topic orders"
    CONSUMERS = "a producer and two consumers of the group readers are online, everything is consumed"
    CONSUMERS_LEFT = "they are gone"


@dataclass(frozen=True)
class Step:
    """One command, and how our answer stands to Apache's: the same, unless it says otherwise."""

    command: str
    #: {broker} {namesrv} are addresses, {home} a folder, {client} a consumer's id, {id} {offset_id} a message's,
    #: {single_id} of one in a topic with one queue, {traced} of one that was sent with a trace
    arguments: str = ""
    #: how it differs and why
    differs: str = ""
    #: what is not served, and why
    not_applicable: str = ""
    #: of the difference: lines that only Apache prints, and that only we print; without them all is the same
    apaches: str = ""
    ours: str = ""
    #: of the difference: `name = value` lines are the same as far as both have the name
    shared_names: bool = False
    #: expressions for what varies from one run to the next, or for values that the difference is about; what stands
    #: in a group is kept
    varies: tuple[str, ...] = ()
    #: an expression for lines that depend on who was faster
    noise: str = ""
    #: lines come in any order
    unordered: bool = False
    #: it does not end by itself: how many seconds to wait for what it prints
    endless_s: float = 0

    @property
    def is_same(self) -> bool:
        return not self.differs and not self.not_applicable


#: two topics of Apache's own, and what is said of them
ROCKSDB_TOPICS: dict[str, Any] = {
    "differs": "without the two topics of Apache's RocksDB transaction store",
    "apaches": ".*RMQ_SYS_ROCKSDB_.*",
}
COUNT_OF_TOPICS: dict[str, Any] = {
    "differs": "counts two topics less, those of Apache's RocksDB transaction store",
    "varies": (r"(OK, )\d+",),
}
NO_THREAD_POOLS: dict[str, Any] = {
    "differs": "no thread pools, so they have a capacity of 0; the disk is without what it reserves; two names more",
    "ours": r".*\b(brokerVersion|remainHowManyDataToCommit) :.*",
    "varies": (
        r"(Capacity ?: )\d+",
        r"((?:Tps|Max|Times|nanos|runtime|timerReadBehind|commitLogDirCapacity|TotalTodayNow) : ).*",
        r"(DiskRatio[^:]*: )0\.\d+",
        r"(putMessage(?:DistributeTime|SizeTotal|TimesTotal|AverageSize) : ).*",
    ),
}
OWN_SETTINGS: dict[str, Any] = {
    "differs": "lists the settings that have an effect here, with our defaults (configuration.md)",
    "shared_names": True,
    "varies": (
        r"(listenPort = )\d+",
        r"((?:cleanFileForciblyEnable|enablePropertyFilter|flushDiskType|recallMessageEnable) = ).*",
    ),
}
#: which topics count as active depends on when Apache took its first sample
STATISTICS: dict[str, Any] = {
    "differs": "counts from the first message on, Apache from its first sample; without its RocksDB topics",
    "apaches": ".*RMQ_SYS_ROCKSDB_.*",
    "noise": "(RMQ_SYS_TRACE_TOPIC|broker-a|fifo-write) .*",
    "unordered": True,
    "varies": (r"\d+\.\d\d .*",),
}
#: of a running client's own figures
RUNNING: dict[str, Any] = {
    "unordered": True,
    "varies": (
        r"@[0-9a-f]{6,8}\b",
        r"\b20\d{12,15}\b",
        r"0x[0-9a-f]{16}",
        r"(push-)\d+#\d+",
        r"((?:orders|%RETRY%readers) )\d+\.\d\d.*",
        r"(?s)(#Consumer jstack#).*",
        r"(?m)^\d (?=\S+ V\d)",
    ),
}
#: rates, the age of the oldest message, how full the disk is
NUMBERS = (r"\d+\.\d+",)
#: sampled every ten seconds
RATES = (r"(TPS: )[\d.]+",)
SPENT = (r"(spentTimeMills=)\d+",)

STATIC_TOPICS = "513: static topics"
CONTAINER = "902, 903: brokers in a container"
ROCKSDB = "354, 355: RocksDB stores"
COLD_DATA = "2001 to 2004: cold data and read-ahead of Apache's mapped files"
REPLICATION = "907, 908, 1007: replication comes with a later version"
CONTROLLER = "1005, 1009, 1010: the controller comes with a later version"
ACCESS_CONTROL = "3001 to 3010: access control comes with a later version"
LITE_TOPICS = "200074 to 200079: lite topics"

SCRIPT: Sequence[Step | Situation] = (
    # -------------------------------------------------------------------------------- a cluster that has just started
    Step("clusterList", varies=NUMBERS),
    Step("clusterList", "-m"),
    Step("clusterList", "-c DefaultCluster", varies=NUMBERS),
    Step("clusterList", "-c nowhere"),
    Step("topicList", unordered=True, **ROCKSDB_TOPICS),
    Step("topicList", "-c", unordered=True, **ROCKSDB_TOPICS),
    Step("brokerStatus", "-b {broker}", **NO_THREAD_POOLS),
    Step("brokerStatus", "-c DefaultCluster", **NO_THREAD_POOLS),
    Step("getBrokerConfig", "-b {broker}", **OWN_SETTINGS),
    Step("getBrokerConfig", "-c DefaultCluster", **OWN_SETTINGS),
    Step("getNamesrvConfig", **OWN_SETTINGS),
    # --------------------------------------------------------------------------------------------- topics and groups
    Step("updateTopic", "-b {broker} -t orders -r 4 -w 4"),
    Step("updateTopic", "-c DefaultCluster -t fifo -r 2 -w 2 -o true -a +message.type=FIFO"),
    Step("updateTopic", "-b {broker} -t units -u true -s true -p 4"),
    Step("updateTopic", "-b {broker} -t orders -r 4 -w 4 -a +no.such=1"),
    Step("updateTopic", "-b {broker} -t fifo -a -message.type"),
    Step("updateTopic", "-b {broker} -t fifo -r 2 -w 2 -a +message.type=DELAY"),
    Step("updateTopic", "-b {broker} -t no/slash"),
    Step("updateTopic", "-b {broker} -t SCHEDULE_TOPIC_XXXX"),
    Step("updateTopic", "-b 127.0.0.2:1 -t orders"),
    Step("updateTopicPerm", "-b {broker} -t units -p 6"),
    Step("updateTopicPerm", "-b {broker} -t units -p 6"),
    Step("updateTopicPerm", "-c DefaultCluster -t fifo -p 2"),
    Step("updateTopicPerm", "-b {broker} -t nobody -p 6"),
    Step("updateTopicList", "-b {broker} -f {home}/topics.json"),
    Step("updateTopicList", "-c DefaultCluster -f {home}/illegal-topics.json"),
    Step("topicList", unordered=True, **ROCKSDB_TOPICS),
    Step("topicRoute", "-t orders"),
    Step("topicRoute", "-t orders -l"),
    Step("topicRoute", "-t nobody"),
    Step("topicStatus", "-t orders"),
    Step("topicStatus", "-t nobody"),
    Step("topicClusterList", "-t orders"),
    Step("topicClusterList", "-t nobody"),
    Step("allocateMQ", "-t orders -i 10.0.0.1,10.0.0.2,10.0.0.3"),
    Step("updateOrderConf", "-m put -t elsewhere -v broker-a:4"),
    Step("updateOrderConf", "-m get -t elsewhere"),
    Step("updateOrderConf", "-m delete -t elsewhere"),
    Step("updateOrderConf", "-m get -t elsewhere"),
    Step("updateSubGroup", "-b {broker} -g readers"),
    Step(
        "updateSubGroup",
        "-c DefaultCluster -g strict -s false -m false -d false -o true -q 2 -r 3 -i 1 -w 2 -a false"
        ' -p {"type":"CUSTOMIZED","customizedRetryPolicy":{"next":[1000,5000]}}',
    ),
    Step("updateSubGroup", "-b {broker} -g strict --attributes +no.such=1"),
    Step("updateSubGroup", "-b {broker} -g no/slash"),
    Step("updateSubGroupList", "-b {broker} -f {home}/groups.json"),
    Step("getConsumerConfig", "-g readers"),
    Step("getConsumerConfig", "-g strict"),
    Step("getConsumerConfig", "-g first"),
    Step("getConsumerConfig", "-g nobody"),
    Step("setConsumeMode", "-b {broker} -t orders -g readers -m POP -q 2"),
    Step("setConsumeMode", "-c DefaultCluster -t orders -g readers -m PULL"),
    Step("setConsumeMode", "-b {broker} -t %RETRY%readers -g readers -m POP"),
    # ------------------------------------------------------------------------------------------------------- messages
    Situation.MESSAGES,
    Step("topicStatus", "-t orders"),
    Step("queryMsgByKey", "-t orders -k key-5"),
    Step("queryMsgByKey", "-t orders -k all -m 3"),
    Step("queryMsgByKey", "-t orders -k red -p T"),
    Step("queryMsgByKey", "-t orders -k none"),
    Step("queryMsgByUniqueKey", "-t orders -i {id}"),
    Step("queryMsgByUniqueKey", "-t orders -i {id} -a"),
    Step("queryMsgByUniqueKey", "-t orders -i FFFFFFFF00002A139A65000000000000"),
    Step("queryMsgById", "-t orders -i {offset_id}"),
    Step("queryMsgById", "-t orders -i {id}"),
    Step("queryMsgById", "-t orders -i {offset_id} -f UTF-8"),
    Step("queryMsgByOffset", "-t orders -b broker-a -i 1 -o 2"),
    Step("queryMsgByOffset", "-t orders -b broker-a -i 1 -o 99"),
    Step("queryMsgByOffset", "-t orders -b nobody -i 1 -o 2"),
    Step("printMsg", "-t orders"),
    Step("printMsg", "-t orders -s red -d true -c UTF-8"),
    Step("printMsg", "-t orders -b 2020-01-01#00:00:00:000 -e 2020-01-02#00:00:00:000"),
    Step("printMsgByQueue", "-t orders -a broker-a -i 1 -p true -d true"),
    Step("printMsgByQueue", "-t orders -a broker-a -i 1 -f true"),
    Step("queryCq", "-t orders -q 1 -i 0 -c 2"),
    Step("queryCq", "-t orders -q 1 -i 0 -g readers -b {broker}"),
    Step("queryCq", "-t orders -q 99 -i 0"),
    Step("consumeMessage", "-t orders"),
    Step("consumeMessage", "-t orders -b broker-a -i 1 -o 1 -c 1"),
    Step("sendMessage", "-t orders -p hello -k sent -c red -b broker-a -i 2"),
    Step("sendMessage", "-t fifo-write -p hello -m true"),
    Step("sendMessage", "-t nobody/else -p hello"),
    Step("queryMsgTraceById", "-i {traced}", varies=(r"\d+(?=ms )",)),
    Step("queryMsgTraceById", "-i FFFFFFFF00002A139A65000000000000"),
    Step("checkMsgSendRT", "-t fifo-write -a 3 -s 10", varies=(r"(true )\d+", r"(RT: )[\d.]+")),
    Step("sendMsgStatus", "-b broker-a -s 16 -c 3", varies=(r"(rt=)\d+",)),
    Step("clusterRT", "-a 3 -s 10", endless_s=6, varies=(r"\d+\.\d\d",)),
    Step("cleanUnusedTopic", "-b {broker}"),
    # ------------------------------------------------------------------------------------------------------ consumers
    Step("consumerProgress", "-g readers", varies=RATES),
    Step("consumerConnection", "-g readers", unordered=True),
    Step("consumerStatus", "-g readers", **RUNNING),
    Situation.CONSUMERS,
    Step("producerConnection", "-g remoting-producers -t orders"),
    Step("producerConnection", "-g nobody -t orders"),
    Step("producer", "-b {broker}", unordered=True, noise=".*<tool>.*"),
    Step("consumerConnection", "-g readers", unordered=True),
    Step("consumerConnection", "-g readers -b {broker}", unordered=True),
    Step("consumerConnection", "-g nobody"),
    Step("consumerProgress", "-g readers", varies=RATES),
    Step("consumerProgress", "-g readers -s true", varies=RATES),
    Step("consumerProgress", "-g readers -t orders", varies=RATES),
    Step("consumerProgress", "-g nobody"),
    Step("consumerProgress", noise="TOOLS_CONSUMER .*"),
    Step("consumerStatus", "-g readers", **RUNNING),
    Step("consumerStatus", "-g readers -i {client}", **RUNNING),
    Step("consumerStatus", "-g readers -i {client} -s", **RUNNING),
    Step("consumerStatus", "-g readers -b {broker}", **RUNNING),
    Step("queryCq", "-t orders -q 1 -i 0 -c 1 -g readers"),
    Step("queryMsgByUniqueKey", "-t orders -i {id}"),
    Step("queryMsgById", "-t orders -i {offset_id}"),
    Step("queryMsgByUniqueKey", "-t orders -i {id} -g readers -d {client}", varies=SPENT),
    Step("queryMsgByUniqueKey", "-t orders -i {id} -g readers -d nobody"),
    Step("queryMsgById", "-t orders -i {offset_id} -g readers -d {client}", varies=SPENT),
    Step("queryMsgById", "-t fifo-write -i {single_id} -s true", varies=(r"(originalMsgId=)[0-9A-F]{32}",)),
    Step("statsAll", **STATISTICS),
    Step("statsAll", "-a", **{**STATISTICS, "noise": ".*~"}),
    Step("statsAll", "-t orders", **STATISTICS),
    Step("brokerConsumeStats", "-b {broker}"),
    Step("brokerConsumeStats", "-b {broker} -l 1"),
    Step("brokerConsumeStats", "-b {broker} -o true"),
    Step("startMonitoring", endless_s=25, unordered=True, noise=".*__MONITOR_CONSUMER.*"),
    Step("resetOffsetByTime", "-g readers -t orders -s 0"),
    Step("resetOffsetByTime", "-g readers -t orders -s now"),
    Step("resetOffsetByTime", "-g readers -t orders -s now -b {broker} -q 1 -o 1"),
    Step("resetOffsetByTime", "-g readers -t nobody -s now"),
    Step("skipAccumulatedMessage", "-g readers -t orders"),
    Situation.CONSUMERS_LEFT,
    Step("consumerProgress", "-g readers", varies=RATES),
    Step("consumerConnection", "-g readers", unordered=True),
    Step("cloneGroupOffset", "-s readers -d copies -t orders -o true"),
    Step("cloneGroupOffset", "-s readers -d first -t orders -o true"),
    Step("cloneGroupOffset", "-s nobody -d copies -t orders -o true"),
    Step("brokerConsumeStats", "-b {broker}"),
    Step("resetOffsetByTime", "-g readers -t orders -s 0"),
    Step("skipAccumulatedMessage", "-g readers -t orders -f true"),
    Step("queryMsgByUniqueKey", "-t orders -i {id}"),
    # ------------------------------------------------------------------------------------------------------- settings
    Step("updateBrokerConfig", "-b {broker} -k flushDelayOffsetInterval -v 20000"),
    Step("updateBrokerConfig", "-c DefaultCluster -k maxMessageSize -v 100000"),
    Step("updateBrokerConfig", "-b {broker} -k no.such -v 1"),
    Step(
        "updateBrokerConfig",
        "-b {broker} -k maxMessageSize -v many",
        differs="a value that cannot be used is refused; Apache says success and changes nothing",
    ),
    Step("updateBrokerConfig", "-b {broker} -k brokerConfigPath -v /tmp/else"),
    Step("getBrokerConfig", "-b {broker}", **OWN_SETTINGS),
    Step("updateNamesrvConfig", "-k orderMessageEnable -v true"),
    Step("updateNamesrvConfig", "-k kvConfigPath -v /tmp/else"),
    Step("getNamesrvConfig", **OWN_SETTINGS),
    Step("updateKvConfig", "-s space -k key -v value"),
    Step("deleteKvConfig", "-s space -k key"),
    Step("deleteKvConfig", "-s space -k nobody"),
    Step("wipeWritePerm", "-b broker-a", **COUNT_OF_TOPICS),
    Step("topicRoute", "-t orders -l"),
    Step("addWritePerm", "-b broker-a", **COUNT_OF_TOPICS),
    Step("topicRoute", "-t orders -l"),
    Step("wipeWritePerm", "-b nobody"),
    Step("exportMetadata", "-c DefaultCluster -f {home}/export"),
    Step("exportMetadata", "-b {broker} -t -f {home}/export"),
    Step("exportMetadata", "-b {broker} -g -f {home}/export"),
    Step("exportMetadata", "-c DefaultCluster -s -f {home}/export"),
    Step(
        "exportConfigs",
        "-c DefaultCluster -f {home}/export",
        differs="our default of flushDiskType; no useTLS, which is no setting here",
        apaches='"useTLS":.*',
        varies=(r'("flushDiskType":).*',),
    ),
    Step(
        "exportMetrics",
        "-c DefaultCluster -f {home}/export",
        differs="no cpuNum, which is the size of a thread pool",
        apaches='"cpuNum":.*',
        varies=(r'("(?:messageAverageSize|\w+DiskRatio|\w*Tps\w*)":).*',),
    ),
    Step("exportPopRecord", "-b {broker} -d true"),
    Step("haStatus", "-b {broker}", not_applicable=REPLICATION),
    Step("haStatus", "-c DefaultCluster", not_applicable=REPLICATION),
    # ------------------------------------------------------------------------------------------------------- clean up
    Step("cleanExpiredCQ", "-b {broker}"),
    Step("cleanExpiredCQ", "-c DefaultCluster"),
    Step("deleteExpiredCommitLog", "-b {broker}"),
    Step("cleanUnusedTopic", "-c DefaultCluster"),
    Step("deleteSubGroup", "-b {broker} -g copies"),
    Step("deleteSubGroup", "-c DefaultCluster -g readers -r true"),
    Step("getConsumerConfig", "-g readers"),
    Step("consumerProgress", "-g readers", varies=RATES),
    Step("deleteTopic", "-c DefaultCluster -t orders"),
    Step("topicRoute", "-t orders"),
    Step("deleteTopic", "-c DefaultCluster -t nobody"),
    Step("topicList", unordered=True, **ROCKSDB_TOPICS),
    # ------------------------------------------------------------------------------------------- what is not served
    Step("updateStaticTopic", "-b broker-a -t static -qn 2", not_applicable=STATIC_TOPICS),
    Step("remappingStaticTopic", "-b broker-a -t units", not_applicable=STATIC_TOPICS),
    Step("checkRocksdbCqWriteProgress", "-c DefaultCluster", not_applicable=ROCKSDB),
    Step("rocksDBConfigToJson", "-c DefaultCluster -t topics", not_applicable=ROCKSDB),
    Step("exportMetadataInRocksDB", "-p {home}/nowhere -t topics"),
    Step("dumpCompactionLog", "-f {home}/nowhere"),
    Step("addBroker", "-c {broker} -b {home}/broker.conf", not_applicable=CONTAINER),
    Step("removeBroker", "-c {broker} -b DefaultCluster:broker-a:0", not_applicable=CONTAINER),
    Step("resetMasterFlushOffset", "-b {broker} -o 0", not_applicable=REPLICATION),
    Step("setCommitLogReadAheadMode", "-b {broker} -m 0", not_applicable=COLD_DATA),
    Step("getColdDataFlowCtrInfo", "-b {broker}", not_applicable=COLD_DATA),
    Step("updateColdDataFlowCtrGroupConfig", "-b {broker} -g readers -v 1000", not_applicable=COLD_DATA),
    Step("removeColdDataFlowCtrGroupConfig", "-b {broker} -g readers", not_applicable=COLD_DATA),
    Step("getBrokerEpoch", "-b broker-a", not_applicable=REPLICATION),
    Step("getSyncStateSet", "-a {namesrv} -b broker-a", not_applicable=CONTROLLER),
    Step("getControllerMetaData", "-a {namesrv}", not_applicable=CONTROLLER),
    Step("getControllerConfig", "-a {namesrv}", not_applicable=CONTROLLER),
    Step("updateControllerConfig", "-a {namesrv} -k key -v value", not_applicable=CONTROLLER),
    Step("electMaster", "-a {namesrv} -b 1 -bn broker-a -c DefaultCluster", not_applicable=CONTROLLER),
    Step("cleanBrokerMetadata", "-a {namesrv} -bn broker-a -c DefaultCluster", not_applicable=CONTROLLER),
    Step("createUser", "-b {broker} -u user -p secret -t Normal", not_applicable=ACCESS_CONTROL),
    Step("updateUser", "-b {broker} -u user -p other", not_applicable=ACCESS_CONTROL),
    Step("getUser", "-b {broker} -u user", not_applicable=ACCESS_CONTROL),
    Step("listUser", "-b {broker}", not_applicable=ACCESS_CONTROL),
    Step("copyUser", "-f {broker} -t {broker} -u user", not_applicable=ACCESS_CONTROL),
    Step("deleteUser", "-b {broker} -u user", not_applicable=ACCESS_CONTROL),
    Step("createAcl", "-b {broker} -s User:user -r Topic:orders -a Pub -d Allow", not_applicable=ACCESS_CONTROL),
    Step("updateAcl", "-b {broker} -s User:user -r Topic:orders -a Sub -d Allow", not_applicable=ACCESS_CONTROL),
    Step("getAcl", "-b {broker} -s User:user", not_applicable=ACCESS_CONTROL),
    Step("listAcl", "-b {broker}", not_applicable=ACCESS_CONTROL),
    Step("copyAcl", "-f {broker} -t {broker} -s User:user", not_applicable=ACCESS_CONTROL),
    Step("deleteAcl", "-b {broker} -s User:user", not_applicable=ACCESS_CONTROL),
    Step("switchTimerEngine", "-b {broker} -e F"),
    Step("switchTimerEngine", "-b {broker} -e R"),
    Step("getBrokerLiteInfo", "-b {broker}", not_applicable=LITE_TOPICS),
    Step("getParentTopicInfo", "-p units", not_applicable=LITE_TOPICS),
    Step("getLiteTopicInfo", "-p units -l lite", not_applicable=LITE_TOPICS),
    Step("getLiteClientInfo", "-p units -g readers -c nobody", not_applicable=LITE_TOPICS),
    Step("getLiteGroupInfo", "-p units -g readers", not_applicable=LITE_TOPICS),
    Step("triggerLiteDispatch", "-p units -g readers", not_applicable=LITE_TOPICS),
)


def commands() -> dict[str, list[Step]]:
    """In alphabetical order, each with its steps."""
    steps = [step for step in SCRIPT if isinstance(step, Step)]
    names = sorted({step.command for step in steps}, key=str.lower)
    return {name: [step for step in steps if step.command == name] for name in names}


def table() -> str:
    """As it stands in docs/compatibility.md."""
    rows = []
    for command, steps in commands().items():
        reasons = dict.fromkeys(step.differs for step in steps if step.differs)
        not_applicable = dict.fromkeys(step.not_applicable for step in steps if step.not_applicable)
        if not_applicable:
            answer = f"not applicable: {'; '.join(not_applicable)}"
        else:
            answer = f"differs: {'; '.join(reasons)}" if reasons else "same"
        rows.append(f"| `{command}` | {answer} | `oracle/test_mqadmin.py::test_command` |")
    return "\n".join(["| command | answer | test |", "| --- | --- | --- |", *rows])
