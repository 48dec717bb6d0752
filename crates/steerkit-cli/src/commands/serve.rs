//! `steerkit serve`.

use serde::Serialize;
use steerkit_server::{Keys, Log, Options, Server, ServerError};

use super::steering;
use crate::args::ServeArgs;
use crate::failure::{Failure, Outcome};
use crate::output::Printer;
use crate::signals;

/// Where the server is, as JSON shows it.
#[derive(Serialize)]
struct Ready<'a> {
    url: String,
    model: &'a str,
    vectors: Vec<String>,
    precision: &'static str,
    pid: u32,
}

pub(crate) fn run(args: &ServeArgs, printer: Printer) -> Outcome {
    let stop = signals::install()?;
    let options = Options {
        host: args.host.clone(),
        port: args.port,
        vectors: args.vectors.clone(),
        default_vector: args.default_vector.clone(),
        profiles: args.profiles.clone(),
        keys: args.api_key_env.as_deref().map(Keys::from_env).transpose()?.unwrap_or_default(),
        admin_keys: args.admin_key_env.as_deref().map(Keys::from_env).transpose()?.unwrap_or_default(),
        hosts: args.allow_host.clone(),
        max_batch: args.max_batch,
        max_queue: args.max_queue,
        prefill_chunk: args.prefill_chunk,
        prefix_cache: args.prefix_cache,
        ..Options::default()
    };
    let model = steering::open(&args.model, args.max_batch)?;
    let log_requests = args.log_requests;
    let server = Server::bind(model, &options, move |event| match event {
        Log::Request(line) if log_requests => printer.say(line),
        Log::Request(_) => {}
        Log::Note(note) => printer.warn(note),
    })?;
    let url = format!("http://{}", server.address());
    let ready = Ready {
        model: server.model(),
        vectors: server.vectors(),
        precision: args.model.precision.resolve(args.max_batch).name(),
        pid: std::process::id(),
        url,
    };
    printer.line(format_args!(
        "listening on {} ({}, {} vectors)",
        ready.url,
        ready.model,
        ready.vectors.len()
    ))?;
    printer.result(&ready)?;
    Ok(server.run(&stop)?)
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let hints = error.hint().into_iter().collect();
        Self::Told { kind: error.kind(), message: error.to_string(), hints }
    }
}
