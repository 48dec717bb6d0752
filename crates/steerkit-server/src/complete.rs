//! From the engine's news to a reply or a stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use steerkit_model::Request;
use tokio::sync::mpsc::{self, Sender, UnboundedReceiver, unbounded_channel};
use tokio_stream::wrappers::ReceiverStream;

use crate::app::{App, json_response};
use crate::ask::Ask;
use crate::engine::{Channel, Job, News};
use crate::error::{ApiError, ApiResult};
use crate::reply::Reply;

/// A stream that has nothing to say says so after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// News taken at once.
const AT_ONCE: usize = 64;

/// Has the requests written and answers.
pub(crate) async fn run(app: Arc<App>, mut ask: Ask, requests: Vec<Request>) -> ApiResult {
    app.model.tokenizer().map_err(|e| ApiError::of_model("model", &e))?;
    let (sender, news) = unbounded_channel();
    let places = std::mem::take(&mut ask.places);
    let jobs = requests.into_iter().zip(places).enumerate().map(|(index, (request, place))| {
        let sink = Box::new(Channel { index, news: sender.clone() });
        Job { request, sink, place }
    });
    app.engine.run(jobs.collect());
    drop(sender);
    match ask.params.stream {
        true => Ok(stream(app, ask, news)),
        false => whole(&app, &ask, news).await,
    }
}

async fn whole(app: &App, ask: &Ask, mut news: UnboundedReceiver<News>) -> ApiResult {
    let tokenizer = app.model.tokenizer().map_err(|e| ApiError::of_model("model", &e))?;
    let mut reply = Reply::new(app, tokenizer, ask);
    while let Some((index, new)) = news.recv().await {
        reply.push(index, new.map_err(|e| ApiError::of_model("prompt", &e))?);
        if reply.is_complete() {
            return Ok(json_response(reply.whole()));
        }
    }
    Err(ApiError::stopping())
}

fn stream(app: Arc<App>, ask: Ask, news: UnboundedReceiver<News>) -> Response {
    let (out, body) = mpsc::channel::<Result<Bytes, Infallible>>(16);
    tokio::spawn(async move { write(&app, &ask, news, &out).await });
    let mut response = Body::from_stream(ReceiverStream::new(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Writes events until the reply is complete or the client has gone. The engine sees that nobody waits any more when
/// `news` is dropped.
async fn write(
    app: &App,
    ask: &Ask,
    mut news: UnboundedReceiver<News>,
    out: &Sender<Result<Bytes, Infallible>>,
) {
    let Ok(tokenizer) = app.model.tokenizer() else { return };
    let mut reply = Reply::new(app, tokenizer, ask);
    let mut text = events(&reply.first_chunks());
    let mut some = Vec::with_capacity(AT_ONCE);
    loop {
        if !text.is_empty() && out.send(Ok(Bytes::from(std::mem::take(&mut text)))).await.is_err() {
            return;
        }
        if reply.is_complete() {
            break;
        }
        tokio::select! {
            () = out.closed() => return,
            n = news.recv_many(&mut some, AT_ONCE) => {
                if n == 0 {
                    text = events(&[ApiError::stopping().value()]);
                    let _ = out.send(Ok(Bytes::from(text))).await;
                    return;
                }
            }
            () = tokio::time::sleep(KEEP_ALIVE) => text.push_str(": keep-alive\n\n"),
        }
        for (index, new) in some.drain(..) {
            match new {
                Ok(new) => {
                    reply.push(index, new);
                    text.push_str(&events(&reply.next_chunks(index)));
                }
                Err(e) => {
                    text.push_str(&events(&[ApiError::of_model("prompt", &e).value()]));
                    let _ = out.send(Ok(Bytes::from(text))).await;
                    return;
                }
            }
        }
    }
    let mut end = events(&reply.usage_chunk().into_iter().collect::<Vec<_>>());
    end.push_str("data: [DONE]\n\n");
    let _ = out.send(Ok(Bytes::from(end))).await;
}

fn events(chunks: &[Value]) -> String {
    chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}
