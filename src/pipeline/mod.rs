//! Who runs where: the threads between reading, networks, compositor and writing.

pub mod offline;
