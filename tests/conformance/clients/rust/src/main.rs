// The official Rust client behind the line protocol of harness/clients.py.
use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{Engine, BASE64_STANDARD};
use rocketmq::conf::{ClientOption, ProducerOption, SimpleConsumerOption};
use rocketmq::error::ClientError;
use rocketmq::model::common::{FilterExpression, FilterType};
use rocketmq::model::message::{Message, MessageBuilder, MessageView};
use rocketmq::{Producer, SimpleConsumer};
use serde_json::{json, Value};

type Answer = Result<Value, Box<dyn Error + Send + Sync>>;

/// The client tells the names of status codes, and keeps their numbers to itself (apache.rocketmq.v2.Code).
const CODES: [(&str, i32); 4] = [
    ("TOPIC_NOT_FOUND", 40402),
    ("ILLEGAL_FILTER_EXPRESSION", 40010),
    ("MESSAGE_BODY_TOO_LARGE", 41301),
    ("MESSAGE_PROPERTIES_TOO_LARGE", 43101),
];

#[derive(Clone)]
enum Opened {
    Producer(Arc<Producer>),
    Simple(Arc<Consumer>),
}

struct Consumer {
    client: SimpleConsumer,
    subscriptions: Vec<(String, FilterExpression)>,
}

/// Owner of the opened producers and consumers by name, and of the received messages by reference.
#[derive(Default)]
struct Program {
    opened: Mutex<HashMap<String, Opened>>,
    held: Mutex<Vec<Arc<MessageView>>>,
}

fn say(line: Value) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).expect("the test reads");
}

fn text<'a>(fields: &'a Value, name: &str) -> &'a str {
    fields[name].as_str().unwrap_or_default()
}

fn list(fields: &Value) -> Vec<Value> {
    fields.as_array().cloned().unwrap_or_default()
}

fn built(fields: &Value) -> Result<impl Message, Box<dyn Error + Send + Sync>> {
    let mut builder = MessageBuilder::builder()
        .set_topic(text(fields, "topic"))
        .set_body(BASE64_STANDARD.decode(text(fields, "body"))?);
    if let Some(tag) = fields["tag"].as_str() {
        builder = builder.set_tag(tag);
    }
    builder = builder.set_keys(list(&fields["keys"]).iter().filter_map(Value::as_str).collect());
    let properties = fields["properties"].as_object().cloned().unwrap_or_default();
    builder = builder.set_properties(
        properties.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default())).collect(),
    );
    if let Some(group) = fields["message_group"].as_str() {
        builder = builder.set_message_group(group);
    }
    if let Some(due_ms) = fields["deliver_ms"].as_i64() {
        builder = builder.set_delivery_timestamp((due_ms + 999) / 1000); // this client knows seconds
    }
    Ok(builder.build()?)
}

fn described(view: &MessageView, reference: usize) -> Value {
    let mut keys = view.keys().to_vec();
    keys.sort();
    json!({
        "id": view.message_id(), "topic": view.topic(), "tag": view.tag(), "keys": keys,
        "properties": view.properties(), "body": BASE64_STANDARD.encode(view.body()),
        "message_group": view.message_group(), "attempt": view.delivery_attempt(), "ref": reference,
        "corrupted": false, // this client does not look
    })
}

impl Program {
    fn named(&self, request: &Value) -> Result<Opened, Box<dyn Error + Send + Sync>> {
        let opened = self.opened.lock().unwrap();
        Ok(opened.get(text(request, "name")).ok_or("nothing of this name is open")?.clone())
    }

    async fn open(&self, request: &Value) -> Answer {
        let mut option = ClientOption::default();
        option.set_access_url(text(request, "endpoints"));
        option.set_enable_tls(request["tls"].as_bool().unwrap_or_default());
        let opened = match text(request, "what") {
            "producer" => {
                let mut producing = ProducerOption::default();
                producing.set_topics(list(&request["topics"]).iter().filter_map(Value::as_str).collect());
                let mut producer = Producer::new(producing, option)?;
                producer.start().await?;
                Opened::Producer(Arc::new(producer))
            }
            "simple" => {
                let kind = || if request["sql"] == true { FilterType::Sql } else { FilterType::Tag };
                let given = request["subscriptions"].as_object().cloned().unwrap_or_default();
                let subscriptions: Vec<_> = given
                    .iter()
                    .map(|(topic, expression)| {
                        (topic.clone(), FilterExpression::new(kind(), expression.as_str().unwrap_or_default()))
                    })
                    .collect();
                option.set_long_polling_timeout(Duration::from_millis(request["await_ms"].as_u64().unwrap_or(10_000)));
                let mut consuming = SimpleConsumerOption::default();
                consuming.set_consumer_group(text(request, "group"));
                consuming.set_topics(given.keys().cloned().collect());
                let mut client = SimpleConsumer::new(consuming, option)?;
                client.start().await?;
                Opened::Simple(Arc::new(Consumer { client, subscriptions }))
            }
            other => return Err(format!("open what? {other}").into()),
        };
        self.opened.lock().unwrap().insert(text(request, "name").to_string(), opened);
        Ok(json!({}))
    }

