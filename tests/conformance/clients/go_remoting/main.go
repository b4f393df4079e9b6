// The official Go Remoting client behind the line protocol of harness/clients.py, with the words of the Java Remoting
// program beside it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// Every field that some request has; each reads those that it needs.
type request struct {
	ID            int               `json:"id"`
	Do            string            `json:"do"`
	What          string            `json:"what"`
	Name          string            `json:"name"`
	Endpoints     string            `json:"endpoints"`
	Group         string            `json:"group"`
	Vip           bool              `json:"vip"`
	Subscriptions map[string]string `json:"subscriptions"`
	SQL           bool              `json:"sql"`
	Model         string            `json:"model"`
	Orderly       bool              `json:"orderly"`
	Failures      int32             `json:"failures"`
	RetryLevel    int               `json:"retry_level"`
	Replier       string            `json:"replier"`
	Begin         string            `json:"begin"`
	Mode          string            `json:"mode"`
	Messages      []outgoing        `json:"messages"`
	Message       outgoing          `json:"message"`
	Resolution    string            `json:"resolution"`
	Checks        string            `json:"checks"`
	TimeoutMs     int64             `json:"timeout_ms"`
	Topic         string            `json:"topic"`
	QueueID       int               `json:"queue_id"`
	Offset        int64             `json:"offset"`
}

func (r request) selector(expression string) consumer.MessageSelector {
	if r.SQL {
		return consumer.MessageSelector{Type: consumer.SQL92, Expression: expression}
	}
	return consumer.MessageSelector{Type: consumer.TAG, Expression: expression}
}

type outgoing struct {
	Topic      string            `json:"topic"`
	Body       []byte            `json:"body"`
	Tag        string            `json:"tag"`
	Keys       []string          `json:"keys"`
	Properties map[string]string `json:"properties"`
	DelayLevel int               `json:"delay_level"`
	Timers     map[string]string `json:"timers"`
	QueueID    *int              `json:"queue_id"`
}

type incoming struct {
	ID          string            `json:"id"`
	Topic       string            `json:"topic"`
	Tag         string            `json:"tag"`
	Keys        []string          `json:"keys"`
	Properties  map[string]string `json:"properties"`
	Body        []byte            `json:"body"`
	QueueID     int               `json:"queue_id"`
	QueueOffset int64             `json:"queue_offset"`
	Attempt     int32             `json:"attempt"`
}

type receipt struct {
	Status      string `json:"status"`
	ID          string `json:"id"`
	OffsetID    string `json:"offset_id"`
	QueueID     int    `json:"queue_id"`
	QueueOffset int64  `json:"queue_offset"`
}

type object map[string]any

type closer interface{ Shutdown() error }

// The opened producers and consumers by name.
type client struct {
	writing sync.Mutex
	opening sync.Mutex
	opened  map[string]closer
}

func main() {
	rlog.SetLogLevel("warn")
	if err := rlog.SetOutputPath(filepath.Join(os.Getenv("HOME"), "rocketmq_client.log")); err != nil {
		panic(err)
	}
	c := &client{opened: map[string]closer{}}
	c.write(object{"event": "ready", "client": "rocketmq-client-go v2.1.2"})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		go c.answer(r)
	}
	os.Exit(0) // stdin closed: the test is over, whoever is still open does not matter
}

func (c *client) answer(r request) {
	value, err := c.perform(r)
	if err != nil {
		failure := object{"kind": fmt.Sprintf("%T", err), "code": nil, "message": err.Error()}
		c.write(object{"id": r.ID, "error": failure})
	} else {
		c.write(object{"id": r.ID, "ok": value})
	}
}

func (c *client) write(line object) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	fmt.Println(string(text))
}

func (c *client) perform(r request) (object, error) {
	switch r.Do {
	case "open":
		return c.open(r)
	case "send":
		return c.send(r)
	case "transact":
		return c.transact(r)
	case "request":
		return c.request(r)
	case "poll":
		return c.poll(r)
	case "read":
		return c.read(r)
	case "close":
		return c.close(r)
	}
	return nil, fmt.Errorf("unknown request %q", r.Do)
}

