//! Memory stays in proportion to the file, whatever the file says.
//!
//! One test, so that nothing else in the process moves the peak.

use etude_tokenizer::{Score, encoding, schemes};

/// The most resident memory of this process so far, in bytes; `None` where it cannot be told.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

fn file(tracks: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(tracks.len()).expect("so many tracks");
    let mut bytes = b"MThd\0\0\0\x06\0\x01".to_vec();
    bytes.extend(count.to_be_bytes());
    bytes.extend([0x01, 0xe0]);
    for track in tracks {
        bytes.extend(b"MTrk");
        bytes.extend((track.len() as u32 + 4).to_be_bytes());
        bytes.extend(track);
        bytes.extend([0, 0xff, 0x2f, 0]);
    }
    bytes
}

/// Notes by running status, 3 bytes each.
fn dense(events: usize, pitch: impl Fn(usize) -> u8, delta: u8) -> Vec<u8> {
    let mut track = vec![0, 0x90, 60, 64];
    (0..events).for_each(|i| track.extend([delta, pitch(i), 64]));
    track
}

fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let mut programs = vec![0, 0xff, 3, 100];
    programs.extend([b'n'; 100]);
    let mut pedals = vec![0, 0xb0, 64, 127];
    for i in 0..100_000u32 {
        let (channel, program) = ((i / 128 % 16) as u8, (i % 128) as u8);
        programs.extend([0, 0xc0 | channel, program, 0, 0x90 | channel, 60, 64]);
        pedals.extend([1, 0xc0, program, 0, 0xb0, 64, if i % 200 == 0 { 0 } else { 127 }]);
        pedals.extend([0, 0x90, 60, 64]);
    }
    let mut markers = Vec::new();
    (0..200_000).for_each(|_| markers.extend([1, 0xff, 6, 1, 0xe9]));
    let mut lyrics = Vec::new();
    (0..100_000).for_each(|_| lyrics.extend([1, 0xff, 5, 1, 0xe9, 0, 0xff, 1, 1, b'C']));
    let mut rests = Vec::new();
    (0..100).for_each(|_| rests.extend([0xff, 0xff, 0x7f, 0x90, 60, 64, 1, 60, 0]));
    vec![
        ("65,535 tracks of one note", file(&vec![vec![0, 0x90, 60, 64]; 65_535])),
        ("programs that change at each note", file(&[programs])),
        ("a pedal held over program changes", file(&[pedals])),
        ("200,000 markers", file(&[markers])),
        ("200,000 lyrics and texts", file(&[lyrics])),
        ("rests of 8 years", file(&[rests])),
        ("a million notes of one key", file(&[dense(1_000_000, |_| 60, 0)])),
        ("a million notes without ends", file(&[dense(1_000_000, |i| (i % 128) as u8, 1)])),
    ]
}

#[test]
fn peak_memory_is_at_most_64_megabytes_and_40_times_the_file() {
    if peak().is_none() {
        println!("skipped: this system does not tell its peak memory");
    }
    let mut bombs = bombs();
    bombs.sort_by_key(|(_, bytes)| bytes.len());
    // The bombs themselves are no part of what reading them costs.
    let before = peak().unwrap_or(0);
    for (name, bytes) in &bombs {
        let reading = Score::from_midi(bytes);
        let notes = reading.as_ref().map_or(0, |reading| reading.note_ons);
        if let Some(after) = peak() {
            let used = after.saturating_sub(before);
            let allowed = (64 << 20) + 40 * bytes.len();
            println!("{name}: {} bytes, {notes} notes, peak {} MB", bytes.len(), used >> 20);
            assert!(used <= allowed, "{name}: {used} bytes, {allowed} allowed");
        }
        let Ok(reading) = reading else { continue };
        for (scheme, _) in schemes() {
            let encoded = encoding(scheme).expect("a scheme").encode(&reading.score);
            let tokens = encoded.expect("an encodable score").tokens.len();
            // A day in steps of a second, 16,384 bars in sixteenths, or 62 tokens an item; held
            // notes of many voices.
            let items = 4 * bytes.len();
            let tells_held = ["polyphony", "satb", "satb-infill"].contains(scheme)
                || scheme.starts_with("pianoroll");
            let held = if tells_held { 1 << 20 } else { 0 };
            let allowed = 262_144 + held + 6 * notes + items;
            assert!(tokens <= allowed, "{name}: {scheme}: {tokens} tokens");
        }
        drop(reading);
    }
}