    async fn send(&self, request: &Value) -> Answer {
        let Opened::Producer(producer) = self.named(request)? else { return Err("not a producer".into()) };
        let mut ids = vec![];
        for message in list(&request["messages"]) {
            ids.push(producer.send(built(&message)?).await?.message_id().to_string());
        }
        Ok(json!({ "ids": ids }))
    }

    async fn receive(&self, request: &Value) -> Answer {
        let Opened::Simple(consumer) = self.named(request)? else { return Err("not a consumer".into()) };
        let most = request["max"].as_i64().unwrap_or(16) as i32;
        let invisible = Duration::from_millis(request["invisible_ms"].as_u64().unwrap_or(15_000));
        let mut messages = vec![];
        for (topic, filter) in &consumer.subscriptions {
            let views = consumer.client.receive_with(topic, filter, most, invisible).await?;
            let mut held = self.held.lock().unwrap();
            for view in views {
                held.push(Arc::new(view));
                messages.push(described(&held[held.len() - 1], held.len()));
            }
        }
        Ok(json!({ "messages": messages }))
    }

    async fn ack(&self, request: &Value) -> Answer {
        let Opened::Simple(consumer) = self.named(request)? else { return Err("not a consumer".into()) };
        for reference in list(&request["refs"]) {
            let number = reference.as_u64().ok_or("a ref is a number")? as usize;
            let view = self.held.lock().unwrap()[number - 1].clone();
            consumer.client.ack(view.as_ref()).await?;
        }
        Ok(json!({}))
    }

    async fn close(&self, request: &Value) -> Answer {
        let name = text(request, "name");
        let opened = self.opened.lock().unwrap().remove(name).ok_or("nothing of this name is open")?;
        match opened {
            Opened::Producer(producer) => Arc::into_inner(producer).ok_or("it still sends")?.shutdown().await?,
            Opened::Simple(consumer) => Arc::into_inner(consumer).ok_or("it still receives")?.client.shutdown().await?,
        }
        Ok(json!({}))
    }

    async fn answer(&self, request: &Value) -> Answer {
        match text(request, "do") {
            "open" => self.open(request).await,
            "send" => self.send(request).await,
            "receive" => self.receive(request).await,
            "ack" => self.ack(request).await,
            "close" => self.close(request).await,
            other => Err(format!("this client cannot {other}").into()),
        }
    }
}

fn failure(error: &(dyn Error + Send + Sync + 'static)) -> Value {
    let Some(error) = error.downcast_ref::<ClientError>() else {
        return json!({ "kind": "Error", "code": null, "message": error.to_string() });
    };
    let name = error.context().iter().find(|(name, _)| *name == "code").map(|(_, value)| value.as_str());
    let code = CODES.iter().find(|(known, _)| Some(*known) == name).map(|(_, number)| number);
    json!({ "kind": format!("{:?}", error.kind()), "code": code, "message": error.to_string() })
}

#[tokio::main]
async fn main() {
    let program = Arc::new(Program::default());
    say(json!({ "event": "ready", "client": "rocketmq crate 5.0.0" }));
    let (lines, mut requests) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lock().lines().map_while(Result::ok).all(|line| lines.send(line).is_ok()));
    while let Some(line) = requests.recv().await {
        let request: Value = serde_json::from_str(&line).expect("the harness writes JSON");
        let program = program.clone();
        tokio::spawn(async move {
            let answer = match program.answer(&request).await {
                Ok(value) => json!({ "id": request["id"], "ok": value }),
                Err(error) => json!({ "id": request["id"], "error": failure(error.as_ref()) }),
            };
            say(answer);
        });
    }
}