func (c *client) open(r request) (object, error) {
	var opened closer
	var err error
	switch r.What {
	case "producer":
		opened, err = c.openProducer(r)
	case "push":
		opened, err = c.openPush(r)
	case "pull":
		opened, err = c.openPull(r)
	default:
		err = fmt.Errorf("open what? %q", r.What)
	}
	if err != nil {
		return nil, err
	}
	c.opening.Lock()
	defer c.opening.Unlock()
	c.opened[r.Name] = opened
	return object{}, nil
}

func find[T closer](c *client, name string) (T, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	found, ok := c.opened[name].(T)
	if !ok {
		return found, fmt.Errorf("nothing of this kind is open under the name %q", name)
	}
	return found, nil
}

// Each producer and consumer is a client of its own, with connections of its own, as in separate processes.
func instance(r request) string {
	return fmt.Sprintf("%s#%d", r.Name, os.Getpid())
}

func (c *client) openProducer(r request) (closer, error) {
	options := []producer.Option{
		producer.WithNameServer(strings.Split(r.Endpoints, ";")),
		producer.WithGroupName(r.Group),
		producer.WithInstanceName(instance(r)),
		producer.WithVIPChannel(r.Vip),
		producer.WithQueueSelector(&selector{QueueSelector: producer.NewRoundRobinQueueSelector()}),
	}
	if r.Checks != "" {
		listener := &checker{client: c, name: r.Name, checks: r.Checks}
		listeners.Store(r.Name, listener)
		p, err := rocketmq.NewTransactionProducer(listener, options...)
		if err != nil {
			return nil, err
		}
		return p, p.Start()
	}
	p, err := rocketmq.NewProducer(options...)
	if err != nil {
		return nil, err
	}
	return p, p.Start()
}

var resolutions = map[any]primitive.LocalTransactionState{
	"COMMIT": primitive.CommitMessageState, "ROLLBACK": primitive.RollbackMessageState, "UNKNOWN": primitive.UnknowState,
}

// Says the same of all transactions when it is asked, and reports them.
type checker struct {
	*client
	name, checks string
	decided      sync.Map // message → resolution
}

func (c *checker) ExecuteLocalTransaction(msg *primitive.Message) primitive.LocalTransactionState {
	resolution, _ := c.decided.LoadAndDelete(msg)
	return resolutions[resolution]
}

func (c *checker) CheckLocalTransaction(msg *primitive.MessageExt) primitive.LocalTransactionState {
	c.write(object{"event": "checked", "name": c.name, "message": describe(msg)})
	return resolutions[c.checks]
}

// The listener of each transactional producer, by which it learns what becomes of a message.
var listeners sync.Map

func (c *client) transact(r request) (object, error) {
	p, err := find[rocketmq.TransactionProducer](c, r.Name)
	if err != nil {
		return nil, err
	}
	msg := r.Message.build()
	listener, _ := listeners.Load(r.Name)
	listener.(*checker).decided.Store(msg, r.Resolution)
	result, err := p.SendMessageInTransaction(context.Background(), msg)
	if err != nil {
		return nil, err
	}
	return object{"receipt": describeReceipt(result.SendResult)}, nil
}

// The queue that the message asks for, else the next one.
type selector struct{ producer.QueueSelector }

func (s *selector) Select(msg *primitive.Message, queues []*primitive.MessageQueue, lastBroker string) *primitive.MessageQueue {
	if msg.Queue == nil {
		return s.QueueSelector.Select(msg, queues, lastBroker)
	}
	for _, queue := range queues {
		if queue.QueueId == msg.Queue.QueueId {
			return queue
		}
	}
	return nil
}

func (c *client) send(r request) (object, error) {
	p, err := find[rocketmq.Producer](c, r.Name)
	if err != nil {
		return nil, err
	}
	messages := make([]*primitive.Message, len(r.Messages))
	for i, fields := range r.Messages {
		messages[i] = fields.build()
	}
	receipts := []receipt{}
	switch r.Mode {
	case "sync":
		for _, msg := range messages {
			result, err := p.SendSync(context.Background(), msg)
			if err != nil {
				return nil, err
			}
			receipts = append(receipts, describeReceipt(result))
		}
	case "async":
		receipts, err = sendAsync(p, messages)
	case "one_way":
		for _, msg := range messages {
			if err := p.SendOneWay(context.Background(), msg); err != nil {
				return nil, err
			}
		}
	case "batch":
		result, err := p.SendSync(context.Background(), messages...)
		if err != nil {
			return nil, err
		}
		receipts = append(receipts, describeReceipt(result))
	default:
		err = fmt.Errorf("send how? %q", r.Mode)
	}
	return object{"receipts": receipts}, err
}

