//! What the reader makes of lawful oddities, and how it repairs what is not lawful.

use etude_tokenizer::{
    Error, Key, MAX_QUARTERS, Marker, Meter, Note, Pedal, Reading, Score, Tempo,
};

const END: [u8; 4] = [0, 0xff, 0x2f, 0];

/// A file with its tracks' events; each track gets its end.
fn file(format: u8, division: [u8; 2], tracks: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![b'M', b'T', b'h', b'd', 0, 0, 0, 6, 0, format, 0, tracks.len() as u8];
    bytes.extend(division);
    for track in tracks {
        bytes.extend(b"MTrk");
        bytes.extend((track.len() as u32 + 4).to_be_bytes());
        bytes.extend(*track);
        bytes.extend(END);
    }
    bytes
}

/// Reads one track at 96 ticks a quarter note.
fn read(track: &[u8]) -> Reading {
    Score::from_midi(&file(0, [0, 96], &[track])).unwrap()
}

fn spans(reading: &Reading) -> Vec<(u64, u64, u8)> {
    let notes = reading.score.tracks.iter().flat_map(|track| &track.notes);
    notes.map(|note| (note.tick, note.duration, note.pitch)).collect()
}

#[test]
fn a_note_off_ends_the_oldest_note_of_its_key() {
    let reading = read(&[0, 0x90, 60, 64, 10, 60, 64, 10, 60, 0, 10, 60, 0]);
    assert_eq!(spans(&reading), [(0, 20, 60), (10, 20, 60)]);
    assert!(reading.warnings.is_empty());
}

