//! Who runs where: the threads between reading, networks, compositor and writing.

mod cast;
pub mod driver;
mod driving;
pub mod governor;
mod infer;
pub mod live;
pub mod offline;
pub mod queue;
mod refine;
mod rungs;
pub mod slot;
mod stream;
pub mod tuning;
pub mod weights;
