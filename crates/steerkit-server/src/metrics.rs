//! Counters and histograms in Prometheus's text format, under the names that vLLM gives them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use steerkit_model::Batcher;

/// Upper bounds of the buckets for times to the first token and of whole requests, in seconds.
const SECONDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Upper bounds of the buckets for times between tokens, in seconds.
const GAPS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
/// Upper bounds of the buckets for numbers of tokens.
const TOKENS: [f64; 12] = [1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 8192.0, 32768.0];
/// Why requests end.
const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// What the server counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    running: AtomicUsize,
    waiting: AtomicUsize,
    tokens_held: AtomicUsize,
    prefix_queries: AtomicU64,
    prefix_hits: AtomicU64,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    finished: [AtomicU64; REASONS.len()],
    rejected: AtomicU64,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    prompt_lengths: Histogram,
    generation_lengths: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            running: AtomicUsize::default(),
            waiting: AtomicUsize::default(),
            tokens_held: AtomicUsize::default(),
            prefix_queries: AtomicU64::default(),
            prefix_hits: AtomicU64::default(),
            prompt_tokens: AtomicU64::default(),
            generation_tokens: AtomicU64::default(),
            finished: Default::default(),
            rejected: AtomicU64::default(),
            first_token: Histogram::new(SECONDS),
            between_tokens: Histogram::new(GAPS),
            whole: Histogram::new(SECONDS),
            prompt_lengths: Histogram::new(TOKENS),
            generation_lengths: Histogram::new(TOKENS),
        }
    }
}

impl Metrics {
    pub(crate) fn set_load(&self, batcher: &Batcher<'_>) {
        self.running.store(batcher.running(), Relaxed);
        self.waiting.store(batcher.waiting(), Relaxed);
        self.tokens_held.store(batcher.tokens_held(), Relaxed);
        let prefixes = batcher.prefix_stats();
        self.prefix_queries.store(prefixes.queried, Relaxed);
        self.prefix_hits.store(prefixes.found, Relaxed);
    }

    pub(crate) fn first_token(&self, after: Duration, prompt_tokens: usize) {
        self.first_token.observe(after.as_secs_f64());
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        self.prompt_lengths.observe(prompt_tokens as f64);
        self.generation_tokens.fetch_add(1, Relaxed);
    }

    pub(crate) fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
        self.generation_tokens.fetch_add(1, Relaxed);
    }

    pub(crate) fn request_done(&self, after: Duration, tokens: usize) {
        self.whole.observe(after.as_secs_f64());
        self.generation_lengths.observe(tokens as f64);
    }

    pub(crate) fn finished(&self, reason: &str) {
        if let Some(at) = REASONS.iter().position(|r| *r == reason) {
            self.finished[at].fetch_add(1, Relaxed);
        }
    }

    /// A request that found the queue full.
    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// Texts in the batch and in the queue.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.running.load(Relaxed), self.waiting.load(Relaxed))
    }

    /// The text of `/metrics`; `capacity` is how many tokens the batch can hold.
    pub(crate) fn text(&self, model: &str, capacity: usize) -> String {
        let label = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let mut out = Out { text: String::new(), label: format!("model_name=\"{label}\"") };
        out.one("num_requests_running", "gauge", "Texts in the batch", self.running.load(Relaxed) as f64);
        out.one("num_requests_waiting", "gauge", "Texts in the queue", self.waiting.load(Relaxed) as f64);
        let usage = self.tokens_held.load(Relaxed) as f64 / capacity.max(1) as f64;
        out.one("kv_cache_usage_perc", "gauge", "Share of the batch's context in use, 0 to 1", usage);
        for (name, help, counter) in [
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", &self.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", &self.prefix_hits),
            ("prompt_tokens", "Prompt tokens read", &self.prompt_tokens),
            ("generation_tokens", "Tokens written", &self.generation_tokens),
            ("request_rejected", "Requests that found the queue full", &self.rejected),
        ] {
            out.one(&format!("{name}_total"), "counter", help, counter.load(Relaxed) as f64);
        }
        out.head("request_success_total", "counter", "Texts that ended, by reason");
        for (reason, count) in REASONS.iter().zip(&self.finished) {
            let more = format!(",finished_reason=\"{reason}\"");
            out.sample("request_success_total", &more, count.load(Relaxed) as f64);
        }
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "From the queue to the first token", &self.first_token),
            ("inter_token_latency_seconds", "Between two tokens of a text", &self.between_tokens),
            ("e2e_request_latency_seconds", "From the queue to the last token", &self.whole),
            ("request_prompt_tokens", "Prompt tokens of a text", &self.prompt_lengths),
            ("request_generation_tokens", "Tokens written of a text", &self.generation_lengths),
        ] {
            out.histogram(name, help, histogram);
        }
        out.text
    }
}

/// Counts of values by size.
#[derive(Debug)]
struct Histogram {
    bounds: [f64; 12],
    /// The last one counts what is beyond all bounds.
    counts: [AtomicU64; 13],
    /// Sum of the values in millionths.
    micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: [f64; 12]) -> Self {
        Self { bounds, counts: Default::default(), micros: AtomicU64::default() }
    }

    fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().position(|&bound| value <= bound).unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.micros.fetch_add((value * 1e6) as u64, Relaxed);
    }
}

struct Out {
    text: String,
    label: String,
}

impl Out {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, more: &str, value: f64) {
        let _ = writeln!(self.text, "vllm:{name}{{{}{more}}} {value}", self.label);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut sum = 0;
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            sum += count.load(Relaxed);
            self.sample(&format!("{name}_bucket"), &format!(",le=\"{bound}\""), sum as f64);
        }
        self.sample(&format!("{name}_sum"), "", histogram.micros.load(Relaxed) as f64 / 1e6);
        self.sample(&format!("{name}_count"), "", sum as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_prometheus() {
        let metrics = Metrics::default();
        metrics.first_token(Duration::from_millis(30), 7);
        metrics.next_token(Duration::from_secs(9));
        metrics.finished("length");
        let text = metrics.text("a\"b", 100);
        for line in [
            "vllm:prompt_tokens_total{model_name=\"a\\\"b\"} 7",
            "vllm:generation_tokens_total{model_name=\"a\\\"b\"} 2",
            "vllm:request_success_total{model_name=\"a\\\"b\",finished_reason=\"length\"} 1",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.025\"} 0",
            "vllm:time_to_first_token_seconds_bucket{model_name=\"a\\\"b\",le=\"0.05\"} 1",
            "vllm:inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",le=\"2.5\"} 0",
            "vllm:inter_token_latency_seconds_bucket{model_name=\"a\\\"b\",le=\"+Inf\"} 1",
            "vllm:inter_token_latency_seconds_sum{model_name=\"a\\\"b\"} 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
