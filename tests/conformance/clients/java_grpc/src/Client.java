import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.BufferedReader;
import java.io.Closeable;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.apis.ClientConfiguration;
import org.apache.rocketmq.client.apis.ClientConfigurationBuilder;
import org.apache.rocketmq.client.apis.ClientServiceProvider;
import org.apache.rocketmq.client.apis.consumer.ConsumeResult;
import org.apache.rocketmq.client.apis.consumer.FilterExpression;
import org.apache.rocketmq.client.apis.consumer.FilterExpressionType;
import org.apache.rocketmq.client.apis.consumer.MessageListener;
import org.apache.rocketmq.client.apis.consumer.SimpleConsumer;
import org.apache.rocketmq.client.apis.message.Message;
import org.apache.rocketmq.client.apis.message.MessageBuilder;
import org.apache.rocketmq.client.apis.message.MessageView;
import org.apache.rocketmq.client.apis.producer.Producer;
import org.apache.rocketmq.client.apis.producer.ProducerBuilder;
import org.apache.rocketmq.client.apis.producer.SendReceipt;
import org.apache.rocketmq.client.apis.producer.Transaction;
import org.apache.rocketmq.client.apis.producer.TransactionResolution;

/** The official Java gRPC client behind the line protocol of harness/clients.py. */
public final class Client {
    /** What a request may carry; absent fields stay null or 0. */
    record Request(int id, String Do, String what, String name, String endpoints, boolean tls, List<String> topics,
                   String group, Map<String, String> subscriptions, boolean sql, long awaitMs, int failures, boolean paused, String mode,
                   List<Fields> messages, Fields message, String resolution, String checks, int max, long invisibleMs, List<Integer> refs, int ref, String topic,
                   String handle) { }

    /** A message as the line protocol writes it. */
    record Fields(String id, String topic, String tag, List<String> keys, Map<String, String> properties, String body,
                  String messageGroup, int attempt, boolean corrupted, int ref, Long deliverMs) { }

    interface Action {
        Map<String, ?> run(Request request) throws Exception;
    }

    private static final Pattern RESPONSE_CODE = Pattern.compile("response-code=(\\d+)");
    private static final Gson GSON = new GsonBuilder().serializeNulls()
        .setFieldNamingStrategy(field -> field.getName().replaceAll("([A-Z])", "_$1").toLowerCase().replaceAll("^_", ""))
        .create();
    private static final PrintStream OUT =
        new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
    private static final ClientServiceProvider PROVIDER = ClientServiceProvider.loadService();

    private final Map<String, Closeable> opened = new ConcurrentHashMap<>();
    private final Map<Integer, MessageView> held = new ConcurrentHashMap<>();
    private final Map<String, CountDownLatch> paused = new ConcurrentHashMap<>();
    private final AtomicInteger references = new AtomicInteger();
    private final Map<String, Action> actions = Map.of("open", this::open, "send", this::send,
        "transact", this::transact, "recall", this::recall, "receive", this::receive, "ack", this::ack, "invisible", this::invisible,
        "resume", this::resume, "close", this::close);

    private static synchronized void write(Object line) {
        OUT.println(GSON.toJson(line));
        OUT.flush();
    }

    private Map<String, ?> open(Request request) throws Exception {
        ClientConfigurationBuilder configuration = ClientConfiguration.newBuilder().setEndpoints(request.endpoints());
        if (!request.tls()) {
            configuration.enableSsl(false);
        }
        opened.put(request.name(), switch (request.what()) {
            case "producer" -> producer(request, configuration.build());
            case "simple" -> PROVIDER.newSimpleConsumerBuilder().setClientConfiguration(configuration.build())
                .setConsumerGroup(request.group()).setSubscriptionExpressions(filters(request))
                .setAwaitDuration(Duration.ofMillis(request.awaitMs())).build();
            case "push" -> PROVIDER.newPushConsumerBuilder().setClientConfiguration(configuration.build())
                .setConsumerGroup(request.group()).setSubscriptionExpressions(filters(request))
                .setMessageListener(listener(request)).build();
            default -> throw new IllegalArgumentException("open what? " + request.what());
        });
        return Map.of();
    }

    private static Producer producer(Request request, ClientConfiguration configuration) throws Exception {
        ProducerBuilder builder = PROVIDER.newProducerBuilder().setClientConfiguration(configuration)
            .setTopics(request.topics().toArray(String[]::new));
        if (request.checks() != null) {
            builder.setTransactionChecker(view -> {
                write(Map.of("event", "checked", "name", request.name(), "message", described(view, 0)));
                return TransactionResolution.valueOf(request.checks());
            });
        }
        return builder.build();
    }

    private Map<String, ?> transact(Request request) throws Exception {
        Producer producer = (Producer) opened.get(request.name());
        Transaction transaction = producer.beginTransaction();
        SendReceipt receipt = producer.send(built(request.message()), transaction);
        switch (request.resolution()) {
            case "COMMIT" -> transaction.commit();
            case "ROLLBACK" -> transaction.rollback();
            default -> { }
        }
        return Map.of("id", receipt.getMessageId().toString());
    }

    private static Map<String, FilterExpression> filters(Request request) {
        return request.subscriptions().entrySet().stream()
            .collect(Collectors.toMap(Map.Entry::getKey, entry -> new FilterExpression(
                entry.getValue(), request.sql() ? FilterExpressionType.SQL92 : FilterExpressionType.TAG)));
    }

