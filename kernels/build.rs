//! With feature `emu`: compiles the CUDA sources for the CPU, together with a table of their kernels.
//! With feature `cuda`: packs the PTX files to embed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emu")]
    emulator::build();
    #[cfg(feature = "cuda")]
    prebuilt::embed();
}

#[cfg(feature = "cuda")]
mod prebuilt {
    use lzma_rust2::{LzmaOptions, LzmaWriter};
    use std::fs;
    use std::io::Write;

    /// Writes `prebuilt.rs`: family, architecture, kernels and packed text of every file in
    /// `cuda/prebuilt`. A tenth of the text is left, and the names need no unpacking.
    pub fn embed() {
        println!("cargo:rerun-if-changed=cuda/prebuilt");
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let out = std::env::var("OUT_DIR").expect("cargo sets it");
        let files = super::sorted_files(&format!("{root}/cuda/prebuilt"), ".ptx");
        let mut entries = String::from("&[\n");
        for file in files {
            let name = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".ptx");
            let (family, arch) = name.rsplit_once('.').expect("family.arch.ptx");
            let text = fs::read_to_string(&file).expect("a file that was listed");
            let packed = format!("{out}/{name}.lzma");
            fs::write(&packed, pack(text.as_bytes())).expect("OUT_DIR can be written");
            let names: Vec<&str> = kernels(&text).collect();
            entries +=
                &format!("    ({family:?}, {arch:?}, &{names:?}, include_bytes!({packed:?})),\n");
        }
        fs::write(format!("{out}/prebuilt.rs"), entries + "]\n").expect("OUT_DIR can be written");
    }

    fn pack(text: &[u8]) -> Vec<u8> {
        let options = LzmaOptions::with_preset(6);
        let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, Some(text.len() as u64))
            .expect("options that come with the crate");
        writer.write_all(text).expect("a vector takes all");
        writer.finish().expect("a vector takes all")
    }

    include!("src/cuda/ptx_kernels.rs");
}

/// The files of a folder whose names end in `end`, in alphabetical order.
#[cfg(any(feature = "cuda", feature = "emu"))]
fn sorted_files(folder: &str, end: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.path().to_str().map(str::to_string))
        .filter(|path| path.ends_with(end))
        .collect();
    files.sort();
    files
}

#[cfg(feature = "emu")]
mod emulator {
    use std::fmt::Write;
    use std::hash::{DefaultHasher, Hash, Hasher};
    use std::path::Path;
    use std::{env, fs};

    /// Compiles every family as a unit of its own, in a namespace of its own: two families may use one
    /// name for different helpers. A family whose files have not changed keeps its object.
    pub fn build() {
        // Sources from elsewhere, for the test that takes out barriers; an address sanitizer.
        println!("cargo:rerun-if-env-changed=ETUDE_EMU_SOURCES");
        println!("cargo:rerun-if-env-changed=ETUDE_EMU_SANITIZE");
        let out = env::var("OUT_DIR").expect("cargo sets it");
        let root = env::var("ETUDE_EMU_SOURCES")
            .unwrap_or_else(|_| env::var("CARGO_MANIFEST_DIR").expect("cargo sets it") + "/cuda");
        println!("cargo:rerun-if-changed={root}");
        let shared = shared_hash(&root);
        let (mut declarations, mut calls) = (String::new(), String::new());
        let mut library = compiler(&root);
        for source in super::sorted_files(&root, ".cu") {
            let family = source.rsplit('/').next().unwrap_or_default().trim_end_matches(".cu");
            library.object(family_object(&root, &out, family, &source, shared));
            writeln!(declarations, "int emu_find_{family}(const char *, const EmuRun &);")
                .expect("a string takes all");
            writeln!(calls, "  if (int r = emu_find_{family}(name, run); r != 1) return r;")
                .expect("a string takes all");
        }
        let table = format!("{out}/emu_table.cpp");
        let text = format!(
            "#include \"common/ptx.cuh\"\n#include \"emu/launch_table.h\"\n{declarations}\
             int emu_find(const char *name, const EmuRun &run) {{\n{calls}  return 1;\n}}\n\
             #include \"emu/launch_entry.h\"\n"
        );
        fs::write(&table, text).expect("OUT_DIR can be written");
        library.file(table).compile("etude_emu");
        if env::var_os("ETUDE_EMU_SANITIZE").is_some() {
            println!("cargo:rustc-link-lib=dylib=asan");
        }
    }