#[test]
fn zero_length_hanging_and_orphan_notes_are_repaired_and_told() {
    let reading = read(&[0, 0x90, 60, 64, 0, 60, 0, 5, 62, 64, 7, 61, 0]);
    assert_eq!(spans(&reading), [(0, 1, 60), (5, 7, 62)]);
    let told =
        ["no length is given one tick", "note-off of key 61 without", "key 62, channel 1, has no"];
    for (line, part) in reading.warnings.iter().zip(told) {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(reading.warnings.len(), 3);
}

#[test]
fn all_notes_off_ends_what_sounds_on_its_channel() {
    let reading = read(&[0, 0x90, 60, 64, 0, 0x91, 62, 64, 9, 0xb0, 123, 0, 3, 0x91, 62, 0]);
    assert_eq!(spans(&reading), [(0, 9, 60), (0, 12, 62)]);
    assert!(reading.warnings.is_empty());
}

#[test]
fn channels_and_programs_become_instruments_and_channel_10_drums() {
    let reading = read(&[
        0, 0xc0, 5, 0, 0x90, 60, 64, 4, 60, 0, 0, 0xc0, 6, 0, 0x90, 61, 64, 4, 61, 0, 0, 0x99, 36,
        64, 4, 36, 0,
    ]);
    let found: Vec<_> =
        reading.score.tracks.iter().map(|t| (t.program, t.is_drum, t.notes[0].pitch)).collect();
    assert_eq!(found, [(5, false, 60), (6, false, 61), (0, true, 36)]);
}

#[test]
fn a_program_set_in_another_track_holds_for_its_channel() {
    let bytes = file(1, [0, 96], &[&[0, 0xc3, 42], &[0, 0x93, 60, 64, 8, 60, 0]]);
    assert_eq!(Score::from_midi(&bytes).unwrap().score.tracks[0].program, 42);
}

#[test]
fn a_pedal_down_over_a_program_change_reaches_both_programs() {
    let reading = read(&[
        0, 0xc0, 5, 0, 0x90, 60, 64, 1, 0xb0, 64, 127, 4, 0x90, 60, 0, 0, 0xc0, 6, 0, 0x90, 62, 64,
        9, 62, 0, 2, 0xb0, 64, 0,
    ]);
    let pedals: Vec<_> = reading.score.tracks.iter().map(|t| t.pedals.clone()).collect();
    let at = |tick, value| Pedal { tick, value };
    assert_eq!(pedals, [vec![at(1, 127), at(16, 0)], vec![at(5, 127), at(16, 0)]]);
}

#[test]
fn signatures_tempos_markers_and_names_are_read() {
    let reading = read(&[
        0, 0xff, 3, 2, 0xe9, 7, 0, 0xff, 0x51, 3, 6, 0x1a, 0x80, 0, 0xff, 0x58, 4, 6, 3, 36, 8, 0,
        0xff, 0x59, 2, 0xfd, 1, 96, 0xff, 6, 1, b'B', 0, 0x90, 60, 64, 8, 60, 0,
    ]);
    let score = &reading.score;
    assert_eq!(score.tracks[0].name, "é");
    assert_eq!(score.tempos, [Tempo { tick: 0, micros_per_quarter: 400_000 }]);
    assert_eq!(score.meters, [Meter { tick: 0, numerator: 6, denominator: 8 }]);
    assert_eq!(score.keys, [Key { tick: 0, sharps: -3, minor: true }]);
    assert_eq!(score.markers, [Marker { tick: 96, text: "B".into() }]);
    assert!(reading.warnings.is_empty());
    assert_eq!(Score::from_midi(&score.to_midi()).unwrap().score, *score);
}

#[test]
fn smpte_frames_become_ticks_of_a_second() {
    let track = [0, 0x90, 60, 64, 0x87, 0x68, 60, 0];
    // 25 frames of 40 ticks: 1,000 ticks are a second.
    let reading = Score::from_midi(&file(0, [0xe7, 40], &[&track])).unwrap();
    assert_eq!((reading.ticks_per_quarter, reading.score.seconds()), (1000, 1.0));
    // 29.97 frames of 100 ticks: 3,000 ticks are 1.001 seconds.
    let reading = Score::from_midi(&file(0, [0xe3, 100], &[&track])).unwrap();
    assert!((reading.score.seconds() - 1.001 / 3.0).abs() < 1e-12);
    assert!(reading.warnings[0].contains("SMPTE"));
    for (frames, ticks) in [(0x80, 80), (0xff, 1), (0xe2, 0)] {
        assert!(Score::from_midi(&file(0, [frames, ticks], &[&track])).is_err());
    }
    assert!(Score::from_midi(&file(0, [0, 0], &[&track])).is_err());
}

#[test]
fn tracks_of_format_2_follow_one_another_at_their_own_tempos() {
    let first = [0, 0xff, 0x51, 3, 3, 0xd0, 0x90, 0, 0x90, 60, 64, 96, 60, 0];
    let second = [0, 0x90, 62, 64, 96, 62, 0];
    let reading = Score::from_midi(&file(2, [0, 96], &[&first, &second])).unwrap();
    assert_eq!(spans(&reading), [(0, 96, 60), (96, 96, 62)]);
    // 250,000 microseconds for the first quarter, the default for the second.
    assert_eq!(reading.score.seconds(), 0.75);
}

#[test]
fn header_and_chunk_lengths_are_checked_against_what_follows() {
    let good = file(1, [0, 96], &[&[0, 0x90, 60, 64, 8, 60, 0], &[0, 0x90, 62, 64, 8, 62, 0]]);
    let expected = [(0, 8, 60), (0, 8, 62)];
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let reading = Score::from_midi(&bytes).unwrap();
        assert_eq!(spans(&reading), expected);
        reading.warnings
    };
    assert!(changed(&|_| ()).is_empty());
    let longer = |bytes: &mut Vec<u8>| {
        bytes[7] = 8;
        drop(bytes.splice(14..14, [1, 2]));
    };
    assert!(changed(&longer).is_empty());
    assert!(changed(&|bytes| bytes[7] = 9)[0].contains("header"));
    assert!(changed(&|bytes| bytes[21] = 3)[0].contains("track 1 says it is 3 bytes long"));
    assert!(changed(&|bytes| bytes[21] = 200)[0].contains("promises 200 bytes"));
    assert!(changed(&|bytes| bytes[11] = 7)[0].contains("promises 7 tracks, 2 were read"));
    assert!(
        changed(&|bytes| bytes.extend([0, 1, 2]))[0].contains("3 bytes that belong to no chunk")
    );
    assert!(changed(&|bytes| drop(bytes.splice(0..0, [7; 30])))[0].contains("30 bytes of junk"));
    let alien = |bytes: &mut Vec<u8>| drop(bytes.splice(14..14, *b"XFIH\0\0\0\x02ab"));
    assert!(changed(&alien).is_empty());
}

