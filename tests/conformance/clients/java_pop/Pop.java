import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONArray;
import com.alibaba.fastjson2.JSONObject;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.AckResult;
import org.apache.rocketmq.client.consumer.PopResult;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.impl.mqclient.DoNothingClientRemotingProcessor;
import org.apache.rocketmq.client.impl.mqclient.MQClientAPIExt;
import org.apache.rocketmq.common.message.MessageConst;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.protocol.header.AckMessageRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.ChangeInvisibleTimeRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.NotificationRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.PopMessageRequestHeader;

/**
 * Pops as Apache's Proxy pops from its brokers, with the same class of the official client: what the push consumers do not
 * do yet, orders and notifications. A JSON object a line in, one a line out; run from its source.
 *
 * Every request names a topic, a group and a queue_id (-1: any). {"do": "pop", "max", "invisible_ms", "poll_ms", "order",
 * "attempt_id"} → {"messages": [{body, handle, queue_id, offset, attempt}]}; {"do": "notify", "poll_ms", "order",
 * "attempt_id", "sql"} → {"has_message"}; {"do": "ack" | "invisible", "handle", "offset", "invisible_ms"} → {"handle"}.
 * Any of them: {"error": code}.
 */
public final class Pop {
    private static final long TIMEOUT_MS = 30_000;
    private final MQClientAPIExt client;
    private final String address;
    private final String broker;

    private Pop(String address, String broker) {
        this.address = address;
        this.broker = broker;
        client = new MQClientAPIExt(new ClientConfig(), new NettyClientConfig(), new DoNothingClientRemotingProcessor(null), null);
        client.start();
    }

    public static void main(String[] arguments) throws Exception {
        PrintStream out = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        System.setOut(System.err);  // whatever a library prints is no answer
        Pop pop = new Pop(arguments[0], arguments[1]);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            JSONObject request = JSON.parseObject(line);
            int id = request.getIntValue("id");
            pop.answer(request).handle((answer, error) -> error == null ? answer : failure(error))
                .thenAccept(answer -> out.println(answer.fluentPut("id", id)));
        }
        Runtime.getRuntime().halt(0);
    }

    private static JSONObject failure(Throwable error) {
        Throwable cause = error.getCause() == null ? error : error.getCause();
        return JSONObject.of("error", cause instanceof MQBrokerException refused ? refused.getResponseCode() : -1);
    }

    private CompletableFuture<JSONObject> answer(JSONObject request) {
        return switch (request.getString("do")) {
            case "pop" -> pop(request);
            case "notify" -> notification(request);
            case "ack" -> ack(request);
            case "invisible" -> invisible(request);
            default -> throw new IllegalArgumentException("unknown request " + request);
        };
    }

    private CompletableFuture<JSONObject> pop(JSONObject request) {
        PopMessageRequestHeader header = new PopMessageRequestHeader();
        header.setTopic(request.getString("topic"));
        header.setConsumerGroup(request.getString("group"));
        header.setQueueId(request.getIntValue("queue_id"));
        header.setMaxMsgNums(request.getIntValue("max"));
        header.setInvisibleTime(request.getLongValue("invisible_ms"));
        header.setPollTime(request.getLongValue("poll_ms"));
        header.setBornTime(System.currentTimeMillis());
        header.setInitMode(0);
        header.setExpType("TAG");
        header.setExp("*");
        header.setOrder(request.getBooleanValue("order"));
        header.setAttemptId(request.getString("attempt_id"));
        return client.popMessageAsync(address, broker, header, TIMEOUT_MS).thenApply(Pop::describe);
    }

    private static JSONObject describe(PopResult popped) {
        JSONArray messages = new JSONArray();
        if (popped.getMsgFoundList() != null) {
            for (MessageExt message : popped.getMsgFoundList()) {
                messages.add(JSONObject.of(
                    "body", new String(message.getBody(), StandardCharsets.UTF_8),
                    "handle", message.getProperty(MessageConst.PROPERTY_POP_CK),
                    "queue_id", message.getQueueId(),
                    "offset", message.getQueueOffset(),
                    "attempt", message.getReconsumeTimes() + 1));
            }
        }
        return JSONObject.of("messages", messages);
    }

    private CompletableFuture<JSONObject> notification(JSONObject request) {
        NotificationRequestHeader header = new NotificationRequestHeader();
        header.setTopic(request.getString("topic"));
        header.setConsumerGroup(request.getString("group"));
        header.setQueueId(request.getIntValue("queue_id"));
        header.setPollTime(request.getLongValue("poll_ms"));
        header.setBornTime(System.currentTimeMillis());
        header.setOrder(request.getBooleanValue("order"));
        header.setAttemptId(request.getString("attempt_id"));
        if (request.containsKey("sql")) {
            header.setExpType("SQL92");
            header.setExp(request.getString("sql"));
        }
        return client.notification(address, header, TIMEOUT_MS).thenApply(found -> JSONObject.of("has_message", found));
    }

    private CompletableFuture<JSONObject> ack(JSONObject request) {
        AckMessageRequestHeader header = new AckMessageRequestHeader();
        header.setTopic(request.getString("topic"));
        header.setConsumerGroup(request.getString("group"));
        header.setQueueId(request.getIntValue("queue_id"));
        header.setExtraInfo(request.getString("handle"));
        header.setOffset(request.getLongValue("offset"));
        return client.ackMessageAsync(address, header, TIMEOUT_MS).thenApply(Pop::describe);
    }

    private CompletableFuture<JSONObject> invisible(JSONObject request) {
        ChangeInvisibleTimeRequestHeader header = new ChangeInvisibleTimeRequestHeader();
        header.setTopic(request.getString("topic"));
        header.setConsumerGroup(request.getString("group"));
        header.setQueueId(request.getIntValue("queue_id"));
        header.setExtraInfo(request.getString("handle"));
        header.setOffset(request.getLongValue("offset"));
        header.setInvisibleTime(request.getLongValue("invisible_ms"));
        return client.changeInvisibleTimeAsync(address, broker, header, TIMEOUT_MS).thenApply(Pop::describe);
    }

    private static JSONObject describe(AckResult settled) {
        return JSONObject.of("handle", settled.getExtraInfo(), "status", settled.getStatus().name());
    }
}
