//! Ctrl-C: the first asks a long job to save and stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Starts to listen for Ctrl-C and for a request to end (SIGTERM, SIGHUP).
///
/// From then on a job has to look at [`asked`] between its steps. A second request ends the program
/// at once with exit code 130. A second call of this function does nothing.
pub fn listen() {
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    });
}

/// Tells whether somebody asked the program to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