#[test]
fn every_shortening_of_a_file_is_an_error_or_told() {
    let good = file(1, [0, 96], &[&[0, 0x90, 60, 64, 8, 60, 0], &[0, 0x90, 62, 64, 8, 62, 0]]);
    for length in 0..good.len() {
        if let Ok(reading) = Score::from_midi(&good[..length]) {
            assert!(!reading.warnings.is_empty(), "{length} bytes");
        }
    }
    assert!(Score::from_midi(&good).unwrap().warnings.is_empty());
}

#[test]
fn faults_of_events_are_told_and_what_stands_before_them_is_kept() {
    let note = [0, 0x90, 60, 64, 8, 60, 0];
    for (fault, told) in [
        (&[0, 0xff, 0x51, 2, 1, 1][..], "tempo event of 2 bytes"),
        (&[0, 0xff, 0x51, 3, 0, 0, 0], "tempo of 0"),
        (&[0, 0xff, 0x58, 4, 4, 64, 24, 8], "2^64"),
        (&[0, 0xff, 0x58, 4, 4, 200, 24, 8], "2^200"),
        (&[0, 0xff, 0x58, 4, 0, 2, 24, 8], "0 beats"),
        (&[0, 0xff, 0x59, 2, 8, 0], "8 sharps"),
        (&[0, 0xff, 0x59, 2, 0, 2], "mode 2"),
        (&[0, 0xff, 0x59, 1, 0], "key signature event of 1 bytes"),
        (&[0, 0xff, 0x54, 5, 31, 0, 0, 0, 0], "SMPTE offset"),
        (&[0, 0xff, 0x80, 0], "type 0x80"),
        (&[0, 0xf8], "0xf8"),
        (&[0, 0xf4], "0xf4"),
        (&[0, 0xf0, 2, 1, 2], "system exclusive"),
        (&[0, 0xff, 1, 0, 0, 60, 64], "without status"),
        (&[0, 0x90, 0x90, 60], "data byte"),
        (&[0x80, 0x80, 0x80, 0x80, 0], "longer than 4 bytes"),
        (&[0, 0xf0, 0x7f, 1], "127 bytes where"),
    ] {
        let reading = read(&[&note[..], fault].concat());
        assert_eq!(spans(&reading)[0], (0, 8, 60), "{told}");
        assert!(
            reading.warnings.iter().any(|line| line.contains(told)),
            "{told}: {:?}",
            reading.warnings
        );
    }
}

#[test]
fn ends_of_tracks_early_late_and_missing_are_told() {
    let early = read(&[0, 0x90, 60, 64, 8, 60, 0, 0, 0xff, 0x2f, 0, 0, 0x90, 62, 64]);
    assert_eq!(spans(&early), [(0, 8, 60)]);
    assert!(early.warnings[0].contains("after the end-of-track"));
    let mut missing = file(0, [0, 96], &[&[0, 0x90, 60, 64, 8, 60, 0]]);
    missing.truncate(missing.len() - 4);
    missing[21] -= 4;
    let missing = Score::from_midi(&missing).unwrap();
    assert!(missing.warnings[0].contains("without an end-of-track"));
}

