// The official Node.js client behind the line protocol of harness/clients.py.
'use strict';

const readline = require('node:readline');
const { ConsumeResult, FilterExpression, Producer, PushConsumer, SimpleConsumer } = require('rocketmq-client-nodejs');

// of the interface, which the package does not export
const FilterType = { TAG: 1, SQL: 2 };
const TransactionResolution = { UNKNOWN: 0, COMMIT: 1, ROLLBACK: 2 };

const opened = new Map(); // name -> producer or consumer
const held = new Map(); // reference -> received message
let references = 0;

function write(line) {
  process.stdout.write(JSON.stringify(line) + '\n');
}

function logTo(level) {
  return (...args) => console.error(level, ...args);
}

// the default logger writes to stdout too, which is ours
const logger = { info: logTo('INFO'), warn: logTo('WARN'), error: logTo('ERROR'), debug() {} };

function described(view) {
  return {
    id: view.messageId,
    topic: view.topic,
    tag: view.tag || null,
    keys: [...view.keys].sort(),
    properties: Object.fromEntries(view.properties),
    body: view.body.toString('base64'),
    message_group: view.messageGroup || null,
    attempt: view.deliveryAttempt,
    corrupted: view.corrupted === true,
  };
}

function optionsOf(message) {
  const options = {
    topic: message.topic,
    body: Buffer.from(message.body, 'base64'),
    keys: message.keys,
    properties: new Map(Object.entries(message.properties)),
  };
  if (message.tag) options.tag = message.tag;
  if (message.message_group) options.messageGroup = message.message_group;
  if (message.deliver_ms) options.deliveryTimestamp = new Date(message.deliver_ms);
  return options;
}

// Reports each delivery and fails the first `failures` of every message.
function listener(name, failures) {
  const seen = new Map();
  return {
    consume(view) {
      const count = (seen.get(view.messageId) || 0) + 1;
      seen.set(view.messageId, count);
      const failed = count <= failures;
      write({ event: 'delivered', name, failed, message: described(view) });
      return failed ? ConsumeResult.FAILURE : ConsumeResult.SUCCESS;
    },
  };
}

// Reports what it is asked about, and says the same of all.
function checker(name, resolution) {
  return {
    async check(view) {
      write({ event: 'checked', name, message: described(view) });
      return TransactionResolution[resolution];
    },
  };
}

function create(request) {
  const common = { endpoints: request.endpoints, namespace: '', logger };
  if (request.tls) common.sslEnabled = true;
  const consumer = () => ({
    ...common,
    consumerGroup: request.group,
    subscriptions: new Map(Object.entries(request.subscriptions).map(([ topic, expression ]) =>
      [ topic, new FilterExpression(expression, request.sql ? FilterType.SQL : FilterType.TAG) ])),
  });
  switch (request.what) {
    case 'producer':
      return new Producer({
        ...common,
        topics: request.topics,
        ...(request.checks && { checker: checker(request.name, request.checks) }),
      });
    case 'simple':
      return new SimpleConsumer({ ...consumer(), awaitDuration: request.await_ms });
    case 'push':
      return new PushConsumer({ ...consumer(), messageListener: listener(request.name, request.failures) });
    default:
      throw new TypeError(`open what? ${request.what}`);
  }
}

const requests = {
  async open(request) {
    const client = create(request);
    await client.startup();
    opened.set(request.name, client);
    return { client_id: client.clientId };
  },

  async send(request) {
    const producer = opened.get(request.name);
    const messages = request.messages.map(optionsOf);
    if (request.mode === 'async') {
      const receipts = await Promise.all(messages.map((message) => producer.send(message)));
      return { ids: receipts.map((receipt) => receipt.messageId) };
    }
    const receipts = [];
    for (const message of messages) receipts.push(await producer.send(message));
    return {
      ids: receipts.map((receipt) => receipt.messageId),
      handles: receipts.map((receipt) => receipt.recallHandle),
    };
  },

  async transact(request) {
    const producer = opened.get(request.name);
    const transaction = producer.beginTransaction();
    const receipt = await producer.send(optionsOf(request.message), transaction);
    if (request.resolution === 'COMMIT') await transaction.commit();
    if (request.resolution === 'ROLLBACK') await transaction.rollback();
    return { id: receipt.messageId };
  },

  async recall(request) {
    return { id: (await opened.get(request.name).recallMessage(request.topic, request.handle)).messageId };
  },

  async receive(request) {
    const views = await opened.get(request.name).receive(request.max, request.invisible_ms);
    return {
      messages: views.map((view) => {
        references += 1;
        held.set(references, view);
        return { ...described(view), ref: references };
      }),
    };
  },

  async ack(request) {
    for (const ref of request.refs) {
      await opened.get(request.name).ack(held.get(ref));
      held.delete(ref);
    }
    return {};
  },

  async invisible(request) {
    await opened.get(request.name).changeInvisibleDuration(held.get(request.ref), request.invisible_ms);
    return {};
  },

  async close(request) {
    const client = opened.get(request.name);
    opened.delete(request.name);
    await client.shutdown();
    return {};
  },
};

// startup() wraps what went wrong: the cause that carries a code is the one to report
function failure(error) {
  for (let cause = error; cause; cause = cause.cause) {
    if (typeof cause.code === 'number') {
      return { kind: cause.constructor.name, code: cause.code, message: cause.message };
    }
  }
  return { kind: error.constructor.name, code: null, message: error.message };
}

async function answer(request) {
  try {
    write({ id: request.id, ok: await requests[request.do](request) });
  } catch (error) {
    write({ id: request.id, error: failure(error) });
  }
}

const { version } = require('rocketmq-client-nodejs/package.json');
write({ event: 'ready', client: `rocketmq-client-nodejs ${version}` });
readline.createInterface({ input: process.stdin })
  .on('line', (line) => answer(JSON.parse(line)))
  .on('close', () => process.exit(0));
