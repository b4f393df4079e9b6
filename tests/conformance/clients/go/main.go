// The official Go client behind the line protocol of harness/clients.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"sync"
	"time"

	rmq "github.com/apache/rocketmq-clients/golang/v5"
	"github.com/apache/rocketmq-clients/golang/v5/credentials"
)

const maxLineBytes = 32 << 20

type message struct {
	ID           string            `json:"id,omitempty"`
	Topic        string            `json:"topic"`
	Tag          *string           `json:"tag"`
	Keys         []string          `json:"keys"`
	Properties   map[string]string `json:"properties"`
	Body         []byte            `json:"body"` // base64 in JSON
	MessageGroup *string           `json:"message_group"`
	DeliverMs    *int64            `json:"deliver_ms,omitempty"`
	Attempt      int32             `json:"attempt"`
	Ref          int               `json:"ref,omitempty"`
	// the client hands corrupted messages to nobody
	Corrupted bool `json:"corrupted"`
}

type request struct {
	ID            int               `json:"id"`
	Do            string            `json:"do"`
	What          string            `json:"what"`
	Name          string            `json:"name"`
	Endpoints     string            `json:"endpoints"`
	TLS           bool              `json:"tls"`
	Topics        []string          `json:"topics"`
	Group         string            `json:"group"`
	Subscriptions map[string]string `json:"subscriptions"`
	SQL           bool              `json:"sql"`
	AwaitMs       int64             `json:"await_ms"`
	Failures      int               `json:"failures"`
	Paused        bool              `json:"paused"`
	Mode          string            `json:"mode"`
	Messages      []message         `json:"messages"`
	Message       message           `json:"message"`
	Resolution    string            `json:"resolution"`
	Checks        string            `json:"checks"`
	Max           int32             `json:"max"`
	InvisibleMs   int64             `json:"invisible_ms"`
	Refs          []int             `json:"refs"`
	Ref           int               `json:"ref"`
}

type object map[string]any

type client interface{ GracefulStop() error }

// program owns stdout, the opened producers and consumers by name, and the received messages by reference.
type program struct {
	sync.Mutex
	opened     map[string]client
	paused     map[string]chan struct{}
	held       map[int]*rmq.MessageView
	references int
}

func (p *program) write(line object) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	p.Lock()
	defer p.Unlock()
	os.Stdout.Write(append(text, '\n'))
}

func (p *program) named(name string) client {
	p.Lock()
	defer p.Unlock()
	return p.opened[name]
}

func (p *program) hold(view *rmq.MessageView) int {
	p.Lock()
	defer p.Unlock()
	p.references++
	p.held[p.references] = view
	return p.references
}

func (p *program) view(reference int) *rmq.MessageView {
	p.Lock()
	defer p.Unlock()
	return p.held[reference]
}

func described(view *rmq.MessageView) message {
	keys := append([]string{}, view.GetKeys()...)
	sort.Strings(keys)
	properties := view.GetProperties()
	if properties == nil {
		properties = map[string]string{}
	}
	return message{
		ID: view.GetMessageId(), Topic: view.GetTopic(), Tag: view.GetTag(), Keys: keys,
		Properties: properties, Body: view.GetBody(), MessageGroup: view.GetMessageGroup(),
		Attempt: view.GetDeliveryAttempt(),
	}
}

func (m message) built() *rmq.Message {
	built := &rmq.Message{Topic: m.Topic, Body: m.Body, Tag: m.Tag}
	if len(m.Keys) > 0 {
		built.SetKeys(m.Keys...)
	}
	for key, value := range m.Properties {
		built.AddProperty(key, value)
	}
	if m.MessageGroup != nil {
		built.SetMessageGroup(*m.MessageGroup)
	}
	if m.DeliverMs != nil {
		built.SetDelayTimestamp(time.UnixMilli(*m.DeliverMs))
	}
	return built
}

// listener reports each delivery and fails the first `failures` of every message, once it may go on.
func (p *program) listener(r request) rmq.MessageListener {
	mayGoOn := make(chan struct{})
	if r.Paused {
		p.Lock()
		p.paused[r.Name] = mayGoOn
		p.Unlock()
	} else {
		close(mayGoOn)
	}
	var lock sync.Mutex
	seen := map[string]int{}
	return &rmq.FuncMessageListener{Consume: func(view *rmq.MessageView) rmq.ConsumerResult {
		lock.Lock()
		seen[view.GetMessageId()]++
		failed := seen[view.GetMessageId()] <= r.Failures
		lock.Unlock()
		p.write(object{"event": "delivered", "name": r.Name, "failed": failed, "message": described(view)})
		<-mayGoOn
		if failed {
			return rmq.FAILURE
		}
		return rmq.SUCCESS
	}}
}

var resolutions = map[string]rmq.TransactionResolution{"COMMIT": rmq.COMMIT, "ROLLBACK": rmq.ROLLBACK, "UNKNOWN": rmq.UNKNOWN}

// checker reports what it is asked about, and says the same of all.
func (p *program) checker(name, resolution string) *rmq.TransactionChecker {
	return &rmq.TransactionChecker{Check: func(view *rmq.MessageView) rmq.TransactionResolution {
		p.write(object{"event": "checked", "name": name, "message": described(view)})
		return resolutions[resolution]
	}}
}

