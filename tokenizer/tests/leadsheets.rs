//! Chords of real lead sheets: every symbol is read, and chords guessed from the notes are mostly
//! those that the sheet tells.

mod common;

use common::{midi_files, shared};
use etude_tokenizer::chord::{chords_at_steps, infer_chords, marked_chords, read_chords};
use etude_tokenizer::features::{ChordInput, EventInput, Features, KeyInput, LookbackInput};
use etude_tokenizer::{Encoding, Melody, read_file};

#[test]
fn every_chord_of_the_lead_sheets_is_read_and_most_are_guessed() {
    let Some(folder) = shared("corpus/leadsheets") else { return };
    let (mut chords, mut steps, mut triads, mut roots, mut same) = (0, 0, 0, 0, 0);
    for file in midi_files(&folder) {
        let score = read_file(&file).expect("a readable file");
        let (changes, others) = marked_chords(&score.score.markers);
        assert_eq!(others, 0, "{}: {:?}", file.display(), score.score.markers);
        assert_eq!(read_chords(&score), changes);
        chords += changes.len();
        let score = score.score;
        let guessed = infer_chords(&score).expect("a piece that is short enough");
        let length = (score.end_tick() / 120) as usize;
        let told = chords_at_steps(&changes, score.ticks_per_quarter, 4, length);
        let guessed = chords_at_steps(&guessed, score.ticks_per_quarter, 4, length);
        for (told, guessed) in told.iter().zip(&guessed) {
            let (Some(told), Some(guessed)) = (told, guessed) else { continue };
            steps += 1;
            roots += usize::from(told.root() == guessed.root());
            let triad = ChordInput::triad(Some(told));
            triads += usize::from(triad.is_some());
            same += usize::from(triad.is_some() && triad == ChordInput::triad(Some(guessed)));
        }
    }
    println!("{chords} chords; of {steps} steps {roots} with the root, {same} of {triads} triads");
    assert!(chords > 1000);
    // The block chords are among the notes, so a guess that is mostly wrong is broken.
    assert!(4 * roots > 3 * steps && 4 * same > 3 * triads);
}

#[test]
fn inputs_of_real_melodies_stay_inside_their_rows() {
    let Some(folder) = shared("corpus/folk/valid") else { return };
    let (mut row, input, mut rows) = (Features::default(), LookbackInput::melody(), 0);
    for file in midi_files(&folder).into_iter().take(100) {
        let score = read_file(&file).expect("a readable file").score;
        let events = Melody::basic().encode(&score).expect("a melody").tokens;
        let mut key = KeyInput::new();
        for place in 0..events.len() {
            input.fill(&events, place, &mut row);
            assert!(row.ones.iter().all(|&at| at < input.width()) && row.ones.len() >= 3);
            key.push(events[place], &mut row);
            assert!(row.ones.iter().all(|&at| at < KeyInput::WIDTH) && row.ones.len() >= 3);
            rows += 1;
        }
    }
    assert!(rows > 1000, "{rows}");
}
