import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageQueueListener;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.remoting.protocol.heartbeat.MessageModel;

/** What a client of version 5 calls otherwise than one of version 4. */
final class Generation {
    static final String CLIENT = "rocketmq-client 5.5.0";

    private Generation() {
    }

    static DefaultMQProducer producer(String group, boolean trace) {
        DefaultMQProducer producer = new DefaultMQProducer(group);
        producer.setEnableTrace(trace);
        return producer;
    }

    static DefaultMQPushConsumer consumer(String group, boolean trace) {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setEnableTrace(trace);
        return consumer;
    }

    static void model(DefaultMQPushConsumer consumer, String name) {
        consumer.setMessageModel(MessageModel.valueOf(name));
    }

    static void popping(DefaultMQPushConsumer consumer, long invisibleMs, MessageQueueListener listener) {
        consumer.setClientRebalance(false);
        consumer.setPopInvisibleTime(invisibleMs);
        consumer.setMessageQueueListener(listener);
    }

    static void commit(DefaultLitePullConsumer puller) {
        puller.commit();
    }
}
