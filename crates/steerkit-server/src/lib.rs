//! The place of the HTTP API: per-request steering over an OpenAI-compatible protocol. Empty so far.
