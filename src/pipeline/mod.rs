//! Who runs where: the threads between reading, networks, compositor and writing.

mod cast;
mod driving;
pub mod offline;
