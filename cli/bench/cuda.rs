//! `etude bench --device cuda`: the kernels on a GPU, with their share of what the device was measured to do.

use crate::console::Console;
use crate::error::{Error, Result};

/// Times the cases of the named families whose names contain `filter`.
///
/// # Errors
/// If a family is unknown, the device refuses, or stdout cannot be written to.
#[cfg(feature = "cuda")]
pub fn run(
    number: u32,
    families: &[String],
    filter: &str,
    seconds: f64,
    console: &Console,
) -> Result<()> {
    use etude_kernels::cuda::bench::{Bench, FAMILIES, Record};
    use etude_kernels::cuda::{Gpu as _, driver::Driver, peak};
    use serde_json::json;
    use std::time::Duration;

    let names: Vec<&str> = FAMILIES.iter().map(|family| family.0).collect();
    if let Some(unknown) = families.iter().find(|f| *f != "all" && !names.contains(&f.as_str())) {
        let known = names.join(", ");
        return Err(Error::input(format!(
            "{unknown}: no such family of kernels; one of {known}, all"
        )));
    }
    let driver = Driver::open(number).map_err(|why| Error::failed(why.to_string()))?;
    let ceilings = peak::measure(&driver).map_err(|why| Error::failed(why.to_string()))?;
    let (name, copy, bf16) = (
        driver.properties().name.clone(),
        ceilings.copy_bytes_per_second,
        ceilings.bf16_flops_per_second,
    );
    console.say(format!(
        "{name}: copy {:.2} TB/s, bf16 {:.0} TFLOP/s (mma.sync)",
        copy * 1e-12,
        bf16 * 1e-12
    ))?;
    let mut told = Ok(());
    let mut out = |record: &Record| {
        let per_second = |work: f64| work / (record.milliseconds * 1e-3);
        let (flops, bytes) = (per_second(record.flops), per_second(record.bytes));
        let share = (bytes / copy).max(flops / bf16);
        let line = match console.json {
            false => console.say(format!(
                "{:<52} {:<32} {:>9.4} ms {:>7.1} TFLOP/s {:>5.2} TB/s {:>4.0} %",
                record.case,
                record.variant,
                record.milliseconds,
                flops * 1e-12,
                bytes * 1e-12,
                share * 100.0
            )),
            true => console.report(&json!({
                "device": name,
                "case": record.case,
                "variant": record.variant,
                "median_s": record.milliseconds * 1e-3,
                "fastest_s": record.fastest * 1e-3,
                "runs": record.runs,
                "flops_per_second": flops,
                "bytes_per_second": bytes,
                "share": share,
            })),
        };
        if told.is_ok() {
            told = line;
        }
    };
    let mut bench = Bench {
        gpu: &driver,
        filter: filter.to_owned(),
        small: false,
        budget: Duration::from_secs_f64(seconds.clamp(0.01, 60.0)),
        out: &mut out,
    };
    for (family, cases) in FAMILIES {
        if families.iter().any(|wanted| wanted == family || wanted == "all") {
            cases(&mut bench).map_err(|why| Error::failed(format!("{family}: {why}")))?;
        }
    }
    told
}

/// There is no device to time.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn run(_: u32, _: &[String], _: &str, _: f64, _: &Console) -> Result<()> {
    Err(Error::input("no GPU: this program was built without the feature cuda".to_owned()))
}
