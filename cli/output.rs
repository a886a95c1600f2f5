//! Output files: there whole, or not at all.
//!
//! Bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed
//! over the target. Whatever goes wrong before that, the old file is untouched and the temporary
//! one is gone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::console::{Console, print, show_path};
use crate::error::{Error, Result, reason};

/// Writes a whole file at once. `-` is standard output.
///
/// Missing folders on the way are made. A device such as `/dev/null` is written to directly.
///
/// # Errors
/// If the file cannot be written; the message names it.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if path == Path::new("-") {
        return print(bytes);
    }
    let mut file = Staged::create(path)?;
    file.write_all(bytes).map_err(|e| Error::unwritable(path, reason(&e)))?;
    file.commit()
}

/// Gives the path to write to: a folder (there, or named with a slash at the end) gets `name` in it.
pub fn within(path: &Path, name: &str) -> PathBuf {
    let slash = path.as_os_str().as_encoded_bytes().last() == Some(&b'/');
    if slash || path.is_dir() { path.join(name) } else { path.to_owned() }
}

/// Gives the path to write to as [`within`] does, and notes on stderr what a slip of the pen may have
/// caused: a folder in place of a file, or a folder that is not there yet and will be made.
pub fn place(path: &Path, name: &str, console: &Console) -> PathBuf {
    let place = within(path, name);
    if place != path && path.is_dir() {
        console.note(format!("{} is a folder: writing {}", show_path(path), show_path(&place)));
    } else if let Some(folder) = place.parent()
        && folder != Path::new("")
        && !folder.exists()
    {
        console.note(format!("making the folder {}", show_path(folder)));
    }
    place
}

/// A file on its way: written under another name until [`Staged::commit`].
#[derive(Debug)]
pub struct Staged {
    file: BufWriter<File>,
    /// What the caller named, for messages.
    named: PathBuf,
    /// Where it goes in the end.
    target: PathBuf,
    /// The temporary file; none for a device, and none after the rename.
    temporary: Option<PathBuf>,
}

impl Staged {
    /// Opens a new output file beside `path`.
    ///
    /// # Errors
    /// If `path` is a folder or a pipe, or its folder cannot be made or written to.
    pub fn create(path: &Path) -> Result<Staged> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let fail = |e: &io::Error| Error::unwritable(path, reason(e));
        // Follow a link: its target is replaced, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let old = fs::metadata(&target).ok();
        if let Some(old) = old.as_ref().filter(|m| !m.is_file()) {
            if old.is_dir() {
                return Err(Error::unwritable(path, "it is a folder"));
            }
            if !is_device(old) {
                return Err(Error::unwritable(path, "it is neither a file nor a device"));
            }
            let file = OpenOptions::new().write(true).open(&target).map_err(|e| fail(&e))?;
            let file = BufWriter::new(file);
            return Ok(Staged { file, named: path.to_owned(), target, temporary: None });
        }
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        if target.file_name().is_none() {
            return Err(Error::unwritable(path, "it does not name a file"));
        }
        fs::create_dir_all(folder).map_err(|e| fail(&e))?;
        // Two programs at once, or two threads, never share a temporary file: the process id and a
        // counter tell them apart, and `create_new` refuses a leftover of an earlier process.
        for _ in 0..1000 {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = folder.join(format!(".etude-{}-{n}.tmp", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => {
                    if let Some(old) = old {
                        let _ = file.set_permissions(old.permissions());
                    }
                    let (file, temporary) = (BufWriter::new(file), Some(temporary));
                    return Ok(Staged { file, named: path.to_owned(), target, temporary });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(fail(&e)),
            }
        }
        Err(Error::unwritable(path, "its folder is full of temporary files of other programs"))
    }

    /// Puts the file in its place, once its bytes are on the disk.
    ///
    /// # Errors
    /// If the disk is full or the rename fails; then nothing is left behind.
    pub fn commit(mut self) -> Result<()> {
        self.flush().map_err(|e| Error::unwritable(&self.named, reason(&e)))?;
        if self.temporary.is_some() {
            let synced = self.file.get_ref().sync_all();
            synced.map_err(|e| Error::unwritable(&self.named, reason(&e)))?;
        }
        let target = self.target.clone();
        self.publish()?;
        // The new name itself survives a power cut once the folder is on the disk. Some file systems
        // cannot do that; the file is good all the same.
        if let Some(folder) = target.parent() {
            let _ = File::open(folder).and_then(|f| f.sync_all());
        }
        Ok(())
    }

    /// Puts the file in its place at once, which a power cut may undo: for files that are cheap to
    /// write again.
    ///
    /// # Errors
    /// If the disk is full or the rename fails; then nothing is left behind.
    pub fn publish(mut self) -> Result<()> {
        self.flush().map_err(|e| Error::unwritable(&self.named, reason(&e)))?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.target)
                .map_err(|e| Error::unwritable(&self.named, reason(&e)))?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Staged {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(unix)]
fn is_device(metadata: &fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_char_device(&metadata.file_type())
}

#[cfg(not(unix))]
fn is_device(_: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("etude-output-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let folder = folder("whole");
        let path = folder.join("a/b/c.txt");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_file_that_is_given_up_leaves_the_old_one() {
        let folder = folder("given-up");
        let path = folder.join("c.txt");
        write(&path, b"old").unwrap();
        let mut staged = Staged::create(&path).unwrap();
        staged.write_all(b"half").unwrap();
        drop(staged);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_folder_as_output_is_refused_by_name() {
        let folder = folder("refused");
        let error = write(&folder, b"x").unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("refused: cannot write: it is a folder"), "{error}");
        assert_eq!(within(&folder, "a.mid"), folder.join("a.mid"));
        assert_eq!(within(Path::new("new/"), "a.mid"), Path::new("new/a.mid"));
        assert_eq!(within(Path::new("new"), "a.mid"), Path::new("new"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_device_is_told() {
        let error = write(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!(error.to_string(), "/dev/full: cannot write: no space left on device");
        write(Path::new("/dev/null"), b"x").unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_link_stays_a_link_and_permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder("link");
        let (file, link) = (folder.join("file"), folder.join("link"));
        write(&file, b"old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(folder).unwrap();
    }
}
