//! Transcripts of the real binary: help, errors with their exit codes, inspection of files.
//!
//! `TRYCMD=overwrite cargo test -p steerkit-cli --test transcripts` writes them anew.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

#[test]
fn transcripts() {
    let home = tempfile::tempdir().unwrap();
    trycmd::TestCases::new()
        .default_bin_path(trycmd::cargo::cargo_bin!("steerkit"))
        .env("STEERKIT_HOME", home.path().to_str().unwrap())
        .env("COLUMNS", "100")
        .insert_var("[ROOT]", concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .unwrap()
        .case("tests/cmd/*.trycmd")
        .run();
}