func sendAsync(p rocketmq.Producer, messages []*primitive.Message) ([]receipt, error) {
	receipts := make([]receipt, len(messages))
	failures := make([]error, len(messages))
	var pending sync.WaitGroup
	for i, msg := range messages {
		pending.Add(1)
		err := p.SendAsync(context.Background(), func(_ context.Context, result *primitive.SendResult, err error) {
			if err == nil {
				receipts[i] = describeReceipt(result)
			}
			failures[i] = err
			pending.Done()
		}, msg)
		if err != nil {
			return nil, err
		}
	}
	pending.Wait()
	return receipts, errors.Join(failures...)
}

func (c *client) request(r request) (object, error) {
	p, err := find[rocketmq.Producer](c, r.Name)
	if err != nil {
		return nil, err
	}
	reply, err := p.Request(context.Background(), time.Duration(r.TimeoutMs)*time.Millisecond, r.Message.build())
	if err != nil {
		return nil, err
	}
	return object{"message": describeMessage(reply)}, nil
}

var begins = map[string]consumer.ConsumeFromWhere{"FIRST": consumer.ConsumeFromFirstOffset, "LAST": consumer.ConsumeFromLastOffset}

func (c *client) openPush(r request) (closer, error) {
	models := map[string]consumer.MessageModel{"CLUSTERING": consumer.Clustering, "BROADCASTING": consumer.BroadCasting}
	begin, known := begins[r.Begin]
	if !known {
		begin = consumer.ConsumeFromTimestamp
	}
	p, err := rocketmq.NewPushConsumer(
		consumer.WithNameServer(strings.Split(r.Endpoints, ";")),
		consumer.WithGroupName(r.Group),
		consumer.WithInstance(instance(r)),
		consumer.WithConsumerModel(models[r.Model]),
		consumer.WithConsumerOrder(r.Orderly),
		consumer.WithConsumeFromWhere(begin),
		consumer.WithConsumeTimestamp(r.Begin),
		consumer.WithStrategy(c.announced(r.Name)),
	)
	if err != nil {
		return nil, err
	}
	for topic, expression := range r.Subscriptions {
		err = p.Subscribe(topic, r.selector(expression), func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
			return c.consume(ctx, r, messages), nil
		})
		if err != nil {
			return nil, err
		}
	}
	return p, p.Start()
}

func (c *client) consume(ctx context.Context, r request, messages []*primitive.MessageExt) consumer.ConsumeResult {
	failed := messages[0].ReconsumeTimes < r.Failures
	for _, msg := range messages {
		c.write(object{"event": "delivered", "name": r.Name, "failed": failed, "message": describe(msg)})
		if r.Replier != "" {
			if err := c.reply(r.Replier, msg); err != nil {
				fmt.Fprintln(os.Stderr, "the reply failed:", err)
			}
		}
	}
	if !failed {
		return consumer.ConsumeSuccess
	}
	if orderly, ok := primitive.GetOrderlyCtx(ctx); ok {
		orderly.SuspendCurrentQueueTimeMillis = 100
		return consumer.SuspendCurrentQueueAMoment
	}
	if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
		concurrently.DelayLevelWhenNextConsume = r.RetryLevel
	}
	return consumer.ConsumeRetryLater
}

func (c *client) reply(replier string, asked *primitive.MessageExt) error {
	p, err := find[rocketmq.Producer](c, replier)
	if err != nil {
		return err
	}
	reply, err := consumer.CreateReplyMessage(asked, nil) // takes its second argument for properties, not for the body
	if err != nil {
		return err
	}
	reply.Body = []byte("reply to " + string(asked.Body))
	_, err = p.SendSync(context.Background(), reply)
	return err
}

// The client's own strategy, told aloud: a test waits until the queues are shared as it needs them.
func (c *client) announced(name string) consumer.AllocateStrategy {
	return func(group, clientID string, queues []*primitive.MessageQueue, clientIDs []string) []*primitive.MessageQueue {
		mine := consumer.AllocateByAveragely(group, clientID, queues, clientIDs)
		ids := []int{}
		for _, queue := range mine {
			ids = append(ids, queue.QueueId)
		}
		c.write(object{"event": "assigned", "name": name, "topic": queues[0].Topic, "queues": ids})
		return mine
	}
}