func (p *program) transact(r request) (object, error) {
	producer := p.named(r.Name).(rmq.Producer)
	transaction := producer.BeginTransaction()
	receipts, err := producer.SendWithTransaction(context.Background(), r.Message.built(), transaction)
	if err != nil {
		return nil, err
	}
	switch r.Resolution {
	case "COMMIT":
		err = transaction.Commit()
	case "ROLLBACK":
		err = transaction.RollBack()
	}
	return object{"id": receipts[0].MessageID}, err
}

func (p *program) open(r request) (object, error) {
	rmq.EnableSsl = r.TLS // one switch for the whole process
	config := &rmq.Config{Endpoint: r.Endpoints, ConsumerGroup: r.Group, Credentials: &credentials.SessionCredentials{}}
	filters := map[string]*rmq.FilterExpression{}
	for topic, expression := range r.Subscriptions {
		filters[topic] = rmq.NewFilterExpression(expression)
		if r.SQL {
			filters[topic] = rmq.NewFilterExpressionWithType(expression, rmq.SQL92)
		}
	}
	started := func(c interface {
		client
		Start() error
	}, err error) (object, error) {
		if err != nil {
			return nil, err
		}
		if err := c.Start(); err != nil {
			return nil, err
		}
		p.Lock()
		defer p.Unlock()
		p.opened[r.Name] = c
		return object{}, nil
	}
	switch r.What {
	case "producer":
		options := []rmq.ProducerOption{rmq.WithTopics(r.Topics...)}
		if r.Checks != "" {
			options = append(options, rmq.WithTransactionChecker(p.checker(r.Name, r.Checks)))
		}
		return started(rmq.NewProducer(config, options...))
	case "simple":
		return started(rmq.NewSimpleConsumer(config,
			rmq.WithSimpleAwaitDuration(time.Duration(r.AwaitMs)*time.Millisecond),
			rmq.WithSimpleSubscriptionExpressions(filters)))
	case "push":
		return started(rmq.NewPushConsumer(config,
			rmq.WithPushSubscriptionExpressions(filters),
			rmq.WithPushMessageListener(p.listener(r))))
	}
	return nil, fmt.Errorf("open what? %s", r.What)
}

func (p *program) resume(r request) (object, error) {
	p.Lock()
	defer p.Unlock()
	close(p.paused[r.Name])
	return object{}, nil
}

func (p *program) send(r request) (object, error) {
	producer := p.named(r.Name).(rmq.Producer)
	ids := make([]string, len(r.Messages))
	if r.Mode == "async" {
		failures := make(chan error, len(r.Messages))
		for i, m := range r.Messages {
			producer.SendAsync(context.Background(), m.built(), func(_ context.Context, receipts []*rmq.SendReceipt, err error) {
				if err == nil {
					ids[i] = receipts[0].MessageID
				}
				failures <- err
			})
		}
		var errs []error
		for range r.Messages {
			errs = append(errs, <-failures)
		}
		return object{"ids": ids}, errors.Join(errs...)
	}
	for i, m := range r.Messages {
		receipts, err := producer.Send(context.Background(), m.built())
		if err != nil {
			return nil, err
		}
		ids[i] = receipts[0].MessageID
	}
	return object{"ids": ids}, nil
}

func (p *program) receive(r request) (object, error) {
	consumer := p.named(r.Name).(rmq.SimpleConsumer)
	views, err := consumer.Receive(context.Background(), r.Max, time.Duration(r.InvisibleMs)*time.Millisecond)
	if status, ok := rmq.AsErrRpcStatus(err); ok && status.Code == messageNotFound {
		views, err = nil, nil // this client tells an empty poll as an error
	}
	messages := []message{}
	for _, view := range views {
		m := described(view)
		m.Ref = p.hold(view)
		messages = append(messages, m)
	}
	return object{"messages": messages}, err
}

const messageNotFound = 40401

func (p *program) ack(r request) (object, error) {
	consumer := p.named(r.Name).(rmq.SimpleConsumer)
	for _, reference := range r.Refs {
		if err := consumer.Ack(context.Background(), p.view(reference)); err != nil {
			return nil, err
		}
	}
	return object{}, nil
}

func (p *program) invisible(r request) (object, error) {
	consumer := p.named(r.Name).(rmq.SimpleConsumer)
	return object{}, consumer.ChangeInvisibleDuration(p.view(r.Ref), time.Duration(r.InvisibleMs)*time.Millisecond)
}

func (p *program) close(r request) (object, error) {
	return object{}, p.named(r.Name).GracefulStop()
}

func failure(err error) object {
	code := any(nil)
	if status, ok := rmq.AsErrRpcStatus(err); ok {
		code = status.Code
	}
	return object{"kind": fmt.Sprintf("%T", err), "code": code, "message": err.Error()}
}

func main() {
	p := &program{opened: map[string]client{}, paused: map[string]chan struct{}{}, held: map[int]*rmq.MessageView{}}
	requests := map[string]func(request) (object, error){
		"open": p.open, "send": p.send, "transact": p.transact, "receive": p.receive, "ack": p.ack, "invisible": p.invisible, "resume": p.resume, "close": p.close,
	}
	p.write(object{"event": "ready", "client": "rocketmq-clients/golang v5.1.3"})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		go func() {
			result, err := requests[r.Do](r)
			if err != nil {
				p.write(object{"id": r.ID, "error": failure(err)})
				return
			}
			p.write(object{"id": r.ID, "ok": result})
		}()
	}
}
