// grpc-go, for calls that official clients do not make (test_grpc_calls.py).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type call struct {
	Path       string `json:"path"`
	Request    []byte `json:"request"`
	Padding    int    `json:"padding"`
	Gzip       bool   `json:"gzip"`
	Times      int    `json:"times"`
	DeadlineMs int    `json:"deadline_ms"`
	CancelMs   int    `json:"cancel_ms"`
}

type result struct {
	Code    int      `json:"code"`
	Answers [][]byte `json:"answers"`
}

// raw passes messages through as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte{}, b...); return nil }
func (raw) Name() string                    { return "proto" }

func run(connection *grpc.ClientConn, c call) result {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.DeadlineMs)*time.Millisecond)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-mq-client-id", "grpc-go")
	options := []grpc.CallOption{grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(1 << 30)}
	if c.Gzip {
		options = append(options, grpc.UseCompressor("gzip"))
	}
	if c.CancelMs > 0 {
		time.AfterFunc(time.Duration(c.CancelMs)*time.Millisecond, cancel)
	}
	answers := [][]byte{}
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.Path, options...)
	request := append(c.Request, make([]byte, c.Padding)...)
	for i := 0; i < c.Times && err == nil; i++ {
		err = stream.SendMsg(&request)
		if c.Times > 1 && err == nil { // a conversation
			var answer []byte
			err = stream.RecvMsg(&answer)
			answers = append(answers, answer)
		}
	}
	if err == nil {
		stream.CloseSend()
	}
	for stream != nil {
		var answer []byte
		if err = stream.RecvMsg(&answer); err != nil {
			break
		}
		answers = append(answers, answer)
	}
	if err != nil && err.Error() == "EOF" {
		err = nil
	}
	return result{int(status.Code(err)), answers}
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	var calls []call
	if err := json.NewDecoder(os.Stdin).Decode(&calls); err != nil {
		panic(err)
	}
	results := []result{}
	for _, c := range calls {
		results = append(results, run(connection, c))
	}
	text, _ := json.Marshal(results)
	fmt.Println(string(text))
}