#[test]
fn wrappers_are_taken_off_however_many_they_are() {
    let mut bytes = file(0, [0, 96], &[&[0, 0x90, 60, 64, 8, 60, 0]]);
    let wrap = |inner: &[u8], list: bool| {
        let mut body = b"RMID".to_vec();
        if list {
            body.extend(b"LIST\x03\0\0\0abc\0");
        }
        body.extend(b"data");
        body.extend((inner.len() as u32).to_le_bytes());
        body.extend(inner);
        [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
    };
    bytes = wrap(&bytes, true);
    assert!(Score::from_midi(&bytes).unwrap().warnings.is_empty());
    for _ in 0..2_000 {
        bytes = wrap(&bytes, false);
    }
    let reading = Score::from_midi(&bytes).unwrap();
    assert_eq!(spans(&reading), [(0, 8, 60)]);
    assert!(reading.warnings[0].contains("wrapped"));
    assert!(Score::from_midi(b"RIFF\x04\0\0\0WAVE").is_err());
}

#[test]
fn a_piece_of_years_is_refused_in_quarters_not_ticks() {
    // 2^28 - 1 ticks of rest, forty times.
    let mut track = Vec::new();
    for _ in 0..40 {
        track.extend([0xff, 0xff, 0xff, 0x7f, 0xff, 1, 0]);
    }
    track.extend([0, 0x90, 60, 64, 1, 60, 0]);
    let error = Score::from_midi(&file(0, [0, 96], &[&track])).unwrap_err();
    assert!(matches!(&error, Error::Midi { why } if why.contains(&MAX_QUARTERS.to_string())));
    // The same ticks in the finest division are 327,690 quarters.
    let reading = Score::from_midi(&file(0, [0x7f, 0xff], &[&track])).unwrap();
    assert_eq!(reading.note_ons, 1);
    assert_eq!(Score::from_midi(&reading.score.to_midi()).unwrap().score, reading.score);
}

#[test]
fn an_orchestra_keeps_its_instruments_apart_in_a_file() {
    let mut score = Score::new(480);
    for program in 0..40 {
        let notes = vec![Note { tick: 0, duration: 9, pitch: 60, velocity: 80 }];
        score.tracks.push(etude_tokenizer::Track { program, notes, ..Default::default() });
    }
    assert_eq!(Score::from_midi(&score.to_midi()).unwrap().score, score);
}

#[cfg(all(unix, feature = "files"))]
mod files {
    use super::*;
    use etude_tokenizer::read_file;
    use std::path::{Path, PathBuf};

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("etude-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn refusal(path: &Path) -> String {
        read_file(path).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_named() {
        let folder = folder("kinds");
        let fifo = folder.join("fifo.mid");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(refusal(&fifo).ends_with("fifo.mid: not a regular file"));
        } else {
            println!("skipped: no mkfifo");
        }
        let endless = folder.join("endless.mid");
        std::os::unix::fs::symlink("/dev/zero", &endless).unwrap();
        assert!(refusal(&endless).ends_with("endless.mid: not a regular file"));
        assert!(refusal(&folder).ends_with("a folder where a file is wanted"));
        assert!(refusal(&folder.join("no\x1b[31m.mid")).contains("no\\u{1b}[31m.mid: "));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_above_the_ceiling_is_refused_unread() {
        let folder = folder("size");
        let path = folder.join("huge.mid");
        // A file with a hole: it takes no room on the disk.
        std::fs::File::create(&path).unwrap().set_len(etude_tokenizer::MAX_FILE_BYTES + 1).unwrap();
        assert!(refusal(&path).contains("at most 67108864 are read"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_is_read_by_its_path_and_its_faults_carry_its_name() {
        let folder = folder("path");
        let path = folder.join("a song.mid");
        std::fs::write(&path, file(0, [0, 96], &[&[0, 0x90, 60, 64, 8, 60, 0]])).unwrap();
        assert_eq!(read_file(&path).unwrap().note_ons, 1);
        std::fs::write(&path, b"not music").unwrap();
        assert!(refusal(&path).contains("a song.mid: not a MIDI file"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
