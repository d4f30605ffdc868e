//! The sandbox plane: from an uploaded component to a limited sandbox for each request.
//!
//! 1. [`upload`] judges the bytes: what they are, what they import, what they export.
//! 2. [`engine`] compiles them off the serving threads; [`cache`] keeps the machine code on disk.
//! 3. [`code`] links a component once, so that an instance is a few microseconds away.
//! 4. [`invoke`] runs one request in a store of its own under the limits of [`limits`] and [`cpu`].
//! 5. [`ready`] makes sandboxes before they are needed, and takes back those that may serve again.
//! 6. [`host`] is all a guest can reach: one file for each WIT interface that is ours.

mod body;
mod cache;
mod code;
mod cpu;
mod engine;
mod guest;
mod host;
mod invoke;
mod limits;
mod log;
mod nesting;
mod ready;
mod state;
mod upload;

pub use body::{BodyError, GuestBody};
pub use cache::CacheKey;
pub use code::{CodeError, FunctionCode, Purpose};
pub use engine::{Config, Sandboxes, StartError};
pub use invoke::{Invocation, Keeper, Observer, Outcome, Source};
pub use log::{FunctionLog, LogLine, LogStream, LogTail};
pub use ready::{ReadySandbox, Started};
pub use upload::{Component, UploadError, check};