    /// The object of one family, compiled if what the compiler sees of it has changed.
    fn family_object(root: &str, out: &str, family: &str, source: &str, shared: u64) -> String {
        let quick = hash_of(&(shared, fs::read(source).expect("a source that was listed")));
        let known = format!("{out}/emu_{family}.{quick:016x}");
        if let Ok(object) = fs::read_to_string(&known)
            && Path::new(&object).exists()
        {
            return object;
        }
        let file = format!("{out}/emu_{family}.cpp");
        let include = format!(
            "#include \"common/ptx.cuh\"\n#include \"common/reduce.cuh\"\n\
             namespace family_{family} {{\n#include \"{family}.cu\"\n}}\n"
        );
        fs::write(&file, &include).expect("OUT_DIR can be written");
        let expanded = compiler(root).define("EMU_LIST", None).file(&file).expand();
        let flags = env::var_os("ETUDE_EMU_SANITIZE");
        let object = format!("{out}/emu_{family}_{:016x}.o", hash_of(&(&expanded, flags)));
        if !Path::new(&object).exists() {
            let mut table = String::new();
            for name in kernels(&String::from_utf8_lossy(&expanded)) {
                let call = format!("emu_call(family_{family}::{name}, run)");
                writeln!(table, "  if (!strcmp(name, \"{name}\")) return {call};")
                    .expect("a string takes all");
            }
            let find = format!("int emu_find_{family}(const char *name, const EmuRun &run)");
            let table = format!("{find} {{\n{table}  return 1;\n}}\n");
            let text = format!("{include}#include \"emu/launch_table.h\"\n{table}");
            fs::write(&file, text).expect("OUT_DIR can be written");
            let made = compiler(root).file(&file).compile_intermediates();
            fs::rename(&made[0], &object).expect("OUT_DIR can be written");
        }
        fs::write(known, &object).expect("OUT_DIR can be written");
        object
    }

    fn hash_of(what: &impl Hash) -> u64 {
        let mut hash = DefaultHasher::new();
        what.hash(&mut hash);
        hash.finish()
    }

    /// Of everything that all families depend on: the headers and the flags.
    fn shared_hash(root: &str) -> u64 {
        let mut hash = DefaultHasher::new();
        include_bytes!("build.rs").hash(&mut hash);
        env::var_os("ETUDE_EMU_SANITIZE").hash(&mut hash);
        for folder in [format!("{root}/common"), format!("{root}/emu"), root.to_string()] {
            for end in [".cuh", ".h"] {
                for header in super::sorted_files(&folder, end) {
                    fs::read(header).expect("a header that was listed").hash(&mut hash);
                }
            }
        }
        hash.finish()
    }

    fn compiler(root: &str) -> cc::Build {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .std("c++20")
            .opt_level(2)
            .debug(false)
            .flag("-pthread")
            .flag("-ffp-contract=off")
            .flag("-Wno-psabi")
            .include(root)
            .warnings(false);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            build.flag("-march=x86-64-v3");
        }
        if env::var_os("ETUDE_EMU_SANITIZE").is_some() {
            build.flag("-fsanitize=address").flag("-g1").flag("-fno-omit-frame-pointer");
        }
        build
    }

    /// The kernels' names in preprocessed text, where a mark stands before each.
    fn kernels(text: &str) -> Vec<&str> {
        text.split("EMU_KERNEL")
            .skip(1)
            .map(|after| {
                let open = after.find('(').expect("a kernel has parameters");
                after[..open].split_whitespace().last().expect("a kernel has a name")
            })
            .collect()
    }
}
