//! Weight files: beside the safetensors crate, on broken and hostile files, on a million mutations.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use etude_engine::{
    Dtype, Error, Module, Param, Result, Rng, Tensor, WeightFile, init, named_parameters,
    write_weights,
};
use safetensors::tensor::{SafeTensors, TensorView, serialize};

fn text(error: &Error) -> String {
    error.to_string()
}

/// Lays bytes out as a file with this header.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn refused(bytes: &[u8]) -> String {
    match WeightFile::parse(bytes) {
        Err(error @ Error::Format { .. }) => {
            let text = text(&error);
            assert!(!text.contains(char::is_control) && text.len() < 1000, "{text}");
            text
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("taken: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)])),
    }
}

fn sample_tensors() -> Result<Vec<(String, Tensor)>> {
    let mut rng = Rng::new(4);
    let shapes: [(&str, &[usize]); 7] = [
        ("lstm.w_ih", &[12, 5]),
        ("lstm.w_hh", &[12, 3]),
        ("lstm.b", &[12]),
        ("scalar", &[]),
        ("empty", &[0, 7]),
        ("four axes", &[2, 1, 3, 2]),
        ("", &[3]),
    ];
    shapes
        .iter()
        .map(|(name, shape)| Ok((name.to_string(), init::normal(&mut rng, shape, 0.0, 2.0)?)))
        .collect()
}

fn metadata() -> BTreeMap<String, String> {
    let pairs = [("format", "etude"), ("config", "{\"hidden\": 3,\n\t\"name\": \"\u{1b}é\\\"\"}")];
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn the_safetensors_crate_reads_what_is_written() -> Result<()> {
    let tensors = sample_tensors()?;
    let bytes = write_weights(&tensors, Dtype::F32, &metadata())?;
    let theirs = SafeTensors::deserialize(&bytes).expect("the crate reads our file");
    assert_eq!(theirs.len(), tensors.len());
    for (name, tensor) in &tensors {
        let view = theirs.tensor(name).expect("the tensor is there");
        assert_eq!(view.shape(), tensor.shape());
        let values: Vec<u8> = tensor.values().iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(view.data(), values);
    }
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("metadata");
    let theirs: HashMap<String, String> = header.metadata().clone().unwrap_or_default();
    assert_eq!(theirs.into_iter().collect::<BTreeMap<_, _>>(), metadata());
    // Numbers begin at multiples of their size, so that a mapped file can be read in place.
    for entry in WeightFile::parse(&bytes[..])?.entries().values() {
        assert!(entry.bytes.start.is_multiple_of(entry.dtype.size()));
    }
    Ok(())
}

#[test]
fn what_the_safetensors_crate_writes_is_read() -> Result<()> {
    let x = [1.5f32, -2.0, 0.25, 3.0, 65504.0, -0.0];
    let f16: Vec<u8> = x.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    let bf16: Vec<u8> = x.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    let f64: Vec<u8> = x.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
    let i64 = [0u8; 48];
    use safetensors::Dtype as Theirs;
    let all = [
        ("a", Theirs::F16, &f16[..]),
        ("b", Theirs::BF16, &bf16[..]),
        ("c", Theirs::F64, &f64[..]),
        ("d", Theirs::I64, &i64[..]),
    ];
    let views: Vec<(&str, TensorView)> = all
        .iter()
        .map(|(n, d, b)| (*n, TensorView::new(*d, vec![2, 3], b).expect("a view")))
        .collect();
    let bytes = serialize(views, None).expect("the crate writes");
    let ours = WeightFile::parse(bytes)?;
    assert!(ours.metadata().is_empty());
    assert_eq!(ours.tensor("a")?.to_vec(), x);
    assert_eq!(ours.tensor("c")?.to_vec(), x);
    let rounded = ours.tensor("b")?.to_vec();
    for (x, y) in x.iter().zip(rounded) {
        // bf16 keeps 8 bits: half of its last place is at most 2^-8 of the value.
        assert!((x - y).abs() <= x.abs() / 256.0);
    }
    let error = ours.tensor("d").expect_err("whole numbers of 8 bytes are not computed with");
    assert_eq!(text(&error), "weights: d: is stored as I64, which is not read");
    assert_eq!(text(&ours.tensor("e").expect_err("none")), "weights: e: is missing");
    Ok(())
}

#[test]
fn the_same_tensors_give_the_same_bytes_in_any_order() -> Result<()> {
    let mut tensors = sample_tensors()?;
    let first = write_weights(&tensors, Dtype::Bf16, &metadata())?;
    tensors.reverse();
    assert_eq!(first, write_weights(&tensors, Dtype::Bf16, &metadata())?);
    Ok(())
}

#[test]
fn short_formats_come_back_as_near_as_they_can() -> Result<()> {
    let tensors = sample_tensors()?;
    // bf16 keeps 8 significant bits, f16 keeps 11: half of the last place is
    // at most 2^-8 and 2^-11 of the value.
    for (dtype, relative) in
        [(Dtype::F32, 0.0), (Dtype::Bf16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)]
    {
        let bytes = write_weights(&tensors, dtype, &BTreeMap::new())?;
        let file = WeightFile::parse(&bytes[..])?;
        for (name, tensor) in &tensors {
            for (x, y) in tensor.values().iter().zip(file.tensor(name)?.to_vec()) {
                assert!((x - y).abs() <= relative * x.abs(), "{name} {dtype:?} {x} {y}");
            }
        }
    }
    let bytes = write_weights(&tensors, Dtype::I8, &BTreeMap::new())?;
    let file = WeightFile::parse(&bytes[..])?;
    assert_eq!(file.entries()["lstm.w_ih"].dtype, Dtype::I8);
    assert_eq!(file.entries()["lstm.b"].dtype, Dtype::F32);
    for (name, tensor) in &tensors {
        let (x, y) = (tensor.values(), file.tensor(name)?);
        assert_eq!(y.shape(), tensor.shape());
        let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // Half a step of the row's own scale, which is at most that of the whole matrix.
        let near = x.iter().zip(y.to_vec()).all(|(x, y)| (x - y).abs() <= max / 254.0 * 1.001);
        assert!(near, "{name}");
    }
    Ok(())
}

struct Two(Vec<Param>);

impl Module for Two {
    fn visit(&self, f: &mut dyn FnMut(&Param)) {
        self.0.visit(f);
    }
    fn visit_mut(&mut self, f: &mut dyn FnMut(&mut Param)) {
        self.0.visit_mut(f);
    }
}

fn two(seed: u64) -> Result<Two> {
    let mut rng = Rng::new(seed);
    Ok(Two(vec![
        Param::new("w", init::normal(&mut rng, &[4, 3], 0.0, 1.0)?),
        Param::new("b", init::normal(&mut rng, &[4], 0.0, 1.0)?),
        Param::new("v", init::normal(&mut rng, &[2], 0.0, 1.0)?),
    ]))
}

#[test]
fn a_model_comes_back_bit_for_bit() -> Result<()> {
    let (saved, mut loaded) = (two(1)?, two(2)?);
    let bytes = write_weights(&named_parameters(&saved), Dtype::F32, &BTreeMap::new())?;
    WeightFile::parse(bytes)?.load_into(&mut loaded)?;
    for (a, b) in saved.0.iter().zip(&loaded.0) {
        assert_eq!(a.value.to_vec(), b.value.to_vec());
        assert!(b.value.needs_grad());
    }
    let bytes = write_weights(&named_parameters(&saved), Dtype::I8, &BTreeMap::new())?;
    WeightFile::parse(bytes)?.load_into(&mut loaded)
}

#[test]
fn all_misfits_are_told_in_one_message_and_nothing_is_loaded() -> Result<()> {
    let mut model = two(1)?;
    let before = model.0[0].value.to_vec();
    let mut tensors = vec![
        ("w".to_string(), Tensor::zeros(&[3, 4])?),
        ("b".to_string(), Tensor::zeros(&[4])?),
        ("\u{1b}[31m".to_string(), Tensor::zeros(&[1])?),
    ];
    let bytes = write_weights(&tensors, Dtype::F32, &BTreeMap::new())?;
    let error = WeightFile::parse(bytes)?.load_into(&mut model).expect_err("misfits");
    assert_eq!(
        text(&error),
        "weights: missing: v; not part of the model: \\u{1b}[31m; \
         misshapen: w is [3, 4], the model wants [4, 3]"
    );
    assert_eq!(model.0[0].value.to_vec(), before);
    tensors.truncate(2);
    tensors.extend((0..9000).map(|i| (format!("t{i}"), Tensor::scalar(0.0))));
    let bytes = write_weights(&tensors, Dtype::F32, &BTreeMap::new())?;
    let error = WeightFile::parse(bytes)?.load_into(&mut model).expect_err("misfits");
    assert!(text(&error).len() < 500 && text(&error).contains("and 8988 more"), "{error}");
    Ok(())
}

#[test]
fn names_that_cannot_be_written_are_refused() -> Result<()> {
    let x = Tensor::scalar(1.0);
    for names in [vec!["a", "a"], vec!["__metadata__"]] {
        let tensors: Vec<_> = names.iter().map(|n| (n.to_string(), x.clone())).collect();
        assert!(write_weights(&tensors, Dtype::F32, &BTreeMap::new()).is_err());
    }
    assert!(write_weights(&[("a".into(), x)], Dtype::U32, &BTreeMap::new()).is_err());
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_are_found() -> Result<()> {
    let bad = Tensor::from_slice(&[1.0, f32::NAN], &[2])?;
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let bytes = write_weights(&[("w".into(), bad.clone())], dtype, &BTreeMap::new())?;
        let error = WeightFile::parse(bytes)?.check_finite().expect_err("NaN");
        assert_eq!(text(&error), "w: element 1 is NaN, not a finite number");
    }
    Ok(())
}

#[test]
fn every_fault_of_the_format_is_refused() {
    let ok = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(WeightFile::parse(file(ok, &[0; 8])).is_ok());
    let padded = format!("{ok}   ");
    assert!(WeightFile::parse(file(&padded, &[0; 8])).is_ok());
    assert!(WeightFile::parse(file("{}", &[])).is_ok());
    let cases: [(&str, usize, &str); 26] = [
        (ok, 7, "0..8 of 7"),
        (ok, 9, "1 bytes after the last tensor"),
        (r#" {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8, "begin with {"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "a hole"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "a hole"),
        (r#"{"a":{"dtype":"F32","shape":null,"data_offsets":[0,8]}}"#, 8, "null"),
        (r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "-2"),
        (r#"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#, 8, "floating point"),
        (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "[3] in 8 bytes"),
        (r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8, "number format F99"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#, 8, "length"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}"#, 8, "header"),
        (r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8, "missing field `data_offsets`"),
        (r#"{"a":{"shape":[2],"data_offsets":[0,8]}}"#, 8, "missing field `dtype`"),
        (r#"{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8, "twice"),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
            16,
            "the tensor a stands there twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
            "an overlap",
        ),
        (r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "__metadata__ stands there twice"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0, "the metadata key a stands there twice"),
        (r#"{"__metadata__":{"a":1}}"#, 0, "expected a string"),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
            0,
            "in 0 bytes",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}"#,
            4,
            "in 4 bytes",
        ),
        (r#"{"a":[]}"#, 0, "invalid type"),
        (r#"{"a":"\u001b[31m\u0000"}"#, 0, "\\u{1b}[31m"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}{}"#, 8, "trailing"),
        ("{", 0, "EOF"),
    ];
    for (header, data, why) in cases {
        let text = refused(&file(header, &vec![0; data]));
        assert!(text.contains(why), "{header}: {text}");
    }
    assert!(refused(&[]).contains("0 bytes"));
    assert!(refused(&[1, 0, 0, 0, 0, 0, 0]).contains("7 bytes"));
    assert!(refused(&[255; 16]).contains("above the ceiling"));
    assert!(refused(&100_000_001u64.to_le_bytes()).contains("above the ceiling of 100000000"));
    assert!(refused(&100_000_000u64.to_le_bytes()).contains("but 0 follow"));
    assert!(refused(&file("{\"\u{0}", &[])).contains("header"));
    let mut latin = file(ok, &[0; 8]);
    latin[10] = 0xff;
    assert!(refused(&latin).contains("UTF-8"));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    refused(&file(&deep, &[]));
    let axes =
        format!(r#"{{"a":{{"dtype":"U8","shape":[{}1],"data_offsets":[0,1]}}}}"#, "1,".repeat(9));
    let bytes = file(&axes, &[1]);
    let taken = WeightFile::parse(bytes).expect("ten axes are lawful in the format");
    assert!(text(&taken.tensor("a").expect_err("too many axes")).contains("10 axes"));
}

fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ETUDE_SHARED").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join("..").join("shared")
    });
    let path = root.join(path);
    path.exists().then_some(path)
}

#[test]
fn the_kit_of_bad_files_is_met_as_its_manifest_asks() {
    let Some(kit) = shared("bad_inputs") else {
        println!("skipped: the folder of bad inputs is not here");
        return;
    };
    let manifest = std::fs::read_to_string(kit.join("manifest.json")).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    let cases = manifest["cases"].as_array().expect("cases");
    let mut model = stand_in().expect("the model that the kit was made for");
    let (mut refused_by_format, mut refused_by_model, mut taken) = (0, 0, 0);
    for case in cases.iter().filter(|case| case["kind"] == "safetensors") {
        let path = kit.join(case["file"].as_str().expect("a path"));
        let bytes = std::fs::read(&path).expect("the file");
        let mut outcome = Ok(Ok(()));
        let memory = allocation_counter::measure(|| {
            outcome = WeightFile::parse(&bytes[..]).map(|file| file.load_into(&mut model));
        });
        // A header turns into names, shapes and offsets: a few times its own length, never more.
        let ceiling = 8 * bytes.len() as u64 + (1 << 20);
        assert!(memory.bytes_max <= ceiling, "{}: {} bytes", path.display(), memory.bytes_max);
        match &outcome {
            Err(error) => {
                assert!(!text(error).contains(char::is_control), "{}", text(error));
                refused_by_format += 1;
            }
            Ok(Err(error)) => {
                assert!(!text(error).contains(char::is_control), "{}", text(error));
                refused_by_model += 1;
            }
            Ok(Ok(())) => {
                taken += 1;
                assert_ne!(case["expect"], "reject", "{}", path.display());
            }
        }
        let id = case["id"].as_str().unwrap_or_default();
        if ["entry_", "frame_", "_zip_tail"].iter().any(|kind| id.contains(kind)) {
            assert!(outcome.is_err(), "{id} breaks the format");
        }
    }
    println!("{refused_by_format} break the format, {refused_by_model} misfit, {taken} taken");
    assert!(refused_by_format + refused_by_model + taken >= 20);
}

/// The tensors of the kit's own model, read from the file in which only some formats differ.
fn stand_in() -> Option<Two> {
    let bytes =
        std::fs::read(shared("bad_inputs/safetensors/model_dtype_f64.safetensors")?).ok()?;
    let file = WeightFile::parse(bytes).ok()?;
    let zeros = |(name, entry): (&String, &etude_engine::Entry)| {
        Some(Param::new(name.clone(), Tensor::zeros(&entry.shape).ok()?))
    };
    file.entries().iter().map(zeros).collect::<Option<Vec<_>>>().map(Two)
}

/// Damages a file in one of the ways in which files are damaged, or attacked.
fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    const TOKENS: [&str; 20] = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ",",
        ":",
        "null",
        "-1",
        "0",
        "1e9",
        "18446744073709551615",
        "4294967296",
        "\"dtype\":\"F32\"",
        "\"__metadata__\":{}",
        "\\u0000",
        "é",
        "F16",
        "shape",
        "9999999999999999999999",
    ];
    let header = 8..bytes.len().min(700);
    for _ in 0..=rng.below(3) {
        let at = header.start + rng.below(header.len().max(1) as u32) as usize;
        let at = at.min(bytes.len().saturating_sub(1));
        match rng.below(9) {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.below(256) as u8,
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, rng.below(128) as u8),
            4 => {
                let token = TOKENS[rng.below(TOKENS.len() as u32) as usize];
                drop(bytes.splice(at..at, token.bytes()));
            }
            5 => {
                let end = (at + rng.below(80) as usize).min(bytes.len());
                let span = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, span));
            }
            6 => bytes.truncate(rng.below(bytes.len() as u32 + 1) as usize),
            7 => {
                let at = rng.below(8.min(bytes.len() as u32)) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            _ => {
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    bytes[at + digit] = b'0' + rng.below(10) as u8;
                }
            }
        }
    }
    // Half of the time the length is made right again, so that the damage reaches further in.
    if rng.below(2) == 0 && bytes.len() > 8 {
        let end = bytes[8..].iter().rposition(|b| *b == b'}').map_or(0, |at| at as u64 + 1);
        bytes[..8].copy_from_slice(&end.to_le_bytes());
    }
}

#[test]
fn no_mutated_file_causes_a_panic_or_slips_through() -> Result<()> {
    let tensors = sample_tensors()?;
    let bases = [
        write_weights(&tensors, Dtype::F32, &metadata())?,
        write_weights(&tensors, Dtype::I8, &BTreeMap::new())?,
        file(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, b"x"),
        file(
            r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}}"#,
            &[0; 4],
        ),
    ];
    let runs = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };
    let mut rng = Rng::new(20_261);
    let (mut taken, mut stricter) = (0, 0);
    let mut bytes = Vec::new();
    for run in 0..runs {
        bytes.clear();
        bytes.extend_from_slice(&bases[run % bases.len()]);
        mutate(&mut bytes, &mut rng);
        let theirs = SafeTensors::deserialize(&bytes).is_ok();
        match WeightFile::parse(&bytes[..]) {
            Ok(file) => {
                taken += 1;
                assert!(theirs, "run {run}: the crate refuses {}", String::from_utf8_lossy(&bytes));
                for name in file.entries().keys() {
                    drop(file.tensor(name));
                }
            }
            Err(error) => {
                let text = text(&error);
                assert!(!text.contains(char::is_control) && text.len() < 1000, "{text}");
                stricter += usize::from(theirs);
            }
        }
    }
    println!("{runs} mutated files: {taken} taken, {stricter} refused that the crate takes");
    assert!(taken > runs / 100, "the mutations are so rough that they test nothing");
    Ok(())
}

#[cfg(feature = "files")]
#[test]
fn only_regular_files_of_a_stated_size_are_read() {
    let folder = std::env::temp_dir().join(format!("etude-weights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("w.safetensors");
    std::fs::write(&path, file("{}", &[])).expect("written");
    assert!(WeightFile::read(&path, 100).is_ok());
    let fault = |result: Result<WeightFile>| match result {
        Err(Error::File { path, why }) => (path, why),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("read"),
    };
    assert!(fault(WeightFile::read(&path, 9)).1.contains("10 bytes are more than the 9"));
    assert!(fault(WeightFile::read(&folder, 100)).1.contains("not a regular file"));
    let (shown, why) = fault(WeightFile::read(folder.join("none"), 100));
    assert!(shown.ends_with("none") && !why.is_empty());
    std::fs::write(&path, [0; 3]).expect("written");
    assert!(fault(WeightFile::read(&path, 100)).1.contains("3 bytes"));
    #[cfg(unix)]
    {
        let fifo = folder.join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(fault(WeightFile::read(&fifo, 100)).1.contains("not a regular file"));
        }
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}
