// tonic, for calls that the official client does not make (test_grpc_calls.py).
use std::error::Error;
use std::time::Duration;

use base64::prelude::{Engine, BASE64_STANDARD};
use bytes::{Buf, BufMut, Bytes};
use serde_json::{json, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Passes messages through as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn converse(channel: Channel, call: &Value, answers: &mut Vec<String>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    if call["gzip"] == true {
        client = client.send_compressed(CompressionEncoding::Gzip);
    }
    let mut bytes = BASE64_STANDARD.decode(call["request"].as_str().unwrap()).unwrap();
    bytes.resize(bytes.len() + call["padding"].as_u64().unwrap() as usize, 0);
    let message = Bytes::from(bytes);
    let times = call["times"].as_u64().unwrap() as usize;
    let (said, stream) = mpsc::channel(times);
    said.try_send(message.clone()).unwrap();
    let mut said = (times > 1).then_some(said); // without it, the request ends
    let mut request = Request::new(ReceiverStream::new(stream));
    request.set_timeout(Duration::from_millis(call["deadline_ms"].as_u64().unwrap()));
    request.metadata_mut().insert("x-mq-client-id", "tonic".parse().unwrap());
    client.ready().await.map_err(|failed| Status::unavailable(failed.to_string()))?;
    let path = call["path"].as_str().unwrap().parse().unwrap();
    let mut received = client.streaming(request, path, Raw).await?.into_inner();
    while let Some(answer) = received.message().await? {
        answers.push(BASE64_STANDARD.encode(answer));
        if let Some(saying) = &said {
            saying.try_send(message.clone()).unwrap(); // a conversation
        }
        if answers.len() + 1 >= times {
            said = None;
        }
    }
    Ok(())
}

async fn run(channel: Channel, call: &Value) -> Value {
    let mut answers = Vec::new();
    let conversation = converse(channel, call, &mut answers);
    let ended = match call["cancel_ms"].as_u64().unwrap() {
        0 => conversation.await,
        cancel_ms => tokio::time::timeout(Duration::from_millis(cancel_ms), conversation)
            .await
            .unwrap_or_else(|_| Err(Status::cancelled("dropped"))),
    };
    let code = ended.err().map_or(Code::Ok, |status| status.code());
    json!({"code": code as i32, "answers": answers})
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).expect("an address");
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let calls: Vec<Value> = serde_json::from_reader(std::io::stdin())?;
    let mut results = Vec::new();
    for call in &calls {
        results.push(run(channel.clone(), call).await);
    }
    println!("{}", Value::from(results));
    Ok(())
}
