//! Listening, serving connections, and stopping in good order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use steerkit_model::{Limits, Model};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::app::{self, App};
use crate::engine::{Capacity, Engine};
use crate::error::ServerError;
use crate::guard::{Guard, Keys};
use crate::metrics::Metrics;
use crate::patient::Patient;
use crate::profiles::Profiles;
use crate::registry::{POLL, Registry};

/// Largest head of a request; the reader's buffer has this size.
const MAX_HEAD: usize = 16 << 10;
/// The head of a request must have arrived after this long, counted from the end of the one before.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Connections at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 2048;
/// Texts that are being written when the server is told to stop may take so long to end.
const DRAIN: Duration = Duration::from_secs(30);
/// A step that reads prompts beside running texts takes about this many times as long as one that does not.
const SLOWDOWN_BESIDE: u32 = 3;
/// How often the server looks whether it shall stop.
const TICK: Duration = Duration::from_millis(50);

/// What a server does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name or address to listen on.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// The folder of vectors that requests may name.
    pub vectors: Option<PathBuf>,
    /// The vector of `custom.steer_multiplier`.
    pub default_vector: Option<String>,
    /// The profiles' database; in memory without.
    pub profiles: Option<PathBuf>,
    /// The keys that requests must bring one of; none: everybody on this machine may ask.
    pub keys: Keys,
    /// The keys that may change vectors.
    pub admin_keys: Keys,
    /// Names by which requests may call this server, besides this machine's own.
    pub hosts: Vec<String>,
    /// Texts written at the same time.
    pub max_batch: usize,
    /// Texts that may wait for a place in the batch.
    pub max_queue: usize,
    /// Prompt tokens read between two tokens of a running text at most; the server reads fewer where these would make
    /// such a text three times as slow.
    pub prefill_chunk: usize,
    /// Tokens of ended texts that are kept for texts that begin alike.
    pub prefix_cache: usize,
    /// A client that takes nothing of its reply for so long is hung up on, and its texts end.
    pub write_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            vectors: None,
            default_vector: None,
            profiles: None,
            keys: Keys::default(),
            admin_keys: Keys::default(),
            hosts: Vec::new(),
            max_batch: 16,
            max_queue: 256,
            prefill_chunk: 128,
            prefix_cache: 4096,
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// What a server tells its operator: lines without keys, texts of requests and control characters.
#[derive(Clone, Copy, Debug)]
pub enum Log<'a> {
    /// A request was answered.
    Request(&'a str),
    /// Something the operator should know, such as a vector file that cannot be used.
    Note(&'a str),
}

/// A server that listens and does not answer yet.
pub struct Server {
    app: Arc<App>,
    runtime: Runtime,
    listener: TcpListener,
    address: SocketAddr,
    engine: JoinHandle<()>,
    write_timeout: Duration,
}

impl Server {
    /// Opens vectors and profiles, starts the engine and listens.
    ///
    /// # Errors
    /// An address that is taken, or that others can reach while there is no key; files that cannot be read; limits of 0;
    /// a model without tokeniser.
    pub fn bind(
        model: Model,
        options: &Options,
        log: impl Fn(Log<'_>) + Send + Sync + 'static,
    ) -> Result<Self, ServerError> {
        model.tokenizer()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // The cores are the engine's.
            .worker_threads(2)
            .max_blocking_threads(8)
            .enable_all()
            .build()
            .map_err(|source| ServerError::Io { place: "threads".to_owned(), source })?;
        let (listener, address) = listen(&runtime, options)?;
        let guard = Guard {
            keys: options.keys.clone(),
            admin: options.admin_keys.clone(),
            hosts: hosts(options),
            any_address: !address.ip().is_loopback(),
        };

        let registry =
            Registry::new(options.vectors.clone(), model.config().clone(), model.identity().clone());
        let place = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |p| p.display().to_string());
        let notes = registry
            .refresh()
            .map_err(|source| ServerError::Io { place: place(&options.vectors), source })?;
        notes.iter().for_each(|note| log(Log::Note(&plain(note))));
        if let Some(name) = &options.default_vector
            && !registry.snapshot().contains_key(name)
        {
            let known = registry.snapshot().keys().cloned().collect();
            return Err(ServerError::NoVector { name: name.clone(), known });
        }
        let profiles = Profiles::open(options.profiles.as_deref())?;
        let metrics = Arc::<Metrics>::default();
        let model = Arc::new(model);
        let limits = Limits {
            waiting: usize::MAX,
            prompt_tokens: options.prefill_chunk.max(256),
            prompt_tokens_beside: options.prefill_chunk,
            slowdown_beside: Some(SLOWDOWN_BESIDE),
            cached_tokens: options.prefix_cache,
        };
        let capacity = Capacity { batch: options.max_batch, queue: options.max_queue, limits };
        let (engine, thread) = Engine::start(Arc::clone(&model), capacity, Arc::clone(&metrics))?;
        let app = App {
            id: id_of(&model.identity().name),
            fingerprint: format!("steerkit-{}", env!("CARGO_PKG_VERSION")),
            token_capacity: options.max_batch * model.config().context,
            model,
            engine,
            metrics,
            registry,
            profiles,
            standing: Default::default(),
            guard,
            default_vector: options.default_vector.clone(),
            started: app::now(),
            stopping: AtomicBool::new(false),
            log: Box::new(log),
        };
        Ok(Self {
            app: Arc::new(app),
            runtime,
            listener,
            address,
            engine: thread,
            write_timeout: options.write_timeout,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The model's name in the API.
    pub fn model(&self) -> &str {
        &self.app.id
    }

    /// The vectors that requests may name.
    pub fn vectors(&self) -> Vec<String> {
        self.app.registry.snapshot().keys().cloned().collect()
    }

    /// Serves until `stop` is set; then takes nothing new, lets running texts end for up to 30 s, and returns.
    ///
    /// # Errors
    /// None so far: a connection that fails ends alone.
    pub fn run(self, stop: &AtomicBool) -> Result<(), ServerError> {
        let Self { app, runtime, listener, engine, write_timeout, .. } = self;
        runtime.block_on(async {
            let (stopping, stopped) = watch::channel(false);
            let watcher = tokio::spawn(watch_vectors(Arc::clone(&app)));
            let router = app::router(Arc::clone(&app));
            let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            let connections = Connections { router, open: Arc::clone(&open), stopped, write_timeout };
            connections.accept(&listener, stop).await;
            drop(listener);
            app.stopping.store(true, Ordering::Relaxed);
            let _ = stopping.send(true);
            watcher.abort();
            if !drained(&open, DRAIN).await {
                // Streams get their error, and a moment to send it.
                app.engine.abort();
                drained(&open, Duration::from_secs(1)).await;
            }
        });
        // Connections that are left hold the app; they end with the runtime.
        runtime.shutdown_timeout(Duration::from_secs(1));
        if Arc::into_inner(app).is_some() {
            // Nobody can send it anything any more: it ends.
            let _ = engine.join();
        }
        Ok(())
    }
}

/// What every connection is served with.
struct Connections {
    router: Router,
    open: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
    write_timeout: Duration,
}

impl Connections {
    /// Takes connections until `stop` is set.
    async fn accept(&self, listener: &TcpListener, stop: &AtomicBool) {
        let mut tick = tokio::time::interval(TICK);
        while !stop.load(Ordering::Relaxed) {
            tokio::select! {
                _ = tick.tick() => {}
                accepted = accept_one(listener, &self.open) => {
                    if let Some((stream, place)) = accepted {
                        let (router, stopped) = (self.router.clone(), self.stopped.clone());
                        let write_timeout = self.write_timeout;
                        tokio::spawn(async move {
                            // A token's chunk is small and shall not wait for the next.
                            let _ = stream.set_nodelay(true);
                            serve(Patient::new(stream, write_timeout), router, stopped).await;
                            drop(place);
                        });
                    }
                }
            }
        }
    }
}

async fn accept_one(
    listener: &TcpListener,
    open: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(open).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(_) => {
            // Out of file descriptors, as a rule: connections that end give some back.
            tokio::time::sleep(TICK).await;
            None
        }
    }
}

/// Serves one connection; when the server stops, the request that is being answered is the last.
async fn serve(stream: Patient<TcpStream>, router: Router, mut stopped: watch::Receiver<bool>) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|&stopped| stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Whether all connections ended within `time`.
async fn drained(open: &Semaphore, time: Duration) -> bool {
    let until = Instant::now() + time;
    while open.available_permits() < MAX_CONNECTIONS {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(TICK).await;
    }
    true
}

/// Looks at the folder of vectors every now and then.
async fn watch_vectors(app: Arc<App>) {
    let mut tick = tokio::time::interval(POLL);
    loop {
        tick.tick().await;
        let looking = Arc::clone(&app);
        let found = tokio::task::spawn_blocking(move || looking.registry.refresh()).await;
        // A folder that is gone keeps the vectors there were.
        if let Ok(Ok(notes)) = found {
            notes.iter().for_each(|note| (app.log)(Log::Note(&plain(note))));
        }
    }
}

/// Listens where the options say; elsewhere than on this machine only with a key.
fn listen(runtime: &Runtime, options: &Options) -> Result<(TcpListener, SocketAddr), ServerError> {
    let place = format!("{}:{}", options.host, options.port);
    let failed = |source| ServerError::Io { place: place.clone(), source };
    runtime.block_on(async {
        let found = tokio::net::lookup_host((options.host.as_str(), options.port)).await.map_err(failed)?;
        let addresses: Vec<SocketAddr> = found.collect();
        if options.keys.is_empty() && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(ServerError::OpenToAll { host: options.host.clone() });
        }
        let listener = TcpListener::bind(addresses.as_slice()).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok((listener, address))
    })
}

/// A model's name as a path and an alias can hold it.
fn id_of(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    name.chars().take(128).map(plain).collect()
}

/// Names in Host headers: those allowed, and the one listened on.
fn hosts(options: &Options) -> Vec<String> {
    options.hosts.iter().cloned().chain([options.host.clone()]).collect()
}

/// A note without control characters.
fn plain(note: &str) -> String {
    note.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