// Knows the broker of its topic once queues were assigned: reading one queue wants the queue's whole name.
type puller struct {
	rocketmq.PullConsumer
	brokers chan string
}

func (c *client) openPull(r request) (closer, error) {
	opened := &puller{brokers: make(chan string, 1)}
	announced := c.announced(r.Name)
	p, err := rocketmq.NewPullConsumer(
		consumer.WithNameServer(strings.Split(r.Endpoints, ";")),
		consumer.WithGroupName(r.Group),
		consumer.WithInstance(instance(r)),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithStrategy(func(group, clientID string, queues []*primitive.MessageQueue, clientIDs []string) []*primitive.MessageQueue {
			select {
			case opened.brokers <- queues[0].BrokerName:
			default: // known already
			}
			return announced(group, clientID, queues, clientIDs)
		}),
	)
	if err != nil {
		return nil, err
	}
	for topic, expression := range r.Subscriptions {
		if err := p.Subscribe(topic, r.selector(expression)); err != nil {
			return nil, err
		}
	}
	opened.PullConsumer = p
	return opened, p.Start()
}

func (c *client) poll(r request) (object, error) {
	p, err := find[*puller](c, r.Name)
	if err != nil {
		return nil, err
	}
	polled, err := p.Poll(context.Background(), time.Duration(r.TimeoutMs)*time.Millisecond)
	if consumer.IsNoNewMsgError(err) {
		return object{"messages": []incoming{}}, nil
	}
	if err != nil {
		return nil, err
	}
	p.ACK(context.Background(), polled, consumer.ConsumeSuccess)
	return object{"messages": describeAll(polled.GetMsgList())}, nil
}

func (c *client) read(r request) (object, error) {
	p, err := find[*puller](c, r.Name)
	if err != nil {
		return nil, err
	}
	broker := <-p.brokers
	p.brokers <- broker
	queue := &primitive.MessageQueue{Topic: r.Topic, BrokerName: broker, QueueId: r.QueueID}
	result, err := p.PullFrom(context.Background(), queue, r.Offset, 32)
	if err != nil {
		return nil, err
	}
	return object{"messages": describeAll(result.GetMessageExts())}, nil
}

func (c *client) close(r request) (object, error) {
	opened, err := find[closer](c, r.Name)
	if err != nil {
		return nil, err
	}
	c.opening.Lock()
	delete(c.opened, r.Name)
	c.opening.Unlock()
	return object{}, opened.Shutdown()
}

func (fields outgoing) build() *primitive.Message {
	msg := primitive.NewMessage(fields.Topic, fields.Body)
	for key, value := range fields.Properties {
		msg.WithProperty(key, value)
	}
	if fields.Tag != "" {
		msg.WithTag(fields.Tag)
	}
	if len(fields.Keys) > 0 {
		msg.WithKeys(fields.Keys)
	}
	if fields.DelayLevel != 0 {
		msg.WithDelayTimeLevel(fields.DelayLevel)
	}
	for name, value := range fields.Timers {
		msg.WithProperty(name, value) // this client knows levels only
	}
	if fields.QueueID != nil {
		msg.Queue = &primitive.MessageQueue{QueueId: *fields.QueueID}
	}
	return msg
}

func describeReceipt(result *primitive.SendResult) receipt {
	status := "NOT_OK"
	if result.Status == primitive.SendOK {
		status = "SEND_OK"
	}
	return receipt{status, result.MsgID, result.OffsetMsgID, result.MessageQueue.QueueId, result.QueueOffset}
}

func describeAll(messages []*primitive.MessageExt) []incoming {
	described := []incoming{}
	for _, msg := range messages {
		described = append(described, describe(msg))
	}
	return described
}

func describe(msg *primitive.MessageExt) incoming {
	described := describeMessage(&msg.Message)
	described.ID = msg.MsgId
	described.QueueOffset = msg.QueueOffset
	described.Attempt = msg.ReconsumeTimes + 1
	return described
}

func describeMessage(msg *primitive.Message) incoming {
	keys := strings.Fields(msg.GetKeys())
	slices.Sort(keys)
	described := incoming{Topic: msg.Topic, Tag: msg.GetTags(), Keys: keys, Properties: msg.GetProperties(), Body: msg.Body}
	if msg.Queue != nil {
		described.QueueID = msg.Queue.QueueId
	}
	return described
}
