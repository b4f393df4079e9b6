import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import com.alibaba.fastjson2.JSONWriter;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.AllocateMessageQueueStrategy;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.impl.factory.MQClientInstance;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageAccessor;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * The official Java Remoting client behind the line protocol of harness/clients.py, with the words of the Go Remoting
 * program beside it.
 */
public final class Client {
    private static final Map<Object, LocalTransactionState> RESOLUTIONS = Map.of(
        "COMMIT", LocalTransactionState.COMMIT_MESSAGE,
        "ROLLBACK", LocalTransactionState.ROLLBACK_MESSAGE,
        "UNKNOWN", LocalTransactionState.UNKNOW);

    private final PrintStream out;
    private final Map<String, DefaultMQProducer> producers = new ConcurrentHashMap<>();
    private final Map<String, DefaultMQPushConsumer> consumers = new ConcurrentHashMap<>();
    private final Map<String, DefaultLitePullConsumer> pullers = new ConcurrentHashMap<>();
    private final Map<String, DefaultMQPullConsumer> classics = new ConcurrentHashMap<>();
    private final CompletableFuture<Void> never = new CompletableFuture<>();

    private Client(PrintStream out) {
        this.out = out;
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        System.setOut(System.err);  // whatever a library prints is no answer
        Client client = new Client(out);
        client.write(JSONObject.of("event", "ready", "client", Generation.CLIENT));
        ExecutorService workers = Executors.newCachedThreadPool();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JSONObject request = JSON.parseObject(line);
            workers.submit(() -> client.answer(request));
        }
        Runtime.getRuntime().halt(0);  // stdin closed: the test is over, whoever is still open does not matter
    }

    private void answer(JSONObject request) {
        try {
            write(JSONObject.of("id", request.get("id"), "ok", perform(request)));
        } catch (Throwable error) {
            write(JSONObject.of("id", request.get("id"), "error", JSONObject.of(
                "kind", error.getClass().getSimpleName(), "code", code(error), "message", error.toString())));
        }
    }

    private static Integer code(Throwable error) {
        if (error instanceof MQBrokerException refused) {
            return refused.getResponseCode();
        }
        return error instanceof MQClientException failed ? failed.getResponseCode() : null;
    }

    private void write(JSONObject line) {
        String text = line.toString(JSONWriter.Feature.WriteNulls);
        synchronized (out) {
            out.println(text);
            out.flush();
        }
    }

    private JSONObject perform(JSONObject request) throws Exception {
        return switch (request.getString("do")) {
            case "open" -> open(request);
            case "send" -> send(request);
            case "transact" -> transact(request);
            case "recall" -> recall(request);
            case "request" -> request(request);
            case "offsets" -> offsets(request);
            case "poll" -> poll(request);
            case "read" -> read(request);
            case "filter" -> filter(request);
            case "close" -> close(request.getString("name"));
            default -> throw new IllegalArgumentException("unknown request " + request);
        };
    }

    private JSONObject open(JSONObject request) throws Exception {
        switch (request.getString("what")) {
            case "producer" -> openProducer(request);
            case "push" -> openPush(request);
            case "pull" -> openPull(request);
            case "classic" -> openClassic(request);
            default -> throw new IllegalArgumentException("open what? " + request);
        }
        return new JSONObject();
    }

    /** Each producer and consumer is a client of its own, with connections of its own, as in separate processes. */
    private static void identify(ClientConfig config, JSONObject request) {
        config.setNamesrvAddr(request.getString("endpoints"));
        // the heart-beat after a rebalance is dropped when the one by the clock runs: the next must come before the test ends
        config.setHeartbeatBrokerInterval(1000);
        config.setInstanceName(request.getString("name") + "#" + ProcessHandle.current().pid());
    }

    private void openProducer(JSONObject request) throws Exception {
        DefaultMQProducer producer = request.containsKey("checks")
            ? transactional(request)
            : Generation.producer(request.getString("group"), request.getBooleanValue("trace"));
        identify(producer, request);
        producer.setVipChannelEnabled(request.getBooleanValue("vip"));
        producer.start();
        producers.put(request.getString("name"), producer);
    }

    /** One that says the same of all transactions when it is asked, and reports them. */
    private DefaultMQProducer transactional(JSONObject request) {
        TransactionMQProducer producer = new TransactionMQProducer(request.getString("group"));
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object resolution) {
                return RESOLUTIONS.get(resolution);
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                write(JSONObject.of("event", "checked", "name", request.getString("name"), "message", describe(message)));
                return RESOLUTIONS.get(request.getString("checks"));
            }
        });
        return producer;
    }

    private JSONObject transact(JSONObject request) throws Exception {
        DefaultMQProducer producer = producers.get(request.getString("name"));
        SendResult result = producer.sendMessageInTransaction(
            message(request.getJSONObject("message")), request.getString("resolution"));
        return JSONObject.of("receipt", describe(result));
    }

    private JSONObject send(JSONObject request) throws Exception {
        DefaultMQProducer producer = producers.get(request.getString("name"));
        List<Message> messages = new ArrayList<>();
        List<MessageQueue> queues = new ArrayList<>();
        for (Object item : request.getJSONArray("messages")) {
            JSONObject fields = (JSONObject) item;
            messages.add(message(fields));
            queues.add(queue(producer, fields));
        }
        JSONArray receipts = new JSONArray();
        switch (request.getString("mode")) {
            case "sync":
                for (int i = 0; i < messages.size(); i++) {
                    MessageQueue queue = queues.get(i);
                    receipts.add(describe(queue == null ? producer.send(messages.get(i)) : producer.send(messages.get(i), queue)));
                }
                break;
            case "async":
                List<CompletableFuture<SendResult>> pending = new ArrayList<>();
                for (int i = 0; i < messages.size(); i++) {
                    pending.add(sendLater(producer, messages.get(i), queues.get(i)));
                }
                for (CompletableFuture<SendResult> result : pending) {
                    receipts.add(describe(result.get(10, TimeUnit.SECONDS)));
                }
                break;
            case "one_way":
                for (int i = 0; i < messages.size(); i++) {
                    if (queues.get(i) == null) {
                        producer.sendOneway(messages.get(i));
                    } else {
                        producer.sendOneway(messages.get(i), queues.get(i));
                    }
                }
                break;
            case "batch":
                receipts.add(describe(queues.get(0) == null ? producer.send(messages) : producer.send(messages, queues.get(0))));
                break;
            default:
                throw new IllegalArgumentException("send how? " + request);
        }
        return JSONObject.of("receipts", receipts);
    }

    /** By reflection: the client of version 4 has no such method. */
    private JSONObject recall(JSONObject request) throws Exception {
        DefaultMQProducer producer = producers.get(request.getString("name"));
        Object id = DefaultMQProducer.class.getMethod("recallMessage", String.class, String.class)
            .invoke(producer, request.getString("topic"), request.getString("handle"));
        return JSONObject.of("id", id);
    }

    private static Object recallHandle(SendResult result) {
        try {
            return SendResult.class.getMethod("getRecallHandle").invoke(result);
        } catch (ReflectiveOperationException none) {
            return null;
        }
    }

    private static CompletableFuture<SendResult> sendLater(DefaultMQProducer producer, Message message, MessageQueue queue)
        throws Exception {
        CompletableFuture<SendResult> future = new CompletableFuture<>();
        SendCallback callback = new SendCallback() {
            @Override
            public void onSuccess(SendResult result) {
                future.complete(result);
            }

            @Override
            public void onException(Throwable error) {
                future.completeExceptionally(error);
            }
        };
        if (queue == null) {
            producer.send(message, callback);
        } else {
            producer.send(message, queue, callback);
        }
        return future;
    }

    private JSONObject request(JSONObject request) throws Exception {
        DefaultMQProducer producer = producers.get(request.getString("name"));
        Message reply = producer.request(message(request.getJSONObject("message")), request.getLongValue("timeout_ms"));
        return JSONObject.of("message", describe(reply));
    }

    /** Min, max, by time, and the store time of the oldest message: codes 31, 30, 29 and 32. */
    private JSONObject offsets(JSONObject request) throws Exception {
        DefaultMQProducer producer = producers.get(request.getString("name"));
        MessageQueue queue = queue(producer, request);
        return JSONObject.of(
            "min", producer.minOffset(queue),
            "max", producer.maxOffset(queue),
            "at", producer.searchOffset(queue, request.getLongValue("stored_ms")),
            "earliest_ms", producer.earliestMsgStoreTime(queue));
    }

    private void openPush(JSONObject request) throws Exception {
        String name = request.getString("name");
        DefaultMQPushConsumer consumer = Generation.consumer(request.getString("group"), request.getBooleanValue("trace"));
        identify(consumer, request);
        Generation.model(consumer, request.getString("model"));
        switch (request.getString("begin")) {
            case "FIRST" -> consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
            case "LAST" -> consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET);
            default -> {
                consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_TIMESTAMP);
                consumer.setConsumeTimestamp(request.getString("begin"));
            }
        }
        consumer.setAllocateMessageQueueStrategy(new Announced(name));
        for (Map.Entry<String, Object> wanted : request.getJSONObject("subscriptions").entrySet()) {
            consumer.subscribe(wanted.getKey(), selector(request, (String) wanted.getValue()));
        }
        if (request.getBooleanValue("popping")) {
            Generation.popping(consumer, request.getLongValue("invisible_ms"), (topic, all, mine) -> assigned(name, topic, mine));
        }
        int failures = request.getIntValue("failures");
        String replier = request.getString("replier");
        if (request.getBooleanValue("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                boolean failed = messages.get(0).getReconsumeTimes() < failures;
                announce(name, messages, failed);
                context.setSuspendCurrentQueueTimeMillis(100);
                return failed ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT : ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                boolean failed = messages.get(0).getReconsumeTimes() < failures;
                announce(name, messages, failed);
                if (request.getBooleanValue("holding")) {
                    never.join();
                }
                if (replier != null) {
                    reply(replier, messages);
                }
                context.setDelayLevelWhenNextConsume(request.getIntValue("retry_level"));
                return failed ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        consumers.put(name, consumer);
    }

    private static MessageSelector selector(JSONObject request, String expression) {
        return request.getBooleanValue("sql") ? MessageSelector.bySql(expression) : MessageSelector.byTag(expression);
    }

    private void assigned(String consumer, String topic, Collection<MessageQueue> queues) {
        write(JSONObject.of("event", "assigned", "name", consumer, "topic", topic,
            "queues", queues.stream().map(MessageQueue::getQueueId).toList()));
    }

    private void announce(String consumer, List<MessageExt> messages, boolean failed) {
        for (MessageExt message : messages) {
            write(JSONObject.of("event", "delivered", "name", consumer, "failed", failed, "message", describe(message)));
        }
    }

    private void reply(String replier, List<MessageExt> requests) {
        for (MessageExt request : requests) {
            try {
                byte[] body = ("reply to " + new String(request.getBody(), StandardCharsets.UTF_8)).getBytes(StandardCharsets.UTF_8);
                producers.get(replier).send(MessageUtil.createReplyMessage(request, body));
            } catch (Exception error) {
                error.printStackTrace();
            }
        }
    }

    private void openPull(JSONObject request) throws Exception {
        DefaultLitePullConsumer puller = new DefaultLitePullConsumer(request.getString("group"));
        identify(puller, request);
        puller.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        if (!request.getBooleanValue("assigned")) {  // who subscribes cannot be told which queue to read
            for (Map.Entry<String, Object> wanted : request.getJSONObject("subscriptions").entrySet()) {
                puller.subscribe(wanted.getKey(), selector(request, (String) wanted.getValue()));
            }
        }
        puller.start();
        pullers.put(request.getString("name"), puller);
    }

    private JSONObject poll(JSONObject request) {
        DefaultLitePullConsumer puller = pullers.get(request.getString("name"));
        JSONArray messages = describe(puller.poll(request.getLongValue("timeout_ms")));
        Generation.commit(puller);
        return JSONObject.of("messages", messages);
    }

    private JSONObject read(JSONObject request) throws Exception {
        DefaultLitePullConsumer puller = pullers.get(request.getString("name"));
        MessageQueue wanted = select(puller.fetchMessageQueues(request.getString("topic")), request.getIntValue("queue_id"));
        puller.assign(List.of(wanted));
        puller.seek(wanted, request.getLongValue("offset"));
        return JSONObject.of("messages", describe(puller.poll(request.getLongValue("timeout_ms"))));
    }

    private void openClassic(JSONObject request) throws Exception {
        DefaultMQPullConsumer puller = new DefaultMQPullConsumer(request.getString("group"));
        identify(puller, request);
        puller.start();
        classics.put(request.getString("name"), puller);
    }

    /** All messages of a queue that an SQL92 filter takes, pulled with one request after the other. */
    private JSONObject filter(JSONObject request) throws Exception {
        DefaultMQPullConsumer puller = classics.get(request.getString("name"));
        MessageQueue queue = select(puller.fetchSubscribeMessageQueues(request.getString("topic")), request.getIntValue("queue_id"));
        // whether a broker is new enough to filter, its answer to a heart-beat says
        MQClientInstance instance = puller.getDefaultMQPullConsumerImpl().getRebalanceImpl().getmQClientFactory();
        instance.updateTopicRouteInfoFromNameServer(queue.getTopic());
        instance.sendHeartbeatToAllBrokerWithLock();
        MessageSelector selector = MessageSelector.bySql(request.getString("expression"));
        JSONArray messages = new JSONArray();
        PullResult pulled = puller.pull(queue, selector, 0, 32);
        while (pulled.getPullStatus() == PullStatus.FOUND || pulled.getPullStatus() == PullStatus.NO_MATCHED_MSG) {
            if (pulled.getMsgFoundList() != null) {
                messages.addAll(describe(pulled.getMsgFoundList()));
            }
            pulled = puller.pull(queue, selector, pulled.getNextBeginOffset(), 32);
        }
        return JSONObject.of("messages", messages);
    }

    private JSONObject close(String name) {
        DefaultMQProducer producer = producers.remove(name);
        DefaultMQPushConsumer consumer = consumers.remove(name);
        DefaultLitePullConsumer puller = pullers.remove(name);
        DefaultMQPullConsumer classic = classics.remove(name);
        if (producer != null) {
            producer.shutdown();
        } else if (consumer != null) {
            consumer.shutdown();
        } else if (puller != null) {
            puller.shutdown();
        } else if (classic != null) {
            classic.shutdown();
        } else {
            throw new IllegalArgumentException("nothing is open under the name " + name);
        }
        return new JSONObject();
    }

    private static Message message(JSONObject fields) {
        Message message = new Message(fields.getString("topic"), Base64.getDecoder().decode(fields.getString("body")));
        if (fields.getString("tag") != null) {
            message.setTags(fields.getString("tag"));
        }
        if (!fields.getList("keys", String.class).isEmpty()) {
            message.setKeys(fields.getList("keys", String.class));
        }
        fields.getJSONObject("properties").forEach((key, value) -> message.putUserProperty(key, (String) value));
        if (fields.containsKey("delay_level")) {
            message.setDelayTimeLevel(fields.getIntValue("delay_level"));
        }
        if (fields.containsKey("timers")) {
            fields.getJSONObject("timers").forEach((key, value) -> MessageAccessor.putProperty(message, key, (String) value));
        }
        return message;
    }

    private static MessageQueue queue(DefaultMQProducer producer, JSONObject fields) throws Exception {
        if (!fields.containsKey("queue_id")) {
            return null;
        }
        return select(producer.fetchPublishMessageQueues(fields.getString("topic")), fields.getIntValue("queue_id"));
    }

    private static MessageQueue select(Collection<MessageQueue> queues, int queueId) {
        return queues.stream().filter(queue -> queue.getQueueId() == queueId).findFirst().orElseThrow();
    }

    private static JSONObject describe(SendResult result) {
        return JSONObject.of(
            "status", result.getSendStatus().name(),
            "id", result.getMsgId(),
            "offset_id", result.getOffsetMsgId(),
            "queue_id", result.getMessageQueue().getQueueId(),
            "queue_offset", result.getQueueOffset(),
            "recall_handle", recallHandle(result));
    }

    private static JSONArray describe(List<MessageExt> messages) {
        JSONArray described = new JSONArray();
        messages.forEach(message -> described.add(describe(message)));
        return described;
    }

    private static JSONObject describe(Message message) {
        String keys = message.getKeys();
        JSONObject described = JSONObject.of(
            "topic", message.getTopic(),
            "tag", message.getTags(),
            "keys", keys == null ? List.of() : Stream.of(keys.trim().split(" ")).sorted().toList(),
            "properties", new HashMap<>(message.getProperties()),
            "body", Base64.getEncoder().encodeToString(message.getBody()));
        if (message instanceof MessageExt received) {
            described.put("id", received.getMsgId());
            described.put("queue_id", received.getQueueId());
            described.put("queue_offset", received.getQueueOffset());
            described.put("attempt", received.getReconsumeTimes() + 1);
        }
        return described;
    }

    /** The client's own strategy, told aloud: a test waits until the queues are shared as it needs them. */
    private final class Announced implements AllocateMessageQueueStrategy {
        private final AllocateMessageQueueStrategy strategy = new AllocateMessageQueueAveragely();
        private final String consumer;

        private Announced(String consumer) {
            this.consumer = consumer;
        }

        @Override
        public List<MessageQueue> allocate(String group, String clientId, List<MessageQueue> queues, List<String> clientIds) {
            List<MessageQueue> mine = strategy.allocate(group, clientId, queues, clientIds);
            assigned(consumer, queues.get(0).getTopic(), mine);
            return mine;
        }

        @Override
        public String getName() {
            return strategy.getName();
        }
    }
}
