//! Progress of work on a file: a bar on a terminal, now and then a line elsewhere, on standard error.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long elsewhere nothing is said.
const QUIET: Duration = Duration::from_secs(5);

pub struct Progress {
    what: &'static str,
    bar: ProgressBar,
    said: Instant,
    started: Instant,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:24} {percent}% {msg}, {elapsed}, {eta} left");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
            .with_style(style.unwrap_or(ProgressStyle::default_bar()))
            .with_prefix(what);
        Self {
            what,
            bar,
            said: Instant::now(),
            started: Instant::now(),
        }
    }

    pub fn at(&mut self, bytes: u64, of_bytes: Option<u64>, message: &str) {
        if !self.bar.is_hidden() {
            if let Some(all) = of_bytes {
                self.bar.set_length(all);
            }
            self.bar.set_position(bytes);
            self.bar.set_message(message.to_owned());
            return;
        }
        if self.said.elapsed() < QUIET {
            return;
        }
        self.said = Instant::now();
        let (what, seconds) = (self.what, self.started.elapsed().as_secs());
        match of_bytes {
            Some(all) => eprintln!("{what}: {}% after {seconds} s, {message}", 100 * bytes / all.max(1)),
            None => eprintln!("{what}: {bytes} bytes after {seconds} s, {message}"),
        }
    }

    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}
