import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageQueueListener;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.protocol.heartbeat.MessageModel;

/** What a client of version 4 calls otherwise than one of version 5. */
final class Generation {
    static final String CLIENT = "rocketmq-client 4.9.8";

    private Generation() {
    }

    static DefaultMQProducer producer(String group, boolean trace) {
        return new DefaultMQProducer(group, trace);
    }

    static DefaultMQPushConsumer consumer(String group, boolean trace) {
        return new DefaultMQPushConsumer(group, trace);
    }

    static void model(DefaultMQPushConsumer consumer, String name) {
        consumer.setMessageModel(MessageModel.valueOf(name));
    }

    static void popping(DefaultMQPushConsumer consumer, long invisibleMs, MessageQueueListener listener) {
        throw new UnsupportedOperationException("version 4 cannot pop");
    }

    static void commit(DefaultLitePullConsumer puller) {
        puller.commitSync();
    }
}
