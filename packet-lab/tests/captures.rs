//! Captures that real tools wrote, and captures that are not what they should be: read, shown, replayed and recorded.

#[path = "captures/commands.rs"]
mod commands;
#[path = "captures/reading.rs"]
mod reading;