    /** Reports each delivery and fails the first {@code failures} of every message, once it may go on. */
    private MessageListener listener(Request request) {
        String name = request.name();
        CountDownLatch mayGoOn = new CountDownLatch(request.paused() ? 1 : 0);
        paused.put(name, mayGoOn);
        Map<String, Integer> seen = new ConcurrentHashMap<>();
        return view -> {
            boolean failed = seen.merge(view.getMessageId().toString(), 1, Integer::sum) <= request.failures();
            write(Map.of("event", "delivered", "name", name, "failed", failed, "message", described(view, 0)));
            try {
                mayGoOn.await();
            } catch (InterruptedException e) {
                return ConsumeResult.FAILURE;
            }
            return failed ? ConsumeResult.FAILURE : ConsumeResult.SUCCESS;
        };
    }

    private Map<String, ?> resume(Request request) {
        paused.get(request.name()).countDown();
        return Map.of();
    }

    private Map<String, ?> send(Request request) throws Exception {
        Producer producer = (Producer) opened.get(request.name());
        List<String> ids = new ArrayList<>();
        List<String> handles = new ArrayList<>();
        if ("async".equals(request.mode())) {
            List<CompletableFuture<SendReceipt>> receipts = new ArrayList<>();
            for (Fields fields : request.messages()) {
                receipts.add(producer.sendAsync(built(fields)));
            }
            for (CompletableFuture<SendReceipt> receipt : receipts) {
                ids.add(receipt.join().getMessageId().toString());
            }
        } else {
            for (Fields fields : request.messages()) {
                SendReceipt receipt = producer.send(built(fields));
                ids.add(receipt.getMessageId().toString());
                handles.add(receipt.getRecallHandle());
            }
        }
        return Map.of("ids", ids, "handles", handles);
    }

    private Map<String, ?> recall(Request request) throws Exception {
        Producer producer = (Producer) opened.get(request.name());
        return Map.of("id", producer.recallMessage(request.topic(), request.handle()).getMessageId().toString());
    }

    private static Message built(Fields fields) {
        MessageBuilder builder = PROVIDER.newMessageBuilder().setTopic(fields.topic())
            .setBody(Base64.getDecoder().decode(fields.body()));
        if (fields.tag() != null) {
            builder.setTag(fields.tag());
        }
        if (!fields.keys().isEmpty()) {
            builder.setKeys(fields.keys().toArray(String[]::new));
        }
        fields.properties().forEach(builder::addProperty);
        if (fields.messageGroup() != null) {
            builder.setMessageGroup(fields.messageGroup());
        }
        if (fields.deliverMs() != null) {
            builder.setDeliveryTimestamp(fields.deliverMs());
        }
        return builder.build();
    }

    private static Fields described(MessageView view, int reference) {
        ByteBuffer body = view.getBody();
        byte[] bytes = new byte[body.remaining()];
        body.get(bytes);
        // this client hands corrupted messages to nobody
        return new Fields(view.getMessageId().toString(), view.getTopic(), view.getTag().orElse(null),
            List.copyOf(new TreeSet<>(view.getKeys())), new TreeMap<>(view.getProperties()),
            Base64.getEncoder().encodeToString(bytes), view.getMessageGroup().orElse(null), view.getDeliveryAttempt(),
            false, reference, null);
    }

    private Map<String, ?> receive(Request request) throws Exception {
        SimpleConsumer consumer = (SimpleConsumer) opened.get(request.name());
        List<Fields> messages = new ArrayList<>();
        for (MessageView view : consumer.receive(request.max(), Duration.ofMillis(request.invisibleMs()))) {
            int reference = references.incrementAndGet();
            held.put(reference, view);
            messages.add(described(view, reference));
        }
        return Map.of("messages", messages);
    }

    private Map<String, ?> ack(Request request) throws Exception {
        for (int reference : request.refs()) {
            ((SimpleConsumer) opened.get(request.name())).ack(held.remove(reference));
        }
        return Map.of();
    }

    private Map<String, ?> invisible(Request request) throws Exception {
        ((SimpleConsumer) opened.get(request.name()))
            .changeInvisibleDuration(held.get(request.ref()), Duration.ofMillis(request.invisibleMs()));
        return Map.of();
    }

    private Map<String, ?> close(Request request) throws Exception {
        opened.remove(request.name()).close();
        return Map.of();
    }

    /** The exceptions of this client carry the response code in their text only. */
    private static Map<String, ?> failure(Throwable error) {
        Throwable cause = error instanceof CompletionException ? error.getCause() : error;
        Map<String, Object> failure = new TreeMap<>();
        failure.put("kind", cause.getClass().getSimpleName());
        failure.put("message", String.valueOf(cause.getMessage()));
        failure.put("code", null);
        for (Throwable link = cause; link != null; link = link.getCause()) {
            Matcher matcher = RESPONSE_CODE.matcher(String.valueOf(link.getMessage()));
            if (matcher.find()) {
                failure.put("code", Integer.valueOf(matcher.group(1)));
                break;
            }
        }
        return failure;
    }

    private void answer(Request request) {
        try {
            write(Map.of("id", request.id(), "ok", actions.get(request.Do()).run(request)));
        } catch (Throwable error) {
            write(Map.of("id", request.id(), "error", failure(error)));
        }
    }

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err); // stdout is ours
        Client client = new Client();
        write(Map.of("event", "ready", "client", "rocketmq-client-java 5.2.0"));
        ExecutorService pool = Executors.newCachedThreadPool();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Request request = GSON.fromJson(line, Request.class);
            pool.submit(() -> client.answer(request));
        }
        Runtime.getRuntime().halt(0);
    }
}
