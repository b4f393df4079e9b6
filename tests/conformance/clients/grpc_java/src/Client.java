import com.google.gson.Gson;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** grpc-java, for calls that official clients do not make (test_grpc_calls.py). */
public final class Client {
    record Call(String path, String request, int padding, boolean gzip, int times, int deadline_ms, int cancel_ms) {
        byte[] message() {
            byte[] bytes = Base64.getDecoder().decode(request);
            return Arrays.copyOf(bytes, bytes.length + padding);
        }
    }

    record Result(int code, List<String> answers) {}

    /** Passes messages through as they are. */
    private static final MethodDescriptor.Marshaller<byte[]> RAW = new MethodDescriptor.Marshaller<>() {
        @Override
        public InputStream stream(byte[] message) {
            return new ByteArrayInputStream(message);
        }

        @Override
        public byte[] parse(InputStream stream) {
            try {
                return stream.readAllBytes();
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    };

    private static void say(ClientCall<byte[], byte[]> call, byte[] message, boolean last) {
        call.sendMessage(message);
        if (last) {
            call.halfClose();
        }
    }

    private static Result run(ManagedChannel channel, Call asked) throws Exception {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(asked.deadline_ms(), TimeUnit.MILLISECONDS);
        MethodDescriptor<byte[], byte[]> method = MethodDescriptor.newBuilder(RAW, RAW)
            .setType(MethodDescriptor.MethodType.BIDI_STREAMING)
            .setFullMethodName(asked.path().substring(1))
            .build();
        ClientCall<byte[], byte[]> call = channel.newCall(method, asked.gzip() ? options.withCompression("gzip") : options);
        byte[] message = asked.message();
        List<String> answers = new ArrayList<>();
        CompletableFuture<Status> ended = new CompletableFuture<>();
        Metadata headers = new Metadata();
        headers.put(Metadata.Key.of("x-mq-client-id", Metadata.ASCII_STRING_MARSHALLER), "grpc-java");
        call.start(new ClientCall.Listener<>() {
            @Override
            public void onMessage(byte[] answer) {
                answers.add(Base64.getEncoder().encodeToString(answer));
                if (answers.size() < asked.times()) { // a conversation
                    say(call, message, answers.size() + 1 == asked.times());
                }
                call.request(1);
            }

            @Override
            public void onClose(Status status, Metadata trailers) {
                ended.complete(status);
            }
        }, headers);
        call.request(1);
        say(call, message, asked.times() == 1);
        if (asked.cancel_ms() > 0) {
            Thread.sleep(asked.cancel_ms());
            call.cancel("the test wants it", null);
        }
        return new Result(ended.get().getCode().value(), answers);
    }

    public static void main(String[] arguments) throws Exception {
        Gson gson = new Gson();
        ManagedChannel channel = NettyChannelBuilder.forTarget(arguments[0]).usePlaintext()
            .maxInboundMessageSize(Integer.MAX_VALUE).build();
        List<Result> results = new ArrayList<>();
        for (Call call : gson.fromJson(new InputStreamReader(System.in), Call[].class)) {
            results.add(run(channel, call));
        }
        System.out.println(gson.toJson(results));
        System.exit(0);
    }
}
