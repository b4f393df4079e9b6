// @grpc/grpc-js, for calls that the official client does not make (test_grpc_calls.py).
'use strict';

const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');

const asIs = (bytes) => bytes;

function run(client, call) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    metadata.set('x-mq-client-id', 'grpc-js');
    const stream = client.makeBidiStreamRequest(call.path, asIs, asIs, metadata, { deadline: Date.now() + call.deadline_ms });
    const request = Buffer.concat([Buffer.from(call.request, 'base64'), Buffer.alloc(call.padding)]);
    const answers = [];
    let said = 0;
    const say = () => {
      stream.write(request);
      said += 1;
      if (said === call.times) stream.end();
    };
    stream.on('data', (answer) => {
      answers.push(answer.toString('base64'));
      if (said < call.times) say(); // a conversation
    });
    stream.on('error', () => {}); // its status follows
    stream.on('status', (status) => resolve({ code: status.code, answers }));
    if (call.cancel_ms) setTimeout(() => stream.cancel(), call.cancel_ms);
    say();
  });
}

async function main() {
  const open = (compression) =>
    new grpc.Client(process.argv[2], grpc.credentials.createInsecure(), {
      'grpc.max_send_message_length': -1,
      'grpc.max_receive_message_length': -1,
      'grpc.default_compression_algorithm': compression,
    });
  const clients = { true: open(grpc.compressionAlgorithms.gzip), false: open(grpc.compressionAlgorithms.identity) };
  const results = [];
  for (const call of JSON.parse(fs.readFileSync(0))) results.push(await run(clients[call.gzip], call));
  process.stdout.write(JSON.stringify(results), () => process.exit(0)); // a pipe takes 64 KiB at a time
}

main();
