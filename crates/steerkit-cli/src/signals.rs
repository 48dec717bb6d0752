//! Ctrl-C and SIGTERM: the first asks the command to stop, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{Failure, Outcome};
use steerkit_model::ErrorKind;

/// Installs the handler and returns the flag that the first signal sets.
pub(crate) fn install() -> Outcome<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })
    .map_err(|error| Failure::new(ErrorKind::Failed, format_args!("no signal handler: {error}")))?;
    Ok(flag)
}
