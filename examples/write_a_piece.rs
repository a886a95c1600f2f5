//! Writes a jig with the weights in the box: the sample of the README.

use etude_models::generate::{Length, Request, Writer};
use etude_models::sampling::Sampling;
use etude_tokenizer::Meter;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = etude_models::bundled::load("lstm")?;
    let mut writer = Writer::new(&model.config, &*model.model)?;
    let piece = writer.write(&Request {
        length: Length::Bars(16),
        meter: Meter { tick: 0, numerator: 6, denominator: 8 },
        tempo_bpm: 165.0,
        primer: None,
        sampling: Sampling { temperature: 0.9, ..Sampling::default() },
        seed: 7,
    })?;
    std::fs::write("jig.mid", piece.score.to_midi())?;
    println!("{} notes, {:.0} seconds", piece.score.note_count(), piece.score.seconds());
    Ok(())
}
