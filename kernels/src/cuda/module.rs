//! From a kernel's name to its function: which file has it, loaded when it is first needed.

use super::Error;
use super::driver::refused;
use cudarc::driver::{result, sys};
use lzma_rust2::LzmaReader;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::Read;

/// Of each file in `kernels/cuda/prebuilt`: family, architecture, kernels, and the text as LZMA.
type Prebuilt = (&'static str, &'static str, &'static [&'static str], &'static [u8]);
const PREBUILT: &[Prebuilt] = include!(concat!(env!("OUT_DIR"), "/prebuilt.rs"));

include!("ptx_kernels.rs");

/// Bytes of dynamic shared memory that a block may have without asking for more.
const SHARED_BYTES_UNASKED: u32 = 48 * 1024;

/// The modules of one context.
pub(super) struct Modules {
    /// The texts, and their modules once loaded.
    modules: Vec<(Text, Option<sys::CUmodule>)>,
    /// In which of them each kernel is.
    kernels: HashMap<String, usize>,
    functions: HashMap<String, Function>,
}

// SAFETY: the handles belong to a context, not to a thread; the driver may be called with them from any.
unsafe impl Send for Modules {}

/// PTX, unpacked when it is first needed.
enum Text {
    Packed(&'static [u8]),
    /// From a folder.
    Plain(String),
}

/// A function and the dynamic shared memory that it may have.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared: u32,
}

impl Modules {
    /// The files for a device of this compute capability. `ETUDE_PTX_DIR` names a folder with others of
    /// the same names, to try a kernel without building the program anew.
    pub(super) fn new(capability: (u32, u32)) -> Modules {
        // Code for sm_90a runs on 9.0 alone, and is kept where it differs; all others take that for sm_80.
        let arches: &[&str] = if capability == (9, 0) { &["sm80", "sm90a"] } else { &["sm80"] };
        let folder = std::env::var("ETUDE_PTX_DIR").ok();
        let mut modules = Vec::new();
        let mut names = HashMap::new();
        // The newer architecture comes last and wins.
        for wanted in arches {
            for (family, arch, known, packed) in PREBUILT.iter().filter(|entry| entry.1 == *wanted)
            {
                let other = folder.as_ref().map(|folder| format!("{folder}/{family}.{arch}.ptx"));
                let number = modules.len();
                match other.and_then(|path| std::fs::read_to_string(path).ok()) {
                    Some(text) => {
                        names.extend(kernels(&text).map(|name| (name.to_string(), number)));
                        modules.push((Text::Plain(text), None));
                    }
                    None => {
                        names.extend(known.iter().map(|name| ((*name).to_string(), number)));
                        modules.push((Text::Packed(packed), None));
                    }
                }
            }
        }
        Modules { modules, kernels: names, functions: HashMap::new() }
    }

    /// The function of this name, allowed to have `shared` bytes of dynamic shared memory. The context
    /// is current.
    pub(super) fn function(&mut self, name: &str, shared: u32) -> Result<sys::CUfunction, Error> {
        if !self.functions.contains_key(name) {
            let handle = self.load(name)?;
            let function = Function { handle, shared: SHARED_BYTES_UNASKED };
            self.functions.insert(name.to_string(), function);
        }
        let unknown = || Error::UnknownKernel { name: name.to_string() };
        let function = self.functions.get_mut(name).ok_or_else(unknown)?;
        if shared > function.shared {
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle came from a module that is loaded still.
            unsafe {
                result::function::set_function_attribute(
                    function.handle,
                    attribute,
                    shared.cast_signed(),
                )
            }
            .map_err(|e| Error::Launch {
                kernel: name.to_string(),
                why: format!("{shared} bytes of shared memory: {}", super::driver::error_name(&e)),
            })?;
            function.shared = shared;
        }
        Ok(function.handle)
    }

    fn load(&mut self, name: &str) -> Result<sys::CUfunction, Error> {
        let unknown = || Error::UnknownKernel { name: name.to_string() };
        let (text, loaded) = &mut self.modules[*self.kernels.get(name).ok_or_else(unknown)?];
        let module = match loaded {
            Some(module) => *module,
            None => {
                let image = CString::new(text.unpacked()).map_err(|_| unknown())?;
                // SAFETY: the image is text that ends in NUL, as the driver wants PTX.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                    .map_err(refused("load of PTX"))?;
                *loaded.insert(module)
            }
        };
        let symbol = CString::new(name).map_err(|_| unknown())?;
        // SAFETY: the module was loaded just now or before, and is not unloaded before its context ends.
        unsafe { result::module::get_function(module, symbol) }.map_err(refused("load of a kernel"))
    }
}

impl Text {
    fn unpacked(&self) -> Vec<u8> {
        match self {
            Text::Packed(packed) => unpack(packed),
            Text::Plain(text) => text.clone().into_bytes(),
        }
    }
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    LzmaReader::new_mem_limit(packed, u32::MAX, None)
        .and_then(|mut reader| reader.read_to_end(&mut text))
        .expect("packed when the program was built");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_there_once_for_an_architecture() {
        let mut by_arch: HashMap<&str, Vec<&str>> = HashMap::new();
        for (_, arch, names, _) in PREBUILT {
            by_arch.entry(arch).or_default().extend(*names);
        }
        assert!(by_arch["sm80"].contains(&"axpy_plain"));
        for (arch, mut names) in by_arch {
            names.sort_unstable();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count, "two kernels of one name for {arch}");
        }
    }

    #[test]
    fn the_packed_texts_are_the_files() {
        for (family, arch, names, packed) in PREBUILT {
            let root = env!("CARGO_MANIFEST_DIR");
            let path = format!("{root}/cuda/prebuilt/{family}.{arch}.ptx");
            let text = std::fs::read_to_string(path).unwrap();
            assert!(unpack(packed) == text.as_bytes(), "{family}.{arch}");
            assert!(kernels(&text).eq(names.iter().copied()), "{family}.{arch}");
        }
        let bytes: usize = PREBUILT.iter().map(|entry| entry.3.len()).sum();
        assert!(bytes < 3 << 20, "{bytes} bytes of packed kernels");
    }
}
