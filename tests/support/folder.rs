//! A folder of its own for a test.

use std::path::PathBuf;

/// A folder of its own for each test, gone at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it, empty; no other test of this process has the name.
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("etude-test-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
