//! What holds for every input of every target.

/// Opens the bytes; what opens fits the file's size, and its tensors and errors can be looked at.
pub fn check(file: &[u8]) {
    match mimic::checkpoint::from_bytes(file, "fuzz") {
        Ok(opened) => {
            let numbers: usize = opened
                .tensors
                .values()
                .map(|tensor| tensor.elem_count())
                .sum();
            assert!(
                numbers <= 2 * file.len(),
                "{numbers} numbers of {} bytes",
                file.len()
            );
            let _ = mimic::checkpoint::check_values(&opened);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 1000 && !text.contains(char::is_control));
        }
    }
}
