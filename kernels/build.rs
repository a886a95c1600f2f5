//! With feature `emu`: compiles the CUDA sources for the CPU, together with a table of their kernels.
//! With feature `cuda`: lists the PTX files to embed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    #[cfg(feature = "emu")]
    emulator::build();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        embed_ptx();
    }
}

/// Writes `prebuilt.rs`: family, architecture and text of every file in `cuda/prebuilt`.
fn embed_ptx() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let mut entries = String::from("&[\n");
    for file in sorted_files(&format!("{root}/cuda/prebuilt"), ".ptx") {
        let name = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".ptx");
        let (family, arch) = name.rsplit_once('.').expect("family.arch.ptx");
        entries += &format!("    ({family:?}, {arch:?}, include_str!({file:?})),\n");
    }
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::write(format!("{out}/prebuilt.rs"), entries + "]\n").expect("OUT_DIR can be written");
}

/// The files of a folder whose names end in `end`, in alphabetical order.
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
    use std::{env, fs};

    /// Compiles every family as a unit of its own, in a namespace of its own: two families may use one
    /// name for different helpers.
    pub fn build() {
        // A run with an address sanitizer; a test may also name the one family it is about.
        println!("cargo:rerun-if-env-changed=ETUDE_EMU_SANITIZE");
        let out = env::var("OUT_DIR").expect("cargo sets it");
        let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        let (mut declarations, mut calls) = (String::new(), String::new());
        let mut files = Vec::new();
        for source in super::sorted_files(&format!("{root}/cuda"), ".cu") {
            let family = source.rsplit('/').next().unwrap_or_default().trim_end_matches(".cu");
            let file = format!("{out}/emu_{family}.cpp");
            let include = format!(
                "#include \"common/ptx.cuh\"\n#include \"common/reduce.cuh\"\n\
                 namespace family_{family} {{\n#include \"{family}.cu\"\n}}\n"
            );
            write_changed(&file, &include);
            let expanded = compiler(&root).define("EMU_LIST", None).file(&file).expand();
            let mut table = String::new();
            for name in kernels(&String::from_utf8_lossy(&expanded)) {
                writeln!(table, "  if (!strcmp(name, \"{name}\")) return emu_call(family_{family}::{name}, run);")
                    .expect("a string takes all");
            }
            write_changed(
                &file,
                &format!(
                    "{include}#include \"emu/launch_table.h\"\n\
                     int emu_find_{family}(const char *name, const EmuRun &run) {{\n{table}  return 1;\n}}\n"
                ),
            );
            files.push(file);
            writeln!(declarations, "int emu_find_{family}(const char *, const EmuRun &);")
                .expect("a string takes all");
            writeln!(calls, "  if (int r = emu_find_{family}(name, run); r != 1) return r;")
                .expect("a string takes all");
        }
        let table = format!("{out}/emu_table.cpp");
        write_changed(
            &table,
            &format!(
                "#include \"common/ptx.cuh\"\n#include \"emu/launch_table.h\"\n{declarations}\
                 int emu_find(const char *name, const EmuRun &run) {{\n{calls}  return 1;\n}}\n\
                 #include \"emu/launch_entry.h\"\n"
            ),
        );
        compiler(&root).files(files).file(table).compile("etude_emu");
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
            .flag("-Wno-unknown-pragmas")
            .flag("-Wno-unused-parameter")
            .flag("-Wno-psabi")
            .include(format!("{root}/cuda"))
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

    fn write_changed(path: &str, text: &str) {
        if fs::read_to_string(path).ok().as_deref() != Some(text) {
            fs::write(path, text).expect("OUT_DIR can be written");
        }
    }
}
